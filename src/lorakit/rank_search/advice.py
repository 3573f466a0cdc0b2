"""A rank before anything is trained, from the task, the data and the memory: rules of thumb, each
with its evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PER_VALUE = (
    16  # bytes of a float32 value that trains: itself, its gradient, and AdamW's two moments
)
BITS = 2.0  # of information that a trained value can hold
# Rows up to which a rank is the usual start.
BY_ROWS = ((10_000, 16), (100_000, 32))
MANY = 64
CLASSIFY = 8


@dataclass(frozen=True)
class Advice:
    """A rank to begin with, and one line for each thing that led there."""

    rank: int
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what the command prints as JSON."""
        return {
            "recommended_rank": self.rank,
            "reason": " ".join(self.reasons),
            "reasons": list(self.reasons),
        }


def advise(
    task: str,
    rows: int,
    shapes: Sequence[tuple[int, int]],
    *,
    tokens: int | None = None,
    memory: int | None = None,
) -> Advice:
    """Return a rank to begin with, and why.

    Args:
        task: causal-lm, classify or regress.
        rows: that are trained on.
        shapes: (out, in) of each adapted matrix.
        tokens: trained in one pass over the rows; for classes and values, the rows themselves.
        memory: bytes that the adapter, its gradients and moments may take; not looked at where
            None.

    Source: rows: Schulman et al., LoRA Without Regret, 2025; classes: arXiv 2106.09685, table 6;
        what a value holds: Allen-Zhu and Li, Physics of Language Models 3.3, arXiv 2404.05405.

    >>> told = advise("causal-lm", 5_000, [(64, 64)] * 10, tokens=1_000_000)
    >>> told.rank, told.reasons[0]
    (16, 'causal-lm on 5,000 rows: 16 up to 10,000 rows, 32 up to 100,000, 64 above (LoRA Without
    Regret).')
    """
    reasons = []
    if task == "causal-lm":
        rank = next((rank for most, rank in BY_ROWS if rows <= most), MANY)
        reasons.append(
            f"{task} on {rows:,} rows: 16 up to 10,000 rows, 32 up to 100,000, 64 above (LoRA Without Regret)."
        )
    else:
        rank = CLASSIFY
        reasons.append(
            f"{task}: one answer a row teaches little; rank 1 to {CLASSIFY} did as well as 64 on query and value "
            "(arXiv 2106.09685, table 6)."
        )
    a_rank = sum(out + inputs for out, inputs in shapes)
    least = tokens if tokens is not None else rows
    holds = rank * a_rank * BITS
    reasons.append(
        f"Room: at rank {rank} the adapter has {rank * a_rank:,} values, about {holds:,.0f} bits at {BITS:g} a "
        f"value (arXiv 2404.05405), for {least:,} trained tokens or labels: "
        + (
            "more than a bit for each, so data, not rank, is the limit."
            if holds >= least
            else "less than a bit for each, so a higher rank may pay; measure it."
        )
    )
    narrow = min((min(shape) for shape in shapes), default=rank)
    if rank > narrow:
        reasons.append(
            f"The narrowest adapted matrix has {narrow} directions: no rank above that means anything."
        )
        rank = narrow
    if memory is not None and rank * a_rank * PER_VALUE > memory:
        fits = memory // (a_rank * PER_VALUE)
        while rank > max(1, fits):
            rank //= 2
        reasons.append(
            f"Memory: {PER_VALUE} bytes a value (value, gradient, two moments), so {memory:,} bytes hold rank {fits}"
            + (" at most." if fits else ": adapt fewer layers (--targets).")
        )
    extra = rank * a_rank / max(1, sum(out * inputs for out, inputs in shapes))
    reasons.append(
        f"Cost at rank {rank}: {100 * extra:.2g} % more products in the adapted layers, {rank * a_rank * 4:,} bytes "
        "on disk. It is a start, not an answer: --way truncate measures which rank is enough."
    )
    return Advice(rank, tuple(reasons))
