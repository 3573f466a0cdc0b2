"""Starts from the base's matrix or from data, each against its paper's formula in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lorakit
from lorakit import Adapter, Spec
from lorakit.deltas.offset import OffsetLowRank
from lorakit.errors import SpecError
from lorakit.inits import start as inits
from lorakit.inits.classic import draw_orthonormal, generator_for
from lorakit.inject.places import find_places
from lorakit.spec import INITS

from ..laws.models import bert, gpt2, llama
from ..laws.table import bits, error, fill, randn, same_bits, state

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 10), (9, 12)),
    "conv1d": (lambda: Conv1D(10, 12), (9, 12)),
    "convolution": (lambda: nn.Conv2d(4, 8, 3, groups=2, padding=1, stride=2), (2, 4, 9, 8)),
    "transposed": (lambda: nn.ConvTranspose1d(8, 6, 3, groups=2), (3, 8, 7)),
}


def model_of(kind: str) -> nn.Sequential:
    model = nn.Sequential()
    layer = nn.Embedding(30, 12) if kind == "embedding" else LAYERS[kind][0]()
    model.add_module("layer", layer)
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = randn(*parameter.shape, seed=seed)
    return model.double()


def started(kind: str, batches: Any = None, **fields: Any) -> tuple[nn.Module, Any]:
    model = model_of(kind)
    spec = Spec(**{"rank": 3, "alpha": 4.5, "targets": ["layer"], "dtype": "float64", **fields})
    return model, lorakit.attach(model, spec, batches=batches).deltas["layer"]


def matrix(model: nn.Module, name: str = "layer") -> Tensor:
    place = find_places(model)[name]
    return place.site.read(place.layer)


def best_error(M: Tensor, rank: int) -> float:
    """Return the error of the best approximation of this rank."""
    return float(torch.linalg.svdvals(M.double())[rank:].norm())


def test_every_init_has_a_start() -> None:
    assert tuple(inits.STARTS) == INITS


@pytest.mark.parametrize(
    "fields", [{}, {"alpha": -2.0}, {"scale_rule": "alpha/sqrt(rank)", "rank": 2}], ids=str
)
@pytest.mark.parametrize("kind", [*LAYERS, "embedding"])
def test_pissa_takes_the_largest_singular_values(kind: str, fields: dict[str, Any]) -> None:
    model, delta = started(kind, init="pissa", **fields)
    M = matrix(model)
    product = delta.scale * delta.B0 @ delta.A0
    assert float((M - product).norm()) == pytest.approx(best_error(M, delta.rank), rel=1e-12)
    assert torch.linalg.matrix_rank(product) == delta.rank
    sizes_of_A = delta.A0.norm(dim=1)
    sizes_of_B = delta.B0.norm(dim=0)
    assert torch.allclose(sizes_of_A, sizes_of_B, rtol=1e-12)


@pytest.mark.parametrize("size", [(3, 3), (2, 4, 4)], ids=str)
def test_a_square_orthonormal_start_is_q_and_not_its_transpose(size: tuple[int, ...]) -> None:
    gaussian = torch.randn(size, generator=generator_for(1, "a"), dtype=torch.float64)
    Q = torch.linalg.qr(gaussian)[0].float()
    assert torch.equal(draw_orthonormal(size, generator_for(1, "a")), Q)


@pytest.mark.parametrize(("fall", "bound"), [(0.0, 1.01), (1.0, 1.001)])
def test_fast_pissa_is_near_to_exact(fall: float, bound: float) -> None:
    if fall:  # singular values that fall like 1 / i
        U, V = (torch.linalg.qr(randn(256, 256, seed=seed))[0] for seed in (1, 2))
        M = U * torch.arange(1, 257) ** -fall @ V.T
    else:  # random weights, whose singular values fall slowest
        M = randn(256, 256, seed=3)
    model = nn.Sequential(nn.Linear(256, 256, bias=False)).double()
    model[0].weight.data = M
    for rank in (1, 8, 32):
        spec = Spec(rank=rank, init="pissa-fast", dtype="float64")
        delta = lorakit.attach(model, spec).deltas["0"]
        lorakit.detach(model)
        left = float((M - delta.scale * delta.B0 @ delta.A0).norm())
        assert best_error(M, rank) * (1 - 1e-12) <= left <= bound * best_error(M, rank)


def test_fast_pissa_depends_on_the_seed_and_leaves_the_random_state() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    before = torch.get_rng_state()
    spec = Spec(rank=8, init="pissa-fast")
    one = lorakit.attach(model, spec, name="one", seed=3).deltas["0"]
    two = lorakit.attach(model, spec, name="two", seed=4).deltas["0"]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one.A, two.A)


@pytest.mark.parametrize("kind", [*LAYERS, "embedding"])
def test_olora_has_orthonormal_columns(kind: str) -> None:
    model, delta = started(kind, init="olora")
    A = delta.A0
    B = delta.B0
    assert error(B.T @ B, torch.eye(3).double()) < 1e-14
    # B A is M in the span of B, and A has the rows of a triangular matrix.
    assert error(B @ A, B @ B.T @ matrix(model)) < 1e-12
    assert not A[1, 0]
    assert not A[2, :2].any()


def rows_of_inputs(kind: str, x: Tensor) -> Tensor:
    """Return the vectors that a row of A is multiplied with."""
    if kind == "convolution":  # the patches of each group, at each place
        unfolded = [
            nn.functional.unfold(group, 3, padding=1, stride=2).transpose(1, 2)
            for group in x.chunk(2, dim=1)
        ]
        return torch.cat([patches.flatten(0, 1) for patches in unfolded])
    if kind == "transposed":  # the inputs of the other group are zero
        masks = [torch.tensor([first] * 4 + [1 - first] * 4).view(1, 8, 1) for first in (1, 0)]
        return torch.cat([(x * mask).transpose(1, 2).flatten(0, 1) for mask in masks])
    return x


@pytest.mark.parametrize("kind", LAYERS)
def test_eva_has_the_right_singular_vectors_of_the_inputs(kind: str) -> None:
    shape = LAYERS[kind][1]
    batches = [randn(*shape, seed=seed) for seed in (1, 2, 3)]
    _, delta = started(kind, batches, init="eva", rank=2)
    assert type(delta) is lorakit.LowRank
    assert not delta.B.any()
    V = torch.linalg.svd(rows_of_inputs(kind, torch.cat(batches)))[2][:2]
    assert error((delta.A @ V.T).abs(), torch.eye(2).double()) < 1e-6


def test_eva_uses_the_inputs_of_a_real_forward_pass_without_padding() -> None:
    model = llama().double()
    name = "model.layers.1.mlp.down_proj"
    ids = torch.arange(24).reshape(3, 8) * 7 % 50
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = mask[2, 6:] = 0
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda layer, args: seen.append(args[0][mask.bool()])
    )
    model(ids, attention_mask=mask)
    hook.remove()
    spec = Spec(rank=4, init="eva", targets=[name], dtype="float64")
    batches = [{"input_ids": ids, "attention_mask": mask}]
    delta = lorakit.attach(model, spec, batches=batches).deltas[name]
    V = torch.linalg.svd(seen[0])[2][:4]
    assert error((delta.A @ V.T).abs(), torch.eye(4).double()) < 1e-6


def test_eva_of_an_embedding_takes_the_commonest_tokens() -> None:
    batches = [torch.tensor([[3, 3, 5]]), torch.tensor([[5, 3, 9]])]
    _, delta = started("embedding", batches, init="eva", rank=2)
    assert [row.nonzero().flatten().tolist() for row in delta.A] == [[3], [5]]


def matrix_of_gradient(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """Return the gradient of the layer's weight, read as the layer's matrix."""
    weight = model.layer.weight
    (gradient,) = torch.autograd.grad(loss(model), weight)
    values = weight.data
    weight.data = gradient
    found = matrix(model).clone()
    weight.data = values
    return found


@pytest.mark.parametrize("kind", LAYERS)
def test_first_step_of_lora_ga_goes_along_the_full_gradient(kind: str) -> None:
    model = model_of(kind)
    x = randn(*LAYERS[kind][1], seed=5)
    target = randn(*model(x).shape, seed=6)

    def loss(net: nn.Module) -> Tensor:
        return (net(x) - target).square().mean()

    gradient = matrix_of_gradient(model, loss)
    spec = Spec(rank=2, init="lora-ga", dtype="float64", targets=["layer"])
    delta = lorakit.attach(model, spec, batches=[loss]).deltas["layer"]
    size = gradient.shape[0] ** 0.25 / 4
    orthogonal = size**2 * torch.eye(2).double()
    assert error(delta.A @ delta.A.T, orthogonal) < 1e-12
    assert error(delta.B.T @ delta.B, orthogonal) < 1e-12
    loss(model).backward()
    for factor in (delta.A, delta.B):
        factor.data -= 1e-7 * factor.grad
    U, S, Vh = torch.linalg.svd(gradient, full_matrices=False)
    best = U[:, :4] * S[:4] @ Vh[:4]
    step = delta.matrix().detach()
    cosine = float((step * best).sum() / step.norm() / best.norm())
    assert cosine < -1 + 1e-9


def test_starts_reach_parts_of_fused_layers(tmp_path: Path) -> None:
    model = gpt2()
    ids = torch.arange(12).reshape(2, 6)
    before = model(ids).logits
    spec = Spec(
        rank=2,
        init="pissa",
        targets=["c_attn.q", "c_attn.v"],
        overrides={"h.1.attn.c_attn.v": {"init": "kaiming"}},
    )
    adapter = lorakit.attach(model, spec)
    assert torch.equal(model(ids).logits, before)
    delta = adapter.deltas["transformer.h.0.attn.c_attn.v"]
    M = matrix(model, "transformer.h.0.attn.c_attn.v")
    left = float((M - delta.scale * delta.B0 @ delta.A0).norm())
    assert left == pytest.approx(best_error(M, 2), rel=1e-5)
    fill(adapter)
    kinds = [type(d).__name__ for d in adapter.deltas.values()]
    assert kinds == ["OffsetLowRank", "OffsetLowRank", "OffsetLowRank", "LowRank"]
    read = Adapter.load(adapter.save(tmp_path / "a"))
    assert read == adapter
    assert [type(d).__name__ for d in read.deltas.values()] == kinds


@pytest.mark.parametrize("init", ["eva", "lora-ga"])
def test_batches_leave_the_model_as_it_was(init: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
    )
    model[2].eval()
    model[0].weight.requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    values = state(model)
    random = torch.get_rng_state()
    x = randn(8, 3, 6, 6).float()
    batches = [x] if init == "eva" else [lambda net: net(x).square().sum()]
    lorakit.attach(model, Spec(rank=2, init=init), batches=batches)
    lorakit.detach(model)
    assert same_bits(state(model), values)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_that_gives_a_loss_needs_no_function() -> None:
    ids = torch.arange(12).reshape(2, 6)
    adapter = lorakit.attach(
        llama(), Spec(rank=2, init="lora-ga"), batches=[{"input_ids": ids, "labels": ids}]
    )
    assert all(isinstance(delta, OffsetLowRank) for delta in adapter.deltas.values())


def test_a_small_change_is_not_lost_in_rounding() -> None:
    """In bfloat16 the difference of B A x and B0 A0 x would be as inexact as the base's output."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).bfloat16()
    x = randn(16, 64).bfloat16()
    delta = lorakit.attach(model, Spec(rank=16, init="pissa")).deltas["0"]
    delta.A.data += 1e-4 * randn(16, 64)
    delta.B.data += 1e-4 * randn(64, 16)
    want = x.double() @ delta.matrix().detach().double().T
    site = find_places(model)["0"].site
    got = delta(site, model[0], x, torch.zeros(16, 64).bfloat16())
    assert error(got, want) < 0.02 * float(want.abs().max())


