"""An extracted adapter brings the base as near to the tuned model as its size allows.

Every tensor that changed is in the adapter, in its notes, or refused by name.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorakit import Adapter, LorakitError, Spec, attach, fingerprint
from lorakit.algebra import extract
from lorakit.algebra.extraction import directions_for_energy

from ..analysis.test_spectra import randn


class Net(nn.Module):
    """A model with an embedding, matrices, a norm, biases, a convolution and a head."""

    def __init__(self, words: int = 20):
        super().__init__()
        self.words = nn.Embedding(words, 12)
        self.block = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(12),
                "up": nn.Linear(12, 16),
                "down": nn.Linear(16, 12, bias=False),
            }
        )
        self.conv = nn.Conv1d(12, 10, 3, padding=1)
        self.head = nn.Linear(10, 4)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        h = h + self.block["down"](torch.tanh(self.block["up"](self.block["norm"](h))))
        return self.head(self.conv(h.mT).mT)


def models(*changed: str, seed: int = 1) -> tuple[Net, Net]:
    """Return a base, and a copy of which the named parameters changed (all where none is named)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = Net().double()
    tuned = copy.deepcopy(base)
    for number, (name, parameter) in enumerate(tuned.named_parameters()):
        if not changed or name in changed:
            parameter.data.add_(0.1 * randn(*parameter.shape, seed=seed + number))
    return base, tuned


IDS = torch.arange(12).view(2, 6)


def test_at_full_rank_the_result_is_the_tuned_model() -> None:
    base, tuned = models()
    outcome = extract(base, tuned, rank=16, dtype=torch.float64)
    assert outcome.residual < 1e-12 and outcome.energy == pytest.approx(1.0)
    assert outcome.notes[0].startswith(
        "stored in full: block.up.bias, conv.bias, head.bias, block.norm.weight"
    )
    attach(base, outcome.adapter)
    assert torch.allclose(base(IDS), tuned(IDS), atol=1e-10)


def test_a_rank_leaves_the_tail_of_each_difference() -> None:
    base, tuned = models("block.up.weight", "words.weight")
    outcome = extract(base, tuned, rank=3, dtype=torch.float64)
    assert (
        outcome.ranks == {"words": 3, "block.up": 3}
        and outcome.adapter.deltas["words"].kind == "embedding"
    )
    tails = {}
    own, new = dict(base.named_parameters()), dict(tuned.named_parameters())
    for name in ("words", "block.up"):
        changed = new[f"{name}.weight"] - own[f"{name}.weight"]
        values = torch.linalg.svdvals(changed.detach())
        tails[name] = (float(values[3:].square().sum()), float(values.square().sum()))
        assert outcome.residuals[name] == pytest.approx((tails[name][0] / tails[name][1]) ** 0.5)
    lost, total = (sum(t[i] for t in tails.values()) for i in (0, 1))
    assert outcome.residual == pytest.approx((lost / total) ** 0.5)
    assert outcome.at_best == pytest.approx(outcome.residual)
    assert outcome.energy == pytest.approx(1 - lost / total)


def test_an_energy_chooses_the_rank_of_each_matrix() -> None:
    base, tuned = models("block.up.weight", "block.down.weight")
    tuned.block["down"].weight.data.copy_(base.block["down"].weight + randn(12, 1) @ randn(1, 16))
    outcome = extract(base, tuned, energy=0.9)
    assert outcome.ranks["block.down"] == 1 < outcome.ranks["block.up"] and outcome.energy >= 0.9


def test_a_budget_of_bytes_is_not_exceeded_and_spent_by_energy() -> None:
    base, tuned = models("block.up.weight", "block.down.weight", "block.norm.weight")
    tuned.block["down"].weight.data.copy_(
        base.block["down"].weight + 3 * randn(12, 1) @ randn(1, 16)
    )
    outcome = extract(base, tuned, size_bytes=4 * (24 + 28 * 3))
    assert outcome.ranks == {"block.up": 2, "block.down": 1}
    sizes = [p.numel() * p.element_size() for p in outcome.adapter.parameters()]
    assert sum(sizes) <= 4 * (24 + 28 * 3)
    with pytest.raises(
        LorakitError,
        match="150 bytes are too few: parameters stored in full take 96, "
        "one direction at least 112",
    ):
        extract(base, tuned, size_bytes=150)


def test_an_extracted_adapter_can_be_written_read_and_attached(tmp_path: Any) -> None:
    base, tuned = models()
    outcome = extract(base, tuned, rank=4, heads=("head",))
    assert {
        "head.weight",
        "head.bias",
        "block.norm.weight",
        "block.norm.bias",
    } <= outcome.adapter.full_parameters.keys()
    assert "head" not in outcome.ranks and outcome.adapter.spec.bias == "adapted"
    outcome.adapter.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert again.content_hash() == outcome.adapter.content_hash()
    assert again.provenance["base_fingerprint"] == fingerprint(base, without=["head", "block.norm"])
    attach(base.float(), again)
    tuned.float()
    assert torch.equal(base.head.weight, tuned.head.weight) and torch.equal(
        base.block["norm"].bias, tuned.block["norm"].bias
    )


