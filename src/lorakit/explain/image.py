"""A photograph as a matrix of few directions: an analogy to a change of low rank."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from lorakit.errors import MissingExtra, install_line
from lorakit.explain.counts import count
from lorakit.explain.text import paragraph
from lorakit.linalg import factorize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.plots.images import Approximation

RANKS = (2, 5, 20, 50, 100)


class RankRow(TypedDict):
    """The size and the error of an approximation; PSNR in dB."""

    rank: int
    numbers: int
    share: float
    psnr: float


class ImageNumbers(TypedDict):
    """The shape of the photograph, and its approximations."""

    shape: list[int]
    ranks: list[RankRow]


def photograph() -> Tensor:
    """Return a grey photograph, (427, 640), float64, from 0 to 1.

    It is `china.jpg` of scikit-learn, by danielbuechele (flickr), CC BY 2.0.

    Raises:
        MissingExtra: Pillow, which reads it, is not installed.
    """
    from sklearn.datasets import load_sample_image

    from lorakit.plots.matrices import LUMINANCE

    try:
        image = load_sample_image("china.jpg")
    except ImportError as error:
        raise MissingExtra(
            "The photograph needs Pillow, which is not installed.",
            advice=install_line("plot"),
        ) from error
    grey = torch.tensor(LUMINANCE, dtype=torch.float64)
    return torch.tensor(image).double() @ grey / 255


def cuts(image: Tensor, ranks: Sequence[int] = RANKS) -> list["Approximation"]:
    """Return the best approximation of an image at each rank, with its size and error.

    Args:
        image: (height, width), floating, from 0 to 1.
        ranks: each from 1 to min(height, width).

    Returns:
        Rows of `rank`, `numbers` (values of both factors), `share` (of the image's), `psnr` in dB,
        and the `image`.

    >>> image = torch.eye(4, dtype=torch.float64)
    >>> [(row["numbers"], round(row["psnr"], 2)) for row in cuts(image, [1, 2])]
    [(8, 7.27), (16, 9.03)]
    """
    height, width = image.shape
    A, B = factorize(image, max(ranks))
    rows: list[Approximation] = []
    for rank in ranks:
        cut = B[:, :rank] @ A[:rank]
        values = count(height, width, rank)
        error = (cut - image).square().mean()
        row: Approximation = {
            "rank": rank,
            "numbers": values,
            "share": values / image.numel(),
            "psnr": float(-10 * error.log10()),
            "image": cut,
        }
        rows.append(row)
    return rows


def numbers() -> ImageNumbers:
    """Return the size and error of each approximation of the photograph."""
    image = photograph()
    rows: list[RankRow] = []
    for cut in cuts(image):
        row: RankRow = {
            "rank": cut["rank"],
            "numbers": cut["numbers"],
            "share": cut["share"],
            "psnr": cut["psnr"],
        }
        rows.append(row)
    return {"shape": list(image.shape), "ranks": rows}


def describe(found: ImageNumbers) -> str:
    """Return the numbers as text."""
    height, width = found["shape"]
    opening = f"""
        A grey photograph of {height} × {width} points is a matrix of {height * width:,} numbers.
        Cut to its first r singular values it is a product of two thin matrices, and a fraction of
        the numbers is enough (PSNR: 10 log10 of 1 / mean squared error):
    """
    closing = """
        This is only an analogy. LoRA compresses no weights: it leaves W whole, and assumes that
        the change which a task needs is of this kind.
    """
    lines = [paragraph(opening), ""]
    for row in found["ranks"]:
        percent = 100 * row["share"]
        lines.append(
            f"  rank {row['rank']:>3}   {row['numbers']:>7,} numbers   {percent:>4.1f} %   "
            f"PSNR {row['psnr']:.1f} dB"
        )
    return "\n".join([*lines, "", paragraph(closing)])


def draw(found: ImageNumbers) -> "Figure":
    """Return a figure of the photograph, its approximations and its singular values."""
    from lorakit.plots import draw_compressed

    image = photograph()
    ranks = [row["rank"] for row in found["ranks"]]
    values = torch.linalg.svdvals(image).tolist()
    return draw_compressed(image, cuts(image, ranks), values)
