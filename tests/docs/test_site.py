"""The documentation site builds, and each kind of fault is found.

Faults: broken links, pages outside the navigation, unreadable docstrings, undocumented names.
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
import api_package
import checks
import commands
import notebooks
import reference
import staging

CLI = (ROOT / "docs" / "cli.md").read_text("utf-8")
FLAG = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


def slug(text: str) -> str:
    return text.lower().replace(" ", "-")


@pytest.mark.slow
def test_the_site_builds_without_a_fault(tmp_path: Path):
    command = [sys.executable, str(ROOT / "docs" / "book"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    assert re.match(r"\d+ pages: open ", done.stdout)


# --- navigation ----------------------------------------------------------------------------------


def test_every_page_is_in_the_navigation():
    pages = {page for page in staging.map_pages().values() if "#" not in page}
    pages |= {"api/index.md", *api_package.PAGES}
    pages |= {f"commands/{name}.md" for name in COMMANDS}
    config = staging.expand_navigation((ROOT / "zensical.toml").read_text("utf-8"), pages)
    assert checks.compare_navigation(pages, checks.read_navigation(config)) == []


def test_a_star_stands_for_the_pages_that_are_not_named():
    config = '[project]\nnav = [{ "A" = ["a/index.md", "a/*"] }, { "C" = ["c/*", "d.md"] }]\n'
    pages = ["a/2.md", "b/1.md", "a/1.md", "a/index.md"]
    expanded = staging.expand_navigation(config, pages)
    assert checks.read_navigation(expanded) == ["a/index.md", "a/1.md", "a/2.md", "d.md"]


@pytest.mark.parametrize(
    ("pages", "named", "fault"),
    [
        (["a.md", "b.md"], ["a.md"], "b.md is not in the navigation of zensical.toml"),
        (["a.md"], ["a.md", "b.md"], "b.md is in the navigation of zensical.toml and is no page"),
        (["a.md"], ["a.md", "a.md"], "a.md is in the navigation of zensical.toml twice"),
    ],
)
def test_a_fault_of_the_navigation_is_found(pages: list[str], named: list[str], fault: str):
    assert checks.compare_navigation(pages, named) == [fault]


# --- API pages -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_public_name_is_on_an_api_page():
    package = api_package.load_package()
    made = reference.make_reference(package)
    assert made.faults == []
    texts = "".join(made.texts.values())
    paths = api_package.read_public_names(package).values()
    assert [path for path in paths if f"{{ #{path} }}" not in texts] == []


def test_every_room_is_on_an_api_page():
    package = ROOT / "src" / "lorakit"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    documented = set()
    for entry in api_package.PAGES.values():
        documented |= {name.partition(".")[0] for name in entry["names"]}
    assert rooms - documented == {"cli"}


INIT = '''"""A package."""

_HOME = {"attach": "attach"}
__all__ = ["attach"]
'''
# The docstring describes an argument that the function does not have.
ATTACH = '''"""Attach."""


def attach(model: int) -> None:
    """Put it on.

    Args:
        modle: one.
    """
'''


@pytest.fixture
def planted(tmp_path: Path):
    """A package with one public function and a faulty docstring, as griffe reads it."""
    folder = tmp_path / "lorakit"
    folder.mkdir()
    (folder / "__init__.py").write_text(INIT)
    (folder / "attach.py").write_text(ATTACH)
    return api_package.load_package(tmp_path)


def set_pages(monkeypatch: pytest.MonkeyPatch, pages: dict[str, object]):
    """Replace the API pages, in both modules that read them."""
    for module in (api_package, reference):
        monkeypatch.setattr(module, "PAGES", pages)


def test_a_docstring_that_cannot_be_read_is_found(planted, monkeypatch: pytest.MonkeyPatch):
    entry = {"title": "Attach", "summary": "On.", "names": ["attach"]}
    set_pages(monkeypatch, {"api/attach.md": entry})
    faults = reference.make_reference(planted).faults
    assert any("modle" in fault for fault in faults)


def test_a_public_name_without_a_page_is_found(planted, monkeypatch: pytest.MonkeyPatch):
    set_pages(monkeypatch, {})
    assert reference.make_reference(planted).faults == ["lorakit.attach is on no API page"]


# --- command pages -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command_is_on_its_page(name: str):
    page = commands.make_pages(CLI, {}, slug)[f"commands/{name}.md"]
    shown = set()
    for line in re.findall(r"^`(.+)`$", page, re.MULTILINE):
        shown |= set(FLAG.findall(line))
    flags = set()
    for action in parser_for(name)._actions:
        flags |= set(action.option_strings)
    assert shown == flags


HELP = """usage: lorakit x [-h]
                 [--a N]

