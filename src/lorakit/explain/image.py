"""A photograph as a matrix: how few directions are enough for it, as an analogy to a change of low
rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.errors import MissingExtra
from lorakit.explain.counts import count
from lorakit.explain.text import paragraph
from lorakit.linalg import factorize

RANKS = (2, 5, 20, 50, 100)


def photograph() -> Tensor:
    """Return a grey photograph, (427, 640), float64, from 0 to 1.

    It is `china.jpg` of scikit-learn, by danielbuechele (flickr), CC BY 2.0.

    Raises:
        MissingExtra: Pillow, which reads it, is not installed.
    """
    from sklearn.datasets import load_sample_image

    try:
        image: Any = load_sample_image("china.jpg")
    except ImportError as error:
        raise MissingExtra(
            "The photograph needs Pillow, which is not installed.",
            advice="pip install 'lorakit[plot]'",
        ) from error
    grey = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)  # ITU-R BT.601
    return torch.tensor(image).double() @ grey / 255


def cuts(image: Tensor, ranks: Sequence[int] = RANKS) -> list[dict[str, Any]]:
    """Return the best approximation of an image at each rank, what it takes, and how near it is.

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
    rows: list[dict[str, Any]] = []
    for rank in ranks:
        cut = B[:, :rank] @ A[:rank]
        numbers = count(height, width, rank)
        psnr = float(-10 * (cut - image).square().mean().log10())
        rows.append(
            {
                "rank": rank,
                "numbers": numbers,
                "share": numbers / image.numel(),
                "psnr": psnr,
                "image": cut,
            }
        )
    return rows


def numbers() -> dict[str, Any]:
    image = photograph()
    rows = [{name: value for name, value in row.items() if name != "image"} for row in cuts(image)]
    return {"shape": list(image.shape), "ranks": rows}


def tell(told: dict[str, Any]) -> str:
    height, width = told["shape"]
    lines = [
        f"  rank {r['rank']:>3}   {r['numbers']:>7,} numbers   {100 * r['share']:>4.1f} %   PSNR {r['psnr']:.1f} dB"
        for r in told["ranks"]
    ]
    return "\n".join(
        [
            paragraph(
                f"A grey photograph of {height} × {width} points is a matrix of {height * width:,} numbers. Cut to its "
                f"first r singular values it is a product of two thin matrices, and a fraction of them will do "
                "(PSNR: 10 log10 of 1 / mean squared error):"
            ),
            "",
            *lines,
            "",
            paragraph(
                "So much for the analogy. LoRA compresses no weights: it leaves W whole and bets that what a task adds to W "
                "is of such a kind."
            ),
        ]
    )


def draw(told: dict[str, Any]) -> Any:
    from lorakit.plots import draw_compressed

    image = photograph()
    return draw_compressed(
        image,
        cuts(image, [row["rank"] for row in told["ranks"]]),
        torch.linalg.svdvals(image).tolist(),
    )
