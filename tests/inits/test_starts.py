"""Starts that take a part of the base's matrix, or look at data: each against its paper's formula,
in float64.
"""

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
    model.add_module("layer", nn.Embedding(30, 12) if kind == "embedding" else LAYERS[kind][0]())
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


def tail(M: Tensor, rank: int) -> float:
    """What the best approximation of this rank leaves out."""
    return float(torch.linalg.svdvals(M.double())[rank:].norm())


def test_every_init_has_a_start() -> None:
    assert tuple(inits.STARTS) == INITS


@pytest.mark.parametrize(
    "fields", [{}, {"alpha": -2.0}, {"scale_rule": "alpha/sqrt(rank)", "rank": 2}], ids=str
)
@pytest.mark.parametrize("kind", [*LAYERS, "embedding"])
def test_pissa_takes_the_largest_singular_values(kind: str, fields: dict[str, Any]) -> None:
    model, delta = started(kind, init="pissa", **fields)
    M, taken = matrix(model), delta.scale * delta.B0 @ delta.A0
    assert float((M - taken).norm()) == pytest.approx(tail(M, delta.rank), rel=1e-12)
    assert torch.linalg.matrix_rank(taken) == delta.rank
    assert torch.allclose(delta.A0.norm(dim=1), delta.B0.norm(dim=0), rtol=1e-12)  # shared evenly


@pytest.mark.parametrize(("fall", "bound"), [(0.0, 1.01), (1.0, 1.001)])
def test_fast_pissa_is_near_to_exact(fall: float, bound: float) -> None:
    U, V = (torch.linalg.qr(randn(256, 256, seed=s))[0] for s in (1, 2))
    for rank in (1, 8, 32):
        # Random weights, whose singular values fall slowest; and values that fall like 1 / i.
        M = randn(256, 256, seed=3) if not fall else U * torch.arange(1, 257) ** -fall @ V.T
        model = nn.Sequential(nn.Linear(256, 256, bias=False)).double()
        model[0].weight.data = M
        delta = lorakit.attach(model, Spec(rank=rank, init="pissa-fast", dtype="float64")).deltas[
            "0"
        ]
        left = float((M - delta.scale * delta.B0 @ delta.A0).norm())
        assert tail(M, rank) * (1 - 1e-12) <= left <= bound * tail(M, rank)


def test_fast_pissa_depends_on_the_seed_and_leaves_the_random_state() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    before = torch.get_rng_state()
    one, two = (
        lorakit.attach(model, Spec(rank=8, init="pissa-fast"), name=f"a{s}", seed=s).deltas["0"]
        for s in (3, 4)
    )
    assert torch.equal(torch.get_rng_state(), before) and not torch.equal(one.A, two.A)


@pytest.mark.parametrize("kind", [*LAYERS, "embedding"])
def test_olora_has_orthonormal_columns(kind: str) -> None:
    model, delta = started(kind, init="olora")
    assert error(delta.B0.T @ delta.B0, torch.eye(3).double()) < 1e-14
    assert (
        error(delta.B0 @ delta.A0, delta.B0 @ delta.B0.T @ matrix(model)) < 1e-12
    )  # B A is M in the span of B
    assert not delta.A0[1, 0] and not delta.A0[2, :2].any()  # rows of R


@pytest.mark.parametrize("kind", LAYERS)
def test_eva_has_the_right_singular_vectors_of_the_inputs(kind: str) -> None:
    batches = [randn(*LAYERS[kind][1], seed=s) for s in (1, 2, 3)]
    model, delta = started(kind, batches, init="eva", rank=2)
    assert type(delta) is lorakit.LowRank and not delta.B.any()
    x, layer = torch.cat(batches), model.layer
    if kind == "convolution":  # patches: of each group, at each place
        unfold = [nn.functional.unfold(part, 3, padding=1, stride=2) for part in x.chunk(2, dim=1)]
        rows = torch.cat([u.transpose(1, 2).flatten(0, 1) for u in unfold])
    elif kind == "transposed":  # what is not of the group is zero
        rows = torch.cat(
            [
                (x * torch.tensor([[g] * 4 + [1 - g] * 4]).view(1, 8, 1))
                .transpose(1, 2)
                .flatten(0, 1)
                for g in (1, 0)
            ]
        )
    else:
        rows = x
    V = torch.linalg.svd(rows)[2][:2]
    assert error((delta.A @ V.T).abs(), torch.eye(2).double()) < 1e-6, layer


