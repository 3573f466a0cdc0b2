"""The result of an operation on adapters: the new adapter, and its error.

The error of an operation is measured in ΔW, the change of the matrices, never in the factors.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.analysis.report import base_matrices
from lorakit.analysis.spectra import factors_of
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import SpecError
from lorakit.inject.places import Place
from lorakit.linalg import Factors
from lorakit.spec import Spec
from lorakit.text import dtype_name, plural


class OutcomeRow(TypedDict):
    """An Outcome as commands print it; `rank` is given if all modules have the same."""

    rank: NotRequired[int]
    ranks: dict[str, int]
    energy: float
    residual: float
    residuals: dict[str, float]
    at_best: float
    notes: list[str]
    modules: int
    trainable_parameters: int
    whole: dict[str, list[int]]


@dataclass(frozen=True)
class Outcome:
    """A new adapter, and its error relative to the requested change.

    Attributes:
        adapter: plain low rank at scale 1 (alpha is the rank), so all programs that read its file
            compute the same change.
        ranks: rank by module.
        energy: share of the squared norm of the requested change that the adapter keeps.
        residual: |requested - new| / |requested| in ΔW over all modules, with the rounding of the
            factors.
        residuals: the same by module, relative to the module's own change.
        at_best: lower bound of the residual for any factors of these ranks.
        notes: remarks for the user: modules left out, converted, or summed.
    """

    adapter: Adapter
    ranks: dict[str, int]
    energy: float
    residual: float
    residuals: dict[str, float]
    at_best: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> OutcomeRow:
        """Return plain values, as commands print them as JSON."""
        row: OutcomeRow = {
            "ranks": self.ranks,
            "energy": self.energy,
            "residual": self.residual,
            "residuals": self.residuals,
            "at_best": self.at_best,
            "notes": list(self.notes),
            "modules": len(self.ranks),
            "trainable_parameters": self.adapter.parameters_count,
            "whole": {
                path: list(tensor.shape) for path, tensor in self.adapter.full_parameters.items()
            },
        }
        different_ranks = set(self.ranks.values())
        if len(different_ranks) != 1:
            return row
        return {"rank": different_ranks.pop(), **row}


@dataclass(frozen=True)
class Approximation:
    """Factors that approximate the change of one module, and their error.

    Attributes:
        factors: None if the module is left out.
        squared_norm: of the requested change.
        squared_error: of the factors, rounded as they are stored.
        least_squared_error: lower bound of the squared error for any factors of this rank.
    """

    factors: Factors | None
    squared_norm: float
    squared_error: float
    least_squared_error: float

    @classmethod
    def left_out(cls, squared_norm: float) -> "Approximation":
        """Return the approximation by nothing: the error is the change itself."""
        return cls(None, squared_norm, squared_norm, squared_norm)


class Ledger:
    """The factors of all modules of a new adapter, and the sums of their errors."""

    def __init__(self) -> None:
        self.squared_norm = 0.0
        self.squared_error = 0.0
        self.least_squared_error = 0.0
        self.residuals: dict[str, float] = {}
        self.factors: dict[str, Factors] = {}

    def add(self, name: str, module: Approximation) -> None:
        """Add a module by name."""
        self.squared_norm += module.squared_norm
        self.squared_error += module.squared_error
        self.least_squared_error += module.least_squared_error
        self.residuals[name] = _relative(module.squared_error, module.squared_norm)
        if module.factors is not None:
            self.factors[name] = module.factors

    def outcome(self, adapter: Adapter, notes: tuple[str, ...]) -> Outcome:
        """Return the adapter built from the factors, with the error over all modules."""
        lost_share = self.squared_error / self.squared_norm if self.squared_norm else 0.0
        return Outcome(
            adapter=adapter,
            ranks={name: delta.rank for name, delta in adapter.deltas.items()},
            energy=max(0.0, 1 - lost_share),
            residual=lost_share**0.5,
            residuals=self.residuals,
            at_best=_relative(self.least_squared_error, self.squared_norm),
            notes=notes,
        )


def _relative(squared_error: float, squared_norm: float) -> float:
    return (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0


def factors_by_module(adapter: Adapter, base: nn.Module | None) -> dict[str, Factors]:
    """Return the factors of the change of every module, the scale included.

    Raises:
        SpecError: changes depend on the base's matrix, and `base` is None; all are named.
        AdapterMismatch: the base does not have the adapter's modules.
    """
    matrices = base_matrices(adapter, base)
    factors: dict[str, Factors] = {}
    faults: list[str] = []
    for name, delta in adapter.deltas.items():
        try:
            factors[name] = factors_of(name, delta, matrices.get(name))
        except SpecError:
            faults.append(f"{name}   is a {type(delta).__name__}")
    if faults:
        raise SpecError(
            f"The change of {plural(len(faults), 'module')} depends on the base's matrix, so it is "
            "not a product of factors.",
            faults,
            "Give the base (base=, --model) to convert it to plain low rank. Nothing was made.",
        )
    return factors


def round_as_stored(factors: Factors, dtype: torch.dtype) -> Factors:
    """Return the factors as a file stores them."""
    A, B = factors
    return A.to(dtype).contiguous(), B.to(dtype).contiguous()


def pool_spectra(values: Tensor) -> Tensor:
    """Return one spectrum for a stack of matrices: their squared singular values, added up.

    All matrices of a stack have the same rank, so one spectrum decides it.
    """
    squares = values.square().reshape(-1, values.shape[-1])
    return squares.sum(0).sqrt()


def conversion_note(adapter: Adapter) -> list[str]:
    """Return the remark that modules were converted to plain low rank; empty if none was."""
    converted = sum(delta.name != "lora" for delta in adapter.deltas.values())
    if not converted:
        return []
    return [f"{plural(converted, 'module')} of {adapter.spec.delta} converted to plain low rank"]


def build_adapter(
    like: Mapping[str, Delta],
    spec: Spec,
    factors: Mapping[str, Factors],
    full_parameters: Mapping[str, Tensor],
    provenance: Mapping[str, object],
    dtype: torch.dtype,
) -> Adapter:
    """Return the adapter of these factors: plain low rank at scale 1.

    Args:
        like: deltas by module; kind, kernel, dropout and slice of the new ones are theirs. A tied
            delta without factors is tied to its embedding again.
        spec: the settings that the adapter keeps.
        factors: by module.
        full_parameters: tensors that replace the base's, by name.
        provenance: of the new adapter.
        dtype: of the factors.
    """
    deltas: dict[str, LowRank] = {
        name: _make_low_rank(like[name], round_as_stored(pair, dtype))
        for name, pair in factors.items()
    }
    tied = _tied_deltas(like, deltas)
    deltas |= tied
    parameters = {
        path: nn.Parameter(tensor.detach().clone()) for path, tensor in full_parameters.items()
    }
    plain = _plain_spec(spec, deltas, is_tied=bool(tied), dtype=dtype)
    return Adapter(plain, deltas, parameters, provenance)


def empty_delta(place: Place) -> LowRank:
    """Return a delta of rank 1 without a change, for the layer of a place."""
    site, (outputs, inputs) = place.site, place.shape
    return LowRank(
        torch.zeros(1, inputs),
        torch.zeros(outputs, 1),
        alpha=1.0,
        kind=site.kind,
        kernel=site.kernel(place.layer),
        output_slice=site.output_slice,
    )


def _make_low_rank(delta: Delta, factors: Factors) -> LowRank:
    """Return a low-rank delta of these factors at scale 1, for the layer of another delta."""
    A, B = factors
    options = delta.options()
    options |= {"alpha": float(A.shape[-2]), "scale_rule": "alpha/rank"}
    return LowRank(A, B, **options)


def _tied_deltas(like: Mapping[str, Delta], deltas: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Return the deltas of `like` that are tied to an embedding, tied to its new delta.

    Args:
        like: deltas by module.
        deltas: new deltas by module; a module that has one is left out.
    """
    names = {id(delta): name for name, delta in like.items()}
    tied: dict[str, LowRank] = {}
    for name, delta in like.items():
        if not isinstance(delta, TiedLowRank) or name in deltas:
            continue
        embedding = names.get(id(delta.source), "")
        if embedding in deltas:
            tied[name] = TiedLowRank(deltas[embedding], delta.kind, delta.dropout)
    return tied


def _plain_spec(
    spec: Spec, deltas: Mapping[str, LowRank], *, is_tied: bool, dtype: torch.dtype
) -> Spec:
    """Return the spec of plain low-rank deltas; the most frequent rank is that of the spec."""
    ranks = Counter(delta.rank for delta in deltas.values())
    rank = ranks.most_common(1)[0][0] if ranks else spec.rank
    plain = replace(
        spec,
        delta="lora",
        rank=rank,
        alpha=float(rank),
        scale_rule="alpha/rank",
        targets=tuple(deltas) or "none",
        exclude=(),
        overrides={},
        token_rows=(),
        tie=is_tied,
        dtype=dtype_name(dtype),
    )
    wanted = {name: requested_settings(delta) for name, delta in deltas.items()}
    return write_overrides(plain, wanted)
