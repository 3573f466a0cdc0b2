"""Docstrings and signatures as Markdown."""

import ast
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from api_links import Links
from staging import CODE, split_at

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
NOTE = re.compile(r"^(Source|Cost): ", re.MULTILINE)
SPECIAL = re.compile(r"([\\*_\[\]<|#~^])")
TITLES = {"parameters": "Arguments", "attributes": "Attributes"}
STARS = {"variadic positional": "*", "variadic keyword": "**"}
EMPTY_VALUES = {"dict": "{}", "list": "[]", "tuple": "()"}  # by the factory that makes them
WIDTH = 88


class TextWriter:
    """A writer of docstrings on one page, whose names become links.

    Args:
        links: to all API pages.
        page: the page that the text is on.
        near: module whose names may be written without its path.
    """

    def __init__(self, links: Links, page: str, near: str = ""):
        self.links = links
        self.page = page
        self.near = near

    def format_words(self, text: str) -> str:
        """Return words of a docstring so that Markdown shows them unchanged, code as links."""
        pieces = []
        for is_code, piece in split_at(text, CODE):
            if is_code:
                pieces.append(self.links.link(piece, self.page, self.near))
            else:
                pieces.append(SPECIAL.sub(r"\\\1", piece))
        return "".join(pieces)

    def format_text(self, text: str) -> str:
        """Return a text of a docstring: words, and its examples as code."""
        pieces = []
        for is_doctest, piece in split_at(text, DOCTEST):
            if is_doctest:
                pieces.append(f"\n```pycon\n{piece.rstrip()}\n```\n")
            else:
                pieces.append(NOTE.sub(r"\n**\1.** ", self.format_words(piece)))
        return "".join(pieces).strip()

    def format_list(self, items: Iterable[tuple[str, str]]) -> str:
        """Return a list of names with their descriptions."""
        lines = []
        for name, text in items:
            words = self.format_words(join_lines(text))
            lines.append(f"{name}\n:   {words}\n")
        return "\n".join(lines)

    def format_docstring(self, thing: Any) -> str:
        """Return the docstring of a module, function or class, section by section."""
        if not thing.docstring:
            return ""
        return "\n\n".join(
            self._format_section(section, thing.path) for section in thing.docstring.parse("google")
        )

    def _format_section(self, section: Any, path: str) -> str:
        kind, value = section.kind.value, section.value
        if kind == "text":
            return self.format_text(value)
        if kind in TITLES:
            items = [(f"`{item.name}`", item.description) for item in value]
            return f"**{TITLES[kind]}**\n\n{self.format_list(items)}"
        if kind == "raises":
            return f"**Raises**\n\n{self.format_list(self._link_errors(value))}"
        if kind in ("returns", "yields"):
            text = join_lines(" ".join(_describe_result(item) for item in value))
            return f"**{kind.capitalize()}** {self.format_text(text)}"
        if kind == "admonition":
            text = self.format_text(f"{section.title} {value.description}")
            return f"**{value.annotation.capitalize()}.** {text}"
        raise ValueError(f"{path}: a section of kind {kind!r} is not known")

    def _link_errors(self, items: Iterable[Any]) -> Iterator[tuple[str, str]]:
        for item in items:
            name = self.links.link(f"`{item.annotation}`", self.page, "lorakit.errors")
            yield name, item.description


def join_lines(text: str) -> str:
    """Return a text as one line."""
    return " ".join(text.split())


def _describe_result(item: Any) -> str:
    return f"{item.name}: {item.description}" if item.name else item.description


def fence_python(code: str) -> str:
    """Return code as a block of Python."""
    return f"```python\n{code}\n```"


def format_function(function: Any, name: str) -> str:
    """Return the signature of a function as a block of code."""
    result = "" if function.returns is None else f" -> {function.returns}"
    return fence_python(_format_call(name, function, result))


def format_class(cls: Any, name: str, *, has_fields: bool) -> str:
    """Return the head of a class as a block of code: its arguments or its bases."""
    init = cls.members.get("__init__")
    if init is not None and not has_fields:
        return fence_python(_format_call(f"class {name}", init, ""))
    bases = [str(base) for base in cls.bases]
    if has_fields:
        bases.insert(0, "…")
    arguments = f"({', '.join(bases)})" if bases else ""
    return fence_python(f"class {name}{arguments}")


def _format_call(name: str, function: Any, result: str) -> str:
    """Return a signature; a long one has a line for each argument."""
    arguments = list(_format_arguments(function.parameters))
    line = f"{name}({', '.join(arguments)}){result}"
    if len(line) <= WIDTH:
        return line
    lines = [f"    {argument},\n" for argument in arguments]
    return f"{name}(\n{''.join(lines)}){result}"


def _format_arguments(parameters: Iterable[Any]) -> Iterator[str]:
    """Yield the arguments, and a `*` before the first one that is only given by name."""
    has_star = False
    for position, parameter in enumerate(parameters):
        if position == 0 and parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind.value
        if kind == "keyword-only" and not has_star:
            yield "*"
        has_star = has_star or kind in ("keyword-only", "variadic positional")
        yield _format_argument(parameter, STARS.get(kind, ""))


def _format_argument(parameter: Any, star: str) -> str:
    text = f"{star}{parameter.name}"
    if parameter.annotation is not None:
        text += f": {parameter.annotation}"
    if parameter.default is None or star:
        return text
    equals = "=" if parameter.annotation is None else " = "
    return f"{text}{equals}{parameter.default}"


def read_fields(cls: Any) -> list[tuple[str, str]]:
    """Return the fields of a dataclass that `option(default, text)` describes, with their texts."""
    fields = []
    for name, member in cls.members.items():
        if member.is_alias or not _is_option(getattr(member, "value", None)):
            continue
        default, text = (str(argument) for argument in member.value.arguments[:2])
        default = EMPTY_VALUES.get(default, default)
        fields.append((f"`{name}: {member.annotation} = {default}`", _read_text(cls, text)))
    return fields


def _read_text(cls: Any, text: str) -> str:
    """Return a text that stands in the code, or the constant of this name that the code imports."""
    if text.isidentifier():
        return getattr(import_module(cls.module.path), text)
    return ast.literal_eval(text)


def _is_option(value: Any) -> bool:
    return type(value).__name__ == "ExprCall" and str(value.function) == "option"
