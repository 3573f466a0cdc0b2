"""The documentation site builds, and a fault is seen: a link, a page outside the navigation, a
docstring, a missing name.
"""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.cli.__main__ import COMMANDS, parser_for

from .blocks import ROOT

sys.path.insert(0, str(ROOT / "docs" / "book"))
import checks
import commands
import notebooks
import reference
import staging


def slug(text: str) -> str:
    return text.lower().replace(" ", "-")


@pytest.mark.slow
def test_the_site_builds_without_a_fault(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "book"), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").is_file() and re.match(
        r"\d+ pages: open ", done.stdout
    )


def test_every_page_is_in_the_navigation():
    pages = {page for page in staging.places().values() if "#" not in page} | {
        "api/index.md",
        *reference.PAGES,
    }
    pages |= {f"commands/{name}.md" for name in COMMANDS}
    config = staging.expanded((ROOT / "zensical.toml").read_text("utf-8"), pages)
    assert checks.outside(pages, checks.navigation(config)) == []


def test_a_star_stands_for_the_pages_that_are_not_named():
    config = '[project]\nnav = [{ "A" = ["a/index.md", "a/*"] }, { "C" = ["c/*", "d.md"] }]\n'
    named = checks.navigation(
        staging.expanded(config, ["a/2.md", "b/1.md", "a/1.md", "a/index.md"])
    )
    assert named == ["a/index.md", "a/1.md", "a/2.md", "d.md"]


@pytest.mark.parametrize(
    ("pages", "named", "fault"),
    [
        (["a.md", "b.md"], ["a.md"], "b.md is not in the navigation of zensical.toml"),
        (["a.md"], ["a.md", "b.md"], "b.md is in the navigation of zensical.toml and is no page"),
        (["a.md"], ["a.md", "a.md"], "a.md is in the navigation of zensical.toml twice"),
    ],
)
def test_a_page_outside_the_navigation_is_seen(pages: list[str], named: list[str], fault: str):
    assert checks.outside(pages, named) == [fault]


@pytest.mark.slow
def test_every_public_name_is_on_an_api_page():
    package = reference.loaded()
    made, _, faults = reference.pages(package)
    assert faults == []
    texts = "".join(made.values())
    assert [
        name for name, path in reference.public(package).items() if f"{{ #{path} }}" not in texts
    ] == []


def test_every_room_is_on_an_api_page():
    rooms = {path.parent.name for path in (ROOT / "src" / "lorakit").glob("*/__init__.py")} - {
        "cli"
    }
    assert (
        sorted(
            rooms
            - {name.partition(".")[0] for told in reference.PAGES.values() for name in told["of"]}
        )
        == []
    )


PLANTED = '''"""A package."""

_HOME = {"attach": "attach"}
__all__ = ["attach"]
'''


def test_a_name_without_a_page_and_a_docstring_that_cannot_be_read_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "lorakit").mkdir()
    (tmp_path / "lorakit" / "__init__.py").write_text(PLANTED)
    docstring = '"""Put it on.\n\n    Args:\n        modle: one.\n    """'
    (tmp_path / "lorakit" / "attach.py").write_text(
        f'"""Attach."""\n\n\ndef attach(model: int) -> None:\n    {docstring}\n'
    )
    package = reference.loaded(tmp_path)
    monkeypatch.setattr(
        reference, "PAGES", {"api/attach.md": {"title": "Attach", "says": "On.", "of": ["attach"]}}
    )
    assert any("modle" in fault for fault in reference.pages(package)[2])
    monkeypatch.setattr(reference, "PAGES", {})
    assert reference.pages(package)[2] == ["lorakit.attach stands on no API page"]


def test_every_flag_of_every_command_is_on_its_page():
    made = commands.pages((ROOT / "docs" / "cli.md").read_text("utf-8"), {}, slug)
    for name in COMMANDS:
        told = re.findall(r"^`(.+)`$", made[f"commands/{name}.md"], re.MULTILINE)
        flags = {flag for action in parser_for(name)._actions for flag in action.option_strings}
        assert {
            word for line in told for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", line)
        } == flags, name


