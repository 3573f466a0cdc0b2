"""What does the loss of a head of 65,536 tokens cost, taken in chunks, beside plain cross-entropy on all logits?

Setting: hidden states of random values, width 896, a frozen head, one thread; forward and backward to the hidden state, the
two ways in turn, round by round; all positions labelled, and a quarter of them, as with masked prompts. Time is CPU time, the
peak what PyTorch's allocator gives out at most while it runs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lorakit.evaluate.head import cross_entropy

RESULT = Path(__file__).parent / "results" / "head.json"


def plain(x: Tensor, labels: Tensor, layer: nn.Linear) -> Tensor:
    return F.cross_entropy(layer(x).float(), labels, ignore_index=-100, reduction="sum")


def chunked(x: Tensor, labels: Tensor, layer: nn.Linear) -> Tensor:
    at = (labels != -100).nonzero().squeeze(1)
    return cross_entropy(x[at], labels[at], layer)


WAYS: dict[str, Callable[[Tensor, Tensor, nn.Linear], Tensor]] = {"plain": plain, "chunked": chunked}


def peak(run: Callable[[], Any]) -> int:
    """Return the most bytes that PyTorch's CPU allocator had given out at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    now = most = 0
    events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, now)
    return most


def measure(dtype: str, share: float, *, tokens: int, width: int, vocabulary: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way."""
    torch.manual_seed(0)
    layer = nn.Linear(width, vocabulary, bias=False, dtype=getattr(torch, dtype)).requires_grad_(False)
    x = torch.randn(tokens, width).to(layer.weight.dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,))
    labels[: tokens - round(share * tokens)] = -100

    def step(way: str) -> None:
        x.grad = None
        WAYS[way](x, labels, layer).backward()

    times: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks = {way: peak(lambda way=way: step(way)) for way in WAYS}
    for _ in range(rounds):
        for way, taken in times.items():
            begun = time.process_time()
            step(way)
            taken.append(time.process_time() - begun)
    return [{"way": way, "dtype": dtype, "labelled": share, "tokens": tokens, "width": width, "vocabulary": vocabulary,
             "min": min(taken), "median": median(taken), "peak": peaks[way]} for way, taken in times.items()]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, fewer tokens, nothing written")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dtype in ("bfloat16", "float32"):
        for share in (1.0, 0.25):
            rows += measure(dtype, share, tokens=512 if asked.quick else 1024, width=896, vocabulary=65536,
                            rounds=2 if asked.quick else 9)  # fmt: skip
            for row in rows[-2:]:
                print(json.dumps(row), file=sys.stderr)
    if not asked.quick:
        RESULT.write_text(json.dumps({"rows": rows, "torch": torch.__version__, "threads": 1}, indent=2) + "\n")


if __name__ == "__main__":
    main()
