"""TiedLowRank: the factors of an embedding, used in a layer that shares the embedding's weight."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lorakit.deltas.base import Delta, LowRank


class TiedLowRank(LowRank):
    """The change of an embedding, for a head or another embedding that shares its weight.

    It has no parameters: A and B are the embedding's, transposed for a head. So one pair of factors
    trains, with the gradients of both layers.

    Args:
        source: the embedding's delta.
        kind: of this layer: "linear", or "embedding".
        dropout: on the input of this layer; the change of the weight is the same.

    Source: huggingface/peft 0.21, `ensure_weight_tying` of `tuners/lora/config.py`: the same
        change, saved alike.

    >>> source = LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=2.0, kind="embedding")
    >>> tied = TiedLowRank(source, "linear")
    >>> tuple(tied.A.shape), tied.matrix().tolist()
    ((1, 2), [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]])
    """

    zero_parameter = ""

    def __init__(self, source: LowRank, kind: str, dropout: float = 0.0):
        super(LowRank, self).__init__(
            source.rank,
            alpha=source.alpha,
            scale_rule=source.scale_rule,
            dropout=dropout,
            kind=kind,
        )
        # In a list, so that it is no child of this module.
        self.sources = [source]

    @property
    def source(self) -> LowRank:
        return self.sources[0]

    @property
    def is_transposed(self) -> bool:
        """True if the matrix is the embedding's transposed."""
        return self.kind != "embedding"

    @property
    def A(self) -> Tensor:
        return self.source.B.T if self.is_transposed else self.source.A

    @property
    def B(self) -> Tensor:
        return self.source.A.T if self.is_transposed else self.source.B

    def matrix(self, M: Tensor | None = None) -> Tensor:
        # Not B A: that product can round otherwise, and a merge would end the sharing.
        change = self.source.matrix()
        return change.T if self.is_transposed else change

    def to_low_rank(self) -> LowRank:
        """Return the same change as a LowRank with its own factors, as a file stores it."""
        A = self.A.detach().clone(memory_format=torch.contiguous_format)
        B = self.B.detach().clone(memory_format=torch.contiguous_format)
        return LowRank(A, B, **self.options())


def retie(deltas: Mapping[str, Delta]) -> dict[str, Delta]:
    """Return deltas with a TiedLowRank for each one that has the factors of an embedding.

    It is the inverse of `to_low_rank`: the factors must be equal bit for bit, transposed for a
    head.

    Args:
        deltas: by module name.
    """
    plain = {name: delta for name, delta in deltas.items() if type(delta) is LowRank}
    embeddings = [delta for delta in plain.values() if delta.kind == "embedding"]
    retied = dict(deltas)
    for name, delta in plain.items():
        if not delta.kernel and not delta.output_slice:
            retied[name] = _find_tied(delta, embeddings) or delta
    return retied


def _find_tied(delta: LowRank, embeddings: list[LowRank]) -> TiedLowRank | None:
    """Return the same change, tied to an embedding; None if no embedding has these factors."""
    for embedding in embeddings:
        if embedding is delta:
            return None  # the embeddings after it are tied to this one
        if embedding.scale != delta.scale:
            continue
        tied = TiedLowRank(embedding, delta.kind, delta.dropout)
        if torch.equal(tied.A, delta.A) and torch.equal(tied.B, delta.B):
            return tied
    return None
