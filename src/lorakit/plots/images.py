"""A picture, cut to fewer and fewer singular values."""

from collections.abc import Sequence
from typing import Any

from lorakit.plots.canvas import FULL, as_array, new_figure
from lorakit.plots.sizes import hide_frame


def draw_compressed(image: Any, cuts: Sequence[dict[str, Any]], values: Sequence[float]) -> Any:
    """Return a figure of an image beside its approximations, and of its singular values.

    Args:
        image: (height, width), grey, from 0 to 1.
        cuts: with `rank`, `numbers`, `share`, `psnr` and `image`, as `lorakit.explain.image` makes
            them.
        values: the image's singular values, descending.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    height, width = len(image), len(image[0])
    shown = [
        (
            f"rank {c['rank']}: {c['numbers']:,} numbers, {100 * c['share']:.0f} %\nPSNR {c['psnr']:.1f} dB",
            c["image"],
        )
        for c in cuts
    ]
    shown.append((f"the image: {height * width:,} numbers", image))
    columns = (len(shown) + 1) // 2
    drawn = new_figure(3.1 * (columns + 1), 2 * (3.1 * height / width + 0.7))
    places = drawn.add_gridspec(2, columns + 1, width_ratios=[1] * columns + [0.85])
    for number, (title, picture) in enumerate(shown):
        ax = drawn.add_subplot(places[divmod(number, columns)])
        ax.imshow(as_array(picture), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10)
        ax.axis("off")
    ax = drawn.add_subplot(places[:, columns])
    ax.plot(range(1, len(values) + 1), values, color=FULL, linewidth=2)
    for cut in cuts:
        ax.axvline(cut["rank"], color="0.7", linewidth=0.8, zorder=0)
    ax.set_yscale("log")
    ax.set(xlabel="number of the singular value", ylabel="its size")
    ax.set_title("singular values\n(grey lines: the ranks shown)", fontsize=10)
    hide_frame(ax)
    return drawn
