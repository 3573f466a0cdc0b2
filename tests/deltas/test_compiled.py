"""Gradients of compiled layers, against the plain expression in float64.

A miscompiled backward pass gives wrong gradients silently. The values that dropout has dropped are
computed from the output: with A = 1 and a square B, the change is scale * (x * mask) B^T.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

import lorakit
from lorakit import Spec

from ..laws.law import within
from ..laws.table import randn

WIDTH, SCALE = 8, 0.5


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def weights(y: Tensor) -> Tensor:
    return randn(*y.shape, seed=9).to(y.dtype)


def plain_gradients(
    layer: nn.Linear,
    factors: list[Tensor],
    inputs: list[Tensor],
    masks: list[Tensor],
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return the gradients of A, B and each input of the plain expression, all in one dtype."""
    A, B = (factor.detach().to(dtype).requires_grad_() for factor in factors)
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    weight = layer.weight.detach().to(dtype)
    bias = layer.bias.detach().to(dtype)
    for x, mask in zip(leaves, masks, strict=True):
        dropped = x * mask.to(dtype)
        y = x @ weight.T + bias + SCALE * (dropped @ A.T) @ B.T
        (gelu(y) * weights(y)).sum().backward()
    return [leaf.grad for leaf in (A, B, *leaves) if leaf.grad is not None]


def adapted_layer(dtype: torch.dtype, dropout: float) -> tuple[nn.Linear, list[Tensor]]:
    """Return a layer in training mode, and its factors A = 1 and B orthogonal."""
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight.data = randn(WIDTH, WIDTH, seed=1).to(dtype)
    layer.bias.data = randn(WIDTH, seed=2).to(dtype)
    spec = Spec(rank=WIDTH, alpha=SCALE * WIDTH, dropout=dropout, targets=".*")
    A, B = lorakit.attach(layer, spec).parameters()
    A.data = torch.eye(WIDTH)
    B.data = torch.linalg.qr(randn(WIDTH, WIDTH, seed=3))[0].float()
    return layer.train(), [A, B]


def read_mask(layer: nn.Linear, B: Tensor, x: Tensor, y: Tensor, dropout: float) -> Tensor:
    """Return the dropout mask that an output shows, divided by the kept share."""
    base = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    change = (y.double() - base) @ B.double() / SCALE
    return (change / x.double() > 0.5) / (1 - dropout)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_a_compiled_layer(
    dtype: torch.dtype, dropout: float, again: bool, backend: str
) -> None:
    layer, factors = adapted_layer(dtype, dropout)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        return y, gelu(y)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    inputs: list[Tensor] = []
    masks: list[Tensor] = []
    for seed in (4, 5):  # the second adds its gradients to those of the first
        values = randn(3, 5, WIDTH, seed=seed)
        # Far from zero: in bfloat16 a small value does not show its mask.
        x = (values + values.sign()).to(dtype).requires_grad_()
        y, out = compiled(x)
        (out * weights(y)).sum().backward()
        inputs.append(x)
        with torch.no_grad():
            masks.append(read_mask(layer, factors[1], x, y, dropout))
    assert all(bool((mask == 0).any()) is bool(dropout) for mask in masks)
    got = [leaf.grad for leaf in (*factors, *inputs) if leaf.grad is not None]
    want = plain_gradients(layer, factors, inputs, masks, torch.float64)
    same = plain_gradients(layer, factors, inputs, masks, dtype)
    assert len(got) == 4
    for mine, exact, simple in zip(got, want, same, strict=True):
        assert within(mine, exact, simple, dtype)
