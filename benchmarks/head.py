"""What does a chunked loss cost for a vocabulary of 65,536 tokens?

Setting: random hidden states of width 896 and a frozen head, one thread; forward, and backward to
the hidden states. "plain" is cross-entropy on all logits. "chunked" is lorakit's loss, which
computes the logits of the labelled positions only, in chunks. The two take turns, round by round,
once with all positions labelled, and once with a quarter of them, as with masked prompts. Time is
CPU time. The peak is the maximum that PyTorch's allocator has in use during the computation.

Criteria: with all positions labelled, the chunked loss has at most a fifth of the peak of the plain
loss, and takes no more time.

Run: `python benchmarks/head.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from beside_peft import parse_arguments, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lorakit.models.chunked_loss import cross_entropy


def compute_plain_loss(x: Tensor, labels: Tensor, layer: nn.Linear) -> Tensor:
    return F.cross_entropy(layer(x).float(), labels, ignore_index=-100, reduction="sum")


def compute_chunked_loss(x: Tensor, labels: Tensor, layer: nn.Linear) -> Tensor:
    at = (labels != -100).nonzero().squeeze(1)
    return cross_entropy(x[at], labels[at], layer)


WAYS: dict[str, Callable[[Tensor, Tensor, nn.Linear], Tensor]] = {
    "plain": compute_plain_loss,
    "chunked": compute_chunked_loss,
}


def measure_peak(run: Callable[[], Any]) -> int:
    """Return the most bytes that PyTorch's CPU allocator had given out at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    now = most = 0
    events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, now)
    return most


def measure(
    dtype: str, share: float, *, tokens: int, width: int, vocabulary: int, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for each way."""
    torch.manual_seed(0)
    layer = nn.Linear(width, vocabulary, bias=False, dtype=getattr(torch, dtype)).requires_grad_(
        False
    )
    x = torch.randn(tokens, width).to(layer.weight.dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,))
    labels[: tokens - round(share * tokens)] = -100

    def step(way: str) -> None:
        x.grad = None
        WAYS[way](x, labels, layer).backward()

    times: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks = {way: measure_peak(lambda way=way: step(way)) for way in WAYS}
    for _ in range(rounds):
        for way, taken in times.items():
            begun = time.process_time()
            step(way)
            taken.append(time.process_time() - begun)
    least, most = min(times["plain"]), peaks["plain"]
    return [
        {
            "side": f"{way}, {dtype}, {share:.0%} labelled",
            "min": min(taken),
            "median": median(taken),
            "peak_mib": peaks[way] / 2**20,
            "of_time": min(taken) / least,
            "of_peak": peaks[way] / most,
        }
        for way, taken in times.items()
    ]


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    tokens, rounds = (512, 1) if asked.quick else (1024, 7)
    runs: list[dict[str, Any]] = []
    for dtype in ("bfloat16", "float32"):
        for share in (1.0, 0.25):
            runs += measure(dtype, share, tokens=tokens, width=896, vocabulary=65536, rounds=rounds)
            print(runs[-1], file=sys.stderr, flush=True)
    whole = {"bfloat16": runs[1], "float32": runs[5]}
    criteria = [
        {
            "text": f"{dtype}: {what} relative to the plain loss at most {bound:g}",
            "met": row[key] <= bound,
            "measured": f"{row[key]:.2f}",
        }
        for dtype, row in whole.items()
        for what, key, bound in (("peak", "of_peak", 0.2), ("time", "of_time", 1.0))
    ]
    write(
        "head",
        __doc__,
        quick=asked.quick,
        runs=runs,
        criteria=criteria,
        one_row_a_run=True,
        notes=[f"{tokens:,} positions, {rounds} rounds."],
        measures={
            "min": ["CPU seconds, minimum", ".3f"],
            "median": ["median", ".3f"],
            "of_time": ["ratio to plain", ".2f"],
            "peak_mib": ["peak, MiB", ".0f"],
            "of_peak": ["ratio to plain", ".2f"],
        },
    )


if __name__ == "__main__":
    main()
