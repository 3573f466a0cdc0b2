"""Derivatives of adapted models, of every order and mode, and tracing."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import lorakit
from lorakit.errors import ModelError

from ..laws.table import error, fill, randn

# torch scripts its own functions for forward mode, and says that scripting is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

X = randn(3, 4, seed=1)


def make_model(dropout: float = 0.0) -> tuple[nn.Sequential, lorakit.Adapter]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    for at, parameter in enumerate(model.parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=at))
    spec = lorakit.Spec(rank=1, alpha=1, dropout=dropout, dtype="float64")
    return model, fill(lorakit.attach(model, spec))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.slow
def test_first_and_second_derivatives_are_right(dropout: float) -> None:
    model, adapter = make_model(dropout)

    def call(x: Tensor, *factors: Tensor) -> Tensor:
        torch.manual_seed(0)
        return model(x)

    inputs = (X.clone().requires_grad_(), *adapter.parameters())
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.slow
def test_forward_mode_over_an_adapted_model() -> None:
    model, _ = make_model()
    with forward_ad.dual_level():
        y = model(forward_ad.make_dual(X, torch.ones_like(X)))
        tangent = forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    step = 1e-6
    assert error(tangent, (model(X + step) - model(X - step)).detach() / (2 * step)) < 1e-8


@pytest.mark.slow
def test_a_traced_model_computes_as_the_model() -> None:
    model, _ = make_model()
    traced = torch.jit.trace(model, X)
    assert error(traced(2 * X), model(2 * X).detach()) < 1e-12


def test_scripting_is_refused_until_the_adapters_are_off() -> None:
    model, _ = make_model()
    with pytest.raises(ModelError) as caught:
        torch.jit.script(model)
    assert str(caught.value) == (
        "0 has adapters, which TorchScript cannot compile.\n"
        "Merge and detach them first; or use torch.jit.trace, torch.export or torch.compile."
    )
    y = model(X)
    lorakit.merge(model)
    lorakit.detach(model)
    assert error(torch.jit.script(copy.deepcopy(model))(X), y.detach()) < 1e-12
