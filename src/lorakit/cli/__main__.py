"""`lorakit <command>`: each name leads to a module that is imported when it is asked for."""

import argparse
import json
import os
import sys
import traceback
from importlib import import_module
from typing import Any

from lorakit.cli.flags import Parser
from lorakit.errors import LorakitError, SpecError
from lorakit.text import near_misses

COMMANDS = {  # name -> (module in this package, what it does)
    "train": ("train", "train an adapter and write it, with a report, to a folder"),
    "eval": (
        "evaluate",
        "loss and perplexity, or accuracy, F1 and correlations, with or without an adapter",
    ),
    "generate": ("generate", "what a model writes after a prompt, with or without an adapter"),
    "preview": (
        "preview",
        "which tokens are trained, what is cut, how long rows are: before a step is spent",
    ),
    "plan": (
        "plan",
        "parameters, memory by part, time and what fits where, before anything is downloaded or run",
    ),
    "rank": (
        "rank",
        "which rank is enough: one run, a curve of quality by rank, a recommendation, the small adapter",
    ),
    "inspect": (
        "inspect",
        "what is in an adapter; or, with --targets, what of a model can be named",
    ),
    "resize": (
        "resize",
        "a smaller adapter: the best of a rank, of an energy, or under a budget, with its error",
    ),
    "combine": (
        "combine",
        "one adapter that does the weighted sum of what several do: exact, TIES, DARE or pruned",
    ),
    "extract": ("extract", "an adapter out of a full fine-tune, with its error"),
    "merge": ("merge", "a plain model on disk, read back and compared before it is called done"),
    "explain": (
        "explain",
        "how LoRA works: worked examples with their numbers, and what is often said and not so",
    ),
}


def parser_for(command: str) -> argparse.ArgumentParser:
    """Return the parser of one command, with the flags that all commands share."""
    module, text = COMMANDS[command]
    parser = Parser(
        prog=f"lorakit {command}", description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    import_module(f"lorakit.cli.{module}").add(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print one JSON object on stdout, and nothing else there",
    )
    return parser


def main_help() -> str:
    rows = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    return (
        f"usage: lorakit <command> [flags]\n\nLow-rank adaptation (LoRA) of any PyTorch model.\n\ncommands:\n{rows}\n\n"
        "`lorakit <command> --help` tells the flags of one; `lorakit --version` the version.\n"
    )


def help_pages() -> dict[str, str]:
    """Return the help text of every command; "" is lorakit's own."""
    return {"": main_help(), **{name: parser_for(name).format_help() for name in COMMANDS}}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 wrong request, 1 failed while running, 130
    interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    as_json = "--json" in argv
    # Models come from the hub by name alone; its library's warnings about symlinks or accounts say
    # nothing of the work.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _run(argv, as_json)
    except LorakitError as error:
        _tell(error, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # the machine's, not ours: a full disk, a folder that went away
        if os.environ.get("LORAKIT_TRACEBACK"):
            traceback.print_exc()
        advice = "Is there room on the disk, and may you read and write there? LORAKIT_TRACEBACK=1 shows where it happened."
        _tell(LorakitError(f"{type(error).__name__}: {error}", advice=advice), as_json)
        return 1
    except Exception as error:  # the last resort: no traceback for a user, unless asked for
        if os.environ.get("LORAKIT_TRACEBACK"):
            traceback.print_exc()
        advice = "LORAKIT_TRACEBACK=1 shows where. Please report it."
        _tell(LorakitError(f"{type(error).__name__}: {error}", advice=advice), as_json)
        return 1


def _run(argv: list[str], as_json: bool) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(main_help(), end="")
        return 0 if argv else 2
    if argv[0] in ("--version", "-V"):
        import lorakit

        print(f"lorakit {lorakit.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise SpecError(
            f"There is no command {argv[0]!r}. {near_misses(argv[0], COMMANDS)}".rstrip(),
            advice=f"Commands: {', '.join(COMMANDS)}.",
        )
    args = parser_for(argv[0]).parse_args(argv[1:])
    module = import_module(f"lorakit.cli.{COMMANDS[argv[0]][0]}")
    args.__dict__.pop("json", None)
    from lorakit.cli import quieting

    quieting.calm()
    result: dict[str, Any] = module.main(args)
    if as_json:
        print(json.dumps(result, default=str))
    else:
        module.show(result)
    return 0


def _tell(error: LorakitError, as_json: bool) -> None:
    kind = "error" if type(error) is LorakitError else type(error).__name__
    if as_json:
        print(
            json.dumps(
                {
                    "error": kind,
                    "message": error.message,
                    "faults": error.faults,
                    "advice": error.advice,
                }
            )
        )
    print(f"{kind}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
