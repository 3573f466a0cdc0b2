"""How accurate is the step time that `lorakit plan` estimates?

Setting: three models with random weights, random tokens, rank 16 on all linear layers, float32,
AdamW, one thread. The estimate is `seconds_per_step`, from rates that are measured for each model
by itself, in half a second. The measured time is the minimum CPU time of a step with lorakit's own
loss: forward, backward and optimizer. tests/plan/test_memory.py compares the peaks of memory.

Run: `python benchmarks/plan_time.py`; `--help` lists its flags; with `--quick` it only shows that
it works.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from beside_peft import parse_arguments, write
from step import MINILM, MODELS, Setting, build_base

import lorakit
from lorakit.evaluate.score import batch_loss
from lorakit.plan import devices
from lorakit.plan.estimate import Plan, Work
from lorakit.plan.meta_model import MetaModel

CHOSEN = tuple(m for m in MODELS if m.model != MINILM and not m.dropout)


def time_step(setting: Setting, rounds: int) -> float:
    """Return the least CPU seconds of a step."""
    model = build_base(setting)
    adapter = lorakit.attach(model, lorakit.Spec(rank=setting.rank))
    optimizer = torch.optim.AdamW(adapter.parameters())
    ids = torch.randint(
        0,
        setting.vocabulary,
        (setting.rows, setting.tokens),
        generator=torch.Generator().manual_seed(1),
    )
    times = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        (
            batch_loss(model, {"input_ids": ids, "labels": ids}, "causal-lm")[0] / ids.numel()
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - begun)
    return min(times[1:])


def plan_step(setting: Setting) -> tuple[float, float]:
    """Return the seconds that a plan estimates, and the CPU seconds of planning."""
    begun = time.process_time()
    with torch.device("meta"):
        model: Any = build_base(replace(setting, device="meta"))
    work = Work(batch=setting.rows, length=setting.tokens, padded=False)
    plan = Plan(
        MetaModel(model, setting.model, "causal-lm", (), 0), lorakit.Spec(rank=setting.rank), work
    )
    rate = devices.measure_rate(setting.width, setting.rows * setting.tokens, torch.float32)
    return plan.seconds(rate, gpu=False), time.process_time() - begun


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    brief, runs = asked.quick or asked.short, []
    for m in CHOSEN[: 1 if asked.quick else None]:
        setting = replace(m, dtype="float32")
        guess, planning = plan_step(setting)
        real = time_step(setting, 2 if brief else 5)
        runs.append(
            {
                "side": setting.model,
                "told": guess,
                "taken": real,
                "ratio": real / guess,
                "planning": planning,
            }
        )
        print(runs[-1], flush=True)
    write(
        "plan_time",
        __doc__,
        quick=brief,
        runs=runs,
        one_row_a_run=True,
        notes=[],
        measures={
            "told": ["estimated, s", ".3f"],
            "taken": ["measured, s", ".3f"],
            "ratio": ["measured / estimated", ".2f"],
            "planning": ["planning, s", ".2f"],
        },
    )


if __name__ == "__main__":
    main()
