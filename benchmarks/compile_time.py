"""How long does torch.compile take for a model with adapters?

Setting: as in `step.py`, with its first model. The first step of the frozen model ("floor") and of
the model with adapters ("lorakit") is timed, in turn and in one process. What was compiled before
is discarded, and the caches of the compiler are off. Times are CPU seconds. They include the step
itself and the C++ compiler that is started.

Run: `python benchmarks/compile_time.py`; `--help` lists its flags; with `--quick` it only shows
that it works.
"""

import gc
import os
import time
from statistics import median
from typing import Any

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # in this process, where they are counted

import torch
from beside_peft import parse_arguments, write
from step import Run, Setting, make_criterion


def time_first_step(name: str, setting: Setting) -> float:
    """Return the CPU seconds of a compiled model's first step, those of the C++ compiler that it
    starts included.
    """
    torch._dynamo.reset()
    gc.collect()
    run = Run(name, setting, compiled=True)
    begun = sum(os.times()[:4])
    run.step()
    return sum(os.times()[:4]) - begun


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    setting = (
        Setting(blocks=1, width=64, inner=128, heads=2, vocabulary=128, tokens=32)
        if asked.quick
        else Setting()
    )
    times: dict[str, list[float]] = {"floor": [], "lorakit": []}
    begun = time.time()
    time_first_step(
        "floor", Setting(blocks=1, width=64, inner=128, heads=2, vocabulary=128, tokens=32)
    )  # what is loaded on the way
    for _ in range(1 if asked.quick else 2):
        for name, taken in times.items():
            taken.append(time_first_step(name, setting))
    ratio = min(times["lorakit"]) / min(times["floor"])
    rows: list[dict[str, Any]] = [
        {
            "side": name,
            "min": min(taken),
            "median": median(taken),
            "of_floor": min(taken) / min(times["floor"]),
        }
        for name, taken in times.items()
    ]
    measures = {
        "min": ["CPU seconds, minimum", ".1f"],
        "median": ["median", ".1f"],
        "of_floor": ["ratio to the floor", ".2f"],
    }
    write(
        "compile_time",
        __doc__,
        quick=asked.quick,
        runs=rows,
        one_row_a_run=True,
        seconds=time.time() - begun,
        criteria=[make_criterion("time to compile: at most 2 times the floor", ratio, 2)],
        measures=measures,
    )


if __name__ == "__main__":
    main()
