"""Laws of every family of models: presets, coverage, training, merging, files, parity with PEFT."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Adapter, LorakitError, Spec
from lorakit.inject.places import find_places
from lorakit.inject.targets import PRESETS

from ..laws.table import fill, same_bits, state
from .families import FAMILIES, Family, logits

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@families
def test_presets_select_what_their_names_say(family: Family) -> None:
    model, found = family.build(), {}
    for preset in PRESETS:
        try:
            found[preset] = len(lorakit.select(model, preset))
        except LorakitError as error:
            assert "Nothing was attached." in str(error)
    assert {preset: count for preset, count in found.items() if count or preset == "none"} == {
        preset: count for preset, count in family.presets.items() if count or preset == "none"
    }
    assert {name.rpartition(".")[2] for name in lorakit.select(model)} == set(family.names.split())


@pytest.mark.slow
@families
def test_fresh_equals_base_and_coverage_is_whole(family: Family) -> None:
    model = family.build()
    base, values, total = (
        logits(model, family.inputs),
        state(model),
        sum(p.numel() for p in model.parameters()),
    )
    adapter = lorakit.attach(model, Spec(rank=2))
    assert torch.equal(logits(model, family.inputs), base)
    covered = lorakit.coverage(model)
    assert [m["name"] for m in covered.modules] == list(adapter.deltas) and len(
        covered.modules
    ) == family.presets["all-linear"]
    assert Counter(m["kind"] for m in covered.skipped) == family.rest
    assert {name: count for name, (count, _) in covered.unreachable.items()} == family.beyond
    assert covered.trainable_parameters == adapter.parameters_count
    assert covered.total_parameters == total + adapter.parameters_count
    lorakit.detach(model)
    assert same_bits(state(model), values) and torch.equal(logits(model, family.inputs), base)


@pytest.mark.slow
@families
def test_three_steps_lower_the_loss_by_the_adapter_alone(family: Family) -> None:
    model = family.build().train()
    values = state(model)
    adapter = lorakit.attach(model, Spec(rank=2))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = model(**family.inputs).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[3] < losses[0]
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert same_bits({k: v for k, v in state(model).items() if k in values}, values)


@pytest.mark.slow
@families
def test_everything_that_can_be_adapted_takes_part_or_is_told(family: Family) -> None:
    model = family.build(torch.float64)
    inputs, whole = (
        family.given(torch.float64),
        [n for n, p in find_places(model).items() if not p.is_part],
    )
    adapter = fill(lorakit.attach(model, Spec(rank=1, targets=whole, dtype="float64")))
    if family.silent:
        with pytest.raises(LorakitError) as caught:
            lorakit.check(model, **inputs)
        assert tuple(fault.split("   ")[0] for fault in caught.value.faults) == family.silent
        lorakit.detach(model)
        adapter = fill(
            lorakit.attach(
                model, Spec(rank=1, targets=whole, exclude=family.silent, dtype="float64")
            )
        )
    assert lorakit.check(model, **inputs) == list(adapter.deltas)


@pytest.mark.slow
@families
def test_merged_equals_attached(family: Family) -> None:
    model = family.build(torch.float64)
    inputs, values = family.given(torch.float64), state(model)
    base = logits(model, inputs)
    targets = [n for n, p in find_places(model).items() if not p.is_part]
    adapter = lorakit.attach(
        model, Spec(rank=1, alpha=0.2, targets=targets, exclude=family.silent, dtype="float64")
    )
    fill(adapter)
    on = logits(model, inputs)
    undo = lorakit.merge(model)
    scale = float(on.abs().max())
    assert (
        float((logits(model, inputs) - on).abs().max()) < 1e-9 * scale
        and float((on - base).abs().max()) > 1e-3 * scale
    )
    lorakit.unmerge(model, undo)
    assert torch.equal(logits(model, inputs), on)
    lorakit.detach(model)
    assert same_bits(state(model), values) and torch.equal(logits(model, inputs), base)


@pytest.mark.slow
@families
def test_written_equals_read(family: Family, tmp_path: Path) -> None:
    model = family.build()
    adapter = fill(lorakit.attach(model, Spec(rank=2, alpha=0.5)))
    read, other = Adapter.load(adapter.save(tmp_path)), family.build()
    assert read == adapter
    lorakit.attach(other, read)
    assert torch.equal(logits(other, family.inputs), logits(model, family.inputs))


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [f for f in FAMILIES.values() if f.peft],
    ids=[n for n, f in FAMILIES.items() if f.peft],
)
def test_peft_reads_the_same_outputs(family: Family, tmp_path: Path) -> None:
    from peft import PeftModel

    model = family.build()
    base = logits(model, family.inputs)
    fill(lorakit.attach(model, Spec(rank=2, alpha=0.5))).save(tmp_path)
    want = logits(model, family.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        theirs: nn.Module = PeftModel.from_pretrained(family.build(), str(tmp_path)).eval()
    scale = float(want.abs().max())
    assert float((logits(theirs, family.inputs) - want).abs().max()) < 1e-4 * scale
    assert float((want - base).abs().max()) > 1e-2 * scale
