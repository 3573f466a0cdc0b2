"""The behaviour of loralib that lorakit.loralib keeps: signatures, draws, outputs, files."""

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .layers import KINDS, Kind, fill, inputs, loralib, make, ours, plain

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def arguments(thing: Any, skip: int = 0) -> list[tuple[str, Any, Any]]:
    """Return name, kind and default of each argument; a tuple counts as a list."""
    found = list(inspect.signature(thing).parameters.values())[skip:]
    return [
        (p.name, p.kind, list(p.default) if isinstance(p.default, list | tuple) else p.default)
        for p in found
    ]


@pytest.mark.parametrize(
    "name",
    ["Linear", "Embedding", "MergedLinear", "mark_only_lora_as_trainable", "lora_state_dict"],
)
def test_signatures_are_loralibs(name: str):
    assert arguments(getattr(ours, name)) == arguments(getattr(loralib, name))


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d"])
def test_signatures_of_convolutions_are_loralibs(name: str):
    """Its Conv2d takes (*args, **kwargs), and gives them to ConvLoRA after torch's class."""
    assert arguments(getattr(ours, name)) == arguments(loralib.ConvLoRA, skip=1)


@pytest.mark.parametrize(
    "name",
    ["LoRALayer", "ConvLoRA", "Linear", "Embedding", "MergedLinear", "Conv1d", "Conv2d", "Conv3d"],
)
def test_isinstance_is_the_same_for_both(name: str):
    """Every class has the parents that the other package's class has."""
    parents = {parent.__name__ for parent in getattr(loralib, name).__mro__} & {
        "LoRALayer",
        "ConvLoRA",
        "Module",
    }
    assert parents <= {parent.__name__ for parent in getattr(ours, name).__mro__}


@kinds
@pytest.mark.parametrize("r", [0, 1, 3])
def test_same_seed_same_layer(kind: Kind, r: int):
    theirs = make(loralib, kind, r=r)
    mine = make(ours, kind, r=r)
    state = {plain(k): v for k, v in theirs.state_dict().items()}
    found = mine.state_dict()
    assert state.keys() == found.keys()
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor), key
    trains = {plain(n): p.requires_grad for n, p in theirs.named_parameters()}
    assert {n: p.requires_grad for n, p in mine.named_parameters()} == trains
    attributes = ["r", "lora_alpha", "merge_weights", "merged", "training"] + ["scaling"] * bool(r)
    assert [getattr(mine, name) for name in attributes] == [
        getattr(theirs, name) for name in attributes
    ]


@pytest.mark.parametrize(
    "name, args", [("Linear", (64, 80)), ("MergedLinear", (64, 80)), ("Conv2d", (16, 80, 3))]
)
def test_initial_values(name: str, args: tuple[int, ...]):
    options = {"enable_lora": [True, True]} if name == "MergedLinear" else {}
    layer = make(ours, Kind(name, args, options, None), r=8)
    bound = 1 / math.sqrt(layer.lora_A.shape[1])
    assert not layer.lora_B.any()
    assert 0.95 * bound < layer.lora_A.abs().max() <= bound
    assert abs(layer.lora_A.std() - bound / math.sqrt(3)) < 0.05 * bound


def test_initial_values_of_an_embedding():
    layer = make(ours, Kind("Embedding", (40, 300), {}, None), r=8)
    assert not layer.lora_A.any()
    assert abs(layer.lora_B.mean()) < 0.1
    assert abs(layer.lora_B.std() - 1) < 0.05
    fill(layer).reset_parameters()
    assert not layer.lora_A.any()


@kinds
def test_rank_0_is_the_plain_layer(kind: Kind):
    layer = make(ours, kind, r=0)
    x = inputs(kind)
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    options = {k: v for k, v in kind.options.items() if k not in ("enable_lora", "fan_in_fan_out")}
    base = getattr(nn, "Linear" if kind.name == "MergedLinear" else kind.name)(
        *kind.args, **options
    )
    base.load_state_dict(
        {
            k: v.T if v.dim() == 2 and kind.options.get("fan_in_fan_out") else v
            for k, v in before.items()
        }
    )
    torch.testing.assert_close(layer(x), base(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.eval()(x), base(x), rtol=0, atol=1e-6)
    assert layer.weight.requires_grad
    assert layer.merged_weight().equal(before["weight"])


def assert_close(found: Tensor, expected: Tensor, what: str = "") -> None:
    """Compare in units of the largest value: 1e-6 in float32, 1e-12 in float64."""
    atol = TOLERANCE[expected.dtype] * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(
        found, expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}"
    )


