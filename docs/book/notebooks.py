"""The tutorial's notebooks as pages: cells, what they printed, and the pictures they drew, as files
beside the page.
"""

import base64
import json
from pathlib import Path
from typing import Any

from staging import CODE, FENCE, ROOT

RUN = ROOT / "build" / "tutorial"  # where `make tutorial` writes them with what they gave
UNRUN = (
    "*This page shows no outputs: the notebooks were not run when it was made. `make docs` "
    "runs them.*"
)


def cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook."""
    return json.loads(path.read_text("utf-8"))["cells"]


def source(cell: dict[str, Any]) -> str:
    """Return what a cell says."""
    return "".join(cell["source"]).strip("\n")


def ran(path: Path) -> list[dict[str, Any]]:
    """Return the cells as they were run, where that was done with these very cells and none failed;
    else as they are.
    """
    there, plain = RUN / path.name, cells(path)
    given = cells(there) if there.is_file() else []
    failed = any(out["output_type"] == "error" for cell in given for out in cell.get("outputs", ()))
    return (
        plain
        if failed or [source(cell) for cell in given] != [source(cell) for cell in plain]
        else given
    )


def fenced(text: str, language: str) -> str:
    """Return text as a block, with a fence that it does not hold."""
    fence = "```" if "```" not in text else "`````"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def output(out: dict[str, Any], name: str, files: dict[str, bytes]) -> str:
    """Return what a cell gave, as Markdown; a picture goes to `files` under a name that begins with
    `name`.
    """
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
        faults: what a page cannot show is added here.
    """
    parts, found = [], ran(path)
    for at, cell in enumerate(found):
        if cell["cell_type"] == "markdown":
            text = source(cell)
            if "$" in CODE.sub("", FENCE.sub("", text)):
                faults.append(
                    f"{path.name}, cell {at + 1}: formulas are not rendered; write them as text "
                    "or code"
                )
            parts.append(text)
        else:
            parts.append(fenced(source(cell), "python"))
            parts += [
                output(out, f"{name}-{at + 1}-{i + 1}", files)
                for i, out in enumerate(cell.get("outputs", ()))
            ]
    if not any(cell.get("outputs") for cell in found):
        parts.insert(1, UNRUN)
    return "\n\n".join(part for part in parts if part) + "\n"
