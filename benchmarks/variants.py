"""Which delta and which init are best at equal parameters?

Setting: each delta of lorakit gets the rank at which its number of parameters is nearest to that of
LoRA at rank 4, but no higher rank than the layers allow. Each init is tried with plain LoRA. All
else is as in the benchmarks of oz-books (stories260K; here 80 steps of 10 sequences) and sst2
(MiniLM; here 2,000 of the 6,000 rows), with the same batches and the same learning rate. This rate
was chosen for LoRA and for the long runs, so a variant may be better with a rate of its own. One
thread. Saved activations are those of the first step. The line below gives the rank and alpha of
those benchmarks: a variant has the same scale, alpha / rank, at its own rank (VeRA has a scale of
1).

Run: `python benchmarks/variants.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import oz_books
import sst2
import torch
from beside_peft import SEEDS, Setting, count_steps, find_model, parse_arguments, score, write
from report import split_doc
from torch import nn

import lorakit
from lorakit.compare.methods.trial import saved_tensors
from lorakit.data.batches import Batches, collate
from lorakit.data.encode import Example
from lorakit.deltas.kinds import DELTAS
from lorakit.errors import SpecError
from lorakit.evaluate.score import batch_loss
from lorakit.models.load import Loaded, load, pad_id
from lorakit.spec import INITS
from lorakit.train.budget import Budget
from lorakit.train.optim import lr_factor, set_lr

RANK = 4
TASKS = {"oz_books": (oz_books, "perplexity"), "sst2": (sst2, "accuracy")}
TITLES = {
    "oz_books": "Which delta and which init are best on oz-books at equal parameters?",
    "sst2": "Which delta and which init are best on sst2 at equal parameters?",
}
MEASURES = {
    "rank": ["rank", ".0f"],
    "trainable_parameters": ["parameters trained", ",.0f"],
    "cpu_seconds_a_step": ["CPU seconds per step", ".3f"],
    "saved_mib": ["saved activations, MiB", ".1f"],
    "file_kib": ["file, KiB", ".0f"],
}
FEW, SHORT = 2000, {"steps": 80, "batch_size": 10}
VARIANTS = [{"delta": delta} for delta in DELTAS] + [{"init": init} for init in INITS[1:]]


def fit_rank(
    model: nn.Module, setting: Setting, variant: dict[str, str], head: tuple[str, ...]
) -> lorakit.Spec:
    """Return the Spec of a variant at the rank whose parameters are nearest to LoRA's."""
    common: dict[str, Any] = {"targets": setting.targets, "full_modules": head}

    def counted(**more: Any) -> int:
        spec = lorakit.Spec(alpha=1.0, **common, **more)
        return sum(
            p.numel()
            for d in lorakit.attach(copy.deepcopy(model), spec).deltas.values()
            for p in d.parameters()
        )

    wanted, best = counted(rank=RANK), (float("inf"), RANK)
    for rank in (r for r in (*range(1, 17), 32, 64, 128, 256) if "delta" in variant):
        try:
            best = min(best, (abs(counted(rank=rank, delta=variant["delta"]) - wanted), rank))
        except SpecError:  # above what the smallest layer allows
            break
    rank = best[1]
    alpha = setting.alpha / setting.rank * rank  # the scale of the two benchmarks
    return lorakit.Spec(
        rank=rank, alpha=rank if variant.get("delta") == "vera" else alpha, **common, **variant
    )


def measure(
    task: str,
    setting: Setting,
    variant: dict[str, str],
    seed: int,
    parts: dict[str, Sequence[Example]],
):
    """Train one variant once; return its row."""
    torch.set_num_threads(setting.threads)
    loaded: Loaded = load(find_model(setting.model), setting.task, labels=setting.labels, seed=seed)
    model, pad, train = loaded.model, pad_id(loaded.tokenizer), parts["train"]
    spec = fit_rank(model, setting, variant, loaded.new_modules)
    order = Batches([len(e.ids) for e in train], setting.batch_size, seed)
    seen = [collate([train[i] for i in order[step]], pad) for step in range(2)]
    adapter = lorakit.attach(
        model, spec, seed=seed, batches=seen if spec.init in ("eva", "lora-ga") else None
    )
    parameters = list(adapter.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=setting.lr, weight_decay=0.0)
    budget = Budget(adapter, setting.steps, every=1) if spec.delta == "adalora" else None
    saved: dict[int, int] = {}
    model.train()
    torch.manual_seed(seed)
    begun, cpu = time.perf_counter(), time.process_time()
    for step in range(setting.steps):
        set_lr(
            optimizer, setting.lr * lr_factor(step, setting.steps, setting.warmup, setting.schedule)
        )
        chosen = [train[i] for i in order[step]]
        with saved_tensors(model.parameters()) if step == 0 else nullcontext(saved) as saved:
            loss = batch_loss(model, collate(chosen, pad), setting.task)[0] / sum(
                e.trained for e in chosen
            )
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, setting.clip)
        budget.step(optimizer) if budget else optimizer.step()
        optimizer.zero_grad()
    cpu, seconds = (
        (time.process_time() - cpu) / setting.steps,
        (time.perf_counter() - begun) / setting.steps,
    )
    model.eval()
    if budget:
        budget.prune()
    quality = TASKS[task][1]
    with tempfile.TemporaryDirectory() as place:
        size = sum(path.stat().st_size for path in adapter.save(Path(place) / "adapter").iterdir())
    return {
        "side": next(iter(variant.values())),
        "rank": spec.rank,
        "seed": seed,
        "trainable_parameters": sum(p.numel() for p in parameters),
        quality: score(loaded, parts["test"])[quality],
        "cpu_seconds_a_step": round(cpu, 4),
        "seconds_a_step": round(seconds, 4),
        "saved_mib": sum(saved.values()) / 2**20,
        "file_kib": size / 2**10,
    }


def main() -> None:
    asked = parse_arguments(
        __doc__, *(f"--{task}: this task alone" for task in ("oz-books", "sst2"))
    )
    some = [t for t in TASKS if getattr(asked, t)] or list(TASKS)
    for task in some:
        runs = []
        module = TASKS[task][0]
        setting = replace(module.SETTING, steps=2, batch_size=2) if asked.quick else module.SETTING
        setting = replace(
            setting, threads=1, **(SHORT if task == "oz_books" and not asked.quick else {})
        )
        parts = module.encode_examples(
            load(find_model(setting.model), setting.task, labels=setting.labels)
        )
        if task == "sst2":
            parts["train"] = parts["train"][:FEW]
            setting = replace(
                setting, steps=min(setting.steps, count_steps(FEW, setting.batch_size))
            )
        if asked.quick:
            parts = {name: part[:8] for name, part in parts.items()}
        for variant in VARIANTS:
            for seed in SEEDS[: 1 if asked.quick else None]:
                runs.append(measure(task, setting, variant, seed, parts))
                print(runs[-1], file=sys.stderr, flush=True)
        quality = {TASKS[task][1]: [TASKS[task][1], ".4f" if task == "sst2" else ".2f"]}
        write(
            f"variants_{task}",
            f"{TITLES[task]}\n\n{split_doc(__doc__)[1]}",
            quick=asked.quick,
            setting=setting,
            runs=runs,
            measures=quality | MEASURES,
        )


if __name__ == "__main__":
    main()
