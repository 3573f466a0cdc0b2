"""The layers that both packages have, and how to fill them."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import lorakit.loralib as ours
import loralib

torch.set_num_threads(1)


class Kind(NamedTuple):
    """A layer both packages can make: its class's name, its arguments, and the shape of an input
    (None: token ids).
    """

    name: str
    args: tuple[int, ...]
    options: dict[str, Any]
    shape: tuple[int, ...] | None


KINDS = {
    "linear": Kind("Linear", (6, 9), {}, (2, 5, 6)),
    "linear, stored (in, out)": Kind("Linear", (6, 9), {"fan_in_fan_out": True}, (4, 6)),
    "linear without bias": Kind("Linear", (6, 9), {"bias": False}, (4, 6)),
    "q and v of three": Kind(
        "MergedLinear", (6, 9), {"enable_lora": [True, False, True]}, (2, 5, 6)
    ),
    "the last of three, stored (in, out)": Kind(
        "MergedLinear",
        (6, 9),
        {"enable_lora": [False, False, True], "fan_in_fan_out": True},
        (4, 6),
    ),
    "all of two": Kind("MergedLinear", (6, 8), {"enable_lora": [True, True]}, (4, 6)),
    "embedding": Kind("Embedding", (11, 6), {}, None),
    "embedding with a pad row": Kind("Embedding", (11, 6), {"padding_idx": 3}, None),
    "embedding, gradient by frequency": Kind(
        "Embedding", (11, 6), {"scale_grad_by_freq": True}, None
    ),
    "conv1d, kernel 1": Kind("Conv1d", (4, 6, 1), {}, (2, 4, 7)),
    "conv2d": Kind("Conv2d", (4, 6, 3), {"padding": 1}, (2, 4, 5, 5)),
    "conv2d, groups and stride": Kind(
        "Conv2d", (4, 6, 3), {"groups": 2, "stride": 2, "bias": False}, (2, 4, 5, 5)
    ),
    "conv2d, reflected": Kind(
        "Conv2d", (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 4, 5, 5)
    ),
    "conv3d, kernel 1": Kind("Conv3d", (4, 6, 1), {}, (2, 4, 3, 3, 3)),
}


def make(package: Any, kind: Kind, seed: int = 0, **options: Any) -> Any:
    """Return a fresh layer, from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(package, kind.name)(*kind.args, **copy.deepcopy(kind.options), **options)


def fill(layer: nn.Module, seed: int = 1) -> Any:
    """Fill the factors, so that they change something; a pad row's own stays zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key in ("lora_A", "lora_B"):
            factor = getattr(layer, key)
            factor.copy_(torch.randn(factor.shape, generator=draw, dtype=factor.dtype) * 0.5)
        if getattr(layer, "padding_idx", None) is not None:
            layer.lora_A[:, layer.padding_idx] = 0
    return layer


def inputs(kind: Kind, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    if kind.shape is None:
        return torch.randint(0, kind.args[0], (3, 5), generator=draw)
    return torch.randn(kind.shape, generator=draw, dtype=dtype)


def plain(key: str) -> str:
    """Return the name that the key has in ours: 0.1.2 holds a convolution's own one level down."""
    return key.replace("conv.", "")


__all__ = ["KINDS", "Kind", "fill", "inputs", "loralib", "make", "ours", "plain"]
