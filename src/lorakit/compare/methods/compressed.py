"""Compression of a model: each weight matrix W replaced by its best low-rank approximation.

This is not LoRA, which keeps W and learns a low-rank change. Truncating W saves memory if W is
nearly of low rank, which the weights of trained models are not. Distilled models (DistilBERT,
TinyBERT) are different again: smaller models that learn from a large one.

Source: Eckart and Young, 1936: with W = U S Vh the error of the truncation is the root of the sum
    of the squares of the singular values left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.algebra.outcome import build_adapter, empty_delta
from lorakit.deltas.base import LowRank
from lorakit.errors import SpecError
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.places import Place
from lorakit.inject.targets import select
from lorakit.linalg import Factors, split_singular_values, thin_svd
from lorakit.spec import Spec, is_whole


@dataclass(frozen=True)
class TruncatedWeights:
    """An adapter that truncates the matrices of a model, and the error of the truncation.

    Attributes:
        adapter: adds W_r - W to each matrix: with it the model computes with W_r, without it with
            W.
        error: |W - W_r| / |W| over all matrices together.
        stored_values: size of all W_r as two factors each, in numbers.
        full_values: size of all W, in numbers.
    """

    adapter: Adapter
    error: float
    stored_values: int
    full_values: int


def truncate_weights(
    model: nn.Module, rank: int, targets: str | Sequence[str] = "all-linear"
) -> TruncatedWeights:
    """Return the adapter that turns each matrix into its best approximation of a rank.

    Args:
        model: any module.
        rank: at least 1; matrices of no higher rank do not change.
        targets: of the matrices, as in Spec.

    Raises:
        SpecError: the rank is not a whole number, or no matrix has a higher one.
        TargetError: a target matches nothing.

    Cost: a dense SVD of every matrix; the adapter holds W_r - W, so it is large if the rank is
        small.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> model[0].weight.data = torch.diag(torch.tensor([4.0, 3.0]))
    >>> truncated = truncate_weights(model, 1)
    >>> truncated.error, truncated.stored_values, truncated.full_values
    (0.6, 4, 4)
    """
    if not is_whole(rank, least=1):
        raise SpecError(f"A rank of at least 1 is needed, got {rank!r}.")
    factors: dict[str, Factors] = {}
    like: dict[str, LowRank] = {}
    squared_error, squared_norm = 0.0, 0.0
    stored_values, full_values = 0, 0
    for name, place in select(model, targets).items():
        W = _matrix(name, place)
        U, S, Vh = thin_svd(W)
        full_values += W.numel()
        stored_values += min(rank * sum(W.shape), W.numel())
        squared_error += float(S[rank:].square().sum())
        squared_norm += float(S.square().sum())
        left_out = len(S) - rank
        if left_out > 0:
            A, B = split_singular_values(U[:, rank:], S[rank:], Vh[rank:], left_out)
            factors[name] = (A, -B)
            like[name] = empty_delta(place)
    if not factors:
        raise SpecError(
            f"Rank {rank} changes no matrix: none has a higher rank.",
            advice="Give a lower rank.",
        )
    dtype = next(model.parameters()).dtype
    facts = {"base_fingerprint": fingerprint(model)}
    adapter = build_adapter(like, Spec(targets=tuple(factors)), factors, {}, facts, dtype)
    error = (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0
    return TruncatedWeights(adapter, error, stored_values, full_values)


def _matrix(name: str, place: Place) -> Tensor:
    W = place.matrix
    if W.ndim != 2:
        raise SpecError(
            f"{name} is a stack of matrices, which cannot be truncated.",
            advice="Give other targets.",
        )
    return W
