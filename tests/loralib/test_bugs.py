"""The bugs of loralib 0.1.2 that are not here: each test shows loralib's behaviour, then ours.

Fixed in loralib itself before 0.1.2 and so not shown broken: a MergedLinear that trained only with
fan_in_fan_out, `eval()` of a model that did not merge its layers, the missing transpose of a merged
embedding, the shape of a grouped convolution. `test_same.py` holds those for both packages. No
class for nn.MultiheadAttention is no bug: `lorakit.attach` takes its parts.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.errors import SpecError

from .layers import KINDS, Kind, fill, inputs, loralib, make, ours


def pair(name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Return loralib's layer and ours, filled alike."""
    theirs = make(loralib, Kind(name, args, {}, None), **options)
    mine = make(ours, Kind(name, args, {}, None), **options)
    return fill(theirs), fill(mine)


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def same_in_both_modes(layer: Any, x: Tensor) -> bool:
    layer.train()
    trained = layer(x)
    layer.eval()
    return close(layer(x), trained)


# 1 to 4: convolutions


@pytest.mark.parametrize("name, size", [("Conv1d", 1), ("Conv3d", 3)])
def test_convolutions_of_one_and_three_dimensions(name: str, size: int):
    theirs, mine = pair(name, 4, 8, 3, r=2)
    x = draw(2, 4, *[6] * size)
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        theirs(x)
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        theirs.eval()
    kernel = mine.lora_B @ mine.lora_A / 2
    expected = getattr(F, name.lower())(x, mine.weight + kernel.view(mine.weight.shape), mine.bias)
    assert close(mine(x), expected)
    assert same_in_both_modes(mine, x)


@pytest.mark.parametrize(
    "name, kernel",
    [("Conv1d", (3,)), ("Conv2d", (1, 3)), ("Conv2d", (3, 3)), ("Conv3d", (3, 1, 2))],
)
def test_a_tuple_is_a_kernel(name: str, kernel: tuple[int, ...]):
    with pytest.raises(AssertionError) as caught:
        getattr(loralib, name)(4, 8, kernel, r=2)
    assert str(caught.value) == ""
    layer = fill(getattr(ours, name)(4, 8, kernel, r=2, groups=2))
    assert same_in_both_modes(layer, draw(2, 4, *[6] * len(kernel)))


@pytest.mark.slow
def test_dropout_of_a_convolution():
    theirs, mine = pair("Conv2d", 4, 8, 3, r=2, lora_dropout=0.9)
    x = draw(2, 4, 6, 6)
    assert torch.equal(theirs(x), theirs(x))
    assert not torch.equal(mine(x), mine(x))
    base = F.conv2d(
        x, mine.weight, mine.bias
    )  # dropout concerns the change alone, and keeps its mean
    mean = torch.stack([mine(x).detach() - base for _ in range(2000)]).mean(0)
    change = mine.eval()(x) - base
    assert (mean - change).norm() < 0.2 * change.norm()


def test_the_rank_of_a_convolution_is_loralibs():
    """Kept, so that files fit: r * kernel, with more parameters than factors of a patch have."""
    theirs, mine = pair("Conv2d", 64, 64, 3, r=4)
    for layer in (theirs, mine):
        assert layer.lora_A.numel() + layer.lora_B.numel() == 4608 > 4 * (64 * 9 + 64)
        assert torch.linalg.matrix_rank(layer.lora_B.double() @ layer.lora_A.double()) == 12


