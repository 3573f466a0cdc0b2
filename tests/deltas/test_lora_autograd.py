"""The operation that adds a low-rank change, against the plain expression, and what it saves."""

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.deltas.lora_autograd import add_low_rank, apply_mask, dropout_mask

from ..laws.law import within
from ..laws.table import randn


def parts(dtype: torch.dtype, factors: torch.dtype) -> list[Tensor]:
    y, x, A, B = (
        randn(3, 5, 10, seed=1),
        randn(3, 5, 12, seed=2),
        randn(4, 12, seed=3),
        randn(10, 4, seed=4),
    )
    return [
        y.to(dtype).requires_grad_(),
        x.to(dtype).requires_grad_(),
        A.to(factors).requires_grad_(),
        B.to(factors).requires_grad_(),
    ]


def gradients(value: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = randn(*value.shape, seed=9).to(value.dtype)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), tensors)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("dtype", "factors"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_gradients_are_those_of_the_plain_expression(
    dtype: torch.dtype, factors: torch.dtype, dropout: float
) -> None:
    y, x, A, B = tensors = parts(dtype, factors)
    torch.manual_seed(5)
    got = gradients(add_low_rank(y, x, A, B, 1.5, dropout), tensors)
    torch.manual_seed(5)
    rows = torch.ones(15, 12, dtype=dtype)
    kept = (
        apply_mask(rows, dropout_mask(rows, dropout, int(torch.randint(1 << 62, ())))).view(x.shape)
        if dropout
        else 1.0
    )

    def plain(y: Tensor, x: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
        some = [t.detach().clone().requires_grad_() for t in (y, x, A, B)]
        Y, X, a, b = some
        drop = kept.to(X.dtype) if dropout else 1.0
        value = Y + 1.5 / (1 - dropout) * ((X * drop) @ a.to(Y.dtype).T @ b.to(Y.dtype).T)
        return gradients(value, some)

    exact, same = plain(*(t.double() for t in tensors)), plain(*tensors)
    for mine, want, simple in zip(got, exact, same, strict=True):
        assert within(mine, want, simple, dtype)


def test_gradients_of_gradients() -> None:
    tensors = parts(torch.float64, torch.float64)
    assert torch.autograd.gradgradcheck(lambda *t: add_low_rank(*t, 1.5), tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_as_many_are_dropped_as_asked(dtype: torch.dtype) -> None:
    rows = torch.ones(1000, 100, dtype=dtype)
    left = float(apply_mask(rows, dropout_mask(rows, 0.05, 7)).double().mean())
    assert abs(left - 0.95) < 4 * (0.05 * 0.95 / 1e5) ** 0.5
    assert torch.equal(
        dropout_mask(rows, 0.05, 7), dropout_mask(rows, 0.05, 7)
    ) and not torch.equal(dropout_mask(rows, 0.05, 7), dropout_mask(rows, 0.05, 8))


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_nothing_is_kept_but_the_input(dropout: float) -> None:
    model = nn.Sequential(nn.Linear(64, 32)).bfloat16()
    lorakit.attach(model, lorakit.Spec(rank=2, dropout=dropout))
    assert kept_bytes(model, torch.ones(128, 64, dtype=torch.bfloat16)) == 128 * 64 * 2


def test_output_is_overwritten_only_where_nobody_else_sees_it() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Linear(4, 4))
    before = model(torch.ones(1, 4)).detach()
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    nn.init.ones_(lorakit.attach(model, lorakit.Spec(rank=2)).deltas["0"].B)
    assert not torch.equal(model(torch.ones(1, 4)), before) and torch.equal(seen[0], before)


def test_transforms_look_inside() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = lorakit.attach(model, lorakit.Spec(rank=2))
    nn.init.ones_(adapter.deltas["0"].B)
    x = randn(3, 4).float()

    def loss(row: Tensor) -> Tensor:
        return model(row).square().sum()

    each = torch.func.vmap(torch.func.grad(loss))(x)
    one = x.clone().requires_grad_()
    loss(one).backward()
    assert torch.allclose(each, one.grad, rtol=1e-5)
