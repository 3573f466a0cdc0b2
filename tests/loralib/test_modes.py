"""A merged layer uses every change of its parts: casts, copies, steps, new tensors.

Nothing ever writes the weight.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .layers import KINDS, Kind, fill, inputs, loralib, make, ours

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
modes = pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])


def twin(layer: Any) -> Any:
    """Return a copy that is not merged, and so has no sum that could be stale."""
    return copy.deepcopy(layer).train()


def assert_follows(layer: Any, x: Tensor) -> None:
    eps = torch.finfo(layer.weight.dtype).eps
    expected = twin(layer)(x).detach()
    torch.testing.assert_close(
        layer(x).detach(), expected, rtol=0, atol=16 * eps * max(1.0, expected.abs().max().item())
    )


@kinds
@modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_cast_rounds_the_base_itself(kind: Kind, mode: bool, dtype: torch.dtype):
    layer = fill(make(ours, kind, r=2)).train(mode)
    weight = layer.weight.detach().clone()
    layer.to(dtype)
    assert torch.equal(layer.weight, weight.to(dtype))
    assert layer.lora_A.dtype == dtype
    assert layer.merged is not mode
    assert layer.merged_weight().dtype == dtype
    assert_follows(layer, inputs(kind) if kind.shape is None else inputs(kind).to(dtype))


def test_half_float_meta_and_back():
    layer = fill(ours.Linear(6, 5, r=2)).eval()
    x = inputs(KINDS["linear"])
    before = layer(x)
    assert layer.half()(x.half()).dtype == torch.half
    assert not torch.equal(layer.float()(x), before)
    assert (layer(x) - before).abs().max() < 0.05
    state = layer.state_dict()
    layer.to("meta")
    assert layer(x.to("meta")).is_meta
    layer.to_empty(device="cpu").load_state_dict(state)
    assert_follows(layer, x)


def half_of(layer: Any) -> dict[str, Tensor]:
    return {key: tensor * 0.5 for key, tensor in layer.state_dict().items()}


def step(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(layer.parameters(), lr=0.5).step()


def new_parameter(layer: Any) -> None:
    layer.lora_B = nn.Parameter(layer.lora_B.detach() * 2)


def in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.lora_A.mul_(2)


def base_in_place(layer: Any) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a load": lambda layer: layer.load_state_dict(half_of(layer)),
    "a load by assignment": lambda layer: layer.load_state_dict(half_of(layer), assign=True),
    "a step": step,
    "a new parameter": new_parameter,
    "a factor in place": in_place,
    "the base in place": base_in_place,
    "filled anew": lambda layer: layer.reset_parameters(),
}


@kinds
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_a_merged_layer_is_used(kind: Kind, change: Callable[[Any], Any]):
    layer = fill(make(ours, kind, r=2)).eval()
    x = inputs(kind)
    before = layer(x)
    change(layer)
    assert not torch.equal(layer(x), before)
    assert_follows(layer, x)
    weight = layer.weight.detach().clone()
    assert torch.equal(layer.train().weight, weight)


def test_a_write_through_data_is_used_after_eval():
    """PyTorch keeps no trace of it, and to compare the factors at each call would hold up a GPU.
    loralib is as blind.
    """
    theirs = loralib.Linear(6, 5, r=2)
    mine = ours.Linear(6, 5, r=2)
    x = inputs(KINDS["linear"])
    for layer in (theirs, mine):
        fill(layer).eval()
        before = layer(x)
        layer.lora_A.data.copy_(layer.lora_A * 2)
        assert torch.equal(layer(x), before)
        layer.eval()
        layer.followed = not torch.equal(layer(x), before)
    assert mine.followed
    assert not theirs.followed
    assert_follows(mine, x)


@kinds
def test_nothing_writes_the_weight(kind: Kind):
    layer = fill(make(ours, kind, r=2))
    x = inputs(kind)
    weight = layer.weight
    bits = layer.weight.detach().clone()
    version = layer.weight._version
    for mode in (False, False, True, True, False):
        layer.train(mode)
        layer(x)
        layer.merged_weight()
    assert layer.weight is weight
    assert weight._version == version
    assert torch.equal(weight, bits)


@kinds
def test_the_sum_is_rounded_once(kind: Kind):
    layer = fill(make(ours, kind, r=2)).bfloat16().eval()
    exact = twin(layer).double()
    assert torch.equal(layer.merged_weight(), exact.merged_weight().float().bfloat16())
    assert layer.merged_weight() is layer.merged_weight()
    assert torch.equal(layer.used_weight(), layer.merged_weight())
    assert not torch.equal(layer.used_weight(), layer.weight)


@kinds
def test_without_merge_weights_nothing_is_merged(kind: Kind):
    layer = fill(make(ours, kind, r=2, merge_weights=False))
    x = inputs(kind)
    before = layer(x)
    assert torch.equal(layer.eval()(x), before)
    assert not layer.merged


def test_a_copy_has_factors_of_its_own():
    layer = fill(ours.Linear(6, 5, r=2)).eval()
    x = inputs(KINDS["linear"])
    before = layer(x)
    other = copy.deepcopy(layer)
    in_place(other)
    assert torch.equal(layer(x), before)
    assert_follows(other, x)


def test_merged_in_inference_mode_and_used_out_of_it():
    layer = fill(ours.Linear(6, 5, r=2))
    x = inputs(KINDS["linear"])
    expected = layer(x)
    with torch.inference_mode():
        layer.eval()
        layer(x)
    given = x.clone().requires_grad_()
    y = layer(given)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(given.grad, layer.merged_weight().sum(0).expand_as(x))
    with torch.inference_mode():
        made = fill(make(ours, KINDS["linear"], r=2)).eval()
        assert_follows(made, x)
    assert made(x).shape == (2, 5, 9)


def test_parameters_of_a_functional_call_count():
    layer = fill(ours.Linear(6, 5, r=2)).eval()
    x = inputs(KINDS["linear"])
    before = layer(x)
    for factor in (2.0, 3.0):
        other = {"lora_A": layer.lora_A.detach() * factor}
        expected = torch.func.functional_call(twin(layer), other, (x,))
        torch.testing.assert_close(torch.func.functional_call(layer, other, (x,)), expected)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("lora", [loralib, ours], ids=["loralib", "ours"])
def test_torchs_encoder_layer_uses_the_factors(lora: Any):
    """In eval mode it reads the weights of its linear layers past their forward, unless they have
    hooks.
    """
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder.linear1 = fill(lora.Linear(8, 16, r=2))
    encoder.linear2 = fill(lora.Linear(16, 8, r=2))
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = encoder(x)
        torch.testing.assert_close(encoder.eval()(x), expected)


@kinds
@modes
def test_a_replica_adapts(kind: Kind, mode: bool):
    """As nn.DataParallel makes one: a shallow copy whose parameters are plain tensors."""
    layer = fill(make(ours, kind, r=2)).train(mode)
    x = inputs(kind)
    replica = layer._replicate_for_data_parallel()
    for name, parameter in layer._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter * 1)
    assert not list(replica.parameters())
    assert torch.equal(replica(x), layer(x))


@kinds
def test_autocast(kind: Kind):
    layer = fill(make(ours, kind, r=2))
    x = inputs(kind)
    exact = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        trained = layer(x)
        trained.float().sum().backward()
        merged = layer.eval()(x)
    assert trained.dtype == merged.dtype
    assert layer.lora_B.grad.dtype == torch.float32
    scale = 8 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert (trained - exact).abs().max() < scale
    assert (merged - exact).abs().max() < scale
    assert layer.merged_weight().dtype == torch.float32


@pytest.mark.parametrize("lora", [loralib, ours], ids=["loralib", "ours"])
def test_gradients_reach_the_factors_in_train_mode_or_without_merging(lora: Any):
    x = inputs(KINDS["linear"])
    for merging in (True, False):
        layer = fill(lora.Linear(6, 5, r=2, merge_weights=merging))
        layer.eval()
        layer(x).sum().backward()  # the bias gets one
        assert (layer.lora_A.grad is None) is merging
        layer.train()
        layer(x).sum().backward()
        assert layer.lora_A.grad.any()


class Custom(nn.Linear, ours.LoRALayer):
    """A layer as people write them on loralib's mixin."""

    def __init__(self):
        nn.Linear.__init__(self, 4, 4)
        ours.LoRALayer.__init__(self, r=2, lora_alpha=4, lora_dropout=0.0, merge_weights=True)
        self.lora_A = nn.Parameter(torch.ones(2, 4))
        self.lora_B = nn.Parameter(torch.ones(4, 2))
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        return (
            super().forward(x) + self.lora_dropout(x) @ self.lora_A.T @ self.lora_B.T * self.scaling
        )


def test_a_layer_of_ones_own_is_marked_and_saved():
    model = nn.Sequential(Custom(), nn.Linear(4, 4))
    ours.mark_only_lora_as_trainable(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"0.lora_A", "0.lora_B"}
    assert ours.lora_state_dict(model).keys() == {"0.lora_A", "0.lora_B"}
    assert model.eval()(torch.ones(1, 4)).shape == (1, 4)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "the sign": lambda product: -product,
    "the scale": lambda product: product * 2,
    "nothing added": torch.zeros_like,
    "another layout": lambda product: product.flip(0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_seen(
    fault: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
):
    layer = fill(ours.Linear(6, 5, r=2)).eval()
    x = inputs(KINDS["linear"])
    assert_follows(layer, x)
    right = ours.LoRALayer.product
    monkeypatch.setattr(ours.LoRALayer, "product", lambda self: fault(right(self)))
    with pytest.raises(AssertionError, match="not close"):
        assert_follows(layer.eval(), x)