def test_a_file_holds_plain_low_rank_of_twice_the_rank(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = bert()
    adapter = fill(lorakit.attach(model, Spec(rank=2, alpha=8, init="olora", targets="qv")))
    tensors = load_file(adapter.save(tmp_path / "a") / "adapter_model.safetensors")
    name, delta = next(iter(adapter.deltas.items()))
    A, B = (tensors[f"base_model.model.{name}.lora_{f}.weight"] for f in "AB")
    assert torch.equal(bits(A), bits(torch.cat([delta.A, delta.A0])))
    assert torch.equal(bits(B), bits(torch.cat([delta.B, -delta.B0], 1)))
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    for line in ('"r": 4', '"lora_alpha": 16', '"rank_pattern": {}'):
        assert line in text


def test_a_change_of_the_stored_start_is_seen() -> None:
    adapter = lorakit.attach(bert(), Spec(rank=2, init="pissa", targets="qv"))
    other = adapter.copy()
    assert other == adapter
    next(iter(other.deltas.values())).A0[0, 0] += 1
    assert other != adapter


def attention() -> nn.Module:
    return nn.Sequential(nn.MultiheadAttention(8, 2))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5))


def broken() -> nn.Module:
    model = linear()
    model[0].weight.data[0, 0] = float("nan")
    return model


