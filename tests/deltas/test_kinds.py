"""Each parameterisation: its refusals and their text, its shared factors, and its start."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import lorakit
from lorakit import Spec
from lorakit.deltas.kinds import DELTAS
from lorakit.errors import SpecError
from lorakit.spec import KINDS

from ..laws.models import llama
from ..laws.table import DELTAS as ROWS
from ..laws.table import fill


def test_every_delta_has_a_name_a_class_and_a_row_of_laws() -> None:
    assert tuple(DELTAS) == KINDS
    assert [kind.name for kind in DELTAS.values()] == list(KINDS)
    assert {fields.get("delta", "lora") for fields in ROWS.values()} == set(KINDS)


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(9, 6),
        nn.Linear(6, 8),
        Conv1D(6, 8),
        nn.Linear(6, 4),
        nn.MultiheadAttention(8, 2),
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "vera, embedding": (
        {"delta": "vera", "targets": ["0"]},
        "0   delta 'vera': serves linear, conv1d, not a layer of kind embedding",
    ),
    "vera, rank of its own": (
        {"delta": "vera", "overrides": {"1": {"rank": 3}}},
        "1   delta 'vera': all layers share one pair of factors, so rank cannot be overridden",
    ),
    "vera, init": (
        {"delta": "vera", "init": "gaussian", "targets": ["1"]},
        "1   delta 'vera': has its own start, init='gaussian' cannot be used",
    ),
    "loha, embedding": (
        {"delta": "loha", "targets": ["0"]},
        "convolution3d, not a layer of kind embedding",
    ),
    "loha, init": (
        {"delta": "loha", "init": "orthogonal"},
        "3   delta 'loha': has its own start, init='orthogonal'",
    ),
    "loha, biases": (
        {"delta": "loha", "bias": "all"},
        "1   delta 'loha': its files cannot hold biases, asked for bias='all'",
    ),
    "lokr, biases": (
        {"delta": "lokr", "bias": "adapted"},
        "delta 'lokr': its files cannot hold biases",
    ),
    "lokr, init": (
        {"delta": "lokr", "init": "gaussian"},
        "delta 'lokr': has its own start, init='gaussian'",
    ),
    "adalora, alpha of its own": (
        {"delta": "adalora", "overrides": {"1": {"alpha": 3, "rank": 3}}},
        "1   delta 'adalora': all layers start with the same rank, and training moves the budget, "
        "so rank, alpha cannot",
    ),
    "loha, a weight that its module reads": (
        {"delta": "loha", "targets": ["4.in_proj"]},
        "not a layer of kind in_proj",
    ),
    "vera, part": (
        {"delta": "vera", "targets": ["2.q"], "parts": {"2": {"q": 2, "k": 4}}},
        "2.q   delta 'vera': a part of a fused layer can only have delta 'lora'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    fields, text = REFUSED[case]
    net = model()
    with pytest.raises(SpecError, match="cannot be adapted with these settings") as caught:
        lorakit.attach(net, Spec(**{"rank": 2, "targets": ["1", "2", "3"], **fields}))
    assert text in str(caught.value)
    assert lorakit.attached(net) == {}


def vera_pair(**fields: Any) -> nn.Module:
    """Attach VeRA, and return its pair after checking that all layers share it."""
    seed = fields.get("rank", 0)
    adapter = lorakit.attach(llama(), Spec(delta="vera", rank=4, **fields), seed=seed)
    copied = adapter.copy()
    assert copied == adapter
    for each in (adapter, copied):
        assert len({id(delta.pair) for delta in each.deltas.values()}) == 1
    return next(iter(adapter.deltas.values())).pair


def test_vera_has_one_pair_for_all_layers_with_its_scale() -> None:
    one = vera_pair(alpha=4)
    two = vera_pair(alpha=8)
    rooted = vera_pair(alpha=4, scale_rule="alpha/sqrt(rank)")
    assert tuple(one.A.shape) == (4, 24)
    assert tuple(one.B.shape) == (24, 4)
    assert torch.equal(one.A, two.A)
    assert torch.equal(2 * one.B, two.B)
    assert torch.equal(2 * one.B, rooted.B)
    assert 0.9 < one.A.abs().max() / (6 / 24) ** 0.5 <= 1
    assert 0.9 < one.B.abs().max() / (6 / 4) ** 0.5 <= 1


def test_counts_are_those_of_the_papers() -> None:
    def count(delta: str, rank: int) -> int:
        model = nn.Sequential(nn.Linear(64, 48))
        return lorakit.attach(model, Spec(delta=delta, rank=rank)).parameters_count

    assert count("vera", 32) == 48 + 32  # b and d
    assert count("loha", 3) == 2 * 3 * (64 + 48)
    assert count("lokr", 2) == 6 * 8 + 2 * (8 + 8)  # 48 = 6 x 8, 64 = 8 x 8
    assert count("adalora", 4) == 4 * (64 + 48 + 1)


def test_adalora_prunes_without_changing_anything() -> None:
    net = nn.Sequential(nn.Linear(7, 5))
    adapter = fill(lorakit.attach(net, Spec(delta="adalora", rank=4)))
    delta = adapter.deltas["0"]
    x = torch.randn(3, 7)
    delta.E.data[[0, 2]] = 0
    want = net(x)
    scale = delta.scale
    delta.prune()
    assert (delta.rank, delta.initial_rank, delta.scale) == (2, 4, scale)
    assert delta.kept.tolist() == [False, True, False, True]
    assert torch.allclose(net(x), want, atol=1e-6)
    delta.E.data[0] = 0
    assert delta.prune().kept.tolist() == [False, False, False, True]


@pytest.mark.parametrize("delta", ["vera", "loha", "lokr"])
def test_a_rank_that_is_not_that_of_the_change_has_no_limit(delta: str, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(8, 6))
    adapter = fill(lorakit.attach(layers, Spec(rank=256, delta=delta)))
    y = layers(torch.ones(8))
    assert "no fewer values" not in str(lorakit.coverage(layers))
    read = lorakit.Adapter.load(adapter.save(tmp_path / "adapter"))
    lorakit.detach(layers)
    lorakit.attach(layers, read)
    assert torch.equal(layers(torch.ones(8)), y)
