"""Code that the benchmarks share: a plain PyTorch loop that trains adapters of lorakit or of PEFT.

This module measures nothing itself. Both sides get the same base, the same new head, the same
batches in the same order, the same learning rate at every step, AdamW without weight decay, the
same clipping and the same random state for the base's dropout. They differ in the library that
adapts the model, and in the initial A, which each library draws by its own rule from the seed
(Kaiming uniform in both); `copy_start` makes A the same too.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
from torch import nn

import lorakit
from lorakit.data.batches import Batches, collate
from lorakit.data.encode import Example
from lorakit.evaluate.score import batch_loss, evaluate
from lorakit.models.load import Loaded, load, pad_id
from lorakit.models.tasks import TASKS
from lorakit.train.optim import lr_factor, set_lr

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SIDES = ("lorakit", "peft")
SEEDS = (0, 1, 2)
NAMED_BY_PEFT = {
    "all-linear": "all-linear",
    "qv": ["query", "value"],
}  # lorakit's preset -> target_modules


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings of a training without its seed and side; alpha and schedule are the defaults."""

    model: str
    task: str
    targets: str | tuple[str, ...]
    lr: float
    steps: int
    batch_size: int
    max_length: int
    labels: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 32.0
    warmup: float = 0.05
    schedule: str = "cosine"
    clip: float = 1.0
    threads: int = 1


@dataclass
class Side:
    """A model that one of the two libraries has adapted, and what of it trains."""

    loaded: Loaded
    parameters: list[nn.Parameter]
    adapted: set[str]  # names of the adapted layers in the base model


def find_data() -> Path:
    """Return the folder of real models and data sets, or stop with a line that says what is
    missing.
    """
    named = Path(os.environ.get("LORAKIT_SHARED") or ROOT.parent / "shared")
    for path in (named / "data", named):
        if (path / "models").is_dir() and (path / "sets").is_dir():
            return path
    sys.exit(
        "No real models and data here: set LORAKIT_SHARED to the folder whose data/ holds models/ "
        "and sets/."
    )


def find_model(path: str) -> str:
    """Return what `load` takes for a model that is named relative to the data folder."""
    return path if path.startswith("builtin:") else str(find_data() / path)


def adapt(side: str, setting: Setting, seed: int, loaded: Loaded | None = None) -> Side:
    """Load the base (unless it is given) and let one side adapt it; a new head is trained whole."""
    torch.set_num_threads(setting.threads)
    loaded = loaded or load(
        find_model(setting.model), setting.task, labels=setting.labels, seed=seed
    )
    head = loaded.new_modules
    if side == "lorakit":
        spec = lorakit.Spec(
            rank=setting.rank, alpha=setting.alpha, targets=setting.targets, full_modules=head
        )
        adapter = lorakit.attach(loaded.model, spec, seed=seed)
        return Side(loaded, list(adapter.parameters()), set(adapter.deltas))
    named = (
        NAMED_BY_PEFT[setting.targets]
        if isinstance(setting.targets, str)
        else list(setting.targets)
    )
    config = peft.LoraConfig(
        r=setting.rank,
        lora_alpha=setting.alpha,
        target_modules=named,
        lora_dropout=0.0,
        modules_to_save=list(head) or None,
        task_type=TASKS[setting.task].peft_type,
    )
    torch.manual_seed(seed)
    model = peft.get_peft_model(loaded.model, config)
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    return Side(
        replace(loaded, model=model), [p for p in model.parameters() if p.requires_grad], adapted
    )


def copy_start(ours: Side, theirs: Side) -> None:
    """Give PEFT's adapter the A of ours; B is zero in both, and the head is the same already."""
    deltas = lorakit.attached(ours.loaded.model)["default"].deltas
    with torch.no_grad():
        for name, delta in deltas.items():
            theirs.loaded.model.base_model.model.get_submodule(name).lora_A["default"].weight.copy_(
                delta.A
            )