def test_a_bias_without_a_changed_matrix_is_stored_in_full() -> None:
    base, tuned = models("block.up.bias")
    outcome = extract(base, tuned, rank=1)
    assert (
        outcome.adapter.deltas == {}
        and list(outcome.adapter.full_parameters) == ["block.up.bias"]
        and outcome.adapter.spec.bias == "all"
    )


def test_tensors_that_adapters_cannot_hold_are_refused_unless_left_out() -> None:
    base, tuned = models()
    more = Net(words=23).double()
    with pytest.raises(LorakitError) as caught:
        extract(base, more, rank=2)
    assert str(caught.value) == (
        "The tuned model cannot be written as a change of this base: 1 fault.\n"
        "  words.weight   is (23, 12), the base's (20, 12): 3 new rows; with tokens, resize the "
        "base first (resize_token_embeddings)\n"
        "Name what is not wanted with leave_out (--leave-out). Nothing was extracted."
    )
    assert "words" not in extract(base, more, rank=2, leave_out=("words",)).ranks
    left = extract(base, tuned, rank=2, leave_out=("words", "*.up"))
    assert left.notes[-1] == (
        "left out as requested, though it changed: words.weight, block.up.weight, block.up.bias"
    )
    with pytest.raises(LorakitError, match="'wrods'   is to be left out, but names nothing"):
        extract(base, tuned, rank=2, leave_out=("wrods",))
    pair = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    pair[1].load_state_dict(pair[0].state_dict())
    pair[1][1].running_mean.add_(1)  # type: ignore[operator]
    with pytest.raises(
        LorakitError, match=r"1\.running_mean   changed, and is a buffer: an adapter holds none"
    ):
        extract(*pair, rank=1)
    with pytest.raises(LorakitError, match="The two models are equal: there is nothing to extract"):
        extract(base, base, rank=1)
    other = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(LorakitError) as caught:
        extract(other, nn.Sequential(nn.Linear(4, 4, bias=False)), rank=1)
    assert caught.value.faults == ["0.bias   is only in the base"]


def test_tied_weights_change_in_both_layers() -> None:
    base, tuned = (
        nn.ModuleDict({"words": nn.Embedding(9, 6), "head": nn.Linear(6, 9, bias=False)})
        for _ in range(2)
    )
    for model in (base, tuned):
        model["head"].weight = model["words"].weight
    outcome = extract(base, tuned, rank=6)
    assert outcome.ranks == {"words": 6, "head": 6}
    words, head = (outcome.adapter.deltas[n].matrix().detach() for n in ("words", "head"))
    assert torch.allclose(words.T, head, atol=1e-5)
    assert torch.allclose(head, (tuned["head"].weight - base["head"].weight).detach(), atol=1e-5)


@pytest.mark.slow
def test_directions_of_a_large_matrix_are_added_until_they_hold_the_energy() -> None:
    left, right = (torch.linalg.qr(randn(900, 60, seed=s)).Q for s in (0, 1))
    dense = left * torch.linspace(2, 1, 60, dtype=torch.float64) @ right.T + 1e-4 * randn(
        900, 900, seed=2
    )
    _, S, _ = directions_for_energy(dense, 0.99)
    assert 57 <= len(S) < 200 and float(S.square().sum() / dense.square().sum()) >= 0.99


def test_a_bfloat16_difference_is_computed_in_float32() -> None:
    base, tuned = models("block.up.weight")
    base, tuned = base.bfloat16(), tuned.bfloat16()
    outcome = extract(base, tuned, rank=12)
    exact = tuned.block["up"].weight.detach().double() - base.block["up"].weight.detach().double()
    assert (
        float((outcome.adapter.deltas["block.up"].matrix().detach() - exact).norm() / exact.norm())
        < 1e-6
    )


def test_a_size_is_needed() -> None:
    with pytest.raises(
        LorakitError, match="no size is given: a rank, an energy, or a number of bytes is needed"
    ):
        extract(*models())
    with pytest.raises(
        LorakitError, match="rank and energy are given: each sets the size, so give only one"
    ):
        extract(*models(), rank=1, energy=0.5)


def test_the_rank_of_a_spec_is_the_most_common(tmp_path: Any) -> None:
    base, tuned = models("block.up.weight", "block.down.weight", "head.weight")
    outcome = extract(base, tuned, rank=5)
    assert (
        isinstance(outcome.adapter.spec, Spec)
        and outcome.adapter.spec.rank == 5
        and outcome.ranks["head"] == 4
    )
    outcome.adapter.save(tmp_path / "a")
    assert {n: d.rank for n, d in Adapter.load(tmp_path / "a").deltas.items()} == outcome.ranks


def test_a_fused_layer_is_extracted_as_one() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=0,
        eos_token_id=0,
    )
    base = GPT2LMHeadModel(config).eval()
    tuned = copy.deepcopy(base)
    fused = tuned.transformer.h[0].attn.c_attn
    fused.weight.data.add_(randn(16, 48).float() / 10)
    fused.bias.data.add_(1.0)
    outcome = extract(base, tuned, rank=16)
    assert outcome.ranks == {"transformer.h.0.attn.c_attn": 16} and list(
        outcome.adapter.full_parameters
    ) == ["transformer.h.0.attn.c_attn.bias"]
    attach(base, outcome.adapter)
    ids = torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(base.eval()(ids).logits, tuned(ids).logits, rtol=0, atol=1e-4)
