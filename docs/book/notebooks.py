"""The tutorial's notebooks as pages: cells and their outputs, with pictures as files in the folder
of the page.
"""

import base64
import json
from pathlib import Path
from typing import Any

from staging import CODE, FENCE


def cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook."""
    return json.loads(path.read_text("utf-8"))["cells"]


def source(cell: dict[str, Any]) -> str:
    """Return the source of a cell."""
    return "".join(cell["source"]).strip("\n")


def is_run(cell: dict[str, Any]) -> bool:
    """Return True if a code cell was run without an error."""
    kinds = [out["output_type"] for out in cell.get("outputs", ())]
    return cell.get("execution_count") is not None and "error" not in kinds


def fenced(text: str, language: str) -> str:
    """Return text as a block, between fences that the text does not contain."""
    fence = "```" if "```" not in text else "`````"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def output(out: dict[str, Any], name: str, files: dict[str, bytes]) -> str:
    """Return an output as Markdown; a picture is added to `files` under a name with this start."""
    if out["output_type"] == "stream":
        return fenced("".join(out["text"]), "text")
    data = out.get("data", {})
    for kind, suffix in (("image/png", "png"), ("image/svg+xml", "svg")):
        if kind in data:
            held = "".join(data[kind])
            files[f"{name}.{suffix}"] = base64.b64decode(held) if suffix == "png" else held.encode()
            return f"![what the cell draws]({Path(name).name}.{suffix})"
    return fenced("".join(data["text/plain"]), "text") if "text/plain" in data else ""


def page(path: Path, name: str, files: dict[str, bytes], faults: list[str]) -> str:
    """Return a notebook as a page.

    Args:
        path: the notebook.
        name: of the page, without .md.
        files: pictures are added here: name -> bytes.
        faults: messages about cells that a page cannot show are added here.
    """
    parts: list[str] = []
    for at, cell in enumerate(cells(path)):
        if cell["cell_type"] == "markdown":
            text = source(cell)
            if "$" in CODE.sub("", FENCE.sub("", text)):
                faults.append(
                    f"{path.name}, cell {at + 1}: formulas are not rendered; write them as text "
                    "or code"
                )
            parts.append(text)
        else:
            if not is_run(cell):
                faults.append(f"{path.name}, cell {at + 1}: not run; `make tutorial` runs it")
            parts.append(fenced(source(cell), "python"))
            parts += [
                output(out, f"{name}-{at + 1}-{i + 1}", files)
                for i, out in enumerate(cell.get("outputs", ()))
            ]
    return "\n\n".join(part for part in parts if part) + "\n"
