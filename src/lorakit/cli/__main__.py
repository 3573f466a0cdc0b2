"""`lorakit <command>`: the module of a command is imported when it runs."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any, NamedTuple, Protocol, cast

from lorakit.cli.flags import HelpFormatter, Parser
from lorakit.errors import LorakitError, SpecError
from lorakit.text import (
    add_hint,
    lasting_stderr,
    line_width,
    near_misses,
    print_message,
    wrap_lines,
)

FAILED, INTERRUPTED = 1, 130
TRACEBACK = "LORAKIT_TRACEBACK"


class Command(NamedTuple):
    """A command: its module, its purpose, and its positional arguments as the usage shows them."""

    module: str
    purpose: str
    arguments: str = ""


class Module(Protocol):
    """The functions of a command's module."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        ...

    def run(self, args: argparse.Namespace) -> Mapping[str, object]:
        """Do the work, and return the JSON object of the result."""
        ...

    def show(self, result: Any) -> None:  # noqa: ANN401  each command has its own type of result
        """Print the result of `run` for people."""
        ...


COMMANDS = {
    "train": Command("train", "train an adapter, and write it to a folder with a report"),
    "eval": Command("evaluate", "score a model on a data set, with or without an adapter"),
    "generate": Command("generate", "generate text, with or without an adapter"),
    "chat": Command("chat", "talk to a model in the terminal, with and without adapters"),
    "preview": Command("preview", "show a data set as training reads it, before any step is run"),
    "plan": Command("plan", "predict parameters, memory and time, before anything is loaded"),
    "rank": Command("rank", "search for the smallest rank that is good enough"),
    "inspect": Command("inspect", "analyse an adapter, or list the layers of a model", "SUBJECT"),
    "resize": Command("resize", "reduce the ranks of an adapter", "ADAPTER"),
    "combine": Command("combine", "add adapters up, each with a weight", "ADAPTER:WEIGHT [...]"),
    "extract": Command("extract", "make an adapter from a full fine-tune of a model"),
    "merge": Command("merge", "merge an adapter into its base, and write a plain model"),
    "init": Command("init", "write a commented YAML file of all settings of train", "[FILE]"),
    "completion": Command("completion", "write a script that completes words in a shell", "SHELL"),
    "explain": Command("explain", "explain LoRA with worked examples", "[TOPIC ...]"),
}
VERBATIM = ("preview", "completion")  # commands that print data, whose lines are not broken
HELP = """usage: lorakit COMMAND [flags]

Train, inspect, evaluate and merge low-rank adapters (LoRA) of PyTorch models.

commands:
{commands}

`lorakit COMMAND --help` lists the flags of a command,
`lorakit --version` prints the version.
"""


def load_command(name: str) -> Module:
    """Return the module of a command."""
    return cast(Module, import_module(f"lorakit.cli.{COMMANDS[name].module}"))


def parser_for(name: str) -> argparse.ArgumentParser:
    """Return the parser of one command, with the flags that all commands share."""
    command = COMMANDS[name]
    words = ["lorakit", name, command.arguments, "[flags]"]
    parser = Parser(
        prog=f"lorakit {name}",
        usage=" ".join(word for word in words if word),
        description=f"{command.purpose[0].upper()}{command.purpose[1:]}.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    load_command(name).add_flags(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print the result as one JSON object on stdout, and nothing else",
    )
    return parser


def main_help() -> str:
    """Return the help of lorakit itself."""
    lines = [f"  {name:<10} {command.purpose}" for name, command in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines))


def help_pages() -> dict[str, str]:
    """Return the help text of every command; "" is lorakit's own."""
    return {"": main_help(), **{name: parser_for(name).format_help() for name in COMMANDS}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Returns:
        0 done, 2 wrong request, 1 failed while running, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Forks of tokenizers warn on stderr without this.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with lasting_stderr():
        try:
            code = _answer(words, as_json="--json" in words)
            print(end="", flush=True)
            return code
        except BrokenPipeError:
            # The reader of stdout went away, as `head` does.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED


def _answer(words: list[str], *, as_json: bool) -> int:
    """Run a command or tell why not; return the exit code."""
    try:
        return _run(words, as_json)
    except LorakitError as error:
        _print_error(error, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        # Of the machine: a full disk, a folder that went away.
        advice = (
            "Is there room on the disk, and may you read and write there? "
            f"{TRACEBACK}=1 shows where it happened."
        )
        return _fail(error, advice, as_json)
    except Exception as error:
        return _fail(error, f"{TRACEBACK}=1 shows where. Please report it.", as_json)


def _run(words: list[str], as_json: bool) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(main_help(), end="")
        return 0 if words else 2
    if words[0] in ("--version", "-V"):
        import lorakit

        print(f"lorakit {lorakit.__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        message = add_hint(f"There is no command {name!r}.", near_misses(name, COMMANDS))
        raise SpecError(message, advice=f"Commands: {', '.join(COMMANDS)}.")
    args = parser_for(name).parse_args(rest)
    args.as_json = args.__dict__.pop("json", False)
    from lorakit.cli.quiet import silence_libraries

    silence_libraries()
    command = load_command(name)
    result = command.run(args)
    if as_json:
        print(json.dumps(result, default=str))
    else:
        _show(name, result)
    return 0


class Page(StringIO):
    """What a command prints, for a terminal of so many columns."""

    def __init__(self, columns: int, *, is_terminal: bool):
        super().__init__()
        self.columns = columns
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        """Return True if it is for a terminal, which shows colours."""
        return self.is_terminal


def _show(name: str, result: Mapping[str, object]) -> None:
    """Print the result of a command for people, with lines that fit."""
    command = load_command(name)
    width = line_width(sys.stdout)
    if width is None or name in VERBATIM:
        command.show(result)
        return
    with redirect_stdout(Page(width, is_terminal=sys.stdout.isatty())) as page:
        command.show(result)
    print(wrap_lines(page.getvalue(), width), end="")


def _fail(error: Exception, advice: str, as_json: bool) -> int:
    """Print an error that is not one of ours, without a traceback unless one is asked for."""
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    _print_error(LorakitError(f"{type(error).__name__}: {error}", advice=advice), as_json)
    return FAILED


def _print_error(error: LorakitError, as_json: bool) -> None:
    kind = "error" if type(error) is LorakitError else type(error).__name__
    if as_json:
        fields = {"message": error.message, "faults": error.faults, "advice": error.advice}
        print(json.dumps({"error": kind, **fields}))
    print_message(f"{kind}: {error}")


if __name__ == "__main__":
    sys.exit(main())
