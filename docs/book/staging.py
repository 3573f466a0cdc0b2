"""The pages of the site as Markdown in one folder: README, docs/ and examples/, with new links."""

import ast
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
BOOK = Path(__file__).parent
HOME, EXAMPLES, COMMANDS = "index.md", "examples.md", "commands/index.md"
ROOT_PAGES = {
    "README.md": HOME,
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LOG.md": "log.md",
    "SECURITY.md": "security.md",
    "LICENSE": "licence.md",
}
ASSETS = ("style.css", "iframe-worker.js")
PICTURES = (".png", ".svg")
LINKS = "More"  # the section of the README that the site's navigation replaces
FENCE = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
# A link or picture, or code, which contains no links.
LINK = re.compile(
    r"(?P<words>!?\[(?:[^\[\]`]|`[^`\n]+`|\[[^\]]*\])*\])\((?P<target>[^()\s]+)\)|`[^`\n]+`"
)
HEADING = re.compile(r"^## +(.+)$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
UNLINKED_LINE = re.compile(r"^(?:#+ |    ).*$", re.MULTILINE)  # a heading, or indented code
ELSEWHERE = re.compile(r"[a-z]+:|#")  # the start of a URL, or of an anchor on the same page
EXAMPLES_OPENING = """# Examples

Each is one file of at most 90 lines that runs as it is; the tests run them all.
"""


class BookError(Exception):
    """The faults of the site, one a line."""

    def __init__(self, faults: Iterable[str]):
        super().__init__("\n".join(faults))


def map_pages(root: Path = ROOT) -> dict[str, str]:
    """Return the page of the site for each file of the repository that becomes one."""
    docs = root / "docs"
    pages = dict(ROOT_PAGES)
    for path in sorted(docs.rglob("*.md")):
        name = path.relative_to(docs).as_posix()
        pages[f"docs/{name}"] = re.sub(r"(^|/)README\.md$", r"\1index.md", name)
    for path in sorted(docs.rglob("*.ipynb")):
        name = path.relative_to(docs)
        pages[f"docs/{name.as_posix()}"] = name.with_suffix(".md").as_posix()
    for path in sorted((root / "examples").glob("*.py")):
        pages[f"examples/{path.name}"] = f"{EXAMPLES}#{path.stem}"
    pages["examples"] = EXAMPLES
    pages["docs/cli.md"] = COMMANDS
    return pages


def split_at(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[bool, str]]:
    """Yield the pieces of a text in order, each with True if it is a match."""
    end = 0
    for match in pattern.finditer(text):
        yield False, text[end : match.start()]
        yield True, match[0]
        end = match.end()
    yield False, text[end:]


@dataclass(frozen=True)
class LinkRewriter:
    """Rewriting of one file's links, so that they work on the site.

    Attributes:
        source: the file of the repository; its links are relative to it.
        page: the page of the site that it becomes.
        pages: file of the repository -> page of the site.
        names: name in code -> the place of the site that documents it.
        faults: a message for each link without a target is added here.
    """

    source: str
    page: str
    pages: Mapping[str, str]
    names: Mapping[str, str]
    faults: list[str]

    def rewrite(self, text: str) -> str:
        """Return the text of the page, from that of the file."""
        pieces = []
        for is_block, piece in split_at(text, FENCE):
            pieces.append(piece if is_block else self._rewrite_lines(piece))
        return "".join(pieces)

    def _rewrite_lines(self, text: str) -> str:
        pieces = []
        for is_unlinked, piece in split_at(text, UNLINKED_LINE):
            pieces.append(piece if is_unlinked else self._rewrite_prose(piece))
        return "".join(pieces)

    def _rewrite_prose(self, text: str) -> str:
        pieces = []
        for _, piece in split_at(text, LINK):
            match = LINK.fullmatch(piece)
            if match is None:
                # The repository shows braces as text; the site would read attributes.
                pieces.append(piece.replace("{", "\\{"))
            elif match["words"] is None:
                pieces.append(self._link_code(piece))
            else:
                pieces.append(self._rewrite_link(match))
        return "".join(pieces)

    def _link_code(self, code: str) -> str:
        """Return code, as a link if it names something documented."""
        name = code.strip("`").partition("(")[0]
        place = self.names.get(name)
        return f"[{code}]({self._relative(place)})" if place else code

    def _rewrite_link(self, match: re.Match[str]) -> str:
        words, target = match["words"], match["target"]
        if ELSEWHERE.match(target):
            return match[0]
        path, _, anchor = target.partition("#")
        file = os.path.normpath(PurePosixPath(self.source).parent / path)
        if path.endswith(PICTURES):
            return self._link_picture(words, file)
        place = self.pages.get(file)
        if place is None:
            self.faults.append(f"{self.source}: {target} leads to no page")
            return match[0]
        return f"{words}({self._relative(_add_anchor(place, anchor))})"

    def _link_picture(self, words: str, file: str) -> str:
        """Return a picture, which opens at its full size, or a link to one."""
        picture = self._relative(file.removeprefix("docs/"))
        shown = f"{words}({picture})"
        return f"[{shown}]({picture})" if words.startswith("!") else shown

    def _relative(self, place: str) -> str:
        """Return a place of the site as a link from the page."""
        path, hash_sign, anchor = place.partition("#")
        return os.path.relpath(path, PurePosixPath(self.page).parent) + hash_sign + anchor


def _add_anchor(place: str, anchor: str) -> str:
    """Return a place of the site with the anchor of a link to it, if the link has one."""
    if not anchor:
        return place
    if place == COMMANDS and anchor.startswith("lorakit-"):
        return f"commands/{anchor.removeprefix('lorakit-')}.md"
    return f"{place.partition('#')[0]}#{anchor}"


def split_sections(text: str) -> list[tuple[str, str]]:
    """Return the heading and text of each section of a page; the first has no heading."""
    blocks = [match.span() for match in FENCE.finditer(text)]
    headings = []
    for match in HEADING.finditer(text):
        if not any(start <= match.start() < end for start, end in blocks):
            headings.append(match)
    starts = [match.start() for match in headings]
    ends = [*starts, len(text)]
    sections = [("", text[: ends[0]])]
    for match, end in zip(headings, ends[1:], strict=True):
        sections.append((match[1].strip(), text[match.start() : end]))
    return sections


def make_home(readme: str) -> str:
    """Return the home page: the README without its list of links, which the navigation replaces."""
    return "".join(text for heading, text in split_sections(readme) if heading != LINKS)


def make_licence(text: str) -> str:
    """Return the page of the licence."""
    return f"# Licence\n\n```text\n{text.strip()}\n```\n"


def make_examples(root: Path = ROOT) -> str:
    """Return one page with all files of examples/."""
    sections = [EXAMPLES_OPENING]
    for path in sorted((root / "examples").glob("*.py")):
        sections.append(make_example(path))
    return "\n".join(sections)


def make_example(path: Path) -> str:
    """Return the section of one example: its docstring, and its code."""
    text = path.read_text("utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    code = text.partition('"""\n\n')[2].strip()
    title = path.stem.replace("_", " ").replace("hf ", "HF ")
    heading = f"## {title[0].upper()}{title[1:]} {{ #{path.stem} }}"
    block = f"```python\n{code}\n```\n"
    return "\n\n".join([heading, docstring, f"`examples/{path.name}`", block])


def expand_navigation(config: str, pages: Iterable[str]) -> str:
    """Return zensical.toml with each `"folder/*"` of its navigation replaced by pages.

    These are the pages in the folder that the navigation does not name.
    """
    unnamed = [page for page in sorted(pages) if f'"{page}"' not in config]

    def list_folder(match: re.Match[str]) -> str:
        folder = match[1]
        return " ".join(f'"{page}",' for page in unnamed if page.startswith(folder))

    return re.sub(r'"([\w-]+/)\*",?', list_folder, config)


def stage(
    folder: Path,
    made: Mapping[str, str],
    files: Mapping[str, bytes],
    names: Mapping[str, str],
    root: Path = ROOT,
) -> None:
    """Write every page of the site into a folder, which is emptied first.

    Args:
        folder: the folder; its present content is deleted.
        made: page -> text, for pages that are not files of the repository.
        files: name -> content, for files that pages show.
        names: name in code -> the place of the site that documents it.
        root: the repository.

    Raises:
        BookError: a link leads to no page.
    """
    texts = {EXAMPLES: make_examples(root), **made, **_read_pages(made, names, root)}
    shutil.rmtree(folder, ignore_errors=True)
    contents = {page: text.encode() for page, text in texts.items()}
    contents |= _read_pictures(root)
    contents |= files
    contents |= {name: (BOOK / name).read_bytes() for name in ASSETS}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _read_pages(made: Mapping[str, str], names: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the pages that are files of the repository, with their links rewritten.

    Raises:
        BookError: a link leads to no page.
    """
    faults: list[str] = []
    texts: dict[str, str] = {}
    pages = map_pages(root)
    for source, page in pages.items():
        is_section = "#" in page
        if page in made or is_section or not (root / source).is_file():
            continue
        text = (root / source).read_text("utf-8")
        if source == "LICENSE":
            text = make_licence(text)
        if page == HOME:
            text = make_home(text)
        texts[page] = LinkRewriter(source, page, pages, names, faults).rewrite(text)
    if faults:
        raise BookError(faults)
    return texts


def _read_pictures(root: Path) -> dict[str, bytes]:
    """Return the pictures of docs/ by name."""
    docs = root / "docs"
    pictures = {}
    for path in docs.rglob("*"):
        if path.suffix in PICTURES:
            pictures[path.relative_to(docs).as_posix()] = path.read_bytes()
    return pictures
