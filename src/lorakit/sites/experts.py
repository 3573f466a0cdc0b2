"""Experts: a stack of matrices, one an expert, in one parameter that its module reads itself.

While the module runs it is lent a stand-in for W + change that was never summed: what it multiplies
by the stand-in goes through W and through the factors of the experts that are hit. Any other use of
the stand-in sums it.

Source: huggingface/transformers 5, `integrations/moe.py`, for what a module of experts does with
    its weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.sites.weight_swap import SwappedWeightSite

# Names that transformers gives them, as its modules register them: files nest their keys in this
# order.
STACK_NAMES = ("gate_up_proj", "gate_proj", "up_proj", "down_proj", "weight")
# Classes that do not say themselves whether they store them (experts, in, out). Llama 4's does, but
# PEFT's files take its matrices as they lie, so here too what is called A is the factor next to the
# output.
CLASSES = {
    "Llama4TextExperts": STACK_NAMES,
    "Step3p7Experts": STACK_NAMES,
    "JetMoeParallelExperts": ("weight",),
}
WHOLE = 8  # what a rank is filled up to where a kernel takes whole blocks of 16 bytes alone


class UnsummedWeight:
    """W + the sum of L @ R over `pairs`, as torch's functions see it: a product with it is a sum of
    products.

    Args:
        W: (..., n, m).
        pairs: L (..., n, rank) and R (..., rank, m), of W's dtype.

    >>> W, L, R = torch.eye(2), torch.ones(2, 1), torch.ones(1, 2)
    >>> F.linear(torch.tensor([[1.0, 2.0]]), UnsummedWeight(W, [(L, R)]))
    tensor([[4., 5.]])
    """

    def __init__(self, W: Tensor, pairs: list[tuple[Tensor, Tensor]]):
        self.W, self.pairs = W, pairs

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, int) or (
            isinstance(at, Tensor) and not at.is_floating_point() and at.dtype != torch.bool
        ):
            return UnsummedWeight(self.W[at], [(L[at], R[at]) for L, R in self.pairs])
        return self.summed()[at]

    def transpose(self, one: int, two: int) -> Any:
        """Return the stand-in with its last two axes exchanged; any other exchange sums it."""
        if {one % self.W.ndim, two % self.W.ndim} != {self.W.ndim - 2, self.W.ndim - 1}:
            return self.summed().transpose(one, two)
        return UnsummedWeight(self.W.mT, [(R.mT, L.mT) for L, R in self.pairs])

    def summed(self) -> Tensor:
        """Return W with the changes added, as a merge adds them but for W's dtype."""
        return torch.stack([self.W, *(L @ R for L, R in self.pairs)]).sum(0)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self)  # type: ignore[arg-type]  # torch asks __torch_function__

    def __getattr__(self, name: str) -> Any:
        # What tells no values is W's; everything else is a tensor's, and needs the sum.
        if name.startswith("__") or name in ("W", "pairs"):
            raise AttributeError(name)
        plain = name in (
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
        return getattr(self.W if plain else self.summed(), name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), function.__name__.rpartition(".")[2]
        here = [i for i, value in enumerate(args) if isinstance(value, cls)]
        if here == [1] and name in (
            "linear",
            "bmm",
            "mm",
            "matmul",
            "__matmul__",
            "grouped_mm",
            "_grouped_mm",
        ):
            x, M, *rest = args
            y = function(x, M.W, *rest, **kwargs)
            rest, kwargs = ([], {}) if name == "linear" else (rest, kwargs)  # the bias counts once
            for L, R in M.pairs:
                first, second = (R, L) if name == "linear" else (L, R)
                if name.endswith("grouped_mm"):
                    first, second = _filled(first, -1), _filled(second, -2)
                y = y + function(function(x, first, *rest, **kwargs), second, *rest, **kwargs)
            return y
        if here == [0] and name in ("bmm", "mm"):
            M, x = args
            return sum((function(L, function(R, x)) for L, R in M.pairs), function(M.W, x))
        args = [value.summed() if isinstance(value, cls) else value for value in args]
        return function(
            *args,
            **{
                key: value.summed() if isinstance(value, cls) else value
                for key, value in kwargs.items()
            },
        )


def _filled(factor: Tensor, axis: int) -> Tensor:
    """Return a factor with zeros up to a whole block along its rank."""
    more = -factor.shape[axis] % WHOLE
    return F.pad(factor, (0, more) if axis == -1 else (0, 0, 0, more)) if more else factor


class ExpertsSite(SwappedWeightSite):
    """The stack called `key` of a module of experts: M is (experts, out, in).

    Args:
        key: its name in the module.
        turned: whether it is stored (experts, in, out).
    """

    def __init__(self, key: str, turned: bool):
        super().__init__("experts", key)
        self.turned = turned

    def supports(self, layer: nn.Module) -> bool:
        return any(site is self for site in expert_sites(layer))

    def read(self, layer: Any) -> Tensor:
        return self.to_weight(layer, self.stored_weight(layer).detach())

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M.mT if self.turned else M

    def swap_in(self, layer: nn.Module, changes: list[tuple[float, Any, Any]]) -> None:
        # A compiled graph sums and multiplies in one, and knows no stand-ins.
        if torch.compiler.is_compiling() or not all(delta.is_product for _, _, delta in changes):
            super().swap_in(layer, changes)
            return
        W = self.stored_weight(layer).detach()
        pairs = [
            ((delta.B * (weight * delta.scale)).to(W.dtype), delta.A.to(W.dtype))
            for weight, _, delta in changes
        ]
        layer.__dict__[self.name] = UnsummedWeight(
            W, [(A.mT, B.mT) if self.turned else (B, A) for B, A in pairs]
        )


STACKS = {
    turned: {key: ExpertsSite(key, turned) for key in STACK_NAMES} for turned in (False, True)
}


def expert_sites(layer: nn.Module) -> Iterator[ExpertsSite]:
    """Yield the sites of a module of experts; nothing for any other module."""
    turned = layer.__dict__.get(
        "is_transposed"
    )  # set by transformers on classes that its own products of experts serve
    names = CLASSES.get(type(layer).__name__, () if turned is None else STACK_NAMES)
    for key, weight in layer._parameters.items():
        if key in names and weight is not None and weight.ndim == 3 and weight.is_floating_point():
            yield STACKS[bool(turned)][key]