def test_eva_sees_what_a_layer_gets_in_a_real_forward_and_no_padding() -> None:
    model, name = llama().double(), "model.layers.1.mlp.down_proj"
    ids = torch.arange(24).reshape(3, 8) * 7 % 50
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, 5:] = mask[2, 6:] = 0
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda layer, args: seen.append(args[0][mask.bool()])
    )
    model(ids, attention_mask=mask)
    hook.remove()
    delta = lorakit.attach(
        model,
        Spec(rank=4, init="eva", targets=[name], dtype="float64"),
        batches=[{"input_ids": ids, "attention_mask": mask}],
    ).deltas[name]
    V = torch.linalg.svd(seen[0])[2][:4]
    assert error((delta.A @ V.T).abs(), torch.eye(4).double()) < 1e-6


def test_eva_of_an_embedding_takes_the_commonest_tokens() -> None:
    batches = [torch.tensor([[3, 3, 5]]), torch.tensor([[5, 3, 9]])]
    _, delta = started("embedding", batches, init="eva", rank=2)
    assert [row.nonzero().flatten().tolist() for row in delta.A] == [[3], [5]]


@pytest.mark.parametrize("kind", LAYERS)
def test_first_step_of_lora_ga_goes_along_the_full_gradient(kind: str) -> None:
    model, target = model_of(kind), [0.0]
    x = randn(*LAYERS[kind][1], seed=5)
    target[0] = randn(*model(x).shape, seed=6)

    def loss(net: nn.Module) -> Tensor:
        return (net(x) - target[0]).square().mean()

    place = find_places(model)["layer"]
    weight = model.layer.weight
    G = torch.autograd.grad(loss(model), weight)[0].clone()
    full, kept = type("G", (), {})(), weight.data
    weight.data = G
    full = place.site.read(place.layer).clone()
    weight.data = kept
    delta = lorakit.attach(
        model, Spec(rank=2, init="lora-ga", dtype="float64", targets=["layer"]), batches=[loss]
    ).deltas["layer"]
    size = full.shape[0] ** 0.25 / 4
    assert error(delta.A @ delta.A.T, size**2 * torch.eye(2).double()) < 1e-12
    assert error(delta.B.T @ delta.B, size**2 * torch.eye(2).double()) < 1e-12
    loss(model).backward()
    for p in (delta.A, delta.B):
        p.data -= 1e-7 * p.grad
    U, S, Vh = torch.linalg.svd(full, full_matrices=False)
    best = U[:, :4] * S[:4] @ Vh[:4]
    step = delta.matrix().detach()
    assert float((step * best).sum() / step.norm() / best.norm()) < -1 + 1e-9


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
    assert float((M - delta.scale * delta.B0 @ delta.A0).norm()) == pytest.approx(
        tail(M, 2), rel=1e-5
    )
    fill(adapter)
    kinds = [type(d).__name__ for d in adapter.deltas.values()]
    assert kinds == ["OffsetLowRank", "OffsetLowRank", "OffsetLowRank", "LowRank"]
    read = Adapter.load(adapter.save(tmp_path / "a"))
    assert read == adapter and [type(d).__name__ for d in read.deltas.values()] == kinds


@pytest.mark.parametrize("init", ["eva", "lora-ga"])
def test_looking_at_data_leaves_the_model_as_it_was(init: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
    )
    model[2].eval()
    model[0].weight.requires_grad_(False)
    asked = {n: p.requires_grad for n, p in model.named_parameters()}
    modes, values, random = (
        [m.training for m in model.modules()],
        state(model),
        torch.get_rng_state(),
    )
    x = randn(8, 3, 6, 6).float()
    lorakit.attach(
        model,
        Spec(rank=2, init=init),
        batches=[x] if init == "eva" else [lambda net: net(x).square().sum()],
    )
    lorakit.detach(model)
    assert same_bits(state(model), values) and torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert {n: p.requires_grad for n, p in model.named_parameters()} == asked
    assert not any(p.grad is not None for p in model.parameters()) and not any(
        m._forward_pre_hooks for m in model.modules()
    )


def test_a_model_that_gives_a_loss_needs_no_function() -> None:
    ids = torch.arange(12).reshape(2, 6)
    adapter = lorakit.attach(
        llama(), Spec(rank=2, init="lora-ga"), batches=[{"input_ids": ids, "labels": ids}]
    )
    assert all(isinstance(delta, OffsetLowRank) for delta in adapter.deltas.values())


