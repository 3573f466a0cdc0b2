"""Checks of the site: its navigation, its links and anchors, and files loaded from elsewhere."""

import os
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

# The attribute of each HTML tag that names a file to load.
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "link": "href",
    "video": "src",
    "object": "data",
}
UNLOADED = ("canonical", "next", "prev")  # kinds of <link> that load no file
WEB = ("http://", "https://", "//")
NO_FILE = ("mailto:", "data:", "javascript:")
NAVIGATION = "the navigation of zensical.toml"


class Page(HTMLParser):
    """The anchors, the links and the loaded files of an HTML page."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        for name in ("id", "name"):
            if name in given:
                self.anchors.add(given[name])
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        attribute = LOADED.get(tag)
        if attribute in given and given.get("rel") not in UNLOADED:
            self.loads.add(given[attribute])


def read_navigation(config: str) -> list[str]:
    """Return the pages that the navigation of zensical.toml names, in its order."""
    return list(_walk(tomllib.loads(config)["project"]["nav"]))


def _walk(node: Any) -> Iterator[str]:
    """Yield the texts in nested lists and tables."""
    if isinstance(node, str):
        yield node
        return
    for child in node.values() if isinstance(node, dict) else node:
        yield from _walk(child)


def compare_navigation(pages: Iterable[str], named: list[str]) -> list[str]:
    """Return the faults of the navigation: pages left out, missing, or named twice."""
    existing = set(pages)
    left_out = sorted(existing - set(named))
    missing = sorted(set(named) - existing)
    repeated = sorted({page for page in named if named.count(page) > 1})
    faults = [f"{page} is not in {NAVIGATION}" for page in left_out]
    faults += [f"{page} is in {NAVIGATION} and is no page" for page in missing]
    faults += [f"{page} is in {NAVIGATION} twice" for page in repeated]
    return faults


def find_broken_links(site: Path) -> list[str]:
    """Return the faults of a built site: links without a target, files loaded from elsewhere."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path.relative_to(site).as_posix()] = Page(path.read_text("utf-8"))
    faults = []
    for name, page in pages.items():
        if name == "404.html":
            continue
        for target in sorted(page.links | page.loads):
            if target.startswith(WEB):
                if target in page.loads:
                    faults.append(f"{name} loads {target}: it would not work offline")
            elif not target.startswith(NO_FILE):
                faults += _check_target(site, pages, name, target)
    return faults


def _check_target(site: Path, pages: Mapping[str, Page], name: str, target: str) -> Collection[str]:
    """Return the fault of a target on the page of this name, if it has one."""
    path, _, anchor = target.partition("#")
    file = name
    if path:
        file = os.path.normpath(PurePosixPath(name).parent / unquote(path))
    if not (site / file).is_file():
        return [f"{name}: {target} leads nowhere"]
    if anchor and file in pages and unquote(anchor) not in pages[file].anchors:
        return [f"{name}: {target}: the page has no such heading"]
    return []