def train(side: Side, examples: Sequence[Example], setting: Setting, seed: int) -> list[float]:
    """Train for `setting.steps` steps; return the loss of every step."""
    model, pad = side.loaded.model, pad_id(side.loaded.tokenizer, side.loaded.model)
    optimizer = torch.optim.AdamW(side.parameters, lr=setting.lr, weight_decay=0.0)
    batches = Batches([len(e.ids) for e in examples], setting.batch_size, seed)
    model.train()
    torch.manual_seed(seed)
    losses = []
    for step in range(setting.steps):
        set_lr(
            optimizer, setting.lr * lr_factor(step, setting.steps, setting.warmup, setting.schedule)
        )
        chosen = [examples[i] for i in batches[step]]
        loss = batch_loss(model, collate(chosen, pad), setting.task)[0] / sum(
            e.trained for e in chosen
        )
        loss.backward()
        nn.utils.clip_grad_norm_(side.parameters, setting.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def score(side: Side | Loaded, examples: Sequence[Example]) -> dict[str, Any]:
    """Return lorakit's metrics of a model on examples."""
    loaded = side.loaded if isinstance(side, Side) else side
    return evaluate(
        loaded.model,
        examples,
        loaded.task,
        pad=pad_id(loaded.tokenizer),
        labels=loaded.labels,
    ).metrics


def run(
    side: str,
    setting: Setting,
    seed: int,
    examples: Sequence[Example],
    measure: Callable[[Side], dict[str, Any]],
    adapt: Callable[[str, Setting, int], Side] = adapt,
):
    """Adapt, train and measure once; return one row of results."""
    adapted = adapt(side, setting, seed)
    begun, cpu = time.perf_counter(), time.process_time()
    losses = train(adapted, examples, setting, seed)
    row = {
        "side": side,
        "seed": seed,
        "trainable_parameters": sum(p.numel() for p in adapted.parameters),
        "adapted_modules": len(adapted.adapted),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds": round(time.perf_counter() - begun, 1),
        **measure(adapted),
    }
    print(
        json.dumps({k: v for k, v in row.items() if not isinstance(v, list)}),
        file=sys.stderr,
        flush=True,
    )
    return row


def tune(
    setting: Setting,
    lrs: Sequence[float],
    examples: Sequence[Example],
    measure: Callable[[Side], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Train lorakit once with each learning rate, with a seed that is not reported; return what
    each gave.
    """
    tuned = []
    for lr in lrs:
        side = adapt("lorakit", replace(setting, lr=lr), seed=100)
        train(side, examples, replace(setting, lr=lr), seed=100)
        tuned.append({"lr": lr, **measure(side)})
        print(tuned[-1], file=sys.stderr, flush=True)
    return tuned


def count_steps(rows: int, batch_size: int, epochs: float = 1) -> int:
    """Return how many steps so many epochs take."""
    return round(epochs * -(-rows // batch_size))


def draw_indices(count: int, of: int, seed: int = 0) -> list[int]:
    """Return `count` positions of `of`, drawn by a seed, in ascending order."""
    return sorted(
        torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    )


def collect_values(runs: Sequence[dict[str, Any]], side: str, key: str) -> list[float]:
    """Return one measure of all runs of a side."""
    return [r[key] for r in runs if r["side"] == side and key in r]


def measure_spread(numbers: Sequence[float]) -> float:
    """Return the sample standard deviation; 0 of a single number."""
    return stdev(numbers) if len(numbers) > 1 else 0.0


def check_not_worse(
    runs: Sequence[dict[str, Any]], key: str, *, higher: bool = True
) -> dict[str, Any]:
    """Return the criterion that lorakit's mean is not worse than PEFT's by more than the larger of
    the two spreads.
    """
    ours, theirs = collect_values(runs, "lorakit", key), collect_values(runs, "peft", key)
    gap = (mean(ours) - mean(theirs)) * (1 if higher else -1)
    allowed = max(measure_spread(ours), measure_spread(theirs))
    return {
        "text": f"{key}: lorakit is not worse than PEFT by more than the spread over seeds",
        "met": gap >= -allowed,
        "measured": f"better by {gap:+.4g}, spread {allowed:.4g}",
    }


def parse_arguments(doc: str, *more: str) -> argparse.Namespace:
    """Return what a script was called with: --quick, --short, and the flags named in `more`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tiny run that only shows that the script works; writes nothing",
    )
    parser.add_argument(
        "--short", action="store_true", help="fewer rounds; printed and not written"
    )
    for flag in more:
        name, _, text = flag.partition(": ")
        parser.add_argument(name, action="store_true", help=text)
    return parser.parse_args()


def read(name: str) -> dict[str, Any]:
    """Return the results that a script wrote before; empty where there are none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def write(
    name: str, doc: str, *, quick: bool, setting: Setting | None = None, **parts: Any
) -> None:
    """Write the results of a script and renew docs/results.md; a quick or short run is printed
    alone. Other parts stay.
    """
    parts |= {"doc": doc.strip(), **({"setting": asdict(setting)} if setting else {})}
    import report

    if quick:
        print(f"{report.split_doc(doc)[0]}\n")
        print(
            report.format_short(parts)
            if "measures" in parts
            else json.dumps(parts, indent=1, default=str)
        )
        return
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**read(name), **parts, "machine": describe_machine()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")
    report.write()


def describe_machine() -> dict[str, Any]:
    """Return what the numbers depend on beside the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = facts.get("flags", "").split()
    named = ("torch", "transformers", "peft", "tokenizers", "numpy")
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx": "amx_tile" in flags,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            "lorakit": lorakit.__version__,
            **{n: version(n) for n in named},
        },
    }


if __name__ == "__main__":
    print(
        "beside_peft.py is code that the benchmarks share; it measures nothing itself.",
        file=sys.stderr,
    )
