"""Gradients of compiled layers against the plain expression in float64: a miscompiled backward pass
gives wrong ones, silently.

What dropout dropped is read off the output: with A = 1 and a square B, the change is scale * (x *
    mask) B^T.
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


def expected(
    layer: nn.Linear, A: Tensor, B: Tensor, xs: list[Tensor], kept: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Return the gradients of A, B and each x of the plain expression, all in one dtype."""
    a, b = (t.detach().to(dtype).requires_grad_() for t in (A, B))
    W, bias = layer.weight.detach().to(dtype), layer.bias.detach().to(dtype)
    inputs = [x.detach().to(dtype).requires_grad_() for x in xs]
    for x, keep in zip(inputs, kept, strict=True):
        y = x @ W.T + bias + SCALE * ((x * keep.to(dtype)) @ a.T) @ b.T
        (gelu(y) * weights(y)).sum().backward()
    return [t.grad for t in (a, b, *inputs) if t.grad is not None]


def weights(y: Tensor) -> Tensor:
    return randn(*y.shape, seed=9).to(y.dtype)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_a_compiled_layer(
    dtype: torch.dtype, dropout: float, again: bool, backend: str
) -> None:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight.data, layer.bias.data = (
        randn(WIDTH, WIDTH, seed=1).to(dtype),
        randn(WIDTH, seed=2).to(dtype),
    )
    adapter = lorakit.attach(
        layer, Spec(rank=WIDTH, alpha=SCALE * WIDTH, dropout=dropout, targets=".*")
    )
    A, B = adapter.parameters()
    A.data, B.data = torch.eye(WIDTH), torch.linalg.qr(randn(WIDTH, WIDTH, seed=3))[0].float()
    layer.train()

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        return y, gelu(y)

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    far = [
        randn(3, 5, WIDTH, seed=seed) for seed in (4, 5)
    ]  # from zero: in bfloat16 a mask is read off no small value
    xs, kept = [(x + x.sign()).to(dtype).requires_grad_() for x in far], []
    for x in xs:  # the second adds its gradients to those of the first
        y, out = compiled(x)
        (out * weights(y)).sum().backward()
        with torch.no_grad():
            change = y.double() - nn.functional.linear(
                x.double(), layer.weight.double(), layer.bias.double()
            )
            kept.append(((change @ B.double()) / SCALE / x.double() > 0.5) / (1 - dropout))
    assert all(bool((k == 0).any()) is bool(dropout) for k in kept)
    got = [t.grad for t in (A, B, *xs) if t.grad is not None]
    want, same = (expected(layer, A, B, xs, kept, wide) for wide in (torch.float64, dtype))
    assert len(got) == 4
    for mine, exact, simple in zip(got, want, same, strict=True):
        assert within(mine, exact, simple, dtype)
