"""Build the documentation: `python docs/book [FOLDER]` writes FOLDER/site (build/docs/site).

Any fault of a page, link or docstring stops it. `--serve` then shows the site on 127.0.0.1.
"""

import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
from pathlib import Path

import checks
import commands
import notebooks
from api_package import load_package
from pymdownx.slugs import slugify
from reference import make_reference
from staging import (
    COMMANDS,
    ROOT,
    BookError,
    LinkRewriter,
    expand_navigation,
    map_pages,
    stage,
)

# Colours, and a traceback up to its last line.
NOISE = re.compile(r"\x1b\[[\d;]*m|^Traceback.*?^(?=\w)", re.MULTILINE | re.DOTALL)
ADDRESS = ("127.0.0.1", 8000)


def write_pages(folder: Path) -> str:
    """Write the pages of the site as Markdown; return the configuration that names them all.

    Raises:
        BookError: a link, a docstring or the navigation is at fault.
    """
    faults: list[str] = []
    files: dict[str, bytes] = {}
    reference = make_reference(load_package())
    command_pages = make_command_pages()
    names = reference.places | name_commands(command_pages)
    notebook_pages = make_notebook_pages(names, files, faults)
    stage(folder, command_pages | notebook_pages | reference.texts, files, names)
    pages = [path.relative_to(folder).as_posix() for path in folder.rglob("*.md")]
    config = expand_navigation((ROOT / "zensical.toml").read_text("utf-8"), pages)
    faults += reference.faults
    faults += checks.compare_navigation(pages, checks.read_navigation(config))
    if faults:
        raise BookError(faults)
    return config


def make_command_pages() -> dict[str, str]:
    """Return the page of each command, with examples from the pages of the docs."""
    texts = {}
    for source, page in map_pages().items():
        if source.endswith(".md") and page != COMMANDS:
            texts[page] = (ROOT / source).read_text("utf-8")
    cli = (ROOT / "docs" / "cli.md").read_text("utf-8")
    slug = functools.partial(slugify(case="lower"), sep="-")
    return commands.make_pages(cli, texts, slug)


def name_commands(pages: dict[str, str]) -> dict[str, str]:
    """Return the page of each command by its name, as texts write it: `lorakit train`."""
    names = {}
    for page in pages:
        if page != COMMANDS:
            name = page.removeprefix("commands/").removesuffix(".md")
            names[f"lorakit {name}"] = page
    return names


def make_notebook_pages(
    names: dict[str, str], files: dict[str, bytes], faults: list[str]
) -> dict[str, str]:
    """Return the page of each notebook; add its pictures to `files`, its faults to `faults`."""
    made = {}
    pages = map_pages()
    for source, page in pages.items():
        if source.endswith(".ipynb"):
            notebook = notebooks.make_page(ROOT / source, page.removesuffix(".md"))
            files.update(notebook.pictures)
            faults += notebook.faults
            rewriter = LinkRewriter(source, page, pages, names, faults)
            made[page] = rewriter.rewrite(notebook.text)
    return made


def build_site(folder: Path) -> Path:
    """Build the site in a folder; return the folder of its HTML.

    Raises:
        BookError: the faults of the site.
    """
    config = write_pages(folder / "pages")
    (folder / "zensical.toml").write_text(config, "utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        output = NOISE.sub("", done.stdout + done.stderr)
        raise BookError([output.strip()])
    faults = checks.find_broken_links(folder / "site")
    if faults:
        raise BookError(faults)
    return folder / "site"


def serve_site(site: Path) -> None:
    """Serve the site until the user stops it."""
    host, port = ADDRESS
    print(f"http://{host}:{port}")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with contextlib.suppress(KeyboardInterrupt):
        http.server.ThreadingHTTPServer(ADDRESS, handler).serve_forever()


def main(arguments: list[str]) -> int:
    """Build the site, and serve it if asked; return the exit code."""
    folders = [word for word in arguments if not word.startswith("-")]
    folder = Path(folders[0]) if folders else ROOT / "build" / "docs"
    try:
        site = build_site(folder.resolve())
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    count = len(list(site.rglob("*.html"))) - 1  # without 404.html
    print(f"{count} pages: open {os.path.relpath(site / 'index.html')}")
    if "--serve" in arguments:
        serve_site(site)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
