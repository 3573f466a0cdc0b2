"""The operation that adds a low-rank change, against the plain expression, and what it saves."""

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.deltas.lora_autograd import add_low_rank, apply_mask, dropout_mask

from ..laws.law import within
from ..laws.table import randn

SCALE = 1.5


def operands(dtype: torch.dtype, factors: torch.dtype) -> list[Tensor]:
    """Return y, x, A and B, which require gradients."""
    tensors = [
        randn(3, 5, 10, seed=1).to(dtype),
        randn(3, 5, 12, seed=2).to(dtype),
        randn(4, 12, seed=3).to(factors),
        randn(10, 4, seed=4).to(factors),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def value_and_gradients(value: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = randn(*value.shape, seed=9).to(value.dtype)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), tensors)]


def plain(tensors: list[Tensor], dropout: float, kept: Tensor) -> list[Tensor]:
    """Return the value and the gradients of the plain expression."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    y, x, A, B = leaves
    dropped = x * kept.to(x.dtype)
    product = dropped @ A.to(y.dtype).T @ B.to(y.dtype).T
    return value_and_gradients(y + SCALE / (1 - dropout) * product, leaves)


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
    tensors = operands(dtype, factors)
    torch.manual_seed(5)
    got = value_and_gradients(add_low_rank(*tensors, SCALE, dropout), tensors)
    torch.manual_seed(5)
    seed = int(torch.randint(1 << 62, ())) if dropout else 0
    ones = torch.ones(15, 12, dtype=dtype)
    kept = apply_mask(ones, dropout_mask(ones, dropout, seed)).view(3, 5, 12)
    exact = plain([tensor.double() for tensor in tensors], dropout, kept)
    simple = plain(tensors, dropout, kept)
    for mine, want, other in zip(got, exact, simple, strict=True):
        assert within(mine, want, other, dtype)


@pytest.mark.slow
def test_gradients_of_gradients() -> None:
    tensors = operands(torch.float64, torch.float64)
    assert torch.autograd.gradgradcheck(lambda *them: add_low_rank(*them, SCALE), tensors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_as_many_are_dropped_as_asked(dtype: torch.dtype) -> None:
    rows = torch.ones(1000, 100, dtype=dtype)
    mask = dropout_mask(rows, 0.05, 7)
    kept_share = float(apply_mask(rows, mask).double().mean())
    assert abs(kept_share - 0.95) < 4 * (0.05 * 0.95 / 1e5) ** 0.5
    assert torch.equal(dropout_mask(rows, 0.05, 7), mask)
    assert not torch.equal(dropout_mask(rows, 0.05, 8), mask)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that a forward pass saves for the backward pass, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(saved.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_the_input_is_saved(dropout: float) -> None:
    model = nn.Sequential(nn.Linear(64, 32)).bfloat16()
    lorakit.attach(model, lorakit.Spec(rank=2, dropout=dropout))
    assert saved_bytes(model, torch.ones(128, 64, dtype=torch.bfloat16)) == 128 * 64 * 2


def test_output_is_overwritten_only_if_no_other_hook_sees_it() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Linear(4, 4))
    x = torch.ones(1, 4)
    before = model(x).detach()
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    adapter = lorakit.attach(model, lorakit.Spec(rank=2))
    nn.init.ones_(adapter.deltas["0"].B)
    assert not torch.equal(model(x), before)
    assert torch.equal(seen[0], before)


def test_transforms_look_inside() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = lorakit.attach(model, lorakit.Spec(rank=2))
    nn.init.ones_(adapter.deltas["0"].B)
    x = randn(3, 4).float()

    def loss(row: Tensor) -> Tensor:
        return model(row).square().sum()

    each = torch.func.vmap(torch.func.grad(loss))(x)
    together = x.clone().requires_grad_()
    loss(together).backward()
    assert torch.allclose(each, together.grad, rtol=1e-5)
