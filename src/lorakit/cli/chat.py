"""`lorakit chat`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.chat_commands import COMMANDS, Writer, handle
from lorakit.cli.request import ModelRequest, require
from lorakit.errors import (
    NOT_STARTED,
    DataError,
    LorakitError,
    MissingExtra,
    SpecError,
    install_line,
)
from lorakit.evaluate.decoding import Decoding
from lorakit.spec import option
from lorakit.text import line_width, print_message

if TYPE_CHECKING:
    from lorakit.cli.results import ChatResult
    from lorakit.evaluate.conversation import Conversation

BASE = "none"
COLUMNS = 80
PLAIN = (
    "note: {model} has no chat template: each line is continued as it stands, for itself. "
    "--template chatml, or a file, makes a conversation of the lines."
)


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """The adapters to talk to, and how the conversation begins."""

    adapters: tuple[str, ...] = option(
        (),
        "one or more adapters: FOLDER, or NAME=FOLDER; the last one answers first",
        several=True,
        metavar="FOLDER",
        flag="--adapter",
    )
    system: str = option("", "system prompt")
    seed: int = option(0, "seed of sampling", least=0)


def add_flags(parser: argparse.ArgumentParser) -> None:
    known = {one.name for one in fields(ModelRequest)} - {"adapter"}
    flags.add_fields(parser, ModelRequest, "the model", only=known)
    flags.add_fields(parser, ChatRequest, "the conversation")
    flags.add_fields(parser, Decoding, "generation")


def run(args: argparse.Namespace) -> "ChatResult":
    model_values, chat, decoding = flags.read_settings(args, ModelRequest, ChatRequest, Decoding)
    require(model_values, ModelRequest)
    model, request, how = ModelRequest(**model_values), ChatRequest(**chat), Decoding(**decoding)
    folders = name_adapters(request.adapters)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal and find_spec("prompt_toolkit") is None:
        raise MissingExtra(
            "A chat needs prompt_toolkit, which is not installed.", advice=install_line("chat")
        )
    conversation = _open(model, folders, request, how)
    if not conversation.is_chat:
        print_message(PLAIN.format(model=model.model))
    if is_terminal:
        _talk(conversation)
    else:
        _answer_lines(conversation, sys.stdin, quiet=args.as_json)
    rows = conversation.to_rows()
    return {"rows": rows, "model": model.model, "adapters": {**folders}}


def name_adapters(given: Iterable[str]) -> dict[str, str]:
    """Return the folders of adapters by name: as given, or that of the folder.

    Raises:
        SpecError: two have the same name, or one has that of the base alone.

    >>> name_adapters(["runs/german/", "old=runs/1/german"])
    {'german': 'runs/german/', 'old': 'runs/1/german'}
    """
    folders: dict[str, str] = {}
    faults = []
    for text in given:
        name, separator, folder = text.partition("=")
        if not separator or Path(text).exists():
            name, folder = Path(text).absolute().name, text
        if name in folders:
            faults.append(f"{folder}: {name!r} is {folders[name]} already")
        elif name == BASE:
            faults.append(f"{folder}: {BASE!r} stands for the base alone")
        folders[name] = folder
    if faults:
        raise SpecError(
            "adapter: names that cannot be told apart.",
            faults,
            f"Name them: --adapter first=FOLDER second=FOLDER. {NOT_STARTED}",
        )
    return folders


def _open(
    model: ModelRequest, folders: Mapping[str, str], request: ChatRequest, decoding: Decoding
) -> "Conversation":
    """Load the base and the adapters, and return the conversation that begins."""
    from lorakit.adapter import Adapter
    from lorakit.data.template_files import set_template
    from lorakit.evaluate.conversation import Conversation, Voice
    from lorakit.models.open import add_adapter

    adapters = {name: Adapter.load(folder) for name, folder in folders.items()}
    model.load_adapter()  # sets the number of threads
    base = model.open(None, "causal-lm")
    voices = {BASE: Voice(base, None)}
    for number, (name, adapter) in enumerate(adapters.items()):
        attached_as = f"chat-{number}"
        loaded = add_adapter(
            base,
            adapter,
            attached_as,
            any_base=model.any_base,
            trust_remote_code=model.trust_remote_code,
            say=print_message,
        )
        if model.template:
            set_template(loaded.tokenizer, model.template)
        voices[name] = Voice(loaded, attached_as)
    conversation = Conversation(voices, decoding, request.seed)
    if request.system:
        conversation.set_system(request.system)
    return conversation


def _answer_lines(conversation: "Conversation", lines: Iterable[str], *, quiet: bool) -> None:
    """Answer the lines of a file or a pipe; each answer is printed as a whole."""
    say: Callable[[str], None] = (lambda text: None) if quiet else _print_at_once
    for line in lines:
        if line.strip().startswith("/"):
            say(handle(conversation, line.strip(), COLUMNS))
        elif line.strip():
            say(conversation.answer(line.strip()).text)


def _print_at_once(text: str) -> None:
    print(text, flush=True)


def _talk(conversation: "Conversation") -> None:
    """Talk in a terminal until Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    words = [*COMMANDS, *(f"/adapter {name}" for name in conversation.voices)]
    completer = WordCompleter(words, sentence=True)
    session = PromptSession[str](completer=completer, complete_while_typing=False)
    print("/help lists the commands. Ctrl-C stops an answer, Ctrl-D ends.")
    while True:
        try:
            line = session.prompt(f"{conversation.name}> ").strip()
            if line:
                _respond(conversation, line)
        except DataError as error:
            print_message(f"DataError: {error}\n/reset forgets the turns so far.")
        except LorakitError as error:
            print_message(f"{type(error).__name__}: {error}")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _respond(conversation: "Conversation", line: str) -> None:
    """Print the result of a command, or an answer as it comes."""
    width = line_width(sys.stdout) or COLUMNS
    if line.startswith("/"):
        print(handle(conversation, line, width))
        return
    writer = Writer(sys.stdout, width)
    answer = conversation.answer(line, writer.write)
    print("" if answer.is_complete else " [stopped]")


def show(result: "ChatResult") -> None:
    """Print nothing: all was said in the conversation."""