def run(layer: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the outputs in train mode, in eval mode and in train mode again, and the gradients of
    what trains.
    """
    trained = layer(x)
    weights = torch.linspace(-1, 1, trained.numel(), dtype=trained.dtype).view_as(trained)
    (trained * weights).sum().backward()
    outputs = [trained.detach()]
    for mode in (False, True):
        layer.train(mode)  # loralib's returns None
        outputs.append(layer(x).detach())
    return outputs, {plain(n): p.grad for n, p in layer.named_parameters() if p.grad is not None}


@kinds
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "options",
    [{"r": 1}, {"r": 3, "lora_alpha": 7}, {"r": 2, "merge_weights": False}, {"r": 8}],
    ids=str,
)
def test_a_state_dict_means_the_same_in_both(
    kind: Kind, dtype: torch.dtype, options: dict[str, Any]
):
    theirs = fill(make(loralib, kind, **options).to(dtype))
    mine = make(ours, kind, seed=5, **options).to(dtype)
    mine.load_state_dict(theirs.state_dict())  # strict
    x = inputs(kind, dtype)
    (expected, slopes), (found, gradients) = run(theirs, x), run(mine, x)
    for mode, one, other in zip(["train", "eval", "train again"], found, expected, strict=True):
        assert_close(one, other, mode)
    assert {"lora_A", "lora_B"} <= gradients.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert_close(gradients[name], slope, name)
    back = make(loralib, kind, seed=6, **options).to(dtype)
    keys = {plain(key): key for key in back.state_dict()}
    back.load_state_dict({keys[key]: tensor for key, tensor in mine.state_dict().items()})
    for one, other in zip(run(back, x)[0], found, strict=True):
        assert_close(one, other, "back")


@kinds
def test_dropout_draws_what_loralib_draws(kind: Kind):
    if kind.name == "Embedding" or "Conv" in kind.name:
        return  # loralib has no dropout there that does anything
    theirs, mine = (make(package, kind, r=2, lora_dropout=0.5) for package in (loralib, ours))
    mine.load_state_dict(fill(theirs).state_dict())
    outputs = []
    with torch.random.fork_rng(devices=[]):
        for layer in (theirs, mine):
            torch.manual_seed(3)
            outputs.append(layer(inputs(kind)))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
    assert not torch.equal(mine(inputs(kind)), mine(inputs(kind)))
    assert torch.equal(mine.eval()(inputs(kind)), mine(inputs(kind)))


class Small(nn.Module):
    """A model of the README's layers: an embedding, a fused q, k and v, a convolution and a linear
    layer.
    """

    def __init__(self, lora: Any = None):
        super().__init__()
        three = {"r": 2, "enable_lora": [True, False, True]}
        self.embed = lora.Embedding(13, 8, r=2) if lora else nn.Embedding(13, 8)
        self.qkv = lora.MergedLinear(8, 24, **three) if lora else nn.Linear(8, 24)
        self.mix = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.out = (
            lora.Linear(8, 5, r=4, lora_alpha=8, lora_dropout=0.1) if lora else nn.Linear(8, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x)).chunk(3, dim=-1)
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(self.norm(h + self.mix(h.unsqueeze(1)).squeeze(1)))


def quick_start(
    lora: Any, bias: str, folder: Path
) -> tuple[list[float], dict[str, Tensor], Tensor]:
    """Follow the README of microsoft/LoRA: replace, load, mark, train, save, load twice.

    In float64: a bias of k has no gradient but for rounding, which AdamW would blow up.
    """
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(Small().double().state_dict(), folder / "ckpt_pretrained.pt")
    torch.manual_seed(1)
    model = Small(lora).double()
    model.load_state_dict(
        torch.load(folder / "ckpt_pretrained.pt", weights_only=True), strict=False
    )
    lora.mark_only_lora_as_trainable(model, bias=bias)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(6):
        x = torch.randint(0, 13, (4, 7))
        loss = nn.functional.cross_entropy(model.train()(x).flatten(0, 1), x.flatten() % 5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        model.eval()(x)  # a look between two steps
    model.train()
    torch.save(lora.lora_state_dict(model, bias=bias), folder / "ckpt_lora.pt")
    torch.manual_seed(9)
    fresh = Small(lora).double()
    fresh.load_state_dict(
        torch.load(folder / "ckpt_pretrained.pt", weights_only=True), strict=False
    )
    saved = torch.load(folder / "ckpt_lora.pt", weights_only=True)
    assert fresh.load_state_dict(saved, strict=False).unexpected_keys == []
    x = torch.arange(13).repeat(2, 1)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(x), model.eval()(x), rtol=0, atol=1e-12)
        return losses, saved, fresh(x)


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_quick_start_of_the_readme(bias: str, tmp_path: Path):
    with torch.random.fork_rng(devices=[]):
        losses, saved, y = quick_start(loralib, bias, tmp_path / "theirs")
        found, kept, z = quick_start(ours, bias, tmp_path / "ours")
    assert losses[-1] < losses[0]
    assert found == pytest.approx(losses, rel=1e-9)
    assert kept.keys() == saved.keys()
    for key, tensor in saved.items():
        torch.testing.assert_close(
            kept[key], tensor, rtol=0, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
        )
    torch.testing.assert_close(z, y, rtol=0, atol=1e-8)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_marking_is_loralibs(bias: str):
    marked = []
    for package in (loralib, ours):
        model = Small(package)
        package.mark_only_lora_as_trainable(model, bias)
        marked.append({name for name, p in model.named_parameters() if p.requires_grad})
    assert marked[0] == marked[1]
    assert len(marked[0]) == {"none": 6, "all": 10, "lora_only": 8}[bias]


@pytest.mark.parametrize("call", [ours.mark_only_lora_as_trainable, ours.lora_state_dict])
def test_unknown_bias_is_refused(call: Any):
    with pytest.raises(NotImplementedError, match=r"^bias='some' is none of none, all, lora_only$"):
        call(Small(ours), bias="some")


def test_biases_of_any_name_train_with_all():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(3, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "out": ours.Linear(4, 2, r=1),
        }
    )
    ours.mark_only_lora_as_trainable(model, bias="all")
    found = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"lstm.bias_ih_l0", "attention.in_proj_bias", "out.lora_A"} <= found
    assert found == {
        name for name, _ in model.named_parameters() if "bias" in name or "lora_" in name
    }


def test_a_layer_at_two_places_trains_and_is_saved_at_both():
    layer = ours.Linear(4, 4, r=1)
    for bias, count in (("none", 2), ("lora_only", 3)):
        model = nn.ModuleDict({"a": layer, "b": layer})
        ours.mark_only_lora_as_trainable(model, bias)
        assert sum(p.requires_grad for p in model.parameters()) == count
        assert len(ours.lora_state_dict(model, bias)) == 2 * count
        assert (
            ours.lora_state_dict(model, bias).keys()
            >= loralib.lora_state_dict(copy.deepcopy(model)).keys()
        )


def test_biases_of_layers_without_factors_are_neither_trained_nor_saved():
    """loralib trains the bias of a layer of rank 0 with lora_only, and does not save it."""
    theirs = nn.ModuleList([loralib.Linear(2, 2)])
    mine = nn.ModuleList([ours.Linear(2, 2)])
    loralib.mark_only_lora_as_trainable(theirs, "lora_only")
    ours.mark_only_lora_as_trainable(mine, "lora_only")
    assert [p.requires_grad for p in theirs.parameters()] == [False, True]
    assert [p.requires_grad for p in mine.parameters()] == [False, False]
    assert (
        loralib.lora_state_dict(theirs, "lora_only")
        == ours.lora_state_dict(mine, "lora_only")
        == {}
    )
