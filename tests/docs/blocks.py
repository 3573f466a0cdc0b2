"""Run a page as its reader would: top to bottom, in one folder, Python in one namespace, commands
in a shell.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")] if path.is_file()
)
FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"<!-- (not run|exit code|slow)(?:: *((?:(?!-->).)*?))? *-->\s*\Z", re.DOTALL)


@dataclass
class Block:
    """A fenced block: its language, its text, the line its text begins on, and the comment directly
    above it.
    """

    language: str
    text: str
    line: int
    note: str = ""
    said: str = ""

    @property
    def commands(self) -> list[str]:
        """The lines after `$ `, joined where they end in a backslash."""
        joined = self.text.replace("\\\n", "")
        return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(page):
        note = NOTE.search(page[: match.start()])
        line = page.count("\n", 0, match.start("text")) + 1
        found.append(
            Block(
                match["language"],
                match["text"],
                line,
                *(note.group(1), note.group(2) or "") if note else (),
            )
        )
    return found


def faults(page: str) -> list[str]:
    """Return the blocks that look checked and are not."""
    found = []
    for block in blocks(page):
        if block.note == "not run" and not block.said:
            found.append(f"line {block.line}: not run, and no reason given")
        if (
            block.language in ("bash", "console", "sh", "shell")
            and not block.commands
            and block.note != "not run"
        ):
            found.append(f"line {block.line}: no command; a command begins with '$ '")
    return found


def run(page: Path, folder: Path) -> None:
    """Run all blocks of a page in this folder.

    The working directory of the process is the caller's to set; commands get `folder`.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for block in blocks(page.read_text("utf-8")):
        if block.note == "not run":
            continue
        if block.language == "python":
            # Empty lines in front: a traceback then names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), space)
        elif block.language in ("bash", "console", "sh", "shell"):
            wanted = int(block.said) if block.note == "exit code" else 0
            for command in block.commands:
                done = subprocess.run(
                    ["bash", "-c", command],
                    cwd=folder,
                    env={**os.environ, "PATH": path},
                    text=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
                if done.returncode != wanted:
                    where = f"{page.name}, line {block.line}"
                    raise RuntimeError(
                        f"{where}: `{command}` gave {done.returncode}, not "
                        f"{wanted}:\n{done.stdout[-4000:]}"
                    )


def is_slow(page: str) -> bool:
    """Tell whether a page runs commands, or says that a block is slow."""
    found = [block for block in blocks(page) if block.note != "not run"]
    return any(
        block.note == "slow" or (block.commands and block.language != "text") for block in found
    )
