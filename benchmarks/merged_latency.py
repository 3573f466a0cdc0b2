"""How fast is a model with a merged or an attached adapter?

Setting: forward passes in eval mode of MiniLM (adapters on query and value, 8 sequences of 32
tokens) and of stories260K (adapters on all linear layers, 4 sequences of 128 tokens), at rank 8.
One thread, because the time that a second thread waits would be added to the CPU time. In each
round, every model runs once, in an order that rotates. Times are CPU times of the process. "base
again" is a second copy of the base; the distance of its ratio from 1 is the noise. Each ratio is
relative to the base in the same round; the table shows its median over all rounds. ± is the
standard error of this median, from 200 resamples of the rounds.

Criterion: the ratio of the merged model differs from 1.00 by at most two standard errors, by at
most 0.005, or by no more than that of "base again".

Predicted: merged 1.00; attached 1.15 to 1.3 on MiniLM, and about 2 on stories260K, where the layers
are so small that most of the time is spent on calling them; PEFT the same as lorakit or a little
slower.

Run: `python benchmarks/merged_latency.py`; `--help` lists its flags; with `--quick` it only shows
that it works.
"""

import random
import time
from collections.abc import Callable
from statistics import median, stdev

import oz_books
import sst2
import torch
from beside_peft import Setting, adapt, copy_start, find_model, parse_arguments, write
from torch import nn

import lorakit
from lorakit.models.load import load

ROUNDS = {"minilm": 150, "stories260K": 400}
SHAPES = {"minilm": (8, 32), "stories260K": (4, 128)}


def build_models(setting: Setting) -> dict[str, nn.Module]:
    """Return the models to compare; all adapted ones hold the same adapter, with B filled."""

    def base() -> nn.Module:
        return load(find_model(setting.model), setting.task, labels=setting.labels).model

    ours, theirs = (adapt(side, setting, seed=0) for side in ("lorakit", "peft"))
    merged, plain = (adapt("lorakit", setting, seed=0).loaded.model for _ in range(2))
    copy_start(ours, theirs)
    deltas = [lorakit.attached(m)["default"].deltas for m in (ours.loaded.model, merged, plain)]
    with torch.no_grad():
        for name in deltas[0]:
            B = (
                torch.randn(deltas[0][name].B.shape, generator=torch.Generator().manual_seed(0))
                * 0.05
            )
            for found in deltas:
                found[name].B.copy_(B)
            theirs.loaded.model.base_model.model.get_submodule(name).lora_B["default"].weight.copy_(
                B
            )
    lorakit.merge(merged)
    lorakit.merge(plain)
    lorakit.detach(plain)
    return {
        "base": base(),
        "base again": base(),
        "merged": merged,
        "merged, detached": plain,
        "attached": ours.loaded.model,
        "PEFT, attached": theirs.loaded.model,
    }


def measure(
    compared: dict[str, nn.Module], call: Callable[[nn.Module], object], rounds: int
) -> dict[str, list[float]]:
    """Return the CPU seconds of every round by model."""
    names, seconds = list(compared), {name: [] for name in compared}
    for at in range(-3, rounds):  # three rounds to warm up
        turn = at % len(names)
        for name in names[turn:] + names[:turn]:
            begun = time.process_time_ns()
            call(compared[name])
            if at >= 0:
                seconds[name].append((time.process_time_ns() - begun) / 1e9)
    return seconds


def estimate_standard_error(numbers: list[float]) -> float:
    """Return the standard error of the median, by resampling."""
    rng = random.Random(0)
    return stdev(median(rng.choices(numbers, k=len(numbers))) for _ in range(200))


def main() -> None:
    asked = parse_arguments(__doc__)
    few = 3 if asked.quick else 30 if asked.short else 0
    runs, criteria = [], []
    for name, setting in (("minilm", sst2.SETTING), ("stories260K", oz_books.SETTING)):
        compared = build_models(setting)
        torch.set_num_threads(1)
        ids = torch.randint(5, 500, SHAPES[name], generator=torch.Generator().manual_seed(0))
        extra = {"use_cache": False} if setting.task == "causal-lm" else {}

        def call(model: nn.Module, ids=ids, extra=extra) -> torch.Tensor:
            with torch.inference_mode():
                return model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits

        want = call(compared["attached"])
        change = (call(compared["base"]) - want).abs().max()
        for other in ("merged", "merged, detached", "PEFT, attached"):
            if (call(compared[other]) - want).abs().max() > change / 100:
                raise SystemExit(f"{name}: {other} computes something else than attached.")
        seconds = measure(compared, call, few or ROUNDS[name])
        found = {}
        for which, times in seconds.items():
            ratios = [t / b for t, b in zip(times, seconds["base"], strict=True)]
            found[which] = {
                "side": f"{name}: {which}",
                "n": len(times),
                "min_ms": 1e3 * min(times),
                "median_ms": 1e3 * median(times),
                "ratio": median(ratios),
                "error": estimate_standard_error(ratios),
                "seconds": times,
            }
            print({k: v for k, v in found[which].items() if k != "seconds"}, flush=True)
        runs += found.values()
        again = found["base again"]["ratio"]
        for which in ("merged", "merged, detached"):
            ratio, error = found[which]["ratio"], found[which]["error"]
            criteria.append(
                {
                    "text": f"{name}: the {which} model takes as long as the base",
                    "met": abs(ratio - 1) <= max(2 * error, abs(again - 1), 0.005),
                    "measured": f"{ratio:.3f} ± {error:.3f}; base again {again:.3f}",
                }
            )
    write(
        "merged_latency",
        __doc__,
        quick=bool(few),
        runs=runs,
        criteria=criteria,
        one_row_a_run=True,
        measures={
            "n": ["rounds", "d"],
            "min_ms": ["min, ms", ".3f"],
            "median_ms": ["median, ms", ".3f"],
            "ratio": ["ratio to base", ".3f"],
            "error": ["±", ".3f"],
        },
    )


if __name__ == "__main__":
    main()
