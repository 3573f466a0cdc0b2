"""Weights that share memory: merged equals attached, whatever shows the memory."""

import pytest
import torch
from torch import nn

import lorakit

from ..laws.table import error, fill

IDS = torch.arange(10)


class Tied(nn.Module):
    """A head over the memory of the embedding, as another parameter."""

    def __init__(self, head: nn.Parameter, weight: nn.Parameter):
        super().__init__()
        self.embedding = nn.Embedding(10, 10)
        self.embedding.weight = weight
        self.head = nn.Linear(10, 10, bias=False)
        self.head.weight = head
        self.register_buffer("seen", weight.detach())
        self.plain = weight.detach()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids)) @ self.get_buffer("seen") @ self.plain


def make_tied(view: str) -> Tied:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        memory = torch.randn(12, 10, dtype=torch.float64)
    weight = nn.Parameter(memory[:10])
    heads = {"same": weight, "transposed": weight.T, "overlapping": memory[2:]}
    return Tied(nn.Parameter(heads[view].detach()), weight)


@pytest.mark.parametrize("view", ["same", "transposed", "overlapping"])
@pytest.mark.parametrize("targets", [["head"], ["embedding"], ["head", "embedding"]], ids=str)
def test_merged_equals_attached(view: str, targets: list[str]) -> None:
    model = make_tied(view)
    base = model(IDS)
    fill(lorakit.attach(model, lorakit.Spec(rank=2, targets=targets, dtype="float64")))
    attached = model(IDS)
    undo = lorakit.merge(model)
    assert error(model(IDS), attached.detach()) < 1e-10
    lorakit.unmerge(model, undo)
    assert torch.equal(model(IDS), attached)
    lorakit.detach(model)
    assert torch.equal(model(IDS), base)
    assert model.head.weight.untyped_storage().data_ptr() == (
        model.embedding.weight.untyped_storage().data_ptr()
    )


def test_an_expanded_weight_merges() -> None:
    model = nn.Linear(6, 5)
    model.weight = nn.Parameter(torch.ones(6).expand(5, 6))
    fill(lorakit.attach(model, lorakit.Spec(rank=2, targets=["*"])))
    x = torch.linspace(-1, 1, 6)
    attached = model(x)
    undo = lorakit.merge(model)
    assert error(model(x), attached.detach().double()) < 1e-5
    lorakit.unmerge(model, undo)
    assert model.weight.stride() == (0, 1)


def test_token_rows_follow_a_weight_over_the_same_memory() -> None:
    model = make_tied("same")
    adapter = fill(
        lorakit.attach(
            model,
            lorakit.Spec(token_rows={"embedding": [3]}, targets="none", dtype="float64", alpha=1),
        )
    )
    assert list(adapter.tied_deltas) == ["head"]
    attached = model(IDS)
    lorakit.merge(model)
    assert error(model(IDS), attached.detach()) < 1e-10
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()


def test_a_merge_does_not_write_into_the_adapter() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = fill(lorakit.attach(model, lorakit.Spec(rank=1, targets="none", bias="all")))
    lorakit.merge(model)
    lorakit.detach(model)
    bias = adapter.full_parameters["0.bias"]
    assert model[0].bias.data_ptr() != bias.data_ptr()


def test_a_backward_pass_over_weights_that_were_merged_meanwhile_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fill(lorakit.attach(model, lorakit.Spec(rank=1)))
    loss = model(torch.ones(1, 3)).sum()
    lorakit.merge(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
