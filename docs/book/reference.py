"""The API pages, made from docstrings: read by griffe, without importing anything."""

import ast
import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from staging import BOOK, CODE, ROOT, apart, places

PAGES: dict[str, Any] = tomllib.loads((BOOK / "api.toml").read_text("utf-8"))
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
NOTED = re.compile(r"^(Source|Cost): ", re.MULTILINE)
WIDTH = 88


class Faults(logging.Handler):
    """What griffe says of docstrings that it cannot read."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def loaded(src: Path = ROOT / "src") -> Any:
    """Return the package lorakit as griffe reads it."""
    return griffe.load(
        "lorakit", search_paths=[str(src)], docstring_parser="google", allow_inspection=False
    )


def found(thing: Any) -> Any:
    """Return what an imported name stands for."""
    return thing.final_target if thing.is_alias else thing


def members(module: Any) -> Iterator[Any]:
    """Yield the public functions and classes of a module in its order; of a package, those that its
    file defines or exports.
    """
    exported = [str(name) for name in module.exports or ()]
    for name in exported or list(module.members):
        member = module.members[name]
        if name.startswith("_") or (member.is_alias and not exported):
            continue
        thing = found(member)
        if (
            exported and thing.is_module and name in thing.members
        ):  # `lorakit.algebra.combination` is the function
            thing = found(thing.members[name])
        if (thing.is_function or thing.is_class) and (thing.docstring or thing.is_class):
            yield thing


def entries(package: Any) -> dict[str, list[tuple[Any, list[Any]]]]:
    """Return, by page, its parts: a module with its members, or None with single names."""
    pages: dict[str, list[tuple[Any, list[Any]]]] = {}
    for page, told in PAGES.items():
        parts = pages.setdefault(page, [])
        for path in told["of"]:
            thing = found(package[path])
            if thing.is_module:
                parts.append((thing, list(members(thing))))
            elif parts and parts[-1][0] is None:
                parts[-1][1].append(thing)
            else:
                parts.append((None, [thing]))
    return pages


def public(package: Any) -> dict[str, str]:
    """Return the names of lorakit.__all__, with the path where each is defined."""
    text = Path(str(package.filepath)).read_text("utf-8")
    values = {
        node.targets[0].id: node.value
        for node in ast.parse(text).body  # type: ignore[attr-defined]
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    homes = ast.literal_eval(values["_HOME"])
    return {name: f"lorakit.{homes[name]}.{name}" for name in ast.literal_eval(values["__all__"])}


class Writer:
    """Writes what griffe read as Markdown, with names that lead to where they are told of.

    Args:
        package: as `loaded` gives it.
    """

    def __init__(self, package: Any):
        self.package, self.pages, self.names = package, entries(package), public(package)
        self.where: dict[str, str] = {}  # full path -> page
        self.called: dict[str, str] = {}  # full path -> what users import
        self.short: dict[str, str] = {}  # what docstrings call it -> full path
        for page, parts in self.pages.items():
            for module, things in parts:
                for thing in [module, *things] if module else things:
                    self.where.setdefault(thing.path, page)
                    self.called[thing.path] = (
                        f"{module.path}.{thing.name}"
                        if module and thing is not module
                        else thing.path
                    )
                    self.short.setdefault(self.called[thing.path], thing.path)
                    self.short.setdefault(
                        self.called[thing.path].removeprefix("lorakit."), thing.path
                    )
        for name, path in self.names.items():
            self.called[path] = f"lorakit.{name}"
            self.short |= {name: path, f"lorakit.{name}": path}

    def missing(self) -> list[str]:
        """Return the public names that stand on no page."""
        return [
            f"lorakit.{name} stands on no API page"
            for name, path in self.names.items()
            if path not in self.where
        ]

    def place(self, path: str) -> str:
        """Return where something is told of: its page, and there its heading, if it does not fill
        the page.
        """
        page = self.where[path]
        fills = (
            len(self.pages[page]) == 1
            and self.pages[page][0][0]
            and self.pages[page][0][0].path == path
        )
        return page if fills else f"{page}#{path}"

    def link(self, code: str, page: str, near: str = "") -> str:
        """Return a piece of code, as a link where it names something that is told of."""
        name = code.strip("`").partition("(")[0]
        path = self.short.get(name) or (
            f"{near}.{name}" if f"{near}.{name}" in self.where else None
        )
        if path is None or path not in self.where:
            return code
        there, hash, anchor = (
            self.place(path).rpartition("/")[2].partition("#")
        )  # all lie in one folder
        return f"[{code}]({'' if self.where[path] == page and anchor else there}{hash}{anchor})"

    def words(self, text: str, page: str, near: str = "") -> str:
        """Return words of a docstring that Markdown reads as they stand."""
        done = []
        for code, piece in apart(text, CODE):
            done.append(
                self.link(piece, page, near)
                if code
                else re.sub(r"([\\*_\[\]<|#~^])", r"\\\1", piece)
            )
        return "".join(done)

    def prose(self, text: str, page: str, near: str = "") -> str:
        """Return a text of a docstring: words, and its examples as code."""
        done = []
        for code, piece in apart(text, DOCTEST):
            if code:
                done.append(f"\n```pycon\n{piece.rstrip()}\n```\n")
            else:
                done.append(NOTED.sub(r"\n**\1.** ", self.words(piece, page, near)))
        return "".join(done).strip()

    def rows(self, items: list[tuple[str, str]], page: str, near: str) -> str:
        """Return a list of names and what is said of them."""
        return "\n".join(
            f"{name}\n:   {self.words(' '.join(text.split()), page, near) or '·'}\n"
            for name, text in items
        )

    def docstring(self, thing: Any, page: str) -> str:
        """Return what a docstring says, section by section."""
        near, done = thing.path.rpartition(".")[0], []
        for part in thing.docstring.parse("google") if thing.docstring else ():
            kind = part.kind.value
            if kind == "text":
                done.append(self.prose(part.value, page, near))
            elif kind in ("parameters", "attributes"):
                title = "Arguments" if kind == "parameters" else "Attributes"
                done.append(
                    f"**{title}**\n\n"
                    + self.rows([(f"`{i.name}`", i.description) for i in part.value], page, near)
                )
            elif kind == "raises":
                items = [
                    (self.link(f"`{i.annotation}`", page, "lorakit.errors"), i.description)
                    for i in part.value
                ]
                done.append("**Raises**\n\n" + self.rows(items, page, near))
            elif kind in ("returns", "yields"):
                said = " ".join(
                    i.description if not i.name else f"{i.name}: {i.description}"
                    for i in part.value
                )
                done.append(
                    f"**{kind.capitalize()}** " + self.prose(" ".join(said.split()), page, near)
                )
            elif kind == "admonition":
                said = (
                    f"{part.title} {part.value.description}"
                    if part.title
                    else part.value.description
                )
                done.append(
                    f"**{part.value.annotation.capitalize()}.** " + self.prose(said, page, near)
                )
            else:
                raise ValueError(f"{thing.path}: a section of kind {kind!r} is not known")
        return "\n\n".join(done)

    def signature(self, thing: Any, name: str) -> str:
        """Return the signature of a function as code; long ones have a line for each argument."""
        parts, star = [], False
        for p in thing.parameters:
            if p.name in ("self", "cls") and not parts:
                continue
            kind = p.kind.value
            if kind == "keyword-only" and not star:
                parts, star = [*parts, "*"], True
            star = star or kind == "variadic positional"
            mark = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
            text = f"{mark}{p.name}" + (f": {p.annotation}" if p.annotation is not None else "")
            if p.default is not None and not mark:
                text += f" = {p.default}" if p.annotation is not None else f"={p.default}"
            parts.append(text)
        back = (
            f" -> {thing.returns}"
            if getattr(thing, "returns", None) is not None and thing.is_function
            else ""
        )
        line = f"{name}({', '.join(parts)}){back}"
        if len(line) > WIDTH:
            line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){back}"
        return f"```python\n{line}\n```"

    def fields(self, cls: Any) -> list[tuple[str, str]]:
        """Return the fields of a dataclass that say in their own words what they are."""
        rows = []
        for name, member in cls.members.items():
            value = getattr(member, "value", None)
            if (
                member.is_alias
                or type(value).__name__ != "ExprCall"
                or str(value.function) != "option"
            ):
                continue
            default, text = (str(argument) for argument in value.arguments[:2])
            default = {"dict": "{}", "list": "[]", "tuple": "()"}.get(default, default)
            rows.append((f"`{name}: {member.annotation} = {default}`", ast.literal_eval(text)))
        return rows

    def told(self, thing: Any, page: str, level: int) -> str:
        """Return all that is said of a function or class, under a heading of this level."""
        lines, called = [f"{'#' * level} {thing.name} {{ #{thing.path} }}"], self.called[thing.path]
        rows = self.fields(thing) if thing.is_class else []
        if thing.is_function:
            lines.append(self.signature(thing, called))
        elif rows or (init := thing.members.get("__init__")) is None:
            bases = ", ".join(["…"] * bool(rows) or [str(base) for base in thing.bases])
            lines.append(f"```python\nclass {called}{f'({bases})' if bases else ''}\n```")
        else:
            lines.append(self.signature(init, f"class {called}").replace(") -> None\n", ")\n"))
        lines.append(self.docstring(thing, page))
        if rows:
            lines.append("**Fields**\n\n" + self.rows(rows, page, thing.path.rpartition(".")[0]))
        for member in thing.members.values() if thing.is_class else ():
            if member.is_alias or member.name.startswith("_") or not member.docstring:
                continue
            lines.append(f"{'#' * (level + 1)} {thing.name}.{member.name} {{ #{member.path} }}")
            if member.is_function:
                lines.append(self.signature(member, member.name))
            elif getattr(member, "annotation", None) is not None:
                lines.append(f"```python\n{member.name}: {member.annotation}\n```")
            lines.append(self.docstring(member, page))
        return "\n\n".join(lines)

    def page(self, page: str) -> str:
        """Return an API page."""
        several = len(self.pages[page]) > 1 or self.pages[page][0][0] is None
        parts, level = (
            [f"# {PAGES[page]['title']}", *[PAGES[page]["says"]] * several],
            3 if several else 2,
        )
        if guide := PAGES[page].get("guide"):
            file, hash, anchor = guide.partition("#")
            first = (ROOT / "docs" / file).read_text("utf-8").partition("\n")[0]
            parts.append(
                f"Guide: [{first.lstrip('# ')}](../{places()[f'docs/{file}']}{hash}{anchor})."
            )
        for module, things in self.pages[page]:
            if module is not None and level == 3:
                parts += [f"## {module.path} {{ #{module.path} }}", self.docstring(module, page)]
            elif module is not None:
                parts += [f"`{module.path}`. {self.docstring(module, page)}"]
            parts += [
                self.told(thing, page, level if module else 2)
                for thing in things
                if self.where[thing.path] == page
            ]
        return "\n\n".join(parts) + "\n"

    def index(self) -> str:
        """Return the page that lists the public names, and the rooms."""
        here = "api/index.md"
        lines = [
            "# API",
            "",
            "What `import lorakit` gives, and the rooms behind it.",
            "",
            "| name | gives |",
            "| --- | --- |",
        ]
        for name, path in self.names.items():
            first = found(self.package[path.removeprefix("lorakit.")]).docstring.value.split(
                "\n\n"
            )[0]
            lines.append(
                f"| {self.link(f'`{name}`', here)} | {self.words(' '.join(first.split()), here)} |"
            )
        lines += ["", "## Rooms", "", "| page | about |", "| --- | --- |"]
        lines += [
            f"| [{told['title']}]({page.removeprefix('api/')}) | {told['says']} |"
            for page, told in PAGES.items()
        ]
        return "\n".join(lines) + "\n"


def pages(package: Any) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return the API pages, where each `lorakit.name` is told of, and what of the docstrings cannot
    be rendered.
    """
    heard = Faults()
    logger = logging.getLogger("griffe")
    logger.addHandler(heard)
    try:
        writer = Writer(package)
        made = {"api/index.md": writer.index(), **{page: writer.page(page) for page in PAGES}}
    finally:
        logger.removeHandler(heard)
    told = {
        name: path
        for name, path in writer.short.items()
        if name.startswith("lorakit.") and path in writer.where
    }
    names = {name: writer.place(path) for name, path in told.items()}
    return made, names, writer.missing() + heard.found
