"""A page for each command, made from its help on docs/cli.md and from the places of the docs that
show it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from staging import CODE, FENCE, apart, sections

FLAG = re.compile(r"^  (\S.*?)(?: {2,}(.*))?$")
RUN = re.compile(r"^\$ lorakit (\w+)(.*(?:\\\n.*)*)", re.MULTILINE)
HEAD = """# Command line

Each command prints tables for people, or one JSON object with `--json` and nothing else. A request that cannot be meant ends
with exit code 2 before anything is written, a failure while running with 1. Where a command has settings, `--config FILE` reads
them from YAML; flags win.
"""


@dataclass
class Help:
    """What the help of a command says: how it is called, what it is for, and its flags by group."""

    usage: str
    about: str
    groups: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def parsed(text: str) -> Help:
    """Return what argparse's help says, by its parts."""
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
            flags[-1] = (flags[-1][0], f"{flags[-1][1]} {line.strip()}".strip())
        elif line.strip():
            found.about += f"\n\n{line.strip()}"
    return found


def plain(text: str) -> str:
    """Return words of a help text that Markdown reads as they stand, flags as code."""
    done = []
    for code, piece in apart(text, CODE):
        piece = piece if code else re.sub(r"([\\*_\[\]<|])", r"\\\1", piece)
        done.append(piece if code else re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", piece))
    return "".join(done)


def shown(texts: Mapping[str, str]) -> dict[str, list[tuple[str, str, str]]]:
    """Return, by command, where docs show it: page, heading, and the words after the command."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for page, text in texts.items():
        for head, part in sections(text):
            for fence in FENCE.finditer(part):
                for match in RUN.finditer(fence[0]):
                    found.setdefault(match[1], []).append((page, head, match[2]))
    return found


def page(name: str, told: Help, places: list[tuple[str, str]]) -> str:
    """Return the page of a command.

    Args:
        name: of the command.
        told: its help.
        places: (words, link) of what explains it.
    """
    lines = [f"# lorakit {name}", "", plain(told.about), ""]
    if places:
        lines += [
            "Shown and explained: "
            + " · ".join(f"[{words}]({link})" for words, link in places)
            + ".",
            "",
        ]
    for group, flags in told.groups.items():
        head = group.removeprefix("positional ")
        lines += [f"## {head[0].upper()}{head[1:]}", ""]
        for flag, text in flags:
            lines += [f"`{flag}`", f":   {plain(text) or '.'}", ""]
    return "\n".join([*lines, "## Usage", "", "```text", told.usage, "```", ""])


def pages(cli: str, texts: Mapping[str, str], slug: Callable[[str], str]) -> dict[str, str]:
    """Return the pages of all commands.

    Args:
        cli: docs/cli.md.
        texts: page of the site -> its text, of all that may show a command.
        slug: heading -> anchor.
    """
    helps = {head: FENCE.search(part) for head, part in sections(cli) if head}
    bodies = {
        head: match[0].strip().split("\n", 1)[1].rsplit("\n", 1)[0]
        for head, match in helps.items()
        if match
    }
    seen, made = shown(texts), {}
    rows = re.findall(r"^  (\w+) +(.+)$", bodies["lorakit"], re.MULTILINE)
    for name, _ in rows:
        places: dict[str, str] = {}
        for where, head, _words in seen.get(name, ()):
            title = texts[where].lstrip().partition("\n")[0].lstrip("# ").strip()
            title = "Home" if where == "index.md" else title
            words = f"{title}: {head}" if head else title
            places.setdefault(words, f"../{where}{'#' + slug(head) if head else ''}")
        made[f"commands/{name}.md"] = page(
            name, parsed(bodies[f"lorakit {name}"]), list(places.items())
        )
    index = [HEAD] + [
        f"[`lorakit {name}`]({name}.md)\n:   {plain(text[0].upper() + text[1:])}.\n"
        for name, text in rows
    ]
    return {**made, "commands/index.md": "\n".join(index)}
