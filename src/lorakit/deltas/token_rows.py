"""Some rows of an embedding that train by themselves, such as those of new tokens; and a layer that
shares its weight.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.base import Delta
from lorakit.deltas.lora_autograd import is_traced
from lorakit.errors import SpecError


class TokenRows(Delta):
    """Trained rows in the places of some rows of an embedding or a head (V, d); all others stay as
    they are.

    The rows themselves are kept, not what they differ by: where a vocabulary was enlarged, the
        base's rows for the new
    tokens are random, and other ones each time.

    Args:
        new: (tokens, d), the rows; they start as the base's.
        tokens: (tokens,), whose rows these are.
        size: V; 0 where a file did not tell.
        kind: of the layer: "embedding", "linear" for a head, or "" where a file did not tell.

    Source: huggingface/peft 0.21, `tuners/trainable_tokens`: the rows are replaced, not added to.

    >>> W = torch.zeros(4, 2)
    >>> TokenRows(torch.ones(1, 2), torch.tensor([2]), kind="linear").matrix(W).tolist()
    [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """

    name, zero_parameter = "token-rows", ""  # no gradient in a batch without these tokens
    by_token = True

    def __init__(self, new: Tensor, tokens: Tensor, size: int = 0, kind: str = "embedding"):
        super().__init__(len(new), alpha=max(1.0, len(new)), kind=kind)
        self.new, self.size = nn.Parameter(new), size
        self.register_buffer("tokens", tokens.detach().clone())
        self.tokens: Tensor

    @property
    def rank(self) -> int:
        """The number of rows: the most that the rank of their change can be."""
        return len(self.new)

    @property
    def shape(self) -> tuple[int, int]:
        d = self.new.shape[1]
        return (d, self.size) if self.kind == "embedding" else (self.size, d)

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        # Of a vocabulary and a width: a file of PEFT's does not tell which layer it was.
        d, size = (
            (shape if self.kind == "embedding" else shape[::-1])
            if self.kind
            else put_width_first(self.new.shape[1], shape)
        )
        if self.new.shape[1] != d:
            yield f"its rows have {self.new.shape[1]} values, the layer's {d}"
        elif (last := int(self.tokens.max())) >= size:
            yield f"trains the row of token {last}, the layer has {size} (is the vocabulary to be resized first?)"

    def complete_for_layer(
        self, kind: str, kernel: tuple[int, ...], shape: tuple[int, int]
    ) -> None:
        super().complete_for_layer(kind, kernel, shape)
        self.size = shape[1] if self.kind == "embedding" else shape[0]

    def difference(self, M: Tensor, *, turned: bool, least: torch.dtype = torch.float32) -> Tensor:
        """Return what the rows differ by from those of the base's matrix M, or of M turned:
        (tokens, d).
        """
        old = (M.T if turned else M)[self.tokens]
        wide = torch.promote_types(torch.promote_types(old.dtype, self.new.dtype), least)
        return self.new.to(wide) - old.to(wide)

    def matrix(self, M: Tensor | None = None) -> Tensor:
        """Return the change of M, in float64: M plus it is then the new rows to the bit."""
        if M is None:
            raise SpecError(
                "What new rows change depends on the base's: give matrix(M) the base's matrix."
            )
        turned = self.kind == "embedding"
        change = self.difference(M, turned=turned, least=torch.float64)
        whole = change.new_zeros(M.T.shape if turned else M.shape).index_copy(
            0, self.tokens, change
        )
        return whole.T if turned else whole

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if site.kind != "embedding":
            return self.add_change(site, layer, x, y, torch.zeros_like(y), 1.0, into=False)
        change = self.difference(site.read(layer), turned=True).to(y.dtype)
        hits = x.unsqueeze(-1) == self.tokens
        rows = F.embedding(hits.to(torch.uint8).argmax(-1), change)
        return torch.where(hits.any(-1, keepdim=True), rows, torch.zeros_like(rows))

    def add_change(
        self,
        site: Any,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        into: bool,
    ) -> Tensor:
        if site.kind == "embedding":
            return super().add_change(site, layer, x, y, out, weight, into=into)
        # No second tensor of the size of all logits.
        change = F.linear(x, self.difference(site.read(layer), turned=False).to(y.dtype) * weight)
        return (out.index_add_ if into and not is_traced() else out.index_add)(
            -1, self.tokens, change
        )


def put_width_first(d: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Return width and vocabulary of a matrix: the width is the axis of d values, the last where
    both or none are.

    >>> put_width_first(4, (4, 9)), put_width_first(4, (9, 4))
    ((4, 9), (4, 9))
    """
    return shape if shape[0] == d and shape[1] != d else (shape[1], shape[0])


class TiedTokenRows(Delta):
    """What the delta of one layer changes, at another that shares its weight (a head that is the
    embedding).

    It has no parameters: the other's are what trains.

    Args:
        of: the other layer's.
        kind: of this layer; where one is an embedding and the other is not, the matrix is the
            other's turned.
    """

    name, zero_parameter, by_token = "tied", "", True

    def __init__(self, of: TokenRows, kind: str):
        super().__init__(of.rank, alpha=of.alpha, kind=kind)
        self.held = [of]  # in a list: no child of this module

    @property
    def source(self) -> TokenRows:
        return self.held[0]

    @property
    def rank(self) -> int:
        return self.source.rank

    @property
    def shape(self) -> tuple[int, int]:
        out, inputs = self.source.shape
        return (inputs, out) if self.transposed else (out, inputs)

    @property
    def transposed(self) -> bool:
        return (self.kind == "embedding") != (self.source.kind == "embedding")

    def matrix(self, M: Tensor | None = None) -> Tensor:
        return (
            self.source.matrix(M.T if self.transposed and M is not None else M).T
            if self.transposed
            else self.source.matrix(M)
        )

    def forward(self, site: Any, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.source(site, layer, x, y)

    def add_change(
        self,
        site: Any,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        into: bool,
    ) -> Tensor:
        return self.source.add_change(site, layer, x, y, out, weight, into=into)
