"""The package lorakit as griffe reads it, without importing anything: pages, members, names."""

import ast
import logging
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import griffe
from staging import BOOK, ROOT

PAGES: dict[str, Any] = tomllib.loads((BOOK / "api.toml").read_text("utf-8"))


class Part(NamedTuple):
    """A part of an API page: a module with its members, or single names without a module."""

    module: Any | None
    members: list[Any]


class FaultRecorder(logging.Handler):
    """A log handler that keeps griffe's messages about docstrings that it cannot read."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.faults.append(record.getMessage())


def load_package(src: Path = ROOT / "src") -> Any:
    """Load the package lorakit with griffe."""
    return griffe.load(
        "lorakit", search_paths=[str(src)], docstring_parser="google", allow_inspection=False
    )


def resolve(thing: Any) -> Any:
    """Return the object that an imported name refers to."""
    return thing.final_target if thing.is_alias else thing


def find_members(module: Any) -> Iterator[Any]:
    """Yield the public functions and classes of a module, in its order.

    Of a package, they are those that its `__init__` defines or exports.
    """
    exported = [str(name) for name in module.exports or ()]
    for name in exported or list(module.members):
        member = module.members[name]
        is_import = member.is_alias and not exported
        if name.startswith("_") or is_import:
            continue
        thing = resolve(member)
        # `lorakit.algebra.combination` is a module, and the function in it is exported.
        if exported and thing.is_module and name in thing.members:
            thing = resolve(thing.members[name])
        if thing.is_class or (thing.is_function and thing.docstring):
            yield thing


def collect_parts(package: Any) -> dict[str, list[Part]]:
    """Return the parts of each API page, as api.toml lists them."""
    pages: dict[str, list[Part]] = {}
    for page, entry in PAGES.items():
        parts: list[Part] = []
        for path in entry["names"]:
            thing = resolve(package[path])
            if thing.is_module:
                parts.append(Part(thing, list(find_members(thing))))
            elif parts and parts[-1].module is None:
                parts[-1].members.append(thing)
            else:
                parts.append(Part(None, [thing]))
        pages[page] = parts
    return pages


def read_public_names(package: Any) -> dict[str, str]:
    """Return the names of `lorakit.__all__`, each with the full path of its definition."""
    text = Path(str(package.filepath)).read_text("utf-8")
    values = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = node.value
    modules = ast.literal_eval(values["_HOME"])
    names = ast.literal_eval(values["__all__"])
    return {name: f"lorakit.{modules[name]}.{name}" for name in names}
