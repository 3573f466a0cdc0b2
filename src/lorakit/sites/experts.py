"""Sites of experts: a stack of matrices, one for each expert, in one parameter.

The module of experts reads this parameter itself. While it runs, an UnsummedWeight is in its place:
a product with it goes through the base matrix and through the factors of the experts that are hit,
so the dense change is never built. Any other use of it builds the sum.

Source: huggingface/transformers 5, `integrations/moe.py`, for what a module of experts does with
    its weights.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.sites.base import WeightedChange, is_plain
from lorakit.sites.weight_swap import SwappedWeightSite

# Names of the stacks in transformers, in the order in which its modules register them: files nest
# their keys in this order.
STACK_NAMES = ("gate_up_proj", "gate_proj", "up_proj", "down_proj", "weight")
# Classes without an attribute that says whether they store (experts, in, out). Llama 4 does store
# it, but PEFT's files take its matrices as they are stored, so A is the factor next to the output
# here too.
CLASSES = {
    "Llama4TextExperts": STACK_NAMES,
    "Step3p7Experts": STACK_NAMES,
    "JetMoeParallelExperts": ("weight",),
}
# torch's grouped product takes rows of 16 bytes: ranks are padded to a multiple of 8 values.
GROUPED_MULTIPLE = 8

# Names of torch's products, by the position of an UnsummedWeight among the arguments.
PRODUCTS_BY_RIGHT = frozenset(
    ("linear", "bmm", "mm", "matmul", "__matmul__", "grouped_mm", "_grouped_mm")
)
PRODUCTS_BY_LEFT = frozenset(("bmm", "mm"))
# Attributes that depend on no value, so that those of the base weight serve.
METADATA = frozenset(
    (
        "shape",
        "size",
        "ndim",
        "dim",
        "dtype",
        "device",
        "numel",
        "is_cuda",
        "layout",
        "data_ptr",
        "stride",
    )
)


class UnsummedWeight:
    """base + the sum of left @ right over `pairs`, for torch's functions a tensor.

    A product with it is computed as a sum of products.

    Args:
        base: (..., n, m).
        pairs: left (..., n, rank) and right (..., rank, m), of the base's dtype.

    >>> base, left, right = torch.eye(2), torch.ones(2, 1), torch.ones(1, 2)
    >>> F.linear(torch.tensor([[1.0, 2.0]]), UnsummedWeight(base, [(left, right)]))
    tensor([[4., 5.]])
    """

    def __init__(self, base: Tensor, pairs: list[tuple[Tensor, Tensor]]):
        self.base, self.pairs = base, pairs

    def __getitem__(self, index: object) -> "UnsummedWeight | Tensor":
        """Return the matrices of some experts, unsummed for an integer or a tensor of integers."""
        if _selects_experts(index):
            experts = cast(Tensor, index)
            pairs = [(left[experts], right[experts]) for left, right in self.pairs]
            return UnsummedWeight(self.base[experts], pairs)
        return self.build_sum()[cast(Any, index)]

    def transpose(self, one: int, two: int) -> "UnsummedWeight | Tensor":
        """Return it with its last two axes exchanged; any other exchange builds the sum."""
        axes = self.base.ndim
        if {one % axes, two % axes} != {axes - 2, axes - 1}:
            return self.build_sum().transpose(one, two)
        pairs = [(right.mT, left.mT) for left, right in self.pairs]
        return UnsummedWeight(self.base.mT, pairs)

    def build_sum(self) -> Tensor:
        """Return the sum, as a merge builds it except that it is in the base's dtype."""
        changes = [left @ right for left, right in self.pairs]
        terms = torch.stack([self.base, *changes])
        return terms.sum(0)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self)  # type: ignore[arg-type]  # torch calls __torch_function__

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  any attribute of a tensor
        if name.startswith("__") or name in ("base", "pairs"):
            raise AttributeError(name)
        tensor = self.base if name in METADATA else self.build_sum()
        return getattr(tensor, name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Tensor],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        name = function.__name__.rpartition(".")[2]
        positions = [i for i, value in enumerate(args) if isinstance(value, cls)]
        if positions == [1] and name in PRODUCTS_BY_RIGHT:
            return _multiply_by(function, name, args, kwargs)
        if positions == [0] and name in PRODUCTS_BY_LEFT:
            return _multiply(function, *args)
        summed_args = [_replace_by_sum(value) for value in args]
        summed_kwargs = {key: _replace_by_sum(value) for key, value in kwargs.items()}
        return function(*summed_args, **summed_kwargs)