Do x.

options:
  -h, --help  help

the run:
  --a N       so
              many
  --long-flag {a,b}
              one
"""


def test_a_help_text_is_split_into_its_parts():
    parsed = commands.parse_help(HELP)
    assert parsed.usage == "lorakit x [-h]\n                 [--a N]"
    assert parsed.purpose == "Do x."
    assert parsed.groups == {
        "options": [("-h, --help", "help")],
        "the run": [("--a N", "so many"), ("--long-flag {a,b}", "one")],
    }


def test_a_command_without_examples_has_no_block_above_its_usage():
    page = commands.make_pages(CLI, {}, slug)["commands/merge.md"]
    assert "```" not in page.partition("## Usage")[0]


def test_a_command_links_to_the_section_that_shows_it():
    text = "# Guide\n\n## First run\n\n```console\n$ lorakit train --model tiny\n```\n"
    made = commands.make_pages(CLI, {"guide.md": text}, slug)
    assert "[Guide: First run](../guide.md#first-run)" in made["commands/train.md"]


# --- links ---------------------------------------------------------------------------------------


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
    names = {"lorakit.attach": "api/attach.md#x"}
    faults: list[str] = []
    rewriter = staging.LinkRewriter("README.md", "index.md", staging.map_pages(), names, faults)
    assert rewriter.rewrite(text) == wanted
    assert faults == []


def test_a_link_to_no_page_is_found():
    faults: list[str] = []
    pages = staging.map_pages()
    rewriter = staging.LinkRewriter("docs/files.md", "files.md", pages, {}, faults)
    rewriter.rewrite("[d](no.md)")
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
    ],
)
def test_a_broken_link_of_the_site_is_found(tmp_path: Path, body: str, fault: str):
    (tmp_path / "index.html").write_text(body)
    assert checks.find_broken_links(tmp_path) == [fault]


def test_links_elsewhere_and_to_headings_are_no_faults(tmp_path: Path):
    body = '<a href="https://elsewhere"><h2 id="yes"></h2><a href="#yes">'
    (tmp_path / "index.html").write_text(body)
    assert checks.find_broken_links(tmp_path) == []


# --- notebooks -----------------------------------------------------------------------------------


def write_notebook(path: Path, **run: object) -> Path:
    """Write a notebook of one heading and one cell of code, with these fields."""
    text = {"cell_type": "markdown", "source": ["# One"]}
    code = {"cell_type": "code", "source": ["draw(\n", ")"], **run}
    path.write_text(json.dumps({"cells": [text, code]}))
    return path


SHOWN = """# One

```python
draw(
)
```

```text
said
```

![what the cell draws](1-2-2.png)
"""


def test_a_page_shows_the_outputs_of_a_notebook(tmp_path: Path):
    data = {"image/png": base64.b64encode(b"picture").decode(), "text/plain": ["<Figure>"]}
    outputs = [
        {"output_type": "stream", "text": ["said\n"]},
        {"output_type": "display_data", "data": data},
    ]
    path = write_notebook(tmp_path / "1.ipynb", outputs=outputs, execution_count=1)
    page = notebooks.make_page(path, "t/1")
    assert page.text == SHOWN
    assert page.pictures == {"t/1-2-2.png": b"picture"}
    assert page.faults == []


@pytest.mark.parametrize(
    "run",
    [
        {"outputs": [], "execution_count": None},
        {"outputs": [{"output_type": "error"}], "execution_count": 1},
    ],
    ids=["not run", "failed"],
)
def test_a_cell_that_was_not_run_is_a_fault(run: dict[str, object], tmp_path: Path):
    path = write_notebook(tmp_path / "1.ipynb", **run)
    page = notebooks.make_page(path, "1")
    assert page.faults == ["1.ipynb, cell 2: not run; `make tutorial` runs it"]


@pytest.mark.parametrize(("text", "is_formula"), [("A costs $1$", True), ("`$HOME`", False)])
def test_a_formula_is_found_outside_code(text: str, is_formula: bool):
    assert notebooks.has_formula(text) is is_formula
