"""Weights of low rank: each matrix W itself cut by SVD. What LoRA is often taken for, and is not.

LoRA leaves W whole and learns a change of low rank. Cutting W saves memory where W is nearly of low
rank, which weights of trained models are not; DistilBERT and TinyBERT are something else again:
smaller models that learn from a large one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lorakit.adapter import Adapter
from lorakit.algebra.outcome import build_adapter
from lorakit.deltas.base import LowRank
from lorakit.errors import SpecError
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.targets import select
from lorakit.linalg import randomised_svd, split_singular_values
from lorakit.spec import Spec


@dataclass(frozen=True)
class TruncatedWeights:
    """What takes the tail off a model's matrices, and what that leaves.

    Attributes:
        adapter: adds W_r - W to each matrix: attached, the model computes with W_r; detached, with
            W again.
        error: |W - W_r| / |W| over all matrices together.
        stored_values: numbers that W_r takes as two factors, all matrices together.
        full_values: numbers that W takes.
    """

    adapter: Adapter
    error: float
    stored_values: int
    full_values: int


def truncate_weights(
    model: nn.Module, rank: int, targets: str | Sequence[str] = "all-linear"
) -> TruncatedWeights:
    """Return the adapter under which each matrix of a model is its own best approximation of a
    rank.

    Args:
        model: any module.
        rank: from 1; a matrix of no higher rank is left as it is.
        targets: which matrices, as in Spec.

    Raises:
        SpecError: the rank is none, or leaves every matrix as it is.
        TargetError: a target matches nothing.

    Cost: a dense SVD of every matrix; the adapter holds the tails, so it is large where the rank is
        small.
    Source: Eckart and Young, 1936: the error is the root of the sum of the squares of the singular
        values left out.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> model[0].weight.data = torch.diag(torch.tensor([4.0, 3.0]))
    >>> found = truncate_weights(model, 1)
    >>> found.error, found.stored_values, found.full_values
    (0.6, 4, 4)
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise SpecError(f"A rank of at least 1 is needed, got {rank!r}.")
    factors, like, lost, total, stored, whole = {}, {}, 0.0, 0.0, 0, 0
    for name, place in select(model, targets).items():
        W = place.site.read(place.layer)
        if W.ndim != 2:
            raise SpecError(
                f"{name} is a stack of matrices, which is not cut.", advice="Name other targets."
            )
        U, S, Vh = randomised_svd(W, min(W.shape))
        out, inputs = W.shape
        whole += out * inputs
        stored += min(rank * (out + inputs), out * inputs)
        lost, total = lost + float(S[rank:].square().sum()), total + float(S.square().sum())
        if len(S) > rank:
            A, B = split_singular_values(U[:, rank:], S[rank:], Vh[rank:], len(S) - rank)
            factors[name] = (A, -B)
            like[name] = LowRank(
                A[:1].float(),
                B[:, :1].float(),
                alpha=1.0,
                kind=place.site.kind,
                kernel=place.site.kernel(place.layer),
                output_slice=place.site.output_slice,
            )
    if not factors:
        raise SpecError(
            f"Rank {rank} leaves every matrix as it is: none has a higher one.",
            advice="Ask for a lower rank.",
        )
    origin = {"base_fingerprint": fingerprint(model)}
    adapter = build_adapter(
        like, Spec(targets=tuple(factors)), factors, {}, origin, next(model.parameters()).dtype
    )
    return TruncatedWeights(adapter, (lost / total) ** 0.5 if total else 0.0, stored, whole)
