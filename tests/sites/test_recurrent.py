"""Recurrent modules, their cells and Bilinear equal the module with the sums in its parameters."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import Spec

from ..laws.table import error, fill, randn, same_bits, state

X = randn(2, 5, 6, seed=3)
MADE: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "lstm": (lambda: nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), lambda m: m(X)[0]),
    "lstm-projected": (lambda: nn.LSTM(6, 8, proj_size=4, batch_first=True), lambda m: m(X)[0]),
    "gru": (lambda: nn.GRU(6, 8, batch_first=True), lambda m: m(X)[0]),
    "rnn": (lambda: nn.RNN(6, 8, 2, batch_first=True, bias=False), lambda m: m(X)[0]),
    "lstm-cell": (lambda: nn.LSTMCell(6, 8), lambda m: m(X[:, 0])[0]),
    "gru-cell": (lambda: nn.GRUCell(6, 8), lambda m: m(X[:, 0])),
    "bilinear": (lambda: nn.Bilinear(6, 5, 4), lambda m: m(X, X[..., :5] ** 2)),
}


def made(name: str) -> nn.ModuleDict:
    model = nn.ModuleDict({"layer": MADE[name][0]()}).double()
    for seed, parameter in enumerate(model.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) / 2)
    return model


def run(name: str, model: nn.Module) -> Tensor:
    return MADE[name][1](model["layer"])


def spec(model: nn.Module, **more: Any) -> Spec:
    return Spec(
        **{
            "rank": 3,
            "alpha": 4.5,
            "targets": [*lorakit.inject.places.find_places(model)],
            "dtype": "float64",
            **more,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_attached_is_dense_trains_merges_and_copies(name: str, tmp_path: Any) -> None:
    model, want, base = made(name), made(name), run(name, made(name)).detach()
    adapter = lorakit.attach(model, spec(model))
    assert torch.equal(run(name, model), base)
    fill(adapter)
    named = {
        n.removesuffix(".weight") if n == "layer.weight" else n: p
        for n, p in want.named_parameters()
    }
    assert len(adapter.deltas) == sum(p.ndim > 1 for p in want.parameters())
    for place, delta in adapter.deltas.items():
        named[place].data += (delta.scale * delta.B.detach() @ delta.A.detach()).reshape(
            named[place].shape
        )
    assert (
        error(run(name, model), run(name, want).detach())
        < 1e-12
        < error(base, run(name, model).detach())
    )
    run(name, model).square().sum().backward()
    run(name, want).square().sum().backward()
    for place, delta in adapter.deltas.items():
        pull = named[place].grad.flatten(1)
        assert error(delta.A.grad, delta.scale * delta.B.detach().T @ pull) < 1e-10
        assert error(delta.B.grad, delta.scale * pull @ delta.A.detach().T) < 1e-10
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(name, twin), run(name, model))
        lorakit.detach(twin)
        assert torch.equal(run(name, twin), base)
    read = lorakit.Adapter.load(adapter.save(tmp_path))
    assert read == adapter
    other = made(name)
    lorakit.attach(other, read)
    assert torch.equal(run(name, other), run(name, model))
    before = state(model)
    undo = lorakit.merge(model)
    assert error(run(name, model), run(name, want).detach()) < 1e-12
    lorakit.unmerge(model, undo)
    assert same_bits(state(model), before)
    lorakit.enable(model, None)
    assert torch.equal(
        run(name, model), run(name, made(name).requires_grad_(False))
    )  # torch sums otherwise without gradients


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("adapted", [True, False])
def test_trained_biases_are_those_that_the_module_reads(name: str, adapted: bool) -> None:
    model = made(name)
    more = {} if adapted else {"targets": "none"}
    adapter = fill(lorakit.attach(model, spec(model, bias="all", **more)))
    assert error(run(name, made(name)).detach(), run(name, model).detach()) > 1e-3
    run(name, model).sum().backward()
    assert adapter.full_parameters and all(
        p.grad is not None and p.grad.any() for p in adapter.full_parameters.values()
    )
    lorakit.detach(model)
    assert torch.equal(run(name, model), run(name, made(name)))


def test_an_error_restores_the_weights() -> None:
    model = made("lstm")
    fill(lorakit.attach(model, spec(model)))
    with pytest.raises(RuntimeError):
        model["layer"](X[..., :4])
    own = model["layer"]
    assert all(
        w is own._parameters[n]
        for n, w in zip(own._flat_weights_names, own._flat_weights, strict=True)
    )
