"""The notebooks of the tutorial as pages: cells with their outputs; pictures are files beside."""

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from staging import CODE, FENCE

Cell = dict[str, Any]
Output = dict[str, Any]


@dataclass
class NotebookPage:
    """The page of a notebook, while it is made.

    Attributes:
        name: of the page, without .md.
        title: file name of the notebook, for messages.
        parts: Markdown of the cells and outputs, in order.
        pictures: name -> content.
        faults: a message for each cell that the page cannot show.
    """

    name: str
    title: str
    parts: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The page as Markdown."""
        return "\n\n".join(part for part in self.parts if part) + "\n"

    def add_fault(self, number: int, message: str) -> None:
        """Add a message about a cell."""
        self.faults.append(f"{self.title}, cell {number}: {message}")

    def add_markdown(self, number: int, text: str) -> None:
        """Add a cell of text."""
        if has_formula(text):
            self.add_fault(number, "formulas are not rendered; write them as text or code")
        self.parts.append(text)

    def add_code(self, number: int, cell: Cell) -> None:
        """Add a cell of code and its outputs."""
        if not is_run(cell):
            self.add_fault(number, "not run; `make tutorial` runs it")
        self.parts.append(fence(join_source(cell), "python"))
        for position, output in enumerate(cell.get("outputs", ()), start=1):
            self.add_output(f"{self.name}-{number}-{position}", output)

    def add_output(self, name: str, output: Output) -> None:
        """Add an output of code; a picture becomes a file of this name."""
        if output["output_type"] == "stream":
            self.add_text("".join(output["text"]))
            return
        data = output.get("data", {})
        if "image/png" in data:
            content = "".join(data["image/png"])
            self.add_picture(f"{name}.png", base64.b64decode(content))
        elif "image/svg+xml" in data:
            content = "".join(data["image/svg+xml"])
            self.add_picture(f"{name}.svg", content.encode())
        elif "text/plain" in data:
            self.add_text("".join(data["text/plain"]))

    def add_text(self, text: str) -> None:
        """Add text that the code printed."""
        self.parts.append(fence(text, "text"))

    def add_picture(self, name: str, content: bytes) -> None:
        """Add a picture: as a file, and as a link to it."""
        self.pictures[name] = content
        file = Path(name).name
        self.parts.append(f"![what the cell draws]({file})")


def make_page(path: Path, name: str) -> NotebookPage:
    """Return a notebook as a page.

    Args:
        path: the notebook.
        name: of the page, without .md.
    """
    page = NotebookPage(name, path.name)
    for number, cell in enumerate(read_cells(path), start=1):
        if cell["cell_type"] == "markdown":
            page.add_markdown(number, join_source(cell))
        else:
            page.add_code(number, cell)
    return page


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of a notebook."""
    return json.loads(path.read_text("utf-8"))["cells"]


def join_source(cell: Cell) -> str:
    """Return the source of a cell."""
    return "".join(cell["source"]).strip("\n")


def is_run(cell: Cell) -> bool:
    """Return True if a code cell was run without an error."""
    kinds = [output["output_type"] for output in cell.get("outputs", ())]
    return cell.get("execution_count") is not None and "error" not in kinds


def has_formula(text: str) -> bool:
    """Return True if a text has a dollar sign outside code."""
    prose = CODE.sub("", FENCE.sub("", text))
    return "$" in prose


def fence(text: str, language: str) -> str:
    """Return text as a block, between fences that the text does not contain."""
    marks = "`````" if "```" in text else "```"
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"
