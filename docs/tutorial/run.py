"""Run the notebooks from nothing, top to bottom, and write them with their outputs.

    python docs/tutorial/run.py                       all notebooks, in place
    python docs/tutorial/run.py --output DIR A.ipynb  some notebooks, to DIR

Each notebook gets its own kernel and working directory. If a cell fails or warns, the notebook is
not written and the exit code is 1. The metadata of a written notebook holds a hash of its code, so
that a test can see whether the outputs come from this code.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PICTURE = "image/png"


def join(text: str | list[str]) -> str:
    """Return a text of a notebook, which may be stored as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def split(text: str) -> list[str]:
    """Return the lines of a text as a notebook stores them."""
    return text.splitlines(keepends=True)


def hash_code(cells: list[dict[str, Any]]) -> str:
    """Return a hash of the code cells, in their order."""
    sources = [join(cell["source"]).strip("\n") for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def merge_streams(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the outputs without stderr, with consecutive pieces of stdout as one output.

    Libraries write to stderr what depends on the machine, and the kernel cuts stdout by time.
    """
    merged: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] != "stream":
            merged.append(output)
            continue
        if output["name"] == "stderr":
            continue
        text = join(output["text"])
        if merged and merged[-1]["output_type"] == "stream":
            merged[-1]["text"] += text
        else:
            merged.append({"name": "stdout", "output_type": "stream", "text": text})
    return merged


def shrink_picture(content: str) -> str:
    """Return a PNG picture in base64 with a palette of 256 colours, a third of its size."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
    small = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def clean_output(output: dict[str, Any]) -> dict[str, Any]:
    """Return one output with a picture or plain text, and without metadata."""
    if output["output_type"] == "stream":
        return {**output, "text": split(output["text"])}
    data = output["data"]
    kind = PICTURE if PICTURE in data else "text/plain"
    content = join(data[kind])
    stored = shrink_picture(content) if kind == PICTURE else split(content)
    cleaned: dict[str, Any] = {"data": {kind: stored}}
    if output["output_type"] == "execute_result":
        cleaned["execution_count"] = output["execution_count"]
    return {**cleaned, "metadata": {}, "output_type": output["output_type"]}


def clean_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a cell without the metadata of editors and kernels."""
    cleaned: dict[str, Any] = {"cell_type": cell["cell_type"]}
    if cell["cell_type"] == "code":
        cleaned["execution_count"] = cell["execution_count"]
    cleaned |= {"id": cell["id"], "metadata": {}}
    if cell["cell_type"] == "code":
        outputs = merge_streams(cell["outputs"])
        cleaned["outputs"] = [clean_output(output) for output in outputs]
    return {**cleaned, "source": split(join(cell["source"]).strip("\n"))}


def dump(notebook: dict[str, Any]) -> str:
    """Return the text of a notebook's file: outputs and sources, with metadata that never vary."""
    cells = [clean_cell(cell) for cell in notebook["cells"]]
    metadata = {
        "code_sha256": hash_code(cells),
        "kernelspec": KERNEL,
        "language_info": {"name": "python"},
    }
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def find_warnings(notebook: dict[str, Any]) -> str:
    """Return the warnings that the cells wrote to stderr."""
    warned = ""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr" and "Warning" in output["text"]:
                warned += output["text"]
    return warned


def execute(notebook: dict[str, Any], limit: float) -> str:
    """Run the cells of a notebook, which keep their outputs; return the error or the warnings."""
    import nbclient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        # Sockets in the file system: other users of the machine cannot listen, as on a port.
        sockets = {"transport": "ipc", "ip": str(Path(folder) / "kernel")}
        client = nbclient.NotebookClient(
            notebook,
            timeout=limit,
            kernel_name="python3",
            config=Config({"KernelManager": sockets}),
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError) as error:
            return str(error)
    return find_warnings(notebook)


def run(path: Path, output: Path, limit: float) -> str:
    """Run one notebook and write it to a folder; return the error, which is empty after success."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    error = execute(notebook, limit)
    if not error:
        output.mkdir(parents=True, exist_ok=True)
        (output / path.name).write_text(dump(notebook), "utf-8")
    return error


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument("--output", type=Path, help="folder to write to; default: in place")
    parser.add_argument("--limit", type=float, default=600, help="seconds that one cell may take")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # tqdm warns where a notebook has no widgets for its bars; the tutorial shows no bars.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    failures = 0
    for path in arguments.notebooks:
        started = time.monotonic()
        output = arguments.output or path.parent
        error = run(path, output, arguments.limit)
        result = "FAILED, not written" if error else output / path.name
        print(f"{path.name}  {time.monotonic() - started:.0f} s  {result}", flush=True)
        if error:
            print(error, file=sys.stderr)
            failures += 1
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
