"""An empty figure, and its file."""

import os
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from lorakit.errors import MissingExtra, OutputError
from lorakit.text import near_misses

DPI = 120
# One meaning a colour: all weights, low rank, text and marks; and blue for what adds, red for what
# subtracts.
FULL, LORA, INK, SIGNS = "C0", "C1", "0.2", "RdBu"


def new_figure(width: float = 12, height: float = 7) -> Any:
    """Return an empty matplotlib Figure; it knows no window and no global state, and a notebook
    shows it.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "Pictures need matplotlib, which is not installed.",
            advice="pip install 'lorakit[plot]'",
        ) from error
    return _showing(Figure)(figsize=(width, height), layout="constrained")


@cache
def _showing(kind: Any) -> Any:
    """Return the same kind of figure, one that a notebook shows by itself."""

    class Picture(kind):
        def _repr_png_(self) -> bytes:
            kept = BytesIO()
            self.savefig(kept, format="png", dpi=DPI)
            return kept.getvalue()

    return Picture


def check_path(path: str | Path) -> None:
    """Refuse, before anything is computed, a file that no picture could be written to.

    Raises:
        MissingExtra: matplotlib is not installed.
        OutputError: the ending is of no kind of picture, or there is no such folder.
    """
    kinds, path = new_figure().canvas.get_supported_filetypes(), Path(path)
    ending = path.suffix.removeprefix(".").lower()
    if ending not in kinds:
        told = f"{'.' + ending if ending else 'no ending'} is no kind of picture. {near_misses(ending, kinds)}".rstrip()
        raise OutputError(
            f"{path}: {told}", advice=f"Known: {', '.join(sorted(kinds))}. Nothing was written."
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(
            f"{path} {'is a folder' if path.is_dir() else 'is in no folder that is there'}.",
            advice="Nothing was written.",
        )


def save_figure(drawn: Any, path: str | Path) -> Path:
    """Write a figure, atomically; the ending of the name says which kind of file."""
    check_path(path)
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        drawn.savefig(part, dpi=DPI)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def as_array(values: Any) -> Any:
    """Return rows of numbers, or a tensor that may be trained and lie anywhere, as a numpy array in
    float64.

    >>> as_array([[1, 2]]).tolist()
    [[1.0, 2.0]]
    """
    import numpy as np
    from torch import Tensor

    return (
        values.detach().double().cpu().numpy()
        if isinstance(values, Tensor)
        else np.asarray(values, dtype=float)
    )
