"""The rows that every law is held against: delta x site x dtype. A new delta or storage is a new
row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

import lorakit
from lorakit.sites.base import DenseSite
from lorakit.sites.fused_parts import Layout, OutputSliceSite
from lorakit.sites.weight_swap import SwappedWeightSite

DELTAS: dict[str, dict[str, Any]] = {  # name -> fields of Spec
    "lowrank": {},
    "dora": {"delta": "dora"},
    "moved": {"init": "pissa"},
    "vera": {"delta": "vera"},
    "loha": {"delta": "loha"},
    "lokr": {"delta": "lokr"},
    "adalora": {"delta": "adalora"},
}
# What is random at the start, of each.
RANDOM = {
    "lowrank": "A",
    "dora": "A",
    "moved": "A",
    "vera": "pair.A",
    "loha": "w1_b",
    "lokr": "w2",
    "adalora": "A",
}


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return x @ weight.T if bias is None else x @ weight.T + bias


def conv1d(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return x @ weight if bias is None else x @ weight + bias


def embedding(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return weight[x]


def linear_factors(A: Tensor, B: Tensor, x: Tensor) -> Tensor:
    return x @ A.T @ B.T


def embedding_factors(A: Tensor, B: Tensor, x: Tensor) -> Tensor:
    return A.T[x] @ B.T


@dataclass(frozen=True)
class Patches:
    """The formulas of a convolution, one group at a time on an input that is padded first: a plain
    F.convNd is left.

    Args:
        kernel: (k, ...), which tells the dimensions too; stride and dilation likewise.
        padding: (before, after) of every dimension, the first first.
        turned: whether it is a transposed convolution: then padding is what is cut off its output,
            and `extra` is added to the end of it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    mode: str = "constant"
    turned: bool = False
    extra: tuple[int, ...] = ()

    def apply(self, weight: Tensor, x: Tensor) -> Tensor:
        """Apply a weight (out, in, kernel) of one group, or (in, out, kernel) of a transposed
        convolution.
        """
        at = len(self.kernel) - 1
        if self.turned:
            y = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[at](
                x, weight, None, self.stride, 0, 0, 1, self.dilation
            )
            for axis, ((before, after), extra) in enumerate(
                zip(self.padding, self.extra, strict=True)
            ):
                y = F.pad(y.movedim(2 + axis, -1), (-before, extra - after)).movedim(-1, 2 + axis)
            return y
        around = [n for pair in reversed(self.padding) for n in pair]
        return (F.conv1d, F.conv2d, F.conv3d)[at](
            F.pad(x, around, mode=self.mode), weight, None, self.stride, 0, self.dilation
        )

    def dense(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        parts = zip(weight.chunk(self.groups), x.chunk(self.groups, dim=1), strict=True)
        y = torch.cat([self.apply(w, part) for w, part in parts], dim=1)
        return y if bias is None else y + bias.view(-1, *[1] * len(self.kernel))

    def factors(self, A: Tensor, B: Tensor, x: Tensor) -> Tensor:
        """Return (B A) x, in two steps."""
        rank, parts = A.shape[0], []
        if self.turned:
            for a, part in zip(
                A.chunk(self.groups, dim=1), x.chunk(self.groups, dim=1), strict=True
            ):
                parts.append(
                    self.apply(
                        B.T.reshape(rank, -1, *self.kernel),
                        torch.einsum("ri,ni...->nr...", a, part),
                    )
                )
        else:
            for b, part in zip(B.chunk(self.groups), x.chunk(self.groups, dim=1), strict=True):
                parts.append(
                    torch.einsum(
                        "or,nr...->no...", b, self.apply(A.view(rank, -1, *self.kernel), part)
                    )
                )
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Kind:
    """A layer, its formulas written out here (dense, and with factors), and whether its weight is
    the matrix transposed.

    `x` is (channels, ...) of an input of a convolution, or the number of inputs; `last` the last
    axis of what comes out.
    """

    make: Callable[[], nn.Module]
    dense: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    factors: Callable[[Tensor, Tensor, Tensor], Tensor]
    transposed: bool
    x: tuple[int, ...] = (12,)
    last: int = 10
    rows: tuple[
        int, ...
    ] = ()  # those of the matrix that are adapted, in this order; all where empty


def convolution(
    make: Callable[[], nn.Module], formula: Patches, x: tuple[int, ...], last: int
) -> Kind:
    return Kind(make, formula.dense, formula.factors, formula.turned, x, last)


class Fused(nn.Linear):
    """Three projections of one matrix, one after the other."""


class Interleaved(nn.Linear):
    """Two heads of two projections each."""


class Reading(nn.Module):
    """A module that reads its weight in an operation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(10, 12)), nn.Parameter(torch.empty(10))

    def forward(self, input: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", input, self.weight) + self.bias


class FusedSite(DenseSite[nn.Linear]):
    """A layer of one class of this file, whose matrix holds several projections."""

    def __init__(self, kind: str, layer_class: type[nn.Linear]):
        self.kind, self.layer_class = kind, layer_class

    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, self.layer_class)

    def read(self, layer: nn.Linear) -> Tensor:
        return layer.weight.detach()

    def to_weight(self, layer: nn.Linear, M: Tensor) -> Tensor:
        return M


class ReadingSite(SwappedWeightSite[Reading]):
    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, Reading)


# Added as a user of the library adds a site (see conftest), so that the place of each is the layer
# itself.
ADDED = [
    OutputSliceSite(FusedSite("contiguous", Fused), Layout({"q": 5, "k": 4, "v": 3}), "k"),
    OutputSliceSite(FusedSite("interleaved", Interleaved), Layout({"k": 2, "v": 3}, groups=2), "v"),
    ReadingSite("reading", "weight"),
]

KINDS = {
    "part-contiguous": Kind(
        lambda: Fused(12, 12), linear, linear_factors, False, last=12, rows=(5, 6, 7, 8)
    ),
    "part-interleaved": Kind(
        lambda: Interleaved(12, 10), linear, linear_factors, False, rows=(2, 3, 4, 7, 8, 9)
    ),
    "swapped": Kind(Reading, linear, linear_factors, False),
    "linear": Kind(lambda: nn.Linear(12, 10), linear, linear_factors, False),
    "linear-square": Kind(
        lambda: nn.Linear(8, 8, bias=False), linear, linear_factors, False, (8,), 8
    ),
    "conv1d": Kind(lambda: Conv1D(10, 12), conv1d, linear_factors, True),
    "embedding": Kind(lambda: nn.Embedding(20, 10), embedding, embedding_factors, True),
    "embedding-padded": Kind(
        lambda: nn.Embedding(20, 10, padding_idx=3), embedding, embedding_factors, True
    ),
    "convolution1d": convolution(
        lambda: nn.Conv1d(4, 6, 3), Patches((3,), (1,), (1,), ((0, 0),)), (4, 10), 8
    ),
    "convolution2d-circular": convolution(
        lambda: nn.Conv2d(
            6, 8, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, padding_mode="circular"
        ).to(memory_format=torch.channels_last),
        Patches((3, 2), (2, 2), (1, 2), ((1, 1), (1, 1)), groups=2, mode="circular"),
        (6, 3, 15),
        8,
    ),
    "convolution2d-depthwise": convolution(
        lambda: nn.Conv2d(4, 4, (3, 5), padding="same", groups=4, bias=False),
        Patches((3, 5), (1, 1), (1, 1), ((1, 1), (2, 2)), groups=4),
        (4, 3, 8),
        8,
    ),
    "convolution3d": convolution(
        lambda: nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 0), padding_mode="replicate"),
        Patches((1, 2, 3), (1, 1, 1), (1, 1, 1), ((0, 0), (1, 1), (0, 0)), mode="replicate"),
        (2, 2, 2, 10),
        8,
    ),
    "transposed2d": convolution(
        lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        Patches((3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), groups=2, turned=True, extra=(1, 1)),
        (8, 2, 4),
        8,
    ),
}
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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

    @property
    def is_swapped(self) -> bool:
        return self.kind == "swapped"

    @property
    def one(self) -> tuple[int, ...]:
        """Where a single input is in `x`: a convolution's has channels and axes of its own."""
        return (0,) if len(KINDS[self.kind].x) > 1 else (0, 0)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as its matrix (out, in), or the rows of it that are adapted."""
        M = weight.flatten(1).T if KINDS[self.kind].transposed else weight.flatten(1)
        return M[list(KINDS[self.kind].rows)] if KINDS[self.kind].rows else M

    def widen(self, some: Tensor, axis: int, rest: float = 0.0) -> Tensor:
        """Return values of the adapted outputs among all outputs."""
        if not KINDS[self.kind].rows:
            return some
        whole = some.new_full(
            (*some.shape[:axis], KINDS[self.kind].last, *some.shape[axis:][1:]), rest
        )
        return whole.index_copy(axis, torch.tensor(KINDS[self.kind].rows), some)

    def model(self) -> nn.Sequential:
        """Return a model whose `layer` is adapted and whose `rest` is not."""
        layer = KINDS[self.kind].make()
        model = nn.Sequential()
        model.add_module("layer", layer)
        # Where channels come last in memory, torch takes another path for the rest once that is
        # frozen.
        model.add_module("flat", nn.Flatten(0, -2))
        model.add_module("rest", nn.Linear(KINDS[self.kind].last, 4))
        for seed, parameter in enumerate(model.parameters()):
            parameter.data.copy_(randn(*parameter.shape, seed=100 + seed) / 2)
        return model.to(self.dtype)

    def x(self, count: int = 7) -> Tensor:
        if self.embeds:
            return torch.arange(2 * count).reshape(2, count) % 20
        shape = KINDS[self.kind].x
        return randn(2, *((count, *shape) if len(shape) == 1 else shape), seed=7).to(self.dtype)

    def spec(self, **more: Any) -> lorakit.Spec:
        dtype = "float64" if self.precision == "float64" else "float32"
        fields = {
            "rank": 3,
            "alpha": 4.5,
            "targets": ["layer"],
            "dtype": dtype,
            **DELTAS[self.delta],
        }
        return lorakit.Spec(**{**fields, **more})

    def attached(
        self, name: str = "default", seed: int = 0, **more: Any
    ) -> tuple[nn.Sequential, lorakit.Adapter]:
        """Return a model with an adapter whose every factor is filled."""
        model = self.model()
        adapter = lorakit.attach(model, self.spec(**more), name=name)
        return model, fill(adapter, seed)

    def dense(self, model: nn.Sequential, *changes: Tensor) -> Tensor:
        """Return what `layer` should give for `x`: its formula in float64, with changes (out, in)
        added to the matrix.
        """
        return self.formula(
            model, sum(changes, torch.zeros((), dtype=torch.float64)), torch.float64
        )

    def formula(self, model: nn.Sequential, change: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the formula at a dtype, its matrix summed in float64 and rounded once."""
        kind, layer = KINDS[self.kind], model.layer
        weight = layer.weight.detach().double()
        if change.ndim:
            weight = weight + (change.T if kind.transposed else self.widen(change, 0)).reshape(
                weight.shape
            )
        weight = weight.to(dtype)
        bias = getattr(layer, "bias", None)
        x = self.x() if self.embeds else self.x().to(dtype)
        return kind.dense(weight, None if bias is None else bias.detach().to(dtype), x)

    def plain(
        self,
        y: Tensor,
        adapter: lorakit.Adapter,
        scale: float,
        weight: float = 1.0,
        base: Tensor | None = None,
    ) -> Tensor:
        """Return y + weight * (what the adapter adds to the layer's own output), everything at the
        row's dtype.
        """
        delta, base = adapter.deltas["layer"], y if base is None else base
        if self.delta in ("loha", "lokr"):
            low = self.apply(self.change(adapter, scale))
        elif self.delta in ("vera", "adalora"):
            A, B = (factor.to(self.dtype) for factor in self.factors(adapter, scale))
            low = KINDS[self.kind].factors(A, B, self.x())
        else:
            A, B = delta.A.detach().to(self.dtype), delta.B.detach().to(self.dtype)
            low = scale * KINDS[self.kind].factors(A, self.widen(B, 0), self.x())
        if self.delta == "moved":
            start = delta.A0.to(self.dtype), self.widen(delta.B0.to(self.dtype), 0)
            low = low - scale * KINDS[self.kind].factors(*start, self.x())
        if self.delta != "dora":
            return y + weight * low
        across = [1] * (0 if len(KINDS[self.kind].x) == 1 else low.ndim - 2)
        share, bias = (
            self.widen(self.share(adapter, scale).to(self.dtype), 0, 1.0).view(-1, *across),
            getattr(self.model().layer, "bias", None),
        )
        own = base if bias is None else base - bias.detach().view(-1, *across)
        return y + weight * (share * (own + low) - own)

    def apply(self, change: Tensor) -> Tensor:
        """Return what a change (out, in) gives for `x`, rounded to the row's dtype first."""
        kind, weight = KINDS[self.kind], self.model().layer.weight
        return kind.dense(
            (change.T if kind.transposed else change).reshape(weight.shape).to(self.dtype),
            None,
            self.x(),
        )

    def factors(self, adapter: lorakit.Adapter, scale: float) -> tuple[Tensor, Tensor]:
        """Return A and B in float64, whose product is the low-rank change, from the definition."""
        delta = adapter.deltas["layer"]
        own = {key: p.detach().double() for key, p in delta.named_parameters()}
        if self.delta == "vera":  # its scale is in the shared B
            out, inputs = self.base().shape
            A, B = delta.pair.A[:, :inputs].double(), delta.pair.B[:out].double()
            return own["d"].unsqueeze(1) * A, own["b"].unsqueeze(1) * B
        return (scale * own["E"] * own["A"] if self.delta == "adalora" else scale * own["A"]), own[
            "B"
        ]

    def base(self) -> Tensor:
        """Return the base's matrix (out, in) in float64."""
        return self.matrix(self.model().layer.weight.detach().double())

    def share(self, adapter: lorakit.Adapter, scale: float) -> Tensor:
        """Return magnitude / |W + s B A| of each row, in float64: DoRA's definition."""
        delta = adapter.deltas["layer"]
        V = self.base() + scale * (delta.B.detach().double() @ delta.A.detach().double())
        return delta.magnitude.detach().double() / V.norm(dim=1)

    def change(self, adapter: lorakit.Adapter, scale: float) -> Tensor:
        """Return what is added to the base's matrix, in float64, from the definition."""
        delta = adapter.deltas["layer"]
        own = {key: p.detach().double() for key, p in delta.named_parameters()}
        if self.delta == "loha":
            return scale * (own["w1_a"] @ own["w1_b"]) * (own["w2_a"] @ own["w2_b"])
        if self.delta == "lokr":
            w2 = own["w2"] if "w2" in own else own["w2_a"] @ own["w2_b"]
            return scale * torch.einsum("lm,kn->lkmn", own["w1"], w2).flatten(0, 1).flatten(1)
        A, B = self.factors(adapter, scale)
        low = B @ A
        if self.delta == "moved":
            return low - scale * (delta.B0.double() @ delta.A0.double())
        if self.delta != "dora":
            return low
        return self.share(adapter, scale).unsqueeze(1) * (self.base() + low) - self.base()


def fill(adapter: lorakit.Adapter, seed: int = 0) -> lorakit.Adapter:
    """Give every trained tensor random values: a fresh adapter shows one law only."""
    for at, (name, parameter) in enumerate(adapter.named_parameters()):
        drawn = randn(*parameter.shape, seed=1000 * seed + at) / 3
        # A magnitude is a norm: around where it starts.
        parameter.data.copy_(parameter.data * (1 + drawn) if name.endswith(".magnitude") else drawn)
    return adapter


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(bits(one[key]), bits(two[key]))
        for key in one
    )


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8)


def error(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want).abs().max())


UNBIASED = ("loha", "lokr")  # their files cannot hold biases
# What is refused: the rows of a transposed convolution's matrix are no outputs (DoRA); a change
# that is built whole is none for a table of tokens, and one pair of factors none for layers of
# several kinds; parts and weights that their module reads itself share one pair of plain factors in
# a file.
REFUSED = {
    "dora": ("transposed", "part"),
    "vera": ("part", "swapped", "embedding", "convolution", "transposed"),
    "loha": ("part", "swapped", "embedding", "transposed"),
    "adalora": ("part", "swapped"),
    "lokr": ("part", "swapped", "embedding", "transposed"),
}
ROWS = [
    Row(delta, kind, precision)
    for delta in DELTAS
    for kind in KINDS
    for precision in DTYPES
    if not kind.startswith(REFUSED.get(delta, ("nothing",)))
]
EXACT = [row for row in ROWS if row.precision == "float64"]
