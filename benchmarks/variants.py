"""Every delta and every init at equal parameters

Each delta of lorakit gets the rank whose parameters are nearest to those of LoRA at rank 4, no more than a layer allows; each
init is tried with plain LoRA. All else is as in the benchmarks of oz-books (stories260K) and sst2 (MiniLM): same batches, same
learning rate, which was chosen for LoRA; a variant may do better with one of its own.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import oz_books
import sst2
import torch
from beside_peft import SEEDS, Setting, arguments, model_at, score, write
from torch import nn

import lorakit
from lorakit.data.batches import Batches, collate
from lorakit.data.encode import Example
from lorakit.deltas import DELTAS
from lorakit.errors import SpecError
from lorakit.evaluate.score import batch_loss
from lorakit.models import Loaded, load, pad_id
from lorakit.spec import INITS
from lorakit.train.budget import Budget
from lorakit.train.optim import lr_factor, set_lr

RANK = 4
TASKS = {"oz_books": (oz_books, "perplexity"), "sst2": (sst2, "accuracy")}
VARIANTS = [{"delta": delta} for delta in DELTAS] + [{"init": init} for init in INITS[1:]]


def fitted(model: nn.Module, setting: Setting, variant: dict[str, str], head: tuple[str, ...]) -> lorakit.Spec:
    """Return the Spec of a variant at the rank whose parameters are nearest to LoRA's."""
    common: dict[str, Any] = {"targets": setting.targets, "whole_modules": head}

    def counted(**more: Any) -> int:
        spec = lorakit.Spec(alpha=1.0, **common, **more)
        return sum(p.numel() for d in lorakit.attach(copy.deepcopy(model), spec).deltas.values() for p in d.parameters())

    wanted, best = counted(rank=RANK), (float("inf"), RANK)
    for rank in (r for r in (*range(1, 17), 32, 64, 128, 256) if "delta" in variant):
        try:
            best = min(best, (abs(counted(rank=rank, delta=variant["delta"]) - wanted), rank))
        except SpecError:  # above what the smallest layer allows
            break
    rank = best[1]
    alpha = setting.alpha / setting.rank * rank  # the scale of the two benchmarks
    return lorakit.Spec(rank=rank, alpha=rank if variant.get("delta") == "vera" else alpha, **common, **variant)


def measured(task: str, setting: Setting, variant: dict[str, str], seed: int, parts: dict[str, Sequence[Example]]):
    """Train one variant once; return its row."""
    torch.set_num_threads(setting.threads)
    loaded: Loaded = load(model_at(setting.model), setting.task, labels=setting.labels, seed=seed)
    model, pad, train = loaded.model, pad_id(loaded.tokenizer), parts["train"]
    spec = fitted(model, setting, variant, loaded.new_modules)
    order = Batches([len(e.ids) for e in train], setting.batch_size, seed)
    seen = [collate([train[i] for i in order[step]], pad) for step in range(2)]
    adapter = lorakit.attach(model, spec, seed=seed, batches=seen if spec.init in ("eva", "lora-ga") else None)
    parameters = list(adapter.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=setting.lr, weight_decay=0.0)
    budget = Budget(adapter, setting.steps, every=1) if spec.delta == "adalora" else None
    held = {p.data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    torch.manual_seed(seed)
    begun, cpu = time.perf_counter(), time.process_time()
    for step in range(setting.steps):
        set_lr(optimizer, setting.lr * lr_factor(step, setting.steps, setting.warmup, setting.schedule))
        chosen = [train[i] for i in order[step]]
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = batch_loss(model, collate(chosen, pad), setting.task)[0] / sum(e.trained for e in chosen)
        most = sum(saved.values())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, setting.clip)
        budget.step(optimizer) if budget else optimizer.step()
        optimizer.zero_grad()
    cpu, seconds = (time.process_time() - cpu) / setting.steps, (time.perf_counter() - begun) / setting.steps
    model.eval()
    if budget:
        budget.prune()
    quality = TASKS[task][1]
    with tempfile.TemporaryDirectory() as place:
        size = sum(path.stat().st_size for path in adapter.save(Path(place) / "adapter").iterdir())
    return {"task": task, "variant": spec.delta if "delta" in variant else spec.init, "rank": spec.rank, "seed": seed,
            "trainable_parameters": sum(p.numel() for p in parameters), quality: score(loaded, parts["test"])[quality],
            "cpu_seconds_a_step": round(cpu, 4), "seconds_a_step": round(seconds, 4), "saved_bytes": most,
            "file_bytes": size}  # fmt: skip


def main() -> None:
    asked = arguments(__doc__, *(f"--{task}: this task alone" for task in ("oz-books", "sst2")))
    some = [t for t in TASKS if getattr(asked, t)] or list(TASKS)
    runs = []
    for task in some:
        module = TASKS[task][0]
        setting = replace(module.SETTING, steps=2, batch_size=2) if asked.quick else module.SETTING
        parts = module.examples(load(model_at(setting.model), setting.task, labels=setting.labels))
        if asked.quick:
            parts = {name: part[:8] for name, part in parts.items()}
        for variant in VARIANTS:
            for seed in SEEDS[: 1 if asked.quick else None]:
                runs.append(measured(task, setting, variant, seed, parts))
                print(runs[-1], file=sys.stderr, flush=True)
    write("variants", __doc__, quick=asked.quick, runs=runs)


if __name__ == "__main__":
    main()