def test_a_plain_convolutions_weights_load():
    base = nn.Conv2d(4, 8, 3)
    theirs, mine = pair("Conv2d", 4, 8, 3, r=2)
    result = theirs.load_state_dict(base.state_dict(), strict=False)
    assert result.unexpected_keys == ["weight", "bias"]
    assert "conv.weight" in result.missing_keys
    result = mine.load_state_dict(base.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys == ["lora_A", "lora_B"]
    assert torch.equal(mine.weight, base.weight)
    assert torch.equal(mine.conv.bias, base.bias)


def test_keys_of_both_loralibs_load():
    """0.1.2 writes conv.weight; the newer source writes weight too, for the same tensor. A dict
    given is left as it was.
    """
    theirs, mine = pair("Conv2d", 4, 8, 3, r=2)
    state = nn.ModuleDict({"a": theirs}).state_dict()
    for given in (
        state,
        {**state, "a.weight": state["a.conv.weight"], "a.bias": state["a.conv.bias"]},
    ):
        keys = list(given)
        model = nn.ModuleDict({"a": copy.deepcopy(mine)})
        nn.init.zeros_(model["a"].weight)
        model.load_state_dict(given)
        assert torch.equal(model["a"].weight, theirs.conv.weight)
        assert list(given) == keys
    tensors = list(mine.state_dict().values())
    assert len({t.data_ptr() for t in tensors}) == len(tensors) == 4


def test_the_bias_of_a_convolution_trains_with_lora_only():
    theirs, mine = (nn.ModuleDict({"a": layer}) for layer in pair("Conv2d", 4, 8, 3, r=2))
    loralib.mark_only_lora_as_trainable(theirs, "lora_only")
    assert not theirs["a"].conv.bias.requires_grad
    assert loralib.lora_state_dict(theirs, "lora_only").keys() == {"a.lora_A", "a.lora_B"}
    ours.mark_only_lora_as_trainable(mine, "lora_only")
    assert mine["a"].bias.requires_grad
    assert ours.lora_state_dict(mine, "lora_only").keys() == {"a.lora_A", "a.lora_B", "a.bias"}


# 5 to 8: parts of one matrix


@pytest.mark.parametrize("options", [{}, {"enable_lora": [False, False]}])
def test_no_part_adapted_is_the_plain_layer(options: dict[str, Any]):
    theirs = loralib.MergedLinear(4, 6, r=2, **options)
    mine = ours.MergedLinear(4, 6, r=2, **options)
    x = draw(3, 4)
    with pytest.raises(AttributeError, match="lora_A"):
        theirs(x)
    assert torch.equal(mine(x), F.linear(x, mine.weight, mine.bias))
    assert torch.equal(mine.eval()(x), mine(x))
    assert ours.lora_state_dict(mine) == {}
    assert mine.weight.requires_grad


@pytest.mark.parametrize("parts, out", [([True, False, True], 8), ([], 8)])
def test_parts_that_do_not_divide_are_refused(parts: list[bool], out: int):
    """Parts of two sizes (grouped-query attention) are two layers, or `lorakit.attach` on a fused
    one.
    """
    with pytest.raises((AssertionError, ZeroDivisionError)):
        loralib.MergedLinear(4, out, r=2, enable_lora=parts)
    with pytest.raises(
        SpecError, match=rf"^enable_lora: {len(parts)} parts do not divide out_features, 8\.$"
    ):
        ours.MergedLinear(4, out, r=2, enable_lora=parts)


class Largest(TorchDispatchMode):
    """Counts the values of the largest tensor that an operation makes; views of what is there do
    not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = 0
        self.known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for given in args:
            if isinstance(given, Tensor):
                self.known.add(given.untyped_storage().data_ptr())
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.values = max(self.values, tensor.numel())
        return out


@pytest.mark.parametrize("stored", [False, True])
def test_no_step_of_training_builds_the_product_of_parts(stored: bool):
    theirs, mine = pair(
        "MergedLinear", 40, 60, r=2, enable_lora=[True, False, True], fan_in_fan_out=stored
    )
    made = []
    for layer in (theirs, mine):
        with Largest() as largest:
            layer(draw(3, 40)).sum().backward()
        made.append(largest.values)
    assert made[0] >= 40 * 60
    assert made[1] <= 3 * 60


# 9 to 11: loading, saving and training while merged


def test_an_adapter_loaded_while_merged_counts():
    theirs, mine = pair("Linear", 6, 5, r=2)
    x = draw(3, 6)
    weight = mine.weight.clone()
    other = {
        key: tensor
        for key, tensor in fill(make(ours, KINDS["linear"], r=2), 7).state_dict().items()
        if key == "lora_A"
    }
    for layer in (theirs, mine):
        layer.eval()
        before = layer(x)
        layer.load_state_dict(other, strict=False)
        layer.changed = not torch.equal(layer(x), before)
        layer.train()
    assert not theirs.changed and not close(
        theirs.weight, weight
    )  # stale, and then another change than was added is taken off
    assert mine.changed
    assert torch.equal(mine.weight, weight)
    assert same_in_both_modes(mine, x)


def test_a_base_loaded_while_merged_counts():
    mine = pair("Linear", 6, 5, r=2)[1].eval()
    x = draw(3, 6)
    base = nn.Linear(6, 5)
    mine.load_state_dict(base.state_dict(), strict=False)
    assert close(mine(x), base(x) + x @ (mine.lora_B @ mine.lora_A).T / 2)
    assert torch.equal(mine.weight, base.weight)
    loaded = {
        key: tensor.clone() for key, tensor in pair("Linear", 6, 5, r=2)[1].state_dict().items()
    }
    mine.load_state_dict(loaded, assign=True)
    assert same_in_both_modes(mine, x)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_state_dict_saved_in_eval_mode_is_the_bases(kind: Kind):
    theirs, mine = (fill(make(package, kind, r=2)) for package in (loralib, ours))
    x = inputs(kind)
    for layer, right in ((theirs, False), (mine, True)):
        expected = layer(x)
        layer.eval()
        fresh = make(loralib if layer is theirs else ours, kind, seed=8, r=2)
        fresh.load_state_dict(layer.state_dict())
        assert close(fresh(x), expected) is right  # loralib: the change counts twice
    trained = make(ours, kind, r=2).state_dict()
    assert all(
        torch.equal(tensor, trained[key])
        for key, tensor in mine.state_dict().items()
        if "lora_" not in key
    )


# 12: names


class Explorer(nn.Module):
    def __init__(self, lora: Any):
        super().__init__()
        self.explora_layer = nn.Linear(3, 3)
        self.layer = lora.Linear(3, 3, r=1)


def test_a_name_makes_no_adapter():
    theirs = Explorer(loralib)
    mine = Explorer(ours)
    loralib.mark_only_lora_as_trainable(theirs)
    ours.mark_only_lora_as_trainable(mine)
    assert theirs.explora_layer.weight.requires_grad
    assert not mine.explora_layer.weight.requires_grad
    assert "explora_layer.weight" in loralib.lora_state_dict(theirs)
    assert ours.lora_state_dict(mine).keys() == {"layer.lora_A", "layer.lora_B"}


# 13: copies


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_layer_is_pickled_copied_and_saved(kind: Kind, mode: bool):
    theirs, mine = (fill(make(package, kind, r=2)) for package in (loralib, ours))
    for layer in (theirs, mine):
        layer.train(mode)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(theirs)
    file = io.BytesIO()
    x = inputs(kind)
    torch.save(mine, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (pickle.loads(pickle.dumps(mine)), copy.deepcopy(mine), loaded):
        assert type(other) is type(mine)
        assert other.merged is mine.merged is not mode
        assert torch.equal(other(x), mine(x))
        fill(other, 9)  # its own factors now
        assert not close(other(x), mine(x))
        assert same_in_both_modes(other, x)


def test_the_sum_is_in_no_file():
    layer = fill(ours.Linear(200, 200, r=2))
    assert (
        abs(len(pickle.dumps(layer)) - len(pickle.dumps(layer.eval())))
        < 2_000
        < layer.merged_weight().numel() * 4
    )


@pytest.mark.slow
def test_a_layer_can_be_exported_and_compiled():
    """torch.jit.script takes neither loralib's layers nor ours; it is deprecated."""
    mine = pair("Linear", 6, 5, r=2)[1]
    x = draw(3, 6)
    for mode in (True, False):
        layer = mine.train(mode)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert close(compiled(x), layer(x))
        assert close(torch.export.export(layer, (x,)).module()(x), layer(x))
        fill(layer, 5)
        assert close(compiled(x), layer(x))  # a change while merged is not frozen into it


# 14: two dtypes


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_factors_in_float32_on_a_base_in_16_bits(kind: Kind, dtype: torch.dtype):
    layers = []
    for package in (loralib, ours):
        layers.append(fill(make(package, kind, r=2)))
        getattr(layers[-1], "conv", layers[-1]).to(dtype)
        layers[-1].lora_A.data, layers[-1].lora_B.data = (
            p.data.float() for p in (layers[-1].lora_A, layers[-1].lora_B)
        )
    theirs, mine = layers
    x = inputs(kind) if kind.shape is None else inputs(kind).to(dtype)
    if kind.name != "Embedding":
        with pytest.raises(RuntimeError, match="type"):
            theirs(x)
    y = mine(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    assert mine.lora_A.grad.dtype == mine.lora_B.grad.dtype == torch.float32
    exact = copy.deepcopy(mine).float()(x if kind.shape is None else x.float())
    scale = 8 * torch.finfo(dtype).eps * exact.abs().max()
    assert (y.float() - exact).abs().max() < scale
    assert (mine.eval()(x).float() - exact).abs().max() < scale


# 15: drift


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_thousand_merges_leave_the_bits(dtype: torch.dtype):
    theirs, mine = (layer.to(dtype) for layer in pair("Linear", 16, 16, r=4))
    weight = mine.weight.clone()
    for layer in (theirs, mine):
        for _ in range(1000):
            layer.eval()
            layer.train()
    assert not torch.equal(theirs.weight, weight)
    assert torch.equal(mine.weight, weight)


# 16: embeddings


def test_max_norm_scales_the_base_alone():
    theirs, mine = pair("Embedding", 10, 4, r=2, merge_weights=True)
    x = torch.arange(10).repeat(2, 1)
    for layer in (theirs, mine):
        layer.max_norm = 0.5
        layer.lora_A.data.mul_(10)
        layer.before = layer.lora_A.detach().clone()
    assert not same_in_both_modes(theirs, x)
    assert not torch.equal(theirs.lora_A, theirs.before)
    assert same_in_both_modes(mine, x)
    assert torch.equal(mine.lora_A, mine.before)
    expected = (
        F.embedding(x, mine.weight.clone(), max_norm=0.5) + (mine.lora_B @ mine.lora_A).T[x] / 2
    )
    assert not mine.merged
    assert close(mine(x), expected)
    assert mine.weight.norm(dim=1).max() < 0.5001


def test_sparse_gradients():
    theirs, mine = pair("Embedding", 10, 4, r=2)
    x = torch.arange(10)
    theirs.sparse = mine.sparse = True
    with pytest.raises(RuntimeError, match="sparse transpose"):
        theirs(x).sum().backward()
    mine(x).sum().backward()
    assert mine.lora_A.grad.shape == (2, 10)
    assert mine.lora_A.grad.any()


@pytest.mark.parametrize("index", [3, -1])
def test_the_pad_row_stays_the_bases(index: int):
    theirs, mine = (
        fill(package.Embedding(10, 4, r=2, padding_idx=index)) for package in (loralib, ours)
    )
    for layer in (theirs, mine):
        nn.init.ones_(layer.lora_A)
    x = torch.arange(10)
    assert theirs(x)[index].any()
    assert not mine(x)[index].any()
    assert same_in_both_modes(mine, x)
    mine.train()(x).sum().backward()
    assert not mine.lora_A.grad[:, index].any()


def test_eval_changes_no_layer_that_shares_the_weight():
    for lora, right in ((loralib, False), (ours, True)):
        model = nn.ModuleDict(
            {"embed": fill(lora.Embedding(10, 4, r=2)), "head": nn.Linear(4, 10, bias=False)}
        )
        model["head"].weight = model["embed"].weight
        h = draw(3, 4)
        before = model["head"](h)
        model.eval()
        assert torch.equal(model["head"](h), before) is right
        assert model["head"].weight is model["embed"].weight


# 17 to 19: arguments and their text


def test_alpha_is_1_unless_given():
    """Kept, so that code means the same; it is printed."""
    theirs, mine = pair("Linear", 20, 20, r=16)
    assert theirs.scaling == mine.scaling == 0.0625
    assert repr(mine) == (
        "Linear(\n  in_features=20, out_features=20, bias=True, r=16, lora_alpha=1, merged=False\n"
        "  (lora_dropout): Dropout(p=0.0, inplace=False)\n)"
    )
    assert "lora_alpha=1, merged=True" in repr(mine.eval())
    assert "r=" not in repr(theirs)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("r", [-1, 1.5, True, "4"], ids=repr)
def test_an_invalid_rank_is_refused(kind: Kind, r: Any):
    assert not hasattr(make(loralib, kind, r=-1), "lora_A")
    with pytest.raises(SpecError) as caught:
        make(ours, kind, r=r)
    assert str(caught.value) == f"r: a whole number of at least 0 is needed, got {r!r}."


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_printed_layer_has_r_and_alpha(kind: Kind):
    theirs = make(loralib, kind, r=2, lora_alpha=6)
    mine = make(ours, kind, r=2, lora_alpha=6)
    assert "alpha" not in repr(theirs)
    assert repr(mine).startswith(f"{kind.name}(")
    assert ", r=2, lora_alpha=6, merged=False" in repr(mine)
