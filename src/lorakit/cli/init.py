"""`lorakit init`."""

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypedDict

import yaml

from lorakit.cli import flags
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec

NAME = "run.yaml"
HEAD = """\
# The settings of a run: lorakit train --config {name}
#
# The first lines are needed. Each other line is a default behind a #: take the # away to change it.
# A flag on the command line takes precedence over a line here.
"""
PLACEHOLDERS = {
    "model": "path/to/model",
    "data": "path/to/rows.jsonl",
    "output": "path/to/adapter",
}
GROUPS = {"the run": TrainSpec, "the adapter": Spec}
WIDTH = 100


class InitResult(TypedDict):
    """Result of `init`."""

    file: str
    needed: list[str]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", default=NAME, metavar="FILE", help=f"the new file (default: {NAME})"
    )


def run(args: argparse.Namespace) -> InitResult:
    from lorakit.files import check_new_file, write_text

    path = Path(args.file)
    check_new_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, write_settings(path.name))
    return {"file": str(path), "needed": list(PLACEHOLDERS)}


def write_settings(name: str) -> str:
    """Return the settings of a run as YAML, each with its purpose, default and choices.

    Args:
        name: of the file.
    """
    lines = [HEAD.format(name=name)]
    for title, cls in GROUPS.items():
        lines.append(f"# --- {title} ---\n")
        needed = [one for one in fields(cls) if one.name in PLACEHOLDERS]
        others = [one for one in fields(cls) if one.name not in PLACEHOLDERS]
        for one in [*needed, *others]:
            lines += [*_comment(one), _setting(one), ""]
    return "\n".join(lines)


def _comment(one: Field[Any]) -> Iterator[str]:
    """Yield the purpose of a setting as comment lines."""
    text = one.metadata["help"]
    if one.metadata.get("choices"):
        text += f". One of {', '.join(one.metadata['choices'])}"
    yield from textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _setting(one: Field[Any]) -> str:
    """Return the line of a setting: with a placeholder, or its default behind a #."""
    if one.name in PLACEHOLDERS:
        return f"{one.name}: {PLACEHOLDERS[one.name]}"
    default = flags.default_of(one)
    if default is None:
        return f"# {one.name}:"
    value = list(default) if isinstance(default, tuple) else default
    # The end of a document follows a bare value.
    written = yaml.safe_dump(value, default_flow_style=True, width=WIDTH).split("\n...")[0]
    return f"# {one.name}: {written.strip()}"


def show(result: InitResult) -> None:
    print(f"{result['file']} holds the settings of a run. Fill in {', '.join(result['needed'])}.\n")
    print("Next:")
    print(f"  lorakit train --config {result['file']} --dry-run")
    print(f"  lorakit train --config {result['file']}")
