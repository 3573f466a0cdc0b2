"""Advice on a rank before anything is trained: rules of thumb for task, data and memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

BYTES_PER_VALUE = 16  # of float32: the value, its gradient, and AdamW's two moments
BITS = 2.0  # of information that a trained value can hold
RANKS_BY_ROWS = ((10_000, 16), (100_000, 32))  # (rows at most, usual rank)
RANK_OF_MANY_ROWS = 64
RANK_OF_CLASSES = 8


class AdviceRow(TypedDict):
    """Advice as the command prints it as JSON."""

    recommended_rank: int
    reason: str
    reasons: list[str]


@dataclass(frozen=True)
class Advice:
    """A rank to begin with, and one reason for each rule that led to it."""

    rank: int
    reasons: tuple[str, ...]

    def to_dict(self) -> AdviceRow:
        """Return the advice as the command prints it as JSON."""
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
        task: its name.
        rows: rows to train on.
        shapes: (out, in) of each adapted matrix.
        tokens: trained tokens of one pass over the rows; for classes and values, the rows.
        memory: bytes for the adapter, its gradients and moments; no limit where None.

    Source: rows: Schulman et al., LoRA Without Regret, 2025; classes: arXiv 2106.09685, table 6;
        bits of a value: Allen-Zhu and Li, Physics of Language Models 3.3, arXiv 2404.05405.

    >>> advice = advise("causal-lm", 5_000, [(64, 64)] * 10, tokens=1_000_000)
    >>> advice.rank, advice.reasons[0]
    (16, 'causal-lm on 5,000 rows: 16 up to 10,000 rows, 32 up to 100,000, 64 above (LoRA Without
    Regret).')
    """
    values_per_rank = sum(out + inputs for out, inputs in shapes)
    rank, reason = _rank_for_task(task, rows)
    trained = tokens if tokens is not None else rows
    reasons = [reason, _describe_capacity(rank, rank * values_per_rank, trained)]
    narrowest = min((min(shape) for shape in shapes), default=rank)
    if rank > narrowest:
        rank = narrowest
        reasons.append(
            f"The narrowest adapted matrix has {narrowest} directions: "
            "a rank above that adds nothing."
        )
    if memory is not None and rank * values_per_rank * BYTES_PER_VALUE > memory:
        rank, reason = _rank_for_memory(rank, values_per_rank, memory)
        reasons.append(reason)
    base_values = sum(out * inputs for out, inputs in shapes)
    extra = rank * values_per_rank / max(1, base_values)
    reasons.append(
        f"Cost at rank {rank}: {100 * extra:.2g} % more products in the adapted layers, "
        f"{rank * values_per_rank * 4:,} bytes on disk. "
        "It is a start, not an answer: --way truncate measures which rank is enough."
    )
    return Advice(rank, tuple(reasons))


def _rank_for_task(task: str, rows: int) -> tuple[int, str]:
    """Return the usual rank for a task and a number of rows, and why."""
    if task != "causal-lm":
        return RANK_OF_CLASSES, (
            f"{task}: one label a row holds little information; "
            f"rank 1 to {RANK_OF_CLASSES} did as well as 64 on query and value "
            "(arXiv 2106.09685, table 6)."
        )
    rank = RANK_OF_MANY_ROWS
    for most, usual in reversed(RANKS_BY_ROWS):
        if rows <= most:
            rank = usual
    return rank, (
        f"{task} on {rows:,} rows: 16 up to 10,000 rows, 32 up to 100,000, 64 above "
        "(LoRA Without Regret)."
    )


def _describe_capacity(rank: int, values: int, trained: int) -> str:
    """Compare the information that an adapter can hold with that in the data."""
    bits = values * BITS
    if bits >= trained:
        verdict = "more than a bit for each, so data, not rank, is the limit."
    else:
        verdict = "less than a bit for each, so a higher rank may pay; measure it."
    return (
        f"Capacity: at rank {rank} the adapter has {values:,} values, about {bits:,.0f} bits "
        f"at {BITS:g} a value (arXiv 2404.05405), for {trained:,} trained tokens or labels: "
        f"{verdict}"
    )


def _rank_for_memory(rank: int, values_per_rank: int, memory: int) -> tuple[int, str]:
    """Return the rank, halved until it fits into memory, and why."""
    fits = memory // (values_per_rank * BYTES_PER_VALUE)
    while rank > max(1, fits):
        rank //= 2
    ending = " at most." if fits else ": adapt fewer layers (--targets)."
    return rank, (
        f"Memory: {BYTES_PER_VALUE} bytes a value (value, gradient, two moments), "
        f"so {memory:,} bytes hold rank {fits}{ending}"
    )
