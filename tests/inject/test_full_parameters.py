"""Biases and modules that train in full: trained, saved, merged and exchanged in real models."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Adapter, Spec

from ..laws.models import bert, logits
from ..laws.table import fill, same_bits, state

SPECS = {
    "head": Spec(rank=2, targets="qv", full_modules=["classifier"]),
    "head by pattern": Spec(rank=2, targets="qv", full_modules=["class*"]),
    "head and biases": Spec(rank=2, targets="qv", full_modules=["classifier"], bias="all"),
    "biases of adapted layers": Spec(
        rank=2, targets=["query", "dense"], exclude=["pooler.dense"], bias="adapted"
    ),
    "biases alone": Spec(targets="none", bias="all"),
    "head alone": Spec(targets="none", full_modules=["classifier", "pooler"]),
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def attached(spec: Spec) -> tuple[nn.Module, Adapter]:
    model = bert()
    return model, fill(lorakit.attach(model, spec), seed=2)


@specs
def test_trained_merged_and_taken_off(spec: Spec) -> None:
    base = bert()
    before, want = state(base), logits(base)
    found = {n: (id(p), p.requires_grad) for n, p in base.named_parameters()}
    adapter = lorakit.attach(base, spec)
    assert torch.equal(logits(base), want)
    fill(adapter)
    on = logits(base)
    assert not torch.allclose(on, want)
    ids = torch.arange(12).reshape(2, 6)
    base(input_ids=ids, labels=torch.tensor([0, 2])).loss.backward()
    dead = [n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("key.bias" in n for n in dead)  # softmax over keys does not see their bias
    undo = lorakit.merge(base)
    assert torch.allclose(logits(base), on, atol=1e-5)
    lorakit.unmerge(base, undo)
    assert torch.equal(logits(base), on)
    lorakit.detach(base)
    assert same_bits(state(base), before) and torch.equal(logits(base), want)
    assert {n: (id(p), p.requires_grad) for n, p in base.named_parameters()} == found


@specs
def test_detach_keeps_what_was_merged(spec: Spec) -> None:
    model, _ = attached(spec)
    on = logits(model)
    lorakit.merge(model)
    lorakit.detach(model)
    assert torch.allclose(logits(model), on, atol=1e-5)
    assert not any("lorakit" in name for name, _ in model.named_modules())


@specs
def test_written_equals_read(spec: Spec, tmp_path: Path) -> None:
    model, adapter = attached(spec)
    read = Adapter.load(adapter.save(tmp_path))
    assert read == adapter
    other = bert()
    if spec.full_modules:
        other.classifier.weight.data.mul_(
            3
        )  # a new head that trains in full is no part of the base
    lorakit.attach(other, read)
    assert torch.equal(logits(other), logits(model))
    # in the same order: optimizers know their tensors by number
    assert [n for n, _ in read.named_parameters()] == [n for n, _ in adapter.named_parameters()]


@pytest.mark.slow
@specs
def test_copies_are_independent(spec: Spec) -> None:
    model, adapter = attached(spec)
    on, off = logits(model), logits(bert())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), on)
        lorakit.enable(twin, None)
        assert torch.equal(logits(twin), off) and torch.equal(logits(model), on)
        lorakit.enable(twin, "default")
        (held,) = lorakit.attached(twin).values()
        assert held == adapter
        fill(held, seed=8)
        assert not torch.allclose(logits(twin), on) and torch.equal(logits(model), on)
        lorakit.detach(twin)
        assert same_bits(state(twin), state(bert()))


@specs
def test_cast_with_the_model(spec: Spec) -> None:
    model, adapter = attached(spec)
    lorakit.enable(model, None)
    model.to(torch.float64)
    assert (
        {p.dtype for p in adapter.parameters()}
        == {p.dtype for p in model.parameters()}
        == {torch.float64}
    )
    assert torch.allclose(logits(model), logits(bert()).double(), atol=1e-5)
    lorakit.enable(model, "default")
    assert torch.allclose(logits(model), logits(attached(spec)[0]).double(), atol=1e-5)


@specs
def test_optimizer_moves_the_adapter_after_switching(spec: Spec) -> None:
    model, adapter = attached(spec)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    lorakit.enable(model, None)
    lorakit.enable(model, "default")
    before, base = adapter.copy(), {n: p.detach().clone() for n, p in bert().named_parameters()}
    model(input_ids=torch.arange(12).reshape(2, 6), labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    moved = [
        n
        for n, p in adapter.named_parameters()
        if not torch.equal(p, dict(before.named_parameters())[n])
    ]
    assert (
        len(moved) >= len(list(adapter.parameters())) - 2
    )  # the biases of the two keys get no gradient
    lorakit.detach(model)
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters())


def test_two_adapters_with_heads_of_their_own() -> None:
    model, one = attached(SPECS["head and biases"])
    first, off = logits(model), logits(bert())
    lorakit.enable(model, None)
    fill(lorakit.attach(model, SPECS["head"], name="two"), seed=6)
    second = logits(model)
    assert not torch.allclose(first, second)
    for which, want in [
        ("default", first),
        ("two", second),
        (None, off),
        ("two", second),
        ("default", first),
    ]:
        lorakit.enable(model, which)
        assert torch.equal(logits(model), want)
    lorakit.detach(model, "two")
    assert torch.equal(logits(model), first) and lorakit.enabled(model) == {"default": 1.0}
    lorakit.detach(model, "default")
    assert (
        torch.equal(logits(model), off) and one.full_parameters["classifier.weight"].requires_grad
    )


def test_full_parameters_follow_the_dtype_of_their_layer() -> None:
    _, adapter = attached(SPECS["head and biases"])
    model = bert().to(torch.bfloat16)
    lorakit.attach(model, adapter.copy())
    assert torch.allclose(
        logits(model).float(), logits(attached(SPECS["head and biases"])[0]), atol=0.3
    )


def test_all_biases_include_those_by_another_name() -> None:
    model = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "b": nn.LSTM(4, 4)})
    adapter = lorakit.attach(model, Spec(targets="none", bias="all"))
    assert list(adapter.full_parameters) == [
        "a.in_proj_bias",
        "a.out_proj.bias",
        "b.bias_ih_l0",
        "b.bias_hh_l0",
    ]


def test_one_adapter_merges_while_another_that_trains_the_layer_in_full_is_off() -> None:
    model = bert()
    fill(lorakit.attach(model, Spec(targets="none", full_modules=["classifier"]), name="head"))
    lorakit.enable(model, None)
    fill(lorakit.attach(model, Spec(rank=2, targets=["classifier"]), name="low"), seed=4)
    on = logits(model)
    undo = lorakit.merge(model)
    assert torch.allclose(logits(model), on, atol=1e-6)
    lorakit.unmerge(model, undo)
    assert torch.equal(logits(model), on)
    lorakit.enable(model, "head")
    assert not torch.allclose(logits(model), on)
    lorakit.detach(model)
    assert same_bits(state(model), state(bert()))


def test_parameters_that_come_later_keep_their_own_flag() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    lorakit.attach(model, Spec(rank=1))
    model.append(nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    lorakit.detach(model)
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]


def test_parameters_that_wait_keep_the_order_of_the_layer() -> None:
    model = nn.Sequential(nn.LSTM(2, 2, num_layers=2))
    names = list(model.state_dict())
    lorakit.attach(model, Spec(targets="none", full_modules=["0"]))
    waiting = [name for name in model.state_dict() if "lorakit" in name]
    assert waiting == [name.replace("0.", "0.lorakit.:") for name in names]
