"""Run the notebooks from nothing, top to bottom, and write them with what they printed and drew.

    python docs/tutorial/run.py                       all of them, to build/tutorial
    python docs/tutorial/run.py --output DIR A.ipynb  some of them, to DIR
    python docs/tutorial/run.py --strip               take outputs out of those in docs/tutorial,
    before a commit

Each runs in a kernel and a working directory of its own. A cell that fails or warns ends it with
exit code 1.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def stored(text: str) -> str:
    """Return a notebook as it is committed: no outputs, no counters, no metadata of an editor."""
    cells = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip("\n").splitlines(keepends=True)
        kept: dict[str, Any] = {"cell_type": cell["cell_type"], "id": cell["id"], "metadata": {}}
        kept |= {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        cells += [{**dict(sorted(kept.items())), "source": source}] if source else []
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def execute(path: Path, output: Path, limit: float) -> str:
    """Run one notebook and write it to a folder; returns what went wrong, or nothing."""
    import nbclient
    import nbformat
    from traitlets.config import Config

    notebook: Any = nbformat.read(path, as_version=4)
    failed = ""
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        # Sockets in the file system: no other user of the machine can listen, as one could on a
        # port.
        sockets = Config(
            {"KernelManager": {"transport": "ipc", "ip": str(Path(folder) / "kernel")}}
        )
        client = nbclient.NotebookClient(
            notebook,
            timeout=limit,
            kernel_name="python3",
            config=sockets,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute()
        except (
            nbclient.exceptions.CellExecutionError,
            nbclient.exceptions.CellTimeoutError,
        ) as error:
            failed = str(error)
    warned = ""
    for cell in notebook.cells:
        for out in [out for out in cell.get("outputs", ()) if out.get("name") == "stderr"]:
            warned += out["text"] if "Warning" in out["text"] else ""
            cell.outputs.remove(out)  # what libraries log of this machine is not of the tutorial
    output.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, output / path.name)
    return failed or warned


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "build" / "tutorial")
    parser.add_argument("--limit", type=float, default=240, help="seconds that one cell may take")
    parser.add_argument("--strip", action="store_true")
    asked = parser.parse_args()
    if asked.strip:
        for path in asked.notebooks:
            path.write_text(stored(path.read_text("utf-8")), "utf-8")
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # tqdm warns where a notebook has no widgets to draw its bars with; the tutorial draws none.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    wrong = 0
    for path in asked.notebooks:
        started = time.monotonic()
        failed = execute(path, asked.output, asked.limit)
        told = "FAILED" if failed else asked.output / path.name
        print(f"{path.name}  {time.monotonic() - started:.0f} s  {told}", flush=True)
        if failed:
            print(failed, file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
