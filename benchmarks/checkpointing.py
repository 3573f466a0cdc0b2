"""What does activation checkpointing save, and what does it cost?

Setting: as in `step.py`, with its first model. "lorakit, full" computes all of each block again in
the backward pass, "lorakit, light" only the cheap operations, and "lorakit" nothing. "kept" is the
memory that PyTorch's allocator has in use at the end of the forward pass, and "peak" is the maximum
that it has in use until the end of the backward pass. Weights and AdamW's moments are in neither.

Run: `python benchmarks/checkpointing.py`; `--help` lists its flags; with `--quick` it only shows
that it works.
"""

import time
from statistics import median
from typing import Any

import torch
from beside_peft import parse_arguments, write
from step import Run, Setting, make_criterion
from torch.profiler import ProfilerActivity, profile

from lorakit.models.checkpointing import checkpoint_blocks

KINDS = {"floor": "", "lorakit": "", "lorakit, light": "light", "lorakit, full": "full"}


def measure_memory(run: Run) -> tuple[float, float]:
    """Return what is kept after a forward pass, and the peak of a whole one, MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        loss = run.loss()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        loss.backward()
    del loss
    run.model.zero_grad()
    now = kept = sum(event.self_cpu_memory_usage for event in forward.key_averages())
    peak = kept
    events = [e for e in backward.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return kept / 2**20, peak / 2**20


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    setting = (
        Setting(blocks=1, width=64, inner=128, heads=2, vocabulary=128, tokens=32)
        if asked.quick
        else Setting()
    )
    runs: dict[str, Run] = {}
    for name, what in KINDS.items():
        runs[name] = Run(name.partition(",")[0], setting)
        if what:
            checkpoint_blocks(runs[name].model, what)
        runs[name].step()
    held = {name: measure_memory(run) for name, run in runs.items()}
    for _ in range(2 if asked.quick else 5):
        for run in runs.values():
            begun = time.process_time()
            run.step()
            run.times.append(time.process_time() - begun)
    least = {name: min(run.times) for name, run in runs.items()}
    rows: list[dict[str, Any]] = [
        {
            "side": name,
            "kept": held[name][0],
            "peak": held[name][1],
            "min": least[name],
            "median": median(run.times),
            "of_plain": least[name] / least["lorakit"],
        }
        for name, run in runs.items()
    ]
    criteria = [
        make_criterion(
            "light: at most 150 MiB kept for the backward pass", held["lorakit, light"][0], 150
        )
    ]
    write(
        "checkpointing",
        __doc__,
        quick=asked.quick,
        runs=rows,
        criteria=criteria,
        one_row_a_run=True,
        measures={
            "kept": ["kept, MiB", ".0f"],
            "peak": ["peak, MiB", ".0f"],
            "min": ["CPU seconds, minimum", ".3f"],
            "median": ["median", ".3f"],
            "of_plain": ["ratio to lorakit", ".3f"],
        },
    )


if __name__ == "__main__":
    main()
