"""TokenRows: trained rows of an embedding or a head, such as those of new tokens."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.base import Delta
from lorakit.deltas.lora_autograd import is_traced
from lorakit.errors import SpecError
from lorakit.sites.base import Site


class TokenRows(Delta):
    """Trained rows that replace rows of an embedding or a head (V, d); all others stay the base's.

    The rows themselves are stored, not their difference to the base's: after a vocabulary was
    enlarged, the base's rows for the new tokens are random, and different each time.

    Args:
        new: (tokens, d), the rows; they start as the base's.
        tokens: (tokens,), the ids of their tokens.
        size: V; 0 if a file does not store it.
        kind: of the layer: "embedding", "linear" for a head, or "" if a file does not store it.

    Source: huggingface/peft 0.21, `tuners/trainable_tokens`: the rows are replaced, not added to.

    >>> W = torch.zeros(4, 2)
    >>> TokenRows(torch.ones(1, 2), torch.tensor([2]), kind="linear").matrix(W).tolist()
    [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """

    name = "token-rows"
    by_token = True
    zero_parameter = ""
    tokens: Tensor

    def __init__(self, new: Tensor, tokens: Tensor, size: int = 0, kind: str = "embedding"):
        super().__init__(len(new), alpha=max(1.0, len(new)), kind=kind)
        self.new = nn.Parameter(new)
        self.size = size
        self.register_buffer("tokens", tokens.detach().clone())

    @property
    def rank(self) -> int:
        """The number of rows: an upper bound of the rank of their change."""
        return len(self.new)

    @property
    def width(self) -> int:
        return self.new.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        if self.kind == "embedding":
            return self.width, self.size
        return self.size, self.width

    def shape_faults(self, shape: tuple[int, int]) -> Iterator[str]:
        if self.kind == "embedding":
            width, size = shape
        elif self.kind:
            size, width = shape
        else:
            width, size = put_width_first(self.width, shape)
        if self.width != width:
            yield f"its rows have {self.width} values, the layer's {width}"
            return
        last = int(self.tokens.max())
        if last >= size:
            hint = "is the vocabulary to be resized first?"
            yield f"trains the row of token {last}, the layer has {size} ({hint})"

    def complete_for_layer(
        self, kind: str, kernel: tuple[int, ...], shape: tuple[int, int]
    ) -> None:
        super().complete_for_layer(kind, kernel, shape)
        self.size = shape[1] if self.kind == "embedding" else shape[0]

    def difference(
        self, M: Tensor, *, transposed: bool, least: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the rows minus those of the base's matrix M, or of M transposed: (tokens, d).

        Its dtype is at least `least`.
        """
        rows = (M.T if transposed else M)[self.tokens]
        wide = torch.promote_types(torch.promote_types(rows.dtype, self.new.dtype), least)
        return self.new.to(wide) - rows.to(wide)

    def matrix(self, M: Tensor | None = None) -> Tensor:
        """Return the change of M in float64, so that M plus it has exactly the new rows."""
        if M is None:
            raise SpecError(
                "The change of token rows depends on the base's matrix.",
                advice="Call matrix(M) with it.",
            )
        transposed = self.kind == "embedding"
        change = self.difference(M, transposed=transposed, least=torch.float64)
        full = change.new_zeros(M.T.shape if transposed else M.shape)
        full = full.index_copy(0, self.tokens, change)
        return full.T if transposed else full

    def forward(self, site: Site, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if site.kind != "embedding":
            return self.add_change(site, layer, x, y, torch.zeros_like(y), 1.0, in_place=False)
        change = self.difference(site.read(layer), transposed=True).to(y.dtype)
        matches = x.unsqueeze(-1) == self.tokens  # (..., tokens)
        numbers = matches.to(torch.uint8).argmax(-1)  # 0 also where no token matches
        is_trained = matches.any(-1, keepdim=True)
        rows = F.embedding(numbers, change)
        return torch.where(is_trained, rows, torch.zeros_like(rows))

    def add_change(
        self,
        site: Site,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        in_place: bool,
    ) -> Tensor:
        if site.kind == "embedding":
            return super().add_change(site, layer, x, y, out, weight, in_place=in_place)
        # Without a second tensor of the size of all logits.
        rows = self.difference(site.read(layer), transposed=False).to(y.dtype)
        change = F.linear(x, rows * weight)
        if in_place and not is_traced():
            return out.index_add_(-1, self.tokens, change)
        return out.index_add(-1, self.tokens, change)


def put_width_first(width: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Return width and vocabulary size of a matrix whose axes are in unknown order.

    The width is the axis of `width` values, the last axis if both or none are.

    >>> put_width_first(4, (4, 9)), put_width_first(4, (9, 4))
    ((4, 9), (4, 9))
    """
    first, last = shape
    if first == width and last != width:
        return first, last
    return last, first


class TiedTokenRows(Delta):
    """The token rows of one layer, in another layer that shares its weight.

    It has no parameters: those of the other layer train.

    Args:
        source: the other layer's delta.
        kind: of this layer; if one is an embedding and the other is not, the matrix is the other's
            transposed.
    """

    name = "tied"
    by_token = True
    zero_parameter = ""

    def __init__(self, source: TokenRows, kind: str):
        super().__init__(source.rank, alpha=source.alpha, kind=kind)
        # In a list, so that it is no child of this module.
        self.sources = [source]

    @property
    def source(self) -> TokenRows:
        return self.sources[0]

    @property
    def rank(self) -> int:
        return self.source.rank

    @property
    def shape(self) -> tuple[int, int]:
        out, inputs = self.source.shape
        return (inputs, out) if self.is_transposed else (out, inputs)

    @property
    def is_transposed(self) -> bool:
        """True if the matrix is the other layer's transposed."""
        return (self.kind == "embedding") != (self.source.kind == "embedding")

    def matrix(self, M: Tensor | None = None) -> Tensor:
        if not self.is_transposed:
            return self.source.matrix(M)
        return self.source.matrix(None if M is None else M.T).T

    def forward(self, site: Site, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.source(site, layer, x, y)

    def add_change(
        self,
        site: Site,
        layer: nn.Module,
        x: Tensor,
        y: Tensor,
        out: Tensor,
        weight: float,
        *,
        in_place: bool,
    ) -> Tensor:
        return self.source.add_change(site, layer, x, y, out, weight, in_place=in_place)
