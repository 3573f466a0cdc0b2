"""What of a built site is not as it must be: links, anchors, assets from elsewhere, pages outside
the navigation.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "link": "href",
    "video": "src",
    "object": "data",
}


class Page(HTMLParser):
    """What of an HTML page can be pointed at, what it points at, and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and (link := given.get("href")):
            self.links.add(link)
        if (target := given.get(LOADED.get(tag, ""))) and given.get("rel") not in (
            "canonical",
            "next",
            "prev",
        ):
            self.loads.add(target)


def navigation(config: str) -> list[str]:
    """Return the pages that the navigation of zensical.toml names, in its order."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        for inner in (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        ):
            yield from walk(inner)

    return list(walk(tomllib.loads(config)["project"]["nav"]))


def outside(pages: Iterable[str], named: list[str]) -> list[str]:
    """Return the pages that the navigation leaves out, names twice, or names and that are not
    there.
    """
    there = set(pages)
    return [
        *(
            f"{page} is not in the navigation of zensical.toml"
            for page in sorted(there - set(named))
        ),
        *(
            f"{page} is in the navigation of zensical.toml and is no page"
            for page in sorted(set(named) - there)
        ),
        *(
            f"{page} is in the navigation of zensical.toml twice"
            for page in sorted({p for p in named if named.count(p) > 1})
        ),
    ]


def broken(site: Path) -> list[str]:
    """Return the links of a built site that lead nowhere, and what it loads from elsewhere."""
    pages = {
        path.relative_to(site).as_posix(): Page(path.read_text("utf-8"))
        for path in sorted(site.rglob("*.html"))
    }
    faults = []
    for name, page in pages.items():
        if name == "404.html":
            continue
        for target in sorted(page.links | page.loads):
            if target.startswith(("http://", "https://", "//")):
                if target in page.loads:
                    faults.append(f"{name} loads {target}: it would not work offline")
                continue
            if target.startswith(("mailto:", "data:", "javascript:")):
                continue
            path, _, anchor = target.partition("#")
            inner = os.path.normpath(PurePosixPath(name).parent / unquote(path)) if path else name
            if not (site / inner).is_file():
                faults.append(f"{name}: {target} leads nowhere")
            elif anchor and inner in pages and unquote(anchor) not in pages[inner].anchors:
                faults.append(f"{name}: {target}: the page has no such heading")
    return faults
