"""Convolutions in PEFT's files: the same both ways where PEFT's own attached equals its merged, and
told apart where not.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.errors import AdapterFileError

peft = pytest.importorskip("peft")

from ..models import fill, randn  # noqa: E402


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "LoRA adapter added to ConvNd layer with groups > 1", UserWarning
        )
        yield


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, dims: int, **more: Any):
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first = kind(4, 6, (3, 2, 1)[:dims], padding=(1, 0, 0)[:dims], stride=(1, 2, 1)[:dims])
        self.second = kind(6, 8, 3, **{"padding": 1, **more})
        self.head = nn.Linear(8, 5)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data.copy_(randn(*parameter.shape, seed=seed) * 0.2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))).flatten(2).mean(2))


def x(dims: int) -> Tensor:
    return randn(2, 4, *(7, 9, 5)[:dims], seed=77)


def outputs(model: nn.Module, dims: int) -> Tensor:
    with torch.no_grad():
        return model(x(dims))


def same(got: Tensor, want: Tensor) -> bool:
    return float((got - want).abs().max()) <= 1e-6 * max(1.0, float(want.abs().max()))


def peft_model(net: nn.Module, **more: Any) -> nn.Module:
    """Return PEFT's model with every factor filled."""
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second", "head"], **more}
    model = peft.get_peft_model(net, peft.LoraConfig(**config)).eval()
    for seed, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.data.copy_(randn(*parameter.shape, seed=seed) / 8)
    return model


OURS: dict[str, dict[str, Any]] = {
    "names": {"targets": ["first", "second", "head"]},
    "preset": {"targets": "conv"},
    "alpha / sqrt(rank)": {"targets": "conv", "scale_rule": "alpha/sqrt(rank)"},
    "ranks apart": {"targets": "conv", "overrides": {"second": {"rank": 2, "alpha": 5}}},
    "biases": {"targets": "conv", "bias": "adapted"},
    "head whole": {"targets": "conv", "full_modules": ["head"], "dropout": 0.25},
}


@pytest.mark.parametrize("case", OURS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_ours_in_peft(dims: int, case: str, tmp_path: Path) -> None:
    model = Net(dims)
    base = outputs(model, dims)
    adapter = fill(lorakit.attach(model, Spec(**{"rank": 4, "alpha": 6, **OURS[case]})))
    model.eval()
    want = outputs(model, dims)
    assert not same(want, base)
    theirs = peft.PeftModel.from_pretrained(Net(dims), adapter.save(tmp_path)).eval()
    assert same(outputs(theirs, dims), want)
    theirs.merge_adapter()
    assert float((outputs(theirs, dims) - want).abs().max()) < 1e-5 * float(want.abs().max())
    read = Adapter.load(tmp_path)
    assert read == adapter
    other = Net(dims)
    lorakit.attach(other, read)
    assert torch.equal(outputs(other, dims), want)


THEIRS: dict[str, dict[str, Any]] = {
    "names": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"second": 2}, "alpha_pattern": {"first": 3}},
    "dropout and biases": {"lora_dropout": 0.25, "bias": "lora_only"},
    "gaussian": {"init_lora_weights": "gaussian", "target_modules": ["second"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", THEIRS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_peft_in_ours(dims: int, case: str, tmp_path: Path) -> None:
    theirs = peft_model(Net(dims), **THEIRS[case])
    theirs.save_pretrained(tmp_path / "theirs")
    want = outputs(theirs, dims)
    adapter = Adapter.load(tmp_path / "theirs")
    model = Net(dims)
    base = outputs(model, dims)
    lorakit.attach(model, adapter)
    assert same(outputs(model, dims), want) and not same(want, base)
    lorakit.merge(model)
    assert float((outputs(model, dims) - want).abs().max()) < 1e-5 * float(want.abs().max())
    again = peft.PeftModel.from_pretrained(Net(dims), adapter.save(tmp_path / "ours")).eval()
    assert same(outputs(again, dims), want)


@pytest.mark.parametrize(
    "more",
    [{"padding": "same", "dilation": 2}, {"padding_mode": "circular"}],
    ids=["dilation", "mode"],
)
def test_dilation_and_padding_mode_are_exact_here(more: dict[str, Any], tmp_path: Path) -> None:
    """PEFT's factors ignore both, so its attached is not its merged; ours is, and its merged is
    ours.
    """
    theirs = peft_model(Net(2, **more), target_modules=["second"])
    theirs.save_pretrained(tmp_path)
    attached = outputs(theirs, 2)
    theirs.merge_adapter()
    merged = outputs(theirs, 2)
    size = float(merged.abs().max())
    assert float((attached - merged).abs().max()) > 0.01 * size
    model = Net(2, **more)
    lorakit.attach(model, Adapter.load(tmp_path))
    assert same(outputs(model, 2), merged)
    lorakit.merge(model)
    assert float((outputs(model, 2) - merged).abs().max()) < 1e-5 * size


def transposed() -> nn.Module:
    net = Net(2)
    net.second = nn.ConvTranspose2d(6, 8, 3)
    return net


FOREIGN: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "groups": (
        lambda: Net(2, groups=2),
        RuntimeError,
        "size mismatch for base_model.model.second.lora_A.default.weight",
    ),
    "more groups than rank": (
        lambda: Net(2, groups=2),
        ValueError,
        "layers where the rank is divisible by groups",
    ),
    "transposed": (transposed, ValueError, r"Target module ConvTranspose2d\(.*\) is not supported"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_peft_refuses_what_it_cannot_hold(case: str, tmp_path: Path) -> None:
    build, kind, text = FOREIGN[case]
    model = build()
    spec = Spec(rank=3 if case.startswith("more") else 4, targets=["second"])
    adapter = fill(lorakit.attach(model, spec))
    adapter.save(tmp_path)
    with pytest.raises(kind, match=text):
        peft.PeftModel.from_pretrained(build(), tmp_path)
    read = Adapter.load(tmp_path)
    assert read == adapter
    other = build()
    if case == "transposed":
        other.load_state_dict({k: t for k, t in model.state_dict().items() if "lorakit" not in k})
    lorakit.attach(other, read)
    assert torch.equal(outputs(other, 2), outputs(model, 2))


def test_groups_of_peft_are_refused(tmp_path: Path) -> None:
    """Its A reads the channels of all groups: it is no change of the layer's weight, and PEFT
    cannot merge it either.
    """
    theirs = peft_model(Net(2, groups=2), target_modules=["second"])
    with pytest.raises(NotImplementedError, match="Merging is not supported"):
        theirs.merge_adapter()
    theirs.save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError) as caught:
        Adapter.load(tmp_path)
    assert str(caught.value).endswith(
        "1 fault.\n  base_model.model.second   A is (4, 54) and B is (8, 2): the ranks differ; in "
        "PEFT's files of a convolution with groups A mixes the channels of all groups, which no "
        "change of its weight does\nNothing was loaded."
    )
