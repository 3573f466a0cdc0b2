"""The memory that a plan tells, beside what PyTorch's allocator really gave out while such a step
ran.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import lorakit
from lorakit import Spec
from lorakit.data.batches import pack_examples
from lorakit.data.encode import Example
from lorakit.evaluate.score import batch_loss
from lorakit.models.checkpointing import checkpoint_blocks
from lorakit.models.packing import packed_attention
from lorakit.plan.estimate import Plan, Work

from .models import CONFIGS, bare, build

LM = "causal-lm"
CASES: dict[str, tuple[str, str, Spec, Work]] = {
    "llama": ("llama", LM, Spec(rank=8), Work(batch=8, length=64)),
    "llama, dropout, checkpointing": (
        "llama",
        LM,
        Spec(rank=8, dropout=0.1),
        Work(batch=4, length=128, checkpointing="full"),
    ),
    "llama, nothing padded": (
        "llama",
        LM,
        Spec(rank=4, targets="qv"),
        Work(batch=2, length=96, padded=False),
    ),
    "deep and narrow, dropout": (
        "deep and narrow",
        LM,
        Spec(rank=16, dropout=0.05),
        Work(batch=4, length=64),
    ),
    "deep and narrow, checkpointing": (
        "deep and narrow",
        LM,
        Spec(rank=4),
        Work(batch=6, length=80, checkpointing="full"),
    ),
    "llama, light checkpointing": (
        "llama",
        LM,
        Spec(rank=8, dropout=0.1),
        Work(batch=4, length=128, checkpointing="light"),
    ),
    "llama, packed": (
        "llama",
        LM,
        Spec(rank=8),
        Work(batch=4, length=128, packed=(128, 90, 30, 61)),
    ),
    "large vocabulary": (
        "large vocabulary",
        LM,
        Spec(rank=4, targets="attention"),
        Work(batch=4, length=100),
    ),
    "encoder with dropout of its own": (
        "encoder",
        "classify",
        Spec(rank=8, dropout=0.1),
        Work(batch=16, length=48),
    ),
    "encoder, checkpointing": (
        "encoder",
        "classify",
        Spec(rank=8),
        Work(batch=3, length=120, checkpointing="full"),
    ),
    "opt, dora, rank 64": ("opt", LM, Spec(rank=64, delta="dora"), Work(batch=4, length=64)),
    "opt, bfloat16": (
        "opt",
        LM,
        Spec(rank=8, dropout=0.1),
        Work(batch=8, length=64, base_dtype="bfloat16"),
    ),
    "llama, autocast, accumulated": (
        "llama",
        LM,
        Spec(rank=32),
        Work(batch=4, length=64, mixed="bf16", accumulate=2),
    ),
}


def batch_of(work: Work, task: str, device: str) -> dict[str, Any]:
    if work.packed:
        return pack_examples([Example([1] * n, [1] * n) for n in work.packed], device)
    ids = torch.ones(work.batch, work.length, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    if work.padded:
        mask[1:, -2:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids if task == "causal-lm" else ids[:, 0].clone(),
    }


def prepared(
    name: str, task: str, spec: Spec, work: Work, device: str
) -> tuple[Any, lorakit.Adapter, torch.optim.Optimizer]:
    """Return a model that is ready for its second step, so that the optimizer has its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = build(CONFIGS[name](), task)
    if task == "classify":
        spec = replace(spec, full_modules=("classifier",))
    model.to(device, work.dtype(device == "cuda"))
    adapter = lorakit.attach(model, spec)
    if work.checkpointing:
        checkpoint_blocks(model, work.checkpointing)
    optimizer = torch.optim.AdamW(adapter.parameters())
    step(model.train(), adapter, optimizer, work, task, device)
    return model, adapter, optimizer


def step(
    model: Any,
    adapter: lorakit.Adapter,
    optimizer: torch.optim.Optimizer,
    work: Work,
    task: str,
    device: str,
) -> None:
    for _ in range(work.accumulate):
        packs = packed_attention(model) if work.packed else nullcontext()
        with packs, torch.autocast(device, torch.bfloat16, enabled=work.mixed == "bf16"):
            loss = batch_loss(model, batch_of(work, task, device), task)[0] / work.batch
        loss.backward()
    torch.nn.utils.clip_grad_norm_(list(adapter.parameters()), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def held(model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of weights, adapters, buffers and optimizer state."""
    tensors = [
        *model.parameters(),
        *model.buffers(),
        *(t for s in optimizer.state.values() for t in s.values()),
    ]
    waiting = [
        p
        for m in model.modules()
        if type(m).__name__ == "Slot"
        for p in m._parameters.values()
        if p is not None
    ]
    return sum({t.untyped_storage()._cdata: t.nbytes for t in [*tensors, *waiting]}.values())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_what_the_allocator_gave_out(case: str) -> None:
    name, task, spec, work = CASES[case]
    told = Plan(bare(name, task), spec, work).memory(gpu=False)["peak"]
    model, adapter, optimizer = prepared(name, task, spec, work, "cpu")
    before = held(model, optimizer)
    # Every allocation and release of PyTorch's CPU allocator, those inside kernels too.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        step(model, adapter, optimizer, work, task, "cpu")
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert most > 0
    assert told == pytest.approx(before + most, rel=0.10)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_that_of_a_gpu(case: str) -> None:
    name, task, spec, work = CASES[case]
    plan = Plan(bare(name, task), spec, work)
    model, adapter, optimizer = prepared(name, task, spec, work, "cuda")
    torch.cuda.synchronize()
    empty = torch.cuda.memory_allocated() - held(
        model, optimizer
    )  # workspaces that CUDA's libraries keep
    torch.cuda.reset_peak_memory_stats()
    step(model, adapter, optimizer, work, task, "cuda")
    assert plan.memory(gpu=True)["peak"] == pytest.approx(
        torch.cuda.max_memory_allocated() - empty, rel=0.10
    )


@pytest.mark.slow
def test_parts_are_those_of_real_tensors() -> None:
    name, task, spec, work = CASES["encoder with dropout of its own"]
    parts = Plan(bare(name, task), spec, work).memory(gpu=False)
    model, adapter, optimizer = prepared(name, task, spec, work, "cpu")
    trained = sum(p.nbytes for p in adapter.parameters())
    assert (parts["adapters"], parts["gradients"], parts["optimizer"]) == (
        trained,
        trained,
        2 * trained,
    )
    steps = 4 * len(list(adapter.parameters()))  # AdamW counts its steps in a float32 a tensor
    assert (
        held(model, optimizer) - steps == parts["weights"] + parts["adapters"] + parts["optimizer"]
    )
