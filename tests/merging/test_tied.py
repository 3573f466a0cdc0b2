"""Models whose head is their embedding: merging unties weights that change apart, and says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorakit
from lorakit.errors import MergeError
from lorakit.merging.export import check_same_weights

from ..laws.table import bits, error, fill, state
from ..models.tied import FAMILIES, logits, tied_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
families = pytest.mark.parametrize("family", FAMILIES)
sides = pytest.mark.parametrize("side", [1, 2], ids=["embedding", "head"])


def adapted(family: str, side: int) -> Any:
    model = tied_model(family)
    fill(lorakit.attach(model, lorakit.Spec(rank=2, alpha=2.0, targets=[FAMILIES[family][side]])))
    return model


@families
@sides
def test_merging_one_side_unties_and_says_so(family: str, side: int):
    model = adapted(family, side)
    attached = logits(model)
    assert error(attached, logits(tied_model(family)).double()) > 0.01
    lorakit.merge(model)
    assert error(logits(model), attached.double()) < 1e-4
    assert model.config.tie_word_embeddings is False
    assert (
        model.get_output_embeddings().weight is not model.get_input_embeddings().weight
        or family == "t5"
    )


@families
@sides
def test_unmerge_ties_again_to_the_bit(family: str, side: int):
    model = adapted(family, side)
    before, attached = state(model), logits(model)
    lorakit.unmerge(model, lorakit.merge(model))
    assert torch.equal(logits(model), attached)
    assert model.config.tie_word_embeddings is True
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert all(
        torch.equal(bits(tensor), bits(before[key])) for key, tensor in model.state_dict().items()
    )
    lorakit.detach(model)
    assert torch.equal(logits(model), logits(tied_model(family)))


@pytest.mark.slow
@families
@sides
def test_a_reloaded_model_gives_what_the_merged_one_gave(family: str, side: int, tmp_path: Path):
    model = adapted(family, side)
    lorakit.merge(model)
    merged = logits(model)
    lorakit.detach(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), merged)
    if family != "t5":  # its config takes no other value, and loading goes by what the file holds
        assert again.config.tie_word_embeddings is False
    assert check_same_weights(model, again) is None


def test_what_is_tied_again_by_loading_is_refused(tmp_path: Path):
    model = tied_model("t5")
    fill(lorakit.attach(model, lorakit.Spec(rank=2, targets=["shared"])))
    lorakit.merge(model)
    lorakit.detach(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(MergeError) as caught:
        check_same_weights(model, type(model).from_pretrained(tmp_path))
    assert "T5ForConditionalGeneration ties " in str(
        caught.value
    ) and "again when it is loaded" in str(caught.value)
    assert "or train one that leaves the tied weights out. Nothing was left behind." in str(
        caught.value
    )


@families
def test_what_does_not_touch_the_pair_keeps_it_tied(family: str):
    model = tied_model(family)
    fill(lorakit.attach(model, lorakit.Spec(rank=2)))
    lorakit.merge(model)
    assert model.config.tie_word_embeddings is True
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


class Twice(nn.Module):
    """One layer called twice, and two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))


def twice() -> Twice:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Twice().double()


X = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 6)


def dense(model: Twice, adapter: lorakit.Adapter) -> torch.Tensor:
    """Return the output by the definition, with gradients of the factors."""
    first, second = (adapter.deltas.get(name) for name in ("first", "second"))
    W = model.first.weight.detach()
    one = W if first is None else W + first.scale * first.B @ first.A
    two = W if second is None else W + second.scale * second.B @ second.A
    h = torch.tanh(X @ one.T + model.first.bias)
    return torch.tanh(h @ one.T + model.first.bias) @ two.T + model.second.bias


@pytest.mark.parametrize(
    "targets", [["first"], ["second"], ["first", "second"]], ids=["first", "second", "both"]
)
def test_a_layer_used_twice_and_a_shared_weight(targets: list[str]):
    model = twice()
    adapter = fill(
        lorakit.attach(model, lorakit.Spec(rank=2, alpha=2.0, targets=targets, dtype="float64"))
    )
    assert error(model(X), dense(model, adapter).detach()) < 1e-12
    model(X).square().sum().backward()
    got = [p.grad for p in adapter.parameters()]
    want = torch.autograd.grad(dense(model, adapter).square().sum(), list(adapter.parameters()))
    assert all(g is not None and error(g, w) < 1e-10 for g, w in zip(got, want, strict=True))
    attached, own = model(X).detach(), model.first.weight
    undo = lorakit.merge(model)
    assert error(model(X), attached) < 1e-12
    assert model.first.weight is not model.second.weight
    lorakit.unmerge(model, undo)
    assert model.first.weight is own is model.second.weight
    assert torch.equal(model(X), attached)


def test_shared_layers_that_change_alike_stay_shared():
    model = twice()
    adapter = fill(
        lorakit.attach(model, lorakit.Spec(rank=2, targets=["first", "second"], dtype="float64"))
    )
    for key in "AB":
        getattr(adapter.deltas["second"], key).data.copy_(getattr(adapter.deltas["first"], key))
    attached = model(X).detach()
    lorakit.merge(model)
    assert model.first.weight is model.second.weight
    assert error(model(X), attached) < 1e-12
