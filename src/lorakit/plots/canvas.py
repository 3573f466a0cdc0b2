"""Empty figures, their colours, and their files."""

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lorakit.errors import MissingExtra, OutputError, install_line
from lorakit.files import replace_file
from lorakit.text import add_hint, near_misses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Sequence[Sequence[float]] | np.ndarray | Tensor
DPI = 120
# Each colour has one meaning: full matrices, low rank, text and marks; and blue for values that
# add, red for values that subtract.
FULL, LORA, INK, SIGNS = "C0", "C1", "0.2", "RdBu"


def new_figure(width: float = 12, height: float = 7) -> "Figure":
    """Return an empty matplotlib figure, without a window or global state; notebooks show it.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            "Pictures need matplotlib, which is not installed.",
            advice=install_line("plot"),
        ) from error
    return _make_picture_class(Figure)(figsize=(width, height), layout="constrained")


@cache
def _make_picture_class(kind: "type[Figure]") -> "type[Figure]":
    """Return a class of figures that a notebook shows as pictures."""

    class Picture(kind):
        def _repr_png_(self) -> bytes:
            content = BytesIO()
            self.savefig(content, format="png", dpi=DPI)
            return content.getvalue()

    return Picture


def check_path(path: str | Path) -> None:
    """Refuse a file that no picture could be written to, before anything is computed.

    Raises:
        MissingExtra: matplotlib is not installed.
        OutputError: the ending is not one of a picture, or there is no such folder.
    """
    path = Path(path)
    kinds = new_figure().canvas.get_supported_filetypes()
    ending = _ending(path)
    if ending not in kinds:
        shown = f".{ending}" if ending else "no ending"
        message = f"{path}: {shown} is no kind of picture."
        known = ", ".join(sorted(kinds))
        message = add_hint(message, near_misses(ending, kinds))
        raise OutputError(message, advice=f"Known: {known}. Nothing was written.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", advice="Nothing was written.")
    if not path.absolute().parent.is_dir():
        raise OutputError(
            f"{path} is in a folder that does not exist.", advice="Nothing was written."
        )


def _ending(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def save_figure(figure: "Figure", path: str | Path) -> Path:
    """Write a figure, whole or not at all; the ending of the name gives the kind of file."""
    check_path(path)
    path = Path(path)
    with replace_file(path) as part:
        figure.savefig(part, dpi=DPI, format=_ending(path))
    return path


def hide_frame(ax: "Axes") -> None:
    """Hide the sides of the frame that carry no numbers, and draw a grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)


def as_array(values: Numbers) -> np.ndarray:
    """Return rows of numbers, or a tensor that may train and be on any device, in float64.

    >>> as_array([[1, 2]]).tolist()
    [[1.0, 2.0]]
    """
    if isinstance(values, Tensor):
        return values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=float)
