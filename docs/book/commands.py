"""A page for each command: an example from the docs, links to what explains it, and its flags."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from staging import CODE, FENCE, apart, sections

FLAG = re.compile(r"^  (\S.*?)(?: {2,}(.*))?$")
EXAMPLE = re.compile(r"^\$ (lorakit (\w+)(?:.*\\\n)*.*)", re.MULTILINE)
COMMAND = re.compile(r"^  (\w+) +(.+)$", re.MULTILINE)
HEAD = """# Command line

Each command prints tables for people, or one JSON object with `--json` and nothing else. A wrong
request ends with exit code 2 before anything is written, a failure while running with 1. If a
command has settings, `--config FILE` reads them from YAML; flags win.
"""


@dataclass
class Help:
    """The help of a command: usage, purpose, and flags by group."""

    usage: str
    about: str
    groups: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


class Example(NamedTuple):
    """A command line in the docs: its text, its page, and the heading above it."""

    text: str
    page: str
    heading: str


def parsed(text: str) -> Help:
    """Return the parts of a help text of argparse."""
    usage, _, rest = text.strip().partition("\n\n")
    about, _, rest = rest.partition("\n\n")
    found = Help(usage.removeprefix("usage: "), " ".join(about.split()))
    flags: list[tuple[str, str]] = []
    for line in rest.splitlines():
        if re.match(r"\S.*:$", line):
            flags = found.groups.setdefault(line.rstrip(":"), [])
        elif re.match(r" {2}\S", line):
            match = FLAG.match(line)
            flags.append((match[1], match[2] or "") if match else (line.strip(), ""))
        elif line.strip() and flags:
            name, words = flags[-1]
            flags[-1] = (name, f"{words} {line.strip()}".strip())
        elif line.strip():
            found.about += f"\n\n{line.strip()}"
    return found


def plain(text: str) -> str:
    """Return a help text as Markdown that shows the same words, with flags as code."""
    done = []
    for code, piece in apart(text, CODE):
        if code:
            done.append(piece)
        else:
            escaped = re.sub(r"([\\*_\[\]<|])", r"\\\1", piece)
            done.append(re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", escaped))
    return "".join(done)


def find_examples(texts: Mapping[str, str]) -> dict[str, list[Example]]:
    """Return the command lines in the docs, by command."""
    found: dict[str, list[Example]] = {}
    for name, text in texts.items():
        for heading, part in sections(text):
            for fence in FENCE.finditer(part):
                for match in EXAMPLE.finditer(fence[0]):
                    found.setdefault(match[2], []).append(Example(match[1], name, heading))
    return found


def page(name: str, told: Help, examples: list[str], places: list[tuple[str, str]]) -> str:
    """Return the page of a command.

    Args:
        name: of the command.
        told: its help.
        examples: command lines; the first stands at the top.
        places: (words, link) of what explains it.
    """
    lines = [f"# lorakit {name}", ""]
    if examples:
        lines += ["```console", f"$ {examples[0]}", "```", ""]
    lines += [plain(told.about), ""]
    if places:
        links = [f"[{words}]({link})" for words, link in places]
        lines += [f"Explained in {' · '.join(links)}.", ""]
    for group, flags in told.groups.items():
        head = group.removeprefix("positional ")
        lines += [f"## {head[0].upper()}{head[1:]}", ""]
        for flag, text in flags:
            lines += [f"`{flag}`", f":   {plain(text) or '.'}", ""]
    return "\n".join([*lines, "## Usage", "", "```text", told.usage, "```", ""])


def links_to(
    examples: list[Example], texts: Mapping[str, str], slug: Callable[[str], str]
) -> list[tuple[str, str]]:
    """Return (words, link) of the sections that show these examples, each once."""
    places: dict[str, str] = {}
    for example in examples:
        title = texts[example.page].lstrip().partition("\n")[0].lstrip("# ").strip()
        words = "Home" if example.page == "index.md" else title
        link = f"../{example.page}"
        if example.heading:
            words += f": {example.heading}"
            link += f"#{slug(example.heading)}"
        places.setdefault(words, link)
    return list(places.items())


def pages(cli: str, texts: Mapping[str, str], slug: Callable[[str], str]) -> dict[str, str]:
    """Return the pages of all commands.

    Args:
        cli: docs/cli.md.
        texts: text by page, of all pages that may show a command.
        slug: heading -> anchor.
    """
    bodies = {}
    for head, part in sections(cli):
        match = FENCE.search(part)
        if head and match:
            bodies[head] = match[0].strip().split("\n", 1)[1].rsplit("\n", 1)[0]
    found = find_examples(texts)
    made = {}
    index = [HEAD]
    for name, text in COMMAND.findall(bodies["lorakit"]):
        examples = found.get(name, [])
        told = parsed(bodies[f"lorakit {name}"])
        lines = [example.text for example in examples]
        made[f"commands/{name}.md"] = page(name, told, lines, links_to(examples, texts, slug))
        index.append(f"[`lorakit {name}`]({name}.md)\n:   {plain(text[0].upper() + text[1:])}.\n")
    return {**made, "commands/index.md": "\n".join(index)}
