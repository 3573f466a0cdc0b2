"""How exact are combined adapters, compared with PEFT?

Setting: two adapters with random factors on four layers of 512 x 512, combined from the same files
by `lorakit combine` and by PEFT's `add_weighted_adapter` with 'linear', 'svd' and 'cat'. The error
is the difference of ΔW from the weighted sum of the two ΔW in float64, relative to this sum, over
all layers. 'linear' sums the factors, but (B1 + B2)(A1 + A2) is not B1 A1 + B2 A2. 'svd' computes a
dense SVD of every layer.

Run: `python benchmarks/combine_beside_peft.py`; `--help` lists its flags; with `--quick` it only
shows that it works.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
from beside_peft import parse_arguments, write
from torch import Tensor, nn

from lorakit import Adapter
from lorakit.algebra import combine

LEAST = 1e-6
CASES: dict[str, dict[str, Any]] = {
    "rank 16 and 16, 0.7 + 0.3": {"ranks": (16, 16), "weights": (0.7, 0.3)},
    "rank 16 and 16, 1 + 1": {"ranks": (16, 16), "weights": (1.0, 1.0)},
    "rank 16 and 16, 1 - 1": {"ranks": (16, 16), "weights": (1.0, -1.0)},
    "rsLoRA, 0.7 + 0.3": {"ranks": (16, 16), "weights": (0.7, 0.3), "use_rslora": True},
    "rsLoRA, 1 + 1": {"ranks": (16, 16), "weights": (1.0, 1.0), "use_rslora": True},
    "rank 8 and 32, 0.7 + 0.3": {"ranks": (8, 32), "weights": (0.7, 0.3)},
    "rsLoRA, rank 8 and 32, 0.7 + 0.3": {
        "ranks": (8, 32),
        "weights": (0.7, 0.3),
        "use_rslora": True,
    },
}


def pair(width: int, ranks: tuple[int, ...], **more: Any) -> Any:
    """Return a PEFT model with two adapters whose factors are all filled."""
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4)))
    configs = [
        peft.LoraConfig(r=rank, lora_alpha=32, target_modules=["0", "1", "2", "3"], **more)
        for rank in ranks
    ]
    model = peft.get_peft_model(base, configs[0], adapter_name="first")
    model.add_adapter("second", configs[1])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def read_changes(model: Any, name: str) -> dict[str, Tensor]:
    layers = {
        n: m
        for n, m in model.base_model.model.named_modules()
        if isinstance(m, peft.tuners.lora.LoraLayer)
    }
    return {n: layer.get_delta_weight(name).detach().double() for n, layer in layers.items()}


def compute_changes(adapter: Adapter) -> dict[str, Tensor]:
    return {
        n: delta.matrix().detach() for n, delta in adapter.copy().to(torch.float64).deltas.items()
    }


def measure_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    off = sum(float((found[n] - M).square().sum()) for n, M in wanted.items())
    return (off / sum(float(M.square().sum()) for M in wanted.values())) ** 0.5


def make_row(case: str, how: str, error: float | None, seconds: float | None) -> dict[str, Any]:
    return {"side": f"{case}: {how}", "error": error, "seconds": seconds}


def main() -> None:
    asked = parse_arguments(__doc__ or "")
    quick = asked.quick
    torch.set_num_threads(1)
    runs, ours = [], []
    for case, settings in CASES.items():
        more = {k: v for k, v in settings.items() if k not in ("ranks", "weights")}
        weights = settings["weights"]
        model = pair(64 if quick else 512, settings["ranks"], **more)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            adapters = [Adapter.load(Path(folder) / name) for name in ("first", "second")]
        parts = [compute_changes(adapter) for adapter in adapters]
        wanted = {n: weights[0] * M + weights[1] * parts[1][n] for n, M in parts[0].items()}
        begun = time.perf_counter()
        made = combine(list(zip(adapters, weights, strict=True)))
        seconds = time.perf_counter() - begun
        error = measure_error(compute_changes(made.adapter), wanted)
        ours.append(error)
        runs.append(make_row(case, "lorakit", error, seconds))
        for how in ("linear", "cat", "svd"):
            try:
                begun = time.perf_counter()
                model.add_weighted_adapter(
                    ["first", "second"], list(weights), how, combination_type=how
                )
                runs.append(
                    make_row(
                        case,
                        f"PEFT '{how}'",
                        measure_error(read_changes(model, how), wanted),
                        time.perf_counter() - begun,
                    )
                )
            except ValueError as refusal:
                print(f"{case}, {how}: {refusal}")
    theirs = [100 * run["error"] for run in runs if "linear" in run["side"]]
    note = (
        "An error of 1 is as large as the sum itself. Where 'linear' is missing, PEFT refuses it, "
        "because the ranks differ. 'svd' without a rank keeps the larger of the two ranks, so its "
        "error is the part of the sum beyond this rank; lorakit keeps the sum of the ranks. For "
        "rsLoRA, PEFT writes alpha = rank. By the rule of rsLoRA, this gives a scale of "
        "sqrt(rank), not of 1."
    )
    measured = f"{max(ours):.1e} at most; PEFT 'linear' {min(theirs):.0f} to {max(theirs):.0f} %"
    judged = {
        "text": f"the relative error in ΔW is below {LEAST:g}",
        "met": max(ours) < LEAST,
        "measured": measured,
    }
    measures = {"error": ["relative error in ΔW", ".3g"], "seconds": ["seconds", ".3f"]}
    quiet = quick or asked.short
    write(
        "combine_beside_peft",
        __doc__ or "",
        quick=quiet,
        runs=runs,
        one_row_a_run=True,
        notes=[note],
        measures=measures,
        criteria=[judged],
    )


if __name__ == "__main__":
    main()
