"""Builds the documentation: `python docs/book [FOLDER]` writes FOLDER/site (build/docs/site), and
fails of any fault.

`--serve` shows it on 127.0.0.1 afterwards.
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
import reference
from pymdownx.slugs import slugify
from staging import COMMANDS, ROOT, BookError, expanded, linked, places, stage


def written(folder: Path) -> str:
    """Write the pages of the site, as Markdown; returns the configuration that names them all.

    Raises:
        BookError: a link, a docstring or the navigation is at fault.
    """
    slug = functools.partial(slugify(case="lower"), sep="-")
    faults: list[str] = []
    files: dict[str, bytes] = {}
    to = places()
    texts = {
        page: (ROOT / source).read_text("utf-8")
        for source, page in to.items()
        if source.endswith(".md") and page != COMMANDS
    }
    made = commands.pages((ROOT / "docs" / "cli.md").read_text("utf-8"), texts, slug)
    api, names, unread = reference.pages(reference.loaded())
    names |= {
        "lorakit " + page.removeprefix("commands/").removesuffix(".md"): page
        for page in made
        if page != COMMANDS
    }
    for source, page in to.items():
        if source.endswith(".ipynb"):
            text = notebooks.page(ROOT / source, page.removesuffix(".md"), files, faults)
            made[page] = linked(text, source, page, to, faults, names)
    stage(folder, made | api, files, names)
    pages = [path.relative_to(folder).as_posix() for path in folder.rglob("*.md")]
    config = expanded((ROOT / "zensical.toml").read_text("utf-8"), pages)
    if faults := faults + unread + checks.outside(pages, checks.navigation(config)):
        raise BookError(faults)
    return config


def built(folder: Path) -> Path:
    """Build the site in a folder, and return where it lies.

    Raises:
        BookError: what is wrong with it.
    """
    config = written(folder / "pages")
    (folder / "zensical.toml").write_text(config, "utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = re.sub(
            r"\x1b\[[\d;]*m|^Traceback.*?^(?=\w)",
            "",
            done.stdout + done.stderr,
            flags=re.MULTILINE | re.DOTALL,
        )
        raise BookError([said.strip()])
    if faults := checks.broken(folder / "site"):
        raise BookError(faults)
    return folder / "site"


def main(argv: list[str]) -> int:
    """Build, and show where told; returns the exit code."""
    given = [word for word in argv if not word.startswith("-")]
    try:
        site = built(Path(given[0] if given else ROOT / "build" / "docs").resolve())
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{sum(1 for _ in site.rglob('*.html')) - 1} pages: open "
        f"{os.path.relpath(site / 'index.html')}"
    )
    if "--serve" in argv:
        print("http://127.0.0.1:8000")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
        with contextlib.suppress(KeyboardInterrupt):
            http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
