"""The rows that every law is held against: delta x site x dtype. A new delta or storage is a new row here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lorakit

DELTAS: dict[str, dict[str, Any]] = {"lowrank": {}}  # name -> fields of Spec


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return x @ weight.T if bias is None else x @ weight.T + bias


def conv1d(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return x @ weight + bias


def embedding(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return weight[x]


@dataclass(frozen=True)
class Kind:
    """A layer, its dense formula written out here, and whether its weight is the matrix transposed."""

    make: Callable[[], nn.Module]
    dense: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    transposed: bool


KINDS = {
    "linear": Kind(lambda: nn.Linear(12, 10), linear, False),
    "linear-square": Kind(lambda: nn.Linear(8, 8, bias=False), linear, False),
    "conv1d": Kind(lambda: Conv1D(10, 12), conv1d, True),
    "embedding": Kind(lambda: nn.Embedding(20, 10), embedding, True),
    "embedding-padded": Kind(lambda: nn.Embedding(20, 10, padding_idx=3), embedding, True),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Row:
    delta: str
    kind: str
    precision: str

    def __str__(self) -> str:
        return f"{self.delta}-{self.kind}-{self.precision}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def embeds(self) -> bool:
        return self.kind.startswith("embedding")

    def model(self) -> nn.Sequential:
        """Return a model whose `layer` is adapted and whose `rest` is not."""
        layer = KINDS[self.kind].make()
        model = nn.Sequential()
        model.add_module("layer", layer)
        model.add_module("rest", nn.Linear(8 if self.kind == "linear-square" else 10, 4))
        for seed, parameter in enumerate(model.parameters()):
            parameter.data.copy_(randn(*parameter.shape, seed=100 + seed) / 2)
        return model.to(self.dtype)

    def x(self, count: int = 7) -> Tensor:
        if self.embeds:
            return torch.arange(2 * count).reshape(2, count) % 20
        return randn(2, count, 8 if self.kind == "linear-square" else 12, seed=7).to(self.dtype)

    def spec(self, **more: Any) -> lorakit.Spec:
        dtype = "float64" if self.precision == "float64" else "float32"
        fields = {"rank": 3, "alpha": 4.5, "targets": ["layer"], "dtype": dtype, **DELTAS[self.delta]}
        return lorakit.Spec(**{**fields, **more})

    def attached(self, name: str = "default", seed: int = 0, **more: Any) -> tuple[nn.Sequential, lorakit.Adapter]:
        """Return a model with an adapter whose every factor is filled."""
        model = self.model()
        adapter = lorakit.attach(model, self.spec(**more), name=name)
        return model, fill(adapter, seed)

    def dense(self, model: nn.Sequential, *changes: Tensor) -> Tensor:
        """Return what `layer` should give for `x`: its formula in float64, with changes (out, in) added to the matrix."""
        return self.formula(model, sum(changes, torch.zeros((), dtype=torch.float64)), torch.float64)

    def formula(self, model: nn.Sequential, change: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the formula at a dtype, its matrix summed in float64 and rounded once."""
        kind, layer = KINDS[self.kind], model.layer
        weight = (layer.weight.detach().double() + (change.T if kind.transposed and change.ndim else change)).to(dtype)
        bias = getattr(layer, "bias", None)
        x = self.x() if self.embeds else self.x().to(dtype)
        return kind.dense(weight, None if bias is None else bias.detach().to(dtype), x)

    def plain(self, y: Tensor, adapter: lorakit.Adapter, scale: float) -> Tensor:
        """Return y + s (x A^T) B^T, everything at the row's dtype."""
        delta = adapter.deltas["layer"]
        A, B = delta.A.detach().to(self.dtype), delta.B.detach().to(self.dtype)
        h = A.T[self.x()] if self.embeds else self.x() @ A.T
        return y + scale * (h @ B.T)


def change(adapter: lorakit.Adapter, scale: float, name: str = "layer") -> Tensor:
    """Return s B A in float64, from the factors alone."""
    delta = adapter.deltas[name]
    return scale * (delta.B.detach().double() @ delta.A.detach().double())


def fill(adapter: lorakit.Adapter, seed: int = 0) -> lorakit.Adapter:
    """Give every trained tensor random values: a fresh adapter shows one law only."""
    for at, (_, parameter) in enumerate(adapter.named_parameters()):
        parameter.data.copy_(randn(*parameter.shape, seed=1000 * seed + at) / 3)
    return adapter


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(bits(one[key]), bits(two[key])) for key in one
    )


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8)


def error(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want).abs().max())


ROWS = [Row(delta, kind, precision) for delta in DELTAS for kind in KINDS for precision in DTYPES]
EXACT = [row for row in ROWS if row.precision == "float64"]