def test_help_is_read_by_its_parts():
    text = (
        "usage: lorakit x [-h]\n                 [--a N]\n\nDo x.\n\noptions:\n  -h, --help  "
        "help\n\n"
    )
    told = commands.parsed(
        text
        + "the run:\n  --a N       so\n              many\n  --long-flag {a,b}\n              one\n"
    )
    assert (told.usage, told.about) == ("lorakit x [-h]\n                 [--a N]", "Do x.")
    assert told.groups == {
        "options": [("-h, --help", "help")],
        "the run": [("--a N", "so many"), ("--long-flag {a,b}", "one")],
    }
    assert (
        "```"
        not in commands.pages((ROOT / "docs" / "cli.md").read_text("utf-8"), {}, slug)[
            "commands/merge.md"
        ].split("## Usage")[0]
    )


def test_a_command_leads_to_where_it_is_shown():
    text = "# Guide\n\n## First run\n\n```console\n$ lorakit train --model tiny\n```\n"
    made = commands.pages((ROOT / "docs" / "cli.md").read_text("utf-8"), {"guide.md": text}, slug)
    assert "[Guide: First run](../guide.md#first-run)" in made["commands/train.md"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[a](docs/files.md#x) and [b](examples)", "[a](files.md#x) and [b](examples.md)"),
        ("[`c`](docs/cli.md#lorakit-train)", "[`c`](commands/train.md)"),
        ("`[e](f)` and {g}", "`[e](f)` and \\{g}"),
        ("`lorakit.attach(model)`", "[`lorakit.attach(model)`](api/attach.md#x)"),
        ("# `lorakit.attach`\n\n    {a}\n", "# `lorakit.attach`\n\n    {a}\n"),
        ("```python\n[a](docs/files.md) {b}\n```", "```python\n[a](docs/files.md) {b}\n```"),
        ("![a picture](pictures/a.svg)", "[![a picture](pictures/a.svg)](pictures/a.svg)"),
        ("[a](https://elsewhere) [b](#here)", "[a](https://elsewhere) [b](#here)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(text: str, wanted: str):
    faults: list[str] = []
    names = {"lorakit.attach": "api/attach.md#x"}
    assert staging.linked(text, "README.md", "index.md", staging.places(), faults, names) == wanted
    assert faults == []


def test_a_link_to_what_is_no_page_is_seen():
    faults: list[str] = []
    staging.linked("[d](no.md)", "docs/files.md", "files.md", staging.places(), faults, {})
    assert faults == ["docs/files.md: no.md leads to no page"]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="no.html">', "index.html: no.html leads nowhere"),
        ('<a href="#no">', "index.html: #no: the page has no such heading"),
        (
            '<script src="https://elsewhere/x.js">',
            "index.html loads https://elsewhere/x.js: it would not work offline",
        ),
        ('<a href="https://elsewhere"><h2 id="yes"></h2><a href="#yes">', None),
    ],
)
def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path, body: str, fault: str | None):
    (tmp_path / "index.html").write_text(body)
    assert checks.broken(tmp_path) == [fault] * bool(fault)


def notebook(path: Path, **run: object) -> Path:
    code = {"cell_type": "code", "source": ["draw(\n", ")"], **run}
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# One"]}, code]}))
    return path


def test_a_page_shows_the_outputs_of_a_notebook(tmp_path: Path):
    data = {"image/png": base64.b64encode(b"picture").decode(), "text/plain": ["<Figure>"]}
    outputs = [
        {"output_type": "stream", "text": ["said\n"]},
        {"output_type": "display_data", "data": data},
    ]
    path = notebook(tmp_path / "1.ipynb", outputs=outputs, execution_count=1)
    files, faults = {}, []
    shown = (
        "# One\n\n```python\ndraw(\n)\n```\n\n```text\nsaid\n```\n\n![what the cell "
        "draws](1-2-2.png)\n"
    )
    assert notebooks.page(path, "t/1", files, faults) == shown
    assert (files, faults) == ({"t/1-2-2.png": b"picture"}, [])


@pytest.mark.parametrize(
    "run",
    [
        {"outputs": [], "execution_count": None},
        {
            "outputs": [{"output_type": "error"}],
            "execution_count": 1,
        },
    ],
)
def test_a_cell_that_was_not_run_is_a_fault(run: dict[str, object], tmp_path: Path):
    path = notebook(tmp_path / "1.ipynb", **run)
    faults: list[str] = []
    notebooks.page(path, "1", {}, faults)
    assert faults == ["1.ipynb, cell 2: not run; `make tutorial` runs it"]
