"""The commands of a conversation, such as /compare, and the lines of its answers."""

import re
import textwrap
from collections.abc import Callable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from lorakit.errors import SpecError
from lorakit.text import add_hint, near_misses, plural

if TYPE_CHECKING:
    from lorakit.evaluate.conversation import Conversation

SIDE_BY_SIDE = 80  # columns of a terminal from which two texts stand beside each other
WORDS = re.compile(r"\n|[^\S\n]+|\S+")


class Command(NamedTuple):
    """A command: its argument and purpose in the help, and its function."""

    argument: str
    purpose: str
    run: Callable[["Conversation", str, int], str]


def handle(conversation: "Conversation", line: str, width: int) -> str:
    """Run a command and return its output.

    Args:
        conversation: is changed in place.
        line: the command, which begins with /, and its argument.
        width: columns of the output.

    Raises:
        SpecError: there is no such command, or its argument is not possible.
    """
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        message = add_hint(f"There is no command {name}.", near_misses(name, COMMANDS))
        raise SpecError(message, advice="/help lists the commands.")
    return COMMANDS[name].run(conversation, argument.strip(), width)


def _switch_adapter(conversation: "Conversation", name: str, width: int) -> str:
    if name:
        conversation.use(name)
    marks = {one: "*" if one == conversation.name else " " for one in conversation.voices}
    return "\n".join(f"{mark} {one}" for one, mark in marks.items())


def _compare(conversation: "Conversation", text: str, width: int) -> str:
    return format_columns(conversation.compare(text), width)


def _save(conversation: "Conversation", name: str, width: int) -> str:
    from lorakit.files import check_new_file, write_json_lines

    if not name:
        raise SpecError("A file is needed.", advice="/save FILE.")
    rows = conversation.to_rows()
    if not rows:
        raise SpecError("Nothing was said yet.", advice="Nothing was written.")
    path = Path(name).expanduser()
    check_new_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, rows)
    return f"{plural(len(rows), 'row')} in {path}, as train reads them"


def _reset(conversation: "Conversation", text: str, width: int) -> str:
    conversation.reset()
    return "The conversation begins anew."


def _set_system(conversation: "Conversation", text: str, width: int) -> str:
    conversation.set_system(text)
    return f"System prompt: {text}" if text else "There is no system prompt."


def _help(conversation: "Conversation", text: str, width: int) -> str:
    lines = []
    for name, command in COMMANDS.items():
        call = f"{name} {command.argument}".strip()
        lines.append(f"{call:<16} {command.purpose}")
    return "\n".join(lines)


COMMANDS = {
    "/adapter": Command("[NAME]", "answer with this adapter; none is the base", _switch_adapter),
    "/compare": Command("[TEXT]", "base and adapter answer the last turn, or a text", _compare),
    "/save": Command("FILE", "write the conversation as a row to train on", _save),
    "/system": Command("[TEXT]", "set the system prompt, or remove it", _set_system),
    "/reset": Command("", "forget the conversation", _reset),
    "/help": Command("", "list the commands", _help),
}


def format_columns(texts: Mapping[str, str], width: int) -> str:
    """Return two texts in columns beside each other, each under its name.

    On a narrow screen one stands below the other.

    >>> print(format_columns({"none": "one", "mine": "two"}, 79))
    --- none
    one
    <BLANKLINE>
    --- mine
    two
    """
    if width < SIDE_BY_SIDE:
        return "\n\n".join(f"--- {name}\n{text}" for name, text in texts.items())
    room = (width - 3) // 2
    columns = [[name, "─" * room, *_wrap(text, room)] for name, text in texts.items()]
    lines = []
    for left, right in zip_longest(*columns, fillvalue=""):
        lines.append(f"{left:<{room}} │ {right}".rstrip())
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, width) or [""]
    return lines


class Writer:
    """A stream of words: each piece is shown at once, and lines are broken between words.

    Args:
        stream: gets the text.
        width: columns of a line.
    """

    def __init__(self, stream: TextIO, width: int):
        self.stream, self.width = stream, width
        self.column, self.is_begun = 0, False
        self.space = ""  # after the last word: not written at the end of a line

    def write(self, piece: str) -> None:
        """Write a piece of text, without the white space before the first word."""
        for word in WORDS.findall(piece):
            if word == "\n":
                self._break_line()
            elif word.isspace():
                self.space += word if self.column else ""
            else:
                self._add(word)
        self.stream.flush()

    def _add(self, word: str) -> None:
        if self.column + len(self.space) + len(word) > self.width:
            self._break_line()
        self.stream.write(f"{self.space}{word}")
        self.column += len(self.space) + len(word)
        self.space = ""
        self.is_begun = True

    def _break_line(self) -> None:
        if self.is_begun:
            self.stream.write("\n")
        self.column, self.space = 0, ""