X = [torch.ones(1, 6)]
REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Any, str]] = {
    "dora moves no base": (
        linear,
        {"delta": "dora", "init": "pissa"},
        None,
        "0   init 'pissa' cannot start delta 'dora', only 'lora'",
    ),
    "dora has no gradient start": (
        linear,
        {"delta": "dora", "init": "lora-ga"},
        X,
        "0   init 'lora-ga' cannot start delta 'dora', only 'lora'",
    ),
    "2r vectors": (
        linear,
        {"init": "lora-ga", "rank": 3},
        X,
        "0   init 'lora-ga' needs 2 x rank = 6 singular vectors, min(in, out) is 5",
    ),
    "NaN": (
        broken,
        {"init": "pissa-fast"},
        None,
        "0   init 'pissa-fast' needs a finite matrix, this one has NaN or infinity",
    ),
    "a weight that its module reads": (
        attention,
        {"init": "eva", "targets": ["0.out_proj"]},
        X,
        "0.out_proj   init 'eva' needs the layer's input, but MultiheadAttention reads this "
        "weight itself",
    ),
    "no batches": (
        linear,
        {"init": "eva"},
        None,
        "init 'eva' needs data.\nGive attach(..., batches=[...])",
    ),
    "batches for nothing": (
        linear,
        {"init": "pissa"},
        X,
        "batches are given, but init 'pissa' needs none.\nLeave them out",
    ),
    "one tensor": (
        linear,
        {"init": "eva"},
        X[0],
        "batches: several batches of model inputs are needed, got one Tensor.",
    ),
    "one dict": (
        linear,
        {"init": "eva"},
        {"input": X[0]},
        "are needed, got one dict.\nGive a list",
    ),
    "empty": (
        linear,
        {"init": "eva"},
        [],
        "batches: several batches of model inputs are needed, got none.",
    ),
    "text": (
        linear,
        {"init": "eva"},
        ["a", "b"],
        "batches: several batches of model inputs are needed, got str.",
    ),
    "too little": (
        linear,
        {"init": "eva"},
        [X[0], 2 * X[0]],
        "0   its inputs have 1 direction, rank is 2",
    ),
    "no loss": (
        linear,
        {"init": "lora-ga"},
        X,
        "A loss is needed, Sequential returned Tensor of shape (1, 5).",
    ),
    "no gradient": (
        linear,
        {"init": "lora-ga"},
        [lambda model: model[0].bias.sum()],
        "0   it gets no gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_reason(case: str) -> None:
    make, fields, batches, text = REFUSED[case]
    model = make()
    before = list(model.named_modules())
    values = state(model)
    with pytest.raises(SpecError) as caught:
        lorakit.attach(model, Spec(**{"rank": 2, **fields}), batches=batches)
    message = str(caught.value)
    assert text in message
    assert "Nothing was attached." in message
    assert list(model.named_modules()) == before
    assert same_bits(state(model), values)


def test_batches_for_a_started_adapter_are_refused() -> None:
    adapter = lorakit.attach(linear(), Spec(rank=2)).copy()
    with pytest.raises(
        SpecError, match=r"batches are for the start of a new adapter, and this one is not new."
    ):
        lorakit.attach(linear(), adapter, any_base=True, batches=X)
