"""A page for each command: an example from the docs, links to what explains it, and its flags."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from staging import CODE, FENCE, split_at, split_sections

GROUP = re.compile(r"\S.*:$")
FLAG = re.compile(r"^  (?P<flag>\S.*?)(?: {2,}(?P<text>.*))?$")
EXAMPLE = re.compile(r"^\$ (?P<line>lorakit (?P<command>\w+)(?:.*\\\n)*.*)", re.MULTILINE)
COMMAND = re.compile(r"^  (\w+) +(.+)$", re.MULTILINE)
SPECIAL = re.compile(r"([\\*_\[\]<|])")
FLAG_NAME = re.compile(r"(?<![\w`-])(--[a-z][\w-]*)")
OPENING = """# Command line

Each command prints tables for people, or one JSON object with `--json` and nothing else. A wrong
request ends with exit code 2 before anything is written, a failure while running with 1. If a
command has settings, `--config FILE` reads them from YAML; flags win.
"""


@dataclass
class Help:
    """The help of a command.

    Attributes:
        usage: the line that argparse prints first.
        purpose: the text below it.
        groups: title of a group -> its flags with their texts.
    """

    usage: str
    purpose: str
    groups: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


class Example(NamedTuple):
    """A command line in the docs: its text, its page, and the heading above it."""

    text: str
    page: str
    heading: str


class Link(NamedTuple):
    """A link to a section that shows an example."""

    words: str
    target: str


def parse_help(text: str) -> Help:
    """Return the parts of a help text of argparse."""
    usage, _, rest = text.strip().partition("\n\n")
    purpose, _, rest = rest.partition("\n\n")
    parsed = Help(usage.removeprefix("usage: "), " ".join(purpose.split()))
    flags: list[tuple[str, str]] = []
    for line in rest.splitlines():
        words = line.strip()
        if GROUP.match(line):
            flags = parsed.groups.setdefault(line.rstrip(":"), [])
        elif match := FLAG.match(line):
            flags.append((match["flag"], match["text"] or ""))
        elif words and flags:
            flag, before = flags[-1]
            flags[-1] = (flag, f"{before} {words}".strip())
        elif words:
            parsed.purpose += f"\n\n{words}"
    return parsed


def escape_help(text: str) -> str:
    """Return a help text as Markdown that shows the same words, with flags as code."""
    pieces = []
    for is_code, piece in split_at(text, CODE):
        if not is_code:
            piece = FLAG_NAME.sub(r"`\1`", SPECIAL.sub(r"\\\1", piece))
        pieces.append(piece)
    return "".join(pieces)


def find_examples(texts: Mapping[str, str]) -> dict[str, list[Example]]:
    """Return the command lines in the docs, by command."""
    found: dict[str, list[Example]] = {}
    for page, text in texts.items():
        for heading, section in split_sections(text):
            for block in FENCE.finditer(section):
                for match in EXAMPLE.finditer(block[0]):
                    example = Example(match["line"], page, heading)
                    found.setdefault(match["command"], []).append(example)
    return found


def make_page(name: str, parsed: Help, examples: list[Example], links: list[Link]) -> str:
    """Return the page of a command.

    Args:
        name: of the command.
        parsed: its help.
        examples: command lines; the first one opens the page.
        links: to the sections that explain it.
    """
    lines = [f"# lorakit {name}", ""]
    if examples:
        lines += ["```console", f"$ {examples[0].text}", "```", ""]
    lines += [escape_help(parsed.purpose), ""]
    if links:
        texts = [f"[{link.words}]({link.target})" for link in links]
        lines += [f"Explained in {' · '.join(texts)}.", ""]
    for group, flags in parsed.groups.items():
        title = group.removeprefix("positional ")
        lines += [f"## {capitalise(title)}", ""]
        for flag, text in flags:
            lines += [f"`{flag}`", f":   {escape_help(text)}", ""]
    lines += ["## Usage", "", "```text", parsed.usage, "```", ""]
    return "\n".join(lines)


def capitalise(text: str) -> str:
    """Return a text with a capital letter at its start."""
    return text[0].upper() + text[1:]


def link_examples(
    examples: Iterable[Example], texts: Mapping[str, str], slug: Callable[[str], str]
) -> list[Link]:
    """Return links to the sections that show these examples, one for each section."""
    links: dict[str, Link] = {}
    for example in examples:
        words = page_title(example.page, texts)
        target = f"../{example.page}"
        if example.heading:
            words += f": {example.heading}"
            target += f"#{slug(example.heading)}"
        links.setdefault(words, Link(words, target))
    return list(links.values())


def page_title(page: str, texts: Mapping[str, str]) -> str:
    """Return the title of a page."""
    if page == "index.md":
        return "Home"
    return texts[page].lstrip().partition("\n")[0].lstrip("# ").strip()


def read_helps(cli: str) -> dict[str, str]:
    """Return the help texts of docs/cli.md by heading."""
    helps = {}
    for heading, section in split_sections(cli):
        block = FENCE.search(section)
        if heading and block:
            _, *lines, _ = block[0].strip().split("\n")
            helps[heading] = "\n".join(lines)
    return helps


def make_pages(cli: str, texts: Mapping[str, str], slug: Callable[[str], str]) -> dict[str, str]:
    """Return the pages of all commands.

    Args:
        cli: docs/cli.md.
        texts: text by page, of all pages that may show a command.
        slug: heading -> anchor.
    """
    helps = read_helps(cli)
    found = find_examples(texts)
    pages = {}
    index = [OPENING]
    for name, purpose in COMMAND.findall(helps["lorakit"]):
        examples = found.get(name, [])
        links = link_examples(examples, texts, slug)
        parsed = parse_help(helps[f"lorakit {name}"])
        pages[f"commands/{name}.md"] = make_page(name, parsed, examples, links)
        words = escape_help(capitalise(purpose))
        index.append(f"[`lorakit {name}`]({name}.md)\n:   {words}.\n")
    pages["commands/index.md"] = "\n".join(index)
    return pages