def _selects_experts(index: object) -> bool:
    if isinstance(index, Tensor):
        return not index.is_floating_point() and index.dtype != torch.bool
    return isinstance(index, int)


def _multiply_by(
    function: Callable[..., Tensor], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """Return a product whose second factor is an UnsummedWeight; `linear` transposes it."""
    x, weight, *rest = args
    y = function(x, weight.base, *rest, **kwargs)
    is_linear = name == "linear"
    if is_linear:
        rest, kwargs = [], {}  # the bias counts once
    for left, right in weight.pairs:
        first, second = (right, left) if is_linear else (left, right)
        if name.endswith("grouped_mm"):
            first = _pad_rank(first, -1)
            second = _pad_rank(second, -2)
        projected = function(x, first, *rest, **kwargs)
        y = y + function(projected, second, *rest, **kwargs)
    return y


def _multiply(function: Callable[..., Tensor], weight: UnsummedWeight, x: Tensor) -> Tensor:
    """Return a product whose first factor is an UnsummedWeight."""
    y = function(weight.base, x)
    for left, right in weight.pairs:
        y = y + function(left, function(right, x))
    return y


def _replace_by_sum(value: object) -> object:
    return value.build_sum() if isinstance(value, UnsummedWeight) else value


def _pad_rank(factor: Tensor, axis: int) -> Tensor:
    """Return a factor with zeros up to the next multiple along its rank."""
    missing = -factor.shape[axis] % GROUPED_MULTIPLE
    if not missing:
        return factor
    if axis == -1:
        return F.pad(factor, (0, missing))
    return F.pad(factor, (0, 0, 0, missing))


class ProductChange(Protocol):
    """A delta with the change scale * B @ A."""

    A: Tensor
    B: Tensor
    scale: float


@final
class ExpertsSite(SwappedWeightSite[nn.Module]):
    """A stack of matrices of a module of experts: M is (experts, out, in).

    Args:
        name: name of the parameter in the module.
        is_transposed: whether it is stored (experts, in, out).
    """

    def __init__(self, name: str, is_transposed: bool):
        super().__init__("experts", name)
        self.is_transposed = is_transposed

    def supports(self, layer: nn.Module) -> bool:
        names = [site.name for site in expert_sites(layer)]
        return self.name in names

    def read(self, layer: nn.Module) -> Tensor:
        weight = self.stored_weight(layer).detach()
        return self.to_weight(layer, weight)

    def to_weight(self, layer: nn.Module, M: Tensor) -> Tensor:
        return M.mT if self.is_transposed else M

    def swap_in(self, layer: nn.Module, changes: list[WeightedChange]) -> None:
        is_product = all(delta.is_product for _, _, delta in changes)
        # A compiled graph sums and multiplies in one kernel, and cannot trace an UnsummedWeight.
        if torch.compiler.is_compiling() or not is_product:
            super().swap_in(layer, changes)
            return
        base = self.stored_weight(layer).detach()
        pairs: list[tuple[Tensor, Tensor]] = []
        for weight, _, change in changes:
            delta = cast(ProductChange, change)
            factor = weight * delta.scale
            B = (delta.B * factor).to(base.dtype)
            A = delta.A.to(base.dtype)
            pairs.append((A.mT, B.mT) if self.is_transposed else (B, A))
        layer.__dict__[self.name] = UnsummedWeight(base, pairs)


EXPERT_SITES = {
    is_transposed: {name: ExpertsSite(name, is_transposed) for name in STACK_NAMES}
    for is_transposed in (False, True)
}


def expert_sites(layer: nn.Module) -> Iterator[ExpertsSite]:
    """Yield the sites of a module of experts; nothing for any other module."""
    # transformers sets this attribute on the classes that its own products of experts serve.
    is_transposed = layer.__dict__.get("is_transposed")
    default = () if is_transposed is None else STACK_NAMES
    names = CLASSES.get(type(layer).__name__, default)
    for name, weight in layer._parameters.items():
        if name not in names or weight is None:
            continue
        if weight.ndim == 3 and is_plain(weight):
            yield EXPERT_SITES[bool(is_transposed)][name]
