"""The pages of the site, laid out in one folder: what README and docs say, with links that lead to
pages.
"""

import ast
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
BOOK = Path(__file__).parent
HOME, EXAMPLES, COMMANDS = "index.md", "examples.md", "commands/index.md"
OF_THE_ROOT = {
    "README.md": HOME,
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LOG.md": "log.md",
    "SECURITY.md": "security.md",
    "LICENSE": "licence.md",
}
ASSETS = ("style.css", "iframe-worker.js")
LINKS = "More"  # a section of the README, whose place the navigation takes on the site
FENCE = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"(!?\[(?:[^\[\]`]|`[^`\n]+`|\[[^\]]*\])*\])\(([^()\s]+)\)|`[^`\n]+`"
)  # or code, which holds none
HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")


class BookError(Exception):
    """Something of the site is not as it must be; the message lists every fault."""

    def __init__(self, faults: Iterable[str]):
        super().__init__("\n".join(faults))


def places(root: Path = ROOT) -> dict[str, str]:
    """Return which page of the site each file of the repository becomes."""
    found = dict(OF_THE_ROOT)
    for path in sorted((root / "docs").rglob("*.md")):
        name = path.relative_to(root / "docs").as_posix()
        found[f"docs/{name}"] = re.sub(r"(^|/)README\.md$", r"\1index.md", name)
    for path in sorted((root / "docs").rglob("*.ipynb")):
        found[path.relative_to(root).as_posix()] = (
            path.relative_to(root / "docs").with_suffix(".md").as_posix()
        )
    for path in sorted((root / "examples").glob("*.py")):
        found[f"examples/{path.name}"] = f"{EXAMPLES}#{path.stem}"
    return {**found, "examples": EXAMPLES, "docs/cli.md": COMMANDS}


def apart(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[bool, str]]:
    """Yield a text in pieces, with whether each is a match."""
    at = 0
    for match in pattern.finditer(text):
        yield False, text[at : match.start()]
        yield True, match[0]
        at = match.end()
    yield False, text[at:]


def linked(
    text: str,
    source: str,
    page: str,
    to: Mapping[str, str],
    faults: list[str],
    names: Mapping[str, str],
) -> str:
    """Return a page's text with links that hold on the site; a link that leads nowhere is a fault.

    Args:
        text: Markdown.
        source: the file of the repository that it is from; its links are relative to that.
        page: the page of the site that it becomes.
        to: file of the repository -> page of the site.
        faults: what is wrong is added here.
        names: what stands as code -> the place of the site that tells of it.
    """

    def near(place: str) -> str:
        path, hash, anchor = place.partition("#")
        return os.path.relpath(path, PurePosixPath(page).parent) + hash + anchor

    def lead(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        if words is None:
            place = names.get(match[0].strip("`").partition("(")[0])
            return f"[{match[0]}]({near(place)})" if place else match[0]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        file = os.path.normpath(PurePosixPath(source).parent / path)
        if path.endswith((".png", ".svg")):
            picture = near(file.removeprefix("docs/"))
            shown = f"{words}({picture})"
            # A picture opens at its full size.
            return f"[{shown}]({picture})" if words.startswith("!") else shown
        place = to.get(file)
        if place is None:
            faults.append(f"{source}: {target} leads to no page")
            return match[0]
        if place == COMMANDS and anchor.startswith("lorakit-"):
            place, anchor = f"commands/{anchor.removeprefix('lorakit-')}.md", ""
        place, _, inner = place.partition("#")
        return f"{words}({near(place)}{'#' * bool(anchor or inner)}{anchor or inner})"

    def line(text: str) -> str:
        # Braces are no attributes in the repository, so they are none on the site.
        done = [
            lead(match) if (match := LINK.fullmatch(part)) else part.replace("{", "\\{")
            for _, part in apart(text, LINK)
        ]
        return "".join(done)

    def lines(piece: str) -> str:
        """Leave headings alone, and what is indented as code is."""
        kept = re.compile(r"^(?:#+ |    ).*$", re.MULTILINE)
        return "".join(part if code else line(part) for code, part in apart(piece, kept))

    return "".join(piece if fenced else lines(piece) for fenced, piece in apart(text, FENCE))


def sections(text: str) -> list[tuple[str, str]]:
    """Return the heading and text of each section of a page; the first has no heading."""
    fences = [match.span() for match in FENCE.finditer(text)]
    heads = [
        m
        for m in HEADING.finditer(text)
        if not any(start <= m.start() < end for start, end in fences)
    ]
    ends = [m.start() for m in heads[1:]] + [len(text)]
    found = [("", text[: heads[0].start()] if heads else text)]
    return found + [
        (m[1].strip(), text[m.start() : end]) for m, end in zip(heads, ends, strict=False)
    ]


def home_of(readme: str) -> str:
    """Return the home page: the README without its list of links, which the navigation replaces."""
    return "".join(part for head, part in sections(readme) if head != LINKS)


def of_the_examples(root: Path = ROOT) -> str:
    """Return one page of all that is under examples/."""
    pages = [
        "# Examples\n\nEach is one file of at most 90 lines that runs as it is; the tests run "
        "them all.\n"
    ]
    for path in sorted((root / "examples").glob("*.py")):
        title, text = path.stem.replace("_", " ").replace("hf ", "HF "), path.read_text("utf-8")
        said = ast.get_docstring(ast.parse(text)) or ""
        code = text.partition('"""\n\n')[2].strip()
        head = f"## {title[0].upper()}{title[1:]} {{ #{path.stem} }}"
        pages.append(f"{head}\n\n{said}\n\n`examples/{path.name}`\n\n```python\n{code}\n```\n")
    return "\n".join(pages)


def expanded(config: str, pages: Iterable[str]) -> str:
    """Return zensical.toml with `"folder/*"` in its navigation replaced by the pages there that it
    does not name.
    """

    def listed(match: re.Match[str]) -> str:
        return " ".join(
            f'"{page}",'
            for page in sorted(pages)
            if page.startswith(match[1]) and f'"{page}"' not in config
        )

    pages = list(pages)
    return re.sub(r'"([\w-]+/)\*",?', listed, config)


def stage(
    folder: Path,
    made: Mapping[str, str],
    files: Mapping[str, bytes],
    names: Mapping[str, str],
    root: Path = ROOT,
) -> None:
    """Write every page of the site into a folder, which is emptied first.

    Args:
        folder: what lies there is dropped.
        made: page -> text, of those that are not written as they lie in the repository.
        files: name -> content, of what pages show.
        names: what stands as code -> the place of the site that tells of it.
        root: the repository.

    Raises:
        BookError: a link leads to no page.
    """
    faults: list[str] = []
    to = places(root)
    texts = {EXAMPLES: of_the_examples(root), **made}
    for source, page in to.items():
        if page in made or "#" in page or not (root / source).is_file():
            continue
        text = (root / source).read_text("utf-8")
        if source == "LICENSE":
            text = f"# Licence\n\n```text\n{text.strip()}\n```\n"
        if page == HOME:
            text = home_of(text)
        texts[page] = linked(text, source, page, to, faults, names)
    if faults:
        raise BookError(faults)
    shutil.rmtree(folder, ignore_errors=True)
    for page, text in texts.items():
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    pictures = [path for path in (root / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    held = {path.relative_to(root / "docs").as_posix(): path.read_bytes() for path in pictures}
    for name, content in {
        **held,
        **files,
        **{name: (BOOK / name).read_bytes() for name in ASSETS},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
