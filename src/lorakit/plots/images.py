"""An image next to its approximations of lower ranks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from lorakit.plots.canvas import FULL, Numbers, as_array, hide_frame, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE = 3.1  # inches of an image


class Approximation(TypedDict):
    """An image of some rank: its numbers, their share of the whole, and its error as PSNR in dB."""

    rank: int
    numbers: int
    share: float
    psnr: float
    image: Numbers


def draw_compressed(
    image: Numbers, cuts: Sequence[Approximation], values: Sequence[float]
) -> "Figure":
    """Return a figure of an image next to its approximations, and of its singular values.

    Args:
        image: (height, width), grey, from 0 to 1.
        cuts: its approximations.
        values: the image's singular values, descending.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    height, width = len(image), len(image[0])
    shown = [(_caption(cut), cut["image"]) for cut in cuts]
    shown.append((f"the image: {height * width:,} numbers", image))
    columns = (len(shown) + 1) // 2
    figure = new_figure(SIDE * (columns + 1), 2 * (SIDE * height / width + 0.7))
    grid = figure.add_gridspec(2, columns + 1, width_ratios=[1] * columns + [0.85])
    for index, (title, picture) in enumerate(shown):
        ax = figure.add_subplot(grid[divmod(index, columns)])
        ax.imshow(as_array(picture), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10)
        ax.axis("off")
    ranks = [cut["rank"] for cut in cuts]
    _draw_values(figure.add_subplot(grid[:, columns]), values, ranks)
    return figure


def _caption(cut: Approximation) -> str:
    percent = 100 * cut["share"]
    numbers = f"{cut['numbers']:,} numbers"
    return f"rank {cut['rank']}: {numbers}, {percent:.0f} %\nPSNR {cut['psnr']:.1f} dB"


def _draw_values(ax: "Axes", values: Sequence[float], ranks: Sequence[int]) -> None:
    ax.plot(range(1, len(values) + 1), values, color=FULL, linewidth=2)
    for rank in ranks:
        ax.axvline(rank, color="0.7", linewidth=0.8, zorder=0)
    ax.set_yscale("log")
    ax.set(xlabel="number of the singular value", ylabel="its size")
    ax.set_title("singular values\n(grey lines: the ranks shown)", fontsize=10)
    hide_frame(ax)
