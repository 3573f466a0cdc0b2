"""TiedLowRank: the change of an embedding at a layer that shares its weight, by the very same factors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorakit.deltas.base import Delta, LowRank


class TiedLowRank(LowRank):
    """What the factors of one embedding change, at a head (or another embedding) that shares its
    weight.

    It has no parameters: A and B are the embedding's, for a head turned. So the pair trains once,
        by what arrives from both.

    Args:
        of: the embedding's.
        kind: of this layer: "linear", or "embedding".
        dropout: on the input of this layer; the change of the weight is the same.

    Source: huggingface/peft 0.21, `ensure_weight_tying` of `tuners/lora/config.py`: the same
        change, saved alike.

    >>> of = LowRank(torch.ones(1, 3), torch.ones(2, 1), alpha=2.0, kind="embedding")
    >>> tuple(TiedLowRank(of, "linear").A.shape), TiedLowRank(of, "linear").matrix().tolist()
    ((1, 2), [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]])
    """

    zero_parameter = ""  # the embedding's

    def __init__(self, of: LowRank, kind: str, dropout: float = 0.0):
        super(LowRank, self).__init__(
            of.rank, alpha=of.alpha, scale_rule=of.scale_rule, dropout=dropout, kind=kind
        )
        self.held = [of]  # in a list: no child of this module

    @property
    def source(self) -> LowRank:
        return self.held[0]

    @property
    def transposed(self) -> bool:
        return self.kind != "embedding"

    @property
    def A(self) -> Any:
        return self.source.B.T if self.transposed else self.source.A

    @property
    def B(self) -> Any:
        return self.source.A.T if self.transposed else self.source.B

    def matrix(self, M: Tensor | None = None) -> Tensor:
        # Not A' and B' multiplied: that may round otherwise, and the weight would not stay shared
        # when it is merged.
        return self.source.matrix().T if self.transposed else self.source.matrix()

    def to_low_rank(self) -> LowRank:
        """Return the same change with factors of its own, as a file holds it."""
        A, B = (t.detach().clone(memory_format=torch.contiguous_format) for t in (self.A, self.B))
        return LowRank(
            A, B, alpha=self.alpha, scale_rule=self.scale_rule, dropout=self.dropout, kind=self.kind
        )


def retie(deltas: Mapping[str, Delta]) -> dict[str, Delta]:
    """Return deltas with a TiedLowRank wherever the factors are an embedding's bit for bit, for a head
    turned: as `to_low_rank` left them.

    Args:
        deltas: by module name.
    """
    joined: dict[str, Delta] = {}
    embeddings = [d for d in deltas.values() if type(d) is LowRank and d.kind == "embedding"]
    for name, delta in deltas.items():
        joined[name] = delta
        if (
            not isinstance(delta, LowRank)
            or type(delta) is not LowRank
            or delta.kernel
            or delta.output_slice
        ):
            continue
        # Of an embedding, those before it: those after it are twins of this one.
        before = embeddings[: embeddings.index(delta)] if delta in embeddings else embeddings
        for twin in (
            TiedLowRank(of, delta.kind, delta.dropout) for of in before if of.scale == delta.scale
        ):
            if torch.equal(twin.A, delta.A) and torch.equal(twin.B, delta.B):
                joined[name] = twin
                break
    return joined
