"""The rows on which every law is tested: delta x kind of layer x dtype.

A new delta or a new storage is a new row here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lorakit
from lorakit.deltas.base import Delta

from .formulas import Patches
from .kinds import ADDED, KINDS, Kind

DELTAS: dict[str, dict[str, Any]] = {  # name -> fields of Spec
    "lowrank": {},
    "dora": {"delta": "dora"},
    "offset": {"init": "pissa"},
    "vera": {"delta": "vera"},
    "loha": {"delta": "loha"},
    "lokr": {"delta": "lokr"},
    "adalora": {"delta": "adalora"},
}
RANDOM = {  # name -> the tensor that is random at the start
    "lowrank": "A",
    "dora": "A",
    "offset": "A",
    "vera": "pair.A",
    "loha": "w1_b",
    "lokr": "w2",
    "adalora": "A",
}
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
UNBIASED = ("loha", "lokr")  # their files cannot hold biases
# Beginnings of the names of kinds that a delta refuses.
REFUSED = {
    "dora": ("transposed", "part"),
    "vera": ("part", "swapped", "embedding", "convolution", "transposed"),
    "loha": ("part", "swapped", "embedding", "transposed"),
    "adalora": ("part", "swapped"),
    "lokr": ("part", "swapped", "embedding", "transposed"),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def fill(adapter: lorakit.Adapter, seed: int = 0) -> lorakit.Adapter:
    """Give every trained tensor random values: a fresh adapter shows one law only."""
    for at, (name, parameter) in enumerate(adapter.named_parameters()):
        values = randn(*parameter.shape, seed=1000 * seed + at) / 3
        if name.endswith(".magnitude"):
            # A magnitude is a norm: around its start.
            values = parameter.data * (1 + values)
        parameter.data.copy_(values)
    return adapter


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().flatten().contiguous().view(torch.uint8)


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    if one.keys() != two.keys():
        return False
    for key, tensor in one.items():
        if tensor.dtype != two[key].dtype or not torch.equal(bits(tensor), bits(two[key])):
            return False
    return True


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


def error(got: Tensor, want: Tensor) -> float:
    return largest(got.detach().double() - want)


def within(got: Tensor, want: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    """Return True if the error is at most twice that of the plain expression at the same dtype.

    One further rounding is allowed. In float64 `want` is rounded too, by sums in another order:
    eight roundings.
    """
    roundings = 8 if dtype == torch.float64 else 1
    rounding = torch.finfo(dtype).eps * largest(want)
    return error(got, want) <= 2 * error(plain, want) + roundings * rounding


def parameters_of(delta: Delta) -> dict[str, Tensor]:
    return {key: parameter.detach().double() for key, parameter in delta.named_parameters()}


@dataclass(frozen=True)
class Row:
    """A delta on a kind of layer in a dtype.

    `layer` of its model is adapted, `rest` is not. All values of the oracle are in float64.
    """

    delta: str
    kind: str
    precision: str

    def __str__(self) -> str:
        return f"{self.delta}-{self.kind}-{self.precision}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def of(self) -> Kind:
        return KINDS[self.kind]

    @property
    def embeds(self) -> bool:
        return self.kind.startswith("embedding")

    @property
    def is_swapped(self) -> bool:
        return self.kind == "swapped"

    @property
    def first_input(self) -> tuple[int, ...]:
        """The index of a single input in `x`; that of a convolution has channels and axes."""
        return (0,) if self.of.is_convolution else (0, 0)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as its matrix (out, in), or the rows of it that are adapted."""
        M = weight.flatten(1)
        if self.of.transposed:
            M = M.T
        return M[list(self.of.outputs)] if self.of.outputs else M

    def widen(self, values: Tensor, axis: int, rest: float = 0.0) -> Tensor:
        """Return values of the adapted outputs among all outputs."""
        if not self.of.outputs:
            return values
        shape = list(values.shape)
        shape[axis] = self.of.width
        indices = torch.tensor(self.of.outputs)
        return values.new_full(shape, rest).index_copy(axis, indices, values)

    def model(self) -> nn.Sequential:
        """Return a model whose `layer` is adapted and whose `rest` is not."""
        model = nn.Sequential()
        model.add_module("layer", self.of.make())
        # With channels last in memory, torch takes another path for a frozen rest.
        model.add_module("flat", nn.Flatten(0, -2))
        model.add_module("rest", nn.Linear(self.of.width, 4))
        for seed, parameter in enumerate(model.parameters()):
            parameter.data.copy_(randn(*parameter.shape, seed=100 + seed) / 2)
        return model.to(self.dtype)

    def x(self, count: int = 7) -> Tensor:
        if self.embeds:
            return torch.arange(2 * count).reshape(2, count) % 20
        shape = self.of.x if self.of.is_convolution else (count, *self.of.x)
        return randn(2, *shape, seed=7).to(self.dtype)

    def spec(self, **fields: Any) -> lorakit.Spec:
        dtype = "float64" if self.precision == "float64" else "float32"
        common = {"rank": 3, "alpha": 4.5, "targets": ["layer"], "dtype": dtype}
        return lorakit.Spec(**{**common, **DELTAS[self.delta], **fields})

    def attached(
        self, name: str = "default", seed: int = 0, **fields: Any
    ) -> tuple[nn.Sequential, lorakit.Adapter]:
        """Return a model with an adapter whose factors are all filled."""
        model = self.model()
        adapter = lorakit.attach(model, self.spec(**fields), name=name)
        return model, fill(adapter, seed)

    def base_output(self) -> Tensor:
        return self.model().layer(self.x()).detach()

    def dense(self, model: nn.Sequential, *changes: Tensor) -> Tensor:
        """Return the right output of `layer` for `x`, with changes (out, in) of the matrix."""
        total = sum(changes, torch.zeros((), dtype=torch.float64))
        return self.formula(model, total, torch.float64)

    def formula(self, model: nn.Sequential, change: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the output at a dtype; the matrix is summed in float64 and rounded once."""
        layer = model.layer
        weight = layer.weight.detach().double()
        if change.ndim:
            weight = weight + self.as_weight(change, weight)
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias = bias.detach().to(dtype)
        x = self.x() if self.embeds else self.x().to(dtype)
        return self.of.dense(weight.to(dtype), bias, x)

    def as_weight(self, change: Tensor, weight: Tensor) -> Tensor:
        """Return a change of the matrix in the layout of the weight."""
        full = change.T if self.of.transposed else self.widen(change, 0)
        return full.reshape(weight.shape)

    def plain(
        self,
        y: Tensor,
        adapter: lorakit.Adapter,
        scale: float,
        weight: float = 1.0,
        base: Tensor | None = None,
    ) -> Tensor:
        """Return y + weight * (the change of the output), everything at the row's dtype.

        Args:
            y: the output so far.
            adapter: the adapter.
            scale: of its delta.
            weight: of the adapter.
            base: the layer's own output; y if it is not given.
        """
        change = self.plain_change(adapter, scale)
        if self.delta != "dora":
            return y + weight * change
        base = y if base is None else base
        across = [1] * (change.ndim - 2 if self.of.is_convolution else 0)
        factor = self.widen(self.row_factor(adapter, scale).to(self.dtype), 0, 1.0)
        factor = factor.view(-1, *across)
        bias = getattr(self.model().layer, "bias", None)
        without_bias = base if bias is None else base - bias.detach().view(-1, *across)
        return y + weight * (factor * (without_bias + change) - without_bias)

    def plain_change(self, adapter: lorakit.Adapter, scale: float) -> Tensor:
        """Return the change of the output at the row's dtype; of DoRA that of its low rank."""
        delta = adapter.deltas["layer"]
        if self.delta in ("loha", "lokr"):
            return self.apply(self.change(adapter, scale))
        if self.delta in ("vera", "adalora"):
            A, B = self.factors(adapter, scale)
            return self.of.factors(A.to(self.dtype), B.to(self.dtype), self.x())
        if self.delta != "offset":
            return scale * self.apply_factors(delta.A, delta.B)
        # B A - B0 A0 in the form that is exactly zero at the start (deltas/offset.py): in the other
        # form the roundings, and so the largest error, fall elsewhere on each processor.
        first = self.apply_factors(delta.A, delta.B - delta.B0)
        return scale * (first + self.apply_factors(delta.A - delta.A0, delta.B0))

    def apply_factors(self, A: Tensor, B: Tensor) -> Tensor:
        """Return (B A) x at the row's dtype."""
        wide_B = self.widen(B.detach().to(self.dtype), 0)
        return self.of.factors(A.detach().to(self.dtype), wide_B, self.x())

    def apply(self, change: Tensor) -> Tensor:
        """Return the output of a change (out, in) for `x`, rounded to the row's dtype first."""
        weight = self.as_weight(change, self.model().layer.weight)
        return self.of.dense(weight.to(self.dtype), None, self.x())

    def factors(self, adapter: lorakit.Adapter, scale: float) -> tuple[Tensor, Tensor]:
        """Return A and B whose product is the low-rank change, from the definition."""
        delta = adapter.deltas["layer"]
        own = parameters_of(delta)
        if self.delta == "vera":  # the shared B contains its scale
            out, inputs = self.base().shape
            A = delta.pair.A[:, :inputs].double()
            B = delta.pair.B[:out].double()
            return own["d"].unsqueeze(1) * A, own["b"].unsqueeze(1) * B
        if self.delta == "adalora":
            return scale * own["E"] * own["A"], own["B"]
        return scale * own["A"], own["B"]

    def base(self) -> Tensor:
        """Return the base's matrix (out, in)."""
        return self.matrix(self.model().layer.weight.detach().double())

    def row_factor(self, adapter: lorakit.Adapter, scale: float) -> Tensor:
        """Return magnitude / |W + s B A| of each row: the definition of DoRA."""
        own = parameters_of(adapter.deltas["layer"])
        changed = self.base() + scale * (own["B"] @ own["A"])
        return own["magnitude"] / changed.norm(dim=1)

    def change(self, adapter: lorakit.Adapter, scale: float) -> Tensor:
        """Return the change of the base's matrix, from the definition."""
        delta = adapter.deltas["layer"]
        own = parameters_of(delta)
        if self.delta == "loha":
            return scale * (own["w1_a"] @ own["w1_b"]) * (own["w2_a"] @ own["w2_b"])
        if self.delta == "lokr":
            w2 = own["w2"] if "w2" in own else own["w2_a"] @ own["w2_b"]
            product = torch.einsum("lm,kn->lkmn", own["w1"], w2)
            if "w2" in own and len(delta.kernel) == 1:
                by_channel = w2.unflatten(1, (-1, *delta.kernel))
                product = torch.einsum("knt,lm->klnmt", by_channel, own["w1"])
            return scale * product.flatten(0, 1).flatten(1)
        A, B = self.factors(adapter, scale)
        product = B @ A
        if self.delta == "offset":
            return product - scale * (delta.B0.double() @ delta.A0.double())
        if self.delta == "dora":
            factor = self.row_factor(adapter, scale).unsqueeze(1)
            return factor * (self.base() + product) - self.base()
        return product


ROWS: list[Row] = []
for delta_name in DELTAS:
    for kind_name in KINDS:
        if not kind_name.startswith(REFUSED.get(delta_name, ("nothing",))):
            ROWS += [Row(delta_name, kind_name, precision) for precision in DTYPES]
EXACT = [row for row in ROWS if row.precision == "float64"]
__all__ = [
    "ADDED",
    "DELTAS",
    "DTYPES",
    "EXACT",
    "KINDS",
    "RANDOM",
    "ROWS",
    "UNBIASED",
    "Patches",
    "Row",
    "bits",
    "error",
    "fill",
    "largest",
    "randn",
    "same_bits",
    "state",
    "within",
]
