"""What every operation gives: the new adapter, and how far what it does is from what was asked."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.analysis.report import base_matrices
from lorakit.analysis.spectra import factors_of
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import SpecError
from lorakit.spec import Spec
from lorakit.text import plural

Factors = tuple[
    Tensor, Tensor
]  # A (rank, in) and B (out, rank), float64, with B @ A the change itself


@dataclass(frozen=True)
class Outcome:
    """A new adapter, and what became of the change that was asked for.

    Attributes:
        adapter: plain low rank at scale 1 (alpha is the rank), so every reader of its file agrees
            on what it means.
        ranks: rank by module.
        energy: share of the squared norm of the change asked for that the new one holds.
        residual: |asked - new| / |asked| in ΔW, over all modules, rounding of the factors included.
        residuals: the same of each module, relative to its own change.
        at_best: no factors of these ranks could have a residual below this.
        notes: what was decided on the way, for people: what was left out, made plain, or averaged.
    """

    adapter: Adapter
    ranks: dict[str, int]
    energy: float
    residual: float
    residuals: dict[str, float]
    at_best: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what commands print as JSON: rank where all modules have one, ranks, energy,
        residual and the rest.
        """
        one = (
            {"rank": next(iter(self.ranks.values()))} if len(set(self.ranks.values())) == 1 else {}
        )
        return {
            **one,
            "ranks": self.ranks,
            "energy": self.energy,
            "residual": self.residual,
            "residuals": self.residuals,
            "at_best": self.at_best,
            "notes": list(self.notes),
            "modules": len(self.ranks),
            "trainable_parameters": self.adapter.parameters_count,
            "whole": {path: list(t.shape) for path, t in self.adapter.full_parameters.items()},
        }


@dataclass
class Ledger:
    """Squared norms, summed over modules as they are done."""

    asked: float = 0.0
    lost: float = 0.0
    least: float = 0.0

    def __post_init__(self) -> None:
        self.residuals: dict[str, float] = {}
        self.factors: dict[str, Factors] = {}

    def book(
        self, name: str, asked: float, lost: float, least: float, factors: Factors | None
    ) -> None:
        """Add a module: squared norms of what was asked, of what is missing, of what must be
        missing; and its factors.
        """
        self.asked, self.lost, self.least = self.asked + asked, self.lost + lost, self.least + least
        self.residuals[name] = (lost / asked) ** 0.5 if asked else 0.0
        if factors is not None:
            self.factors[name] = factors

    def close(self, adapter: Adapter, notes: tuple[str, ...]) -> Outcome:
        """Return the outcome of all modules together."""
        share = self.lost / self.asked if self.asked else 0.0
        at_best = (self.least / self.asked) ** 0.5 if self.asked else 0.0
        ranks = {name: delta.rank for name, delta in adapter.deltas.items()}
        return Outcome(
            adapter, ranks, max(0.0, 1 - share), share**0.5, self.residuals, at_best, notes
        )


def factors_by_module(adapter: Adapter, base: nn.Module | None) -> dict[str, Factors]:
    """Return the factors of every module's change, its scale included.

    Raises:
        SpecError: changes that depend on the base's matrix, while there is none; all are named.
        AdapterMismatch: the base does not hold the adapter's modules.
    """
    matrices, found, faults = base_matrices(adapter, base), {}, []
    for name, delta in adapter.deltas.items():
        try:
            found[name] = factors_of(name, delta, matrices.get(name))
        except SpecError:
            faults.append(f"{name}   is a {type(delta).__name__}")
    if faults:
        what = f"What {plural(len(faults), 'module')} adds depends on the base's matrix, so it is no product of factors."
        raise SpecError(
            what,
            faults,
            "Give the base (base=, --model): its change is then made plain. Nothing was made.",
        )
    return found


def round_as_stored(factors: Factors, dtype: torch.dtype) -> Factors:
    """Return the factors as a file will hold them."""
    A, B = factors
    return A.to(dtype).contiguous(), B.to(dtype).contiguous()


def pool_spectra(S: Tensor) -> Tensor:
    """Return one spectrum of a stack: a rank holds for all of its matrices, so their energies add
    up.
    """
    return S.square().reshape(-1, S.shape[-1]).sum(0).sqrt()


def build_adapter(
    like: Mapping[str, Delta],
    spec: Spec,
    factors: Mapping[str, Factors],
    whole: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    dtype: torch.dtype,
) -> Adapter:
    """Return the adapter of these factors: plain low rank, scale 1, other settings as in `like` and
    `spec`.

    A TiedLowRank in `like` that no factors are given for goes with its embedding's.
    """
    deltas: dict[str, LowRank] = {}
    for name, pair in factors.items():
        A, B = round_as_stored(pair, dtype)
        model = like[name]
        deltas[name] = LowRank(
            A,
            B,
            alpha=float(A.shape[-2]),
            dropout=model.dropout,
            kind=model.kind,
            kernel=model.kernel,
            output_slice=model.output_slice,
        )
    known = {id(delta): name for name, delta in like.items()}
    twins = {
        n: TiedLowRank(deltas[of], d.kind, d.dropout)
        for n, d in like.items()
        if isinstance(d, TiedLowRank)
        and n not in factors
        and (of := known.get(id(d.source), "")) in deltas
    }
    deltas |= twins
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
        tie=bool(twins),
        dtype=str(dtype).removeprefix("torch."),
    )
    requested = {name: requested_settings(delta) for name, delta in deltas.items()}
    plain = write_overrides(plain, requested)
    return Adapter(
        plain,
        deltas,
        {path: nn.Parameter(t.detach().clone()) for path, t in whole.items()},
        provenance,
    )
