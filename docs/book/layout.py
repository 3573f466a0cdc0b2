"""Write docs/layout.md: each file of the package with the first line of its docstring."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "lorakit"
PAGE = ROOT / "docs" / "layout.md"
OPENING = """# The files of the package

Each file of `src/lorakit` with the first line of its docstring. Written by `make record`; a test
compares it.
"""


def read_summary(path: Path) -> str:
    """Return the first paragraph of a file's docstring as one line."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    paragraph = text.partition("\n\n")[0]
    return " ".join(paragraph.split())


def make_table(folder: Path) -> list[str]:
    """Return the table of the files of one folder, its `__init__` left out."""
    lines = ["", "| file | |", "| --- | --- |"]
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            lines.append(f"| `{path.name}` | {read_summary(path)} |")
    return lines


def make_page() -> str:
    """Return the whole page: the top level, then every room."""
    lines = [OPENING.rstrip(), "", "## lorakit", "", read_summary(SRC / "__init__.py")]
    lines += make_table(SRC)
    for init in sorted(SRC.rglob("*/__init__.py")):
        folder = init.parent
        name = folder.relative_to(SRC).as_posix()
        lines += ["", f"## {name}/", "", read_summary(init)]
        if len(list(folder.glob("*.py"))) > 1:
            lines += make_table(folder)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), "utf-8")