def test_a_small_change_is_not_lost_beside_the_part_that_was_taken() -> None:
    """In bfloat16 the difference of B A x and B0 A0 x would be rounded at the size of the base's
    output.
    """
    model = nn.Sequential(nn.Linear(64, 64, bias=False)).bfloat16()
    x = randn(16, 64).bfloat16()
    delta = lorakit.attach(model, Spec(rank=16, init="pissa")).deltas["0"]
    delta.A.data += 1e-4 * randn(16, 64)
    delta.B.data += 1e-4 * randn(64, 16)
    want = x.double() @ delta.matrix().detach().double().T
    site, y = find_places(model)["0"].site, torch.zeros(16, 64).bfloat16()
    assert error(delta(site, model[0], x, y), want) < 0.02 * float(want.abs().max())


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
    assert '"r": 4' in text and '"lora_alpha": 16' in text and '"rank_pattern": {}' in text


def test_changes_are_seen_in_the_kept_start_too() -> None:
    adapter = lorakit.attach(bert(), Spec(rank=2, init="pissa", targets="qv"))
    other = adapter.copy()
    assert other == adapter
    next(iter(other.deltas.values())).A0[0, 0] += 1
    assert other != adapter


def lent() -> nn.Module:
    return nn.Sequential(nn.MultiheadAttention(8, 2))


def lin() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5))


def broken() -> nn.Module:
    model = lin()
    model[0].weight.data[0, 0] = float("nan")
    return model


X = [torch.ones(1, 6)]
REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Any, str]] = {
    "dora moves no base": (
        lin,
        {"delta": "dora", "init": "pissa"},
        None,
        "0   init 'pissa' cannot start delta 'dora', only 'lora'",
    ),
    "dora has no gradient start": (
        lin,
        {"delta": "dora", "init": "lora-ga"},
        X,
        "0   init 'lora-ga' cannot start delta 'dora', only 'lora'",
    ),
    "2r vectors": (
        lin,
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
    "lent": (
        lent,
        {"init": "eva", "targets": ["0.out_proj"]},
        X,
        "0.out_proj   init 'eva' needs the layer's input, but MultiheadAttention reads this "
        "weight itself",
    ),
    "no batches": (
        lin,
        {"init": "eva"},
        None,
        "init 'eva' needs data.\nGive attach(..., batches=[...])",
    ),
    "batches for nothing": (
        lin,
        {"init": "pissa"},
        X,
        "batches are given, but init 'pissa' needs none.\nLeave them out",
    ),
    "one tensor": (
        lin,
        {"init": "eva"},
        X[0],
        "batches: several batches of model inputs are needed, got one Tensor.",
    ),
    "one dict": (lin, {"init": "eva"}, {"input": X[0]}, "are needed, got one dict.\nGive a list"),
    "empty": (
        lin,
        {"init": "eva"},
        [],
        "batches: several batches of model inputs are needed, got none.",
    ),
    "text": (
        lin,
        {"init": "eva"},
        ["a", "b"],
        "batches: several batches of model inputs are needed, got str.",
    ),
    "too little": (
        lin,
        {"init": "eva"},
        [X[0], 2 * X[0]],
        "0   its inputs have 1 direction, rank is 2",
    ),
    "no loss": (
        lin,
        {"init": "lora-ga"},
        X,
        "A loss is needed, Sequential returned Tensor of shape (1, 5).",
    ),
    "no gradient": (
        lin,
        {"init": "lora-ga"},
        [lambda model: model[0].bias.sum()],
        "0   it gets no gradient",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case: str) -> None:
    make, fields, batches, text = REFUSED[case]
    model = make()
    before, values = list(model.named_modules()), state(model)
    with pytest.raises(SpecError) as caught:
        lorakit.attach(model, Spec(**{"rank": 2, **fields}), batches=batches)
    assert text in str(caught.value) and "Nothing was attached." in str(caught.value)
    assert list(model.named_modules()) == before and same_bits(state(model), values)


def test_batches_for_a_started_adapter_are_refused() -> None:
    adapter = lorakit.attach(lin(), Spec(rank=2)).copy()
    with pytest.raises(
        SpecError, match=r"batches are for the start of a new adapter, and this one is not new."
    ):
        lorakit.attach(lin(), adapter, any_base=True, batches=X)
