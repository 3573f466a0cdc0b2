"""Weighted sums of adapters: exact, truncated to a smaller rank, or by TIES, DARE and pruning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.algebra import compatibility
from lorakit.algebra.full_parameters import MODES, combine_full_parameters
from lorakit.algebra.outcome import (
    Approximation,
    Ledger,
    Outcome,
    build_adapter,
    conversion_note,
    factors_by_module,
)
from lorakit.algebra.sparse import SPARSE_METHODS, WeightedFactors
from lorakit.algebra.truncation import (
    size_faults,
    truncate_dense,
    truncate_product,
)
from lorakit.deltas.base import Delta
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.linalg import Factors, randomised_svd
from lorakit.spec import Spec, is_number
from lorakit.text import add_hint, near_misses, plural

METHODS = ("exact", *SPARSE_METHODS)
BIASES_BY_SIZE = ("none", "adapted", "all")  # values of Spec.bias, the fewest biases first
SHARED_FACTS = ("base_model", "task", "task_type", "labels")  # of the provenance, if all agree

Weighted = Sequence[tuple[Adapter, float]]


@dataclass(frozen=True, kw_only=True)
class SumSettings:
    """Size, method and dtype of a weighted sum; see `combine`."""

    rank: int | None
    energy: float | None
    method: str
    density: float | None
    seed: int
    dtype: torch.dtype


class CombineOptions(TypedDict, total=False):
    """Keyword arguments of `combine`."""

    rank: int | None
    energy: float | None
    method: str
    density: float | None
    seed: int
    whole: str
    base: nn.Module | None
    any_base: bool
    dtype: torch.dtype | None


def scale(adapter: Adapter, factor: float, **options: Unpack[CombineOptions]) -> Adapter:
    """Return the adapter whose change is `factor` times the change of this one.

    Args:
        adapter: any.
        factor: finite; 0 gives an adapter that changes nothing.
        **options: as in `combine`.

    >>> import lorakit
    >>> delta = lorakit.LowRank(torch.ones(1, 2), torch.ones(1, 1), alpha=3.0)
    >>> adapter = Adapter(lorakit.Spec(rank=1), {"0": delta})
    >>> scale(adapter, -0.5).deltas["0"].matrix().tolist()
    [[-1.5, -1.5]]
    """
    return combine([(adapter, factor)], **options).adapter


def negate(adapter: Adapter, **options: Unpack[CombineOptions]) -> Adapter:
    """Return the adapter that subtracts the change of this one; options as in `combine`."""
    return scale(adapter, -1.0, **options)


def add(*adapters: Adapter, **options: Unpack[CombineOptions]) -> Adapter:
    """Return the adapter whose change is the sum of the changes; options as in `combine`."""
    return combine([(adapter, 1.0) for adapter in adapters], **options).adapter


def subtract(adapter: Adapter, other: Adapter, **options: Unpack[CombineOptions]) -> Adapter:
    """Return the adapter whose change is the first change minus the other; as in `combine`."""
    return combine([(adapter, 1.0), (other, -1.0)], **options).adapter


def combine(
    weighted: Weighted,
    *,
    rank: int | None = None,
    energy: float | None = None,
    method: str = "exact",
    density: float | None = None,
    seed: int = 0,
    whole: str = "sum",
    base: nn.Module | None = None,
    any_base: bool = False,
    dtype: torch.dtype | None = None,
) -> Outcome:
    """Return one adapter whose change is the weighted sum of several, module by module.

    The sum is that of the changes ΔW, not of the factors, so ranks, targets and scale rules may
    differ. Concatenated factors give the exact sum, whose rank is the sum of the ranks; a smaller
    rank is the best possible (QR of the factors, SVD of the small core).

    Args:
        weighted: (adapter, weight) pairs.
        rank: largest rank of a module; None keeps the sum of ranks.
        energy: share of the squared norm of each module to keep, above 0 and at most 1; instead of
            a rank.
        method: "exact", or one that merges the dense ΔW: "ties", "dare" or "magnitude" (see
            `lorakit.algebra.sparse`).
        density: share of the entries of each ΔW that ties, dare and magnitude keep.
        seed: of DARE's random choice.
        whole: rule for full parameters (heads, biases): "sum" adds up their changes, which needs no
            base if the weights of the adapters that have them add up to 1; "first" takes those of
            the first adapter; "drop" leaves them out.
        base: the model of the adapters; needed for DoRA, and for the sum of full parameters with
            other weights.
        any_base: accept adapters that were trained on different bases, or on another than `base`.
        dtype: of the result; None for the widest of the adapters.

    Raises:
        SpecError: a value out of its range, or a change depends on the base's matrix and `base` is
            None.
        AdapterMismatch: shapes, kinds or bases differ, or full parameters cannot be summed; all are
            named.

    Source: TIES from Yadav et al., arXiv 2306.01708; DARE from Yu et al., arXiv 2311.03099.

    >>> import lorakit
    >>> def adapter(row, alpha):
    ...     A = torch.eye(2)[row : row + 1]
    ...     return Adapter(lorakit.Spec(rank=1), {"0": lorakit.LowRank(A, A.T, alpha=alpha)})
    >>> weighted = [(adapter(0, 1.0), 1.0), (adapter(1, 4.0), 0.5)]
    >>> combine(weighted).adapter.deltas["0"].matrix().tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    >>> round(combine(weighted, rank=1).energy, 6)
    0.8
    """
    faults = [
        *_weight_faults(weighted),
        *size_faults(rank=rank, energy=energy),
        *_option_faults(method, density, whole),
    ]
    if not weighted:
        faults.append("no adapter is given")
    if faults:
        raise SpecError("These adapters cannot be combined this way.", faults, "Nothing was made.")
    adapters = [adapter for adapter, _ in weighted]
    first = compatibility.first_deltas(adapters)
    full = combine_full_parameters(weighted, whole, base)
    faults = compatibility.layer_faults(adapters, first)
    if not any_base:
        faults += compatibility.base_faults(adapters, base)
    faults += full.faults
    if faults:
        raise AdapterMismatch(
            f"These adapters cannot be combined: {plural(len(faults), 'fault')}.",
            faults,
            "Nothing was made.",
        )
    settings = SumSettings(
        rank=rank,
        energy=energy,
        method=method,
        density=density,
        seed=seed,
        dtype=dtype or _widest_dtype(adapters),
    )
    parts = _parts_by_module(weighted, first, base)
    ledger = _sum_modules(parts, first, settings)
    spec = _combine_specs(adapters, has_full_parameters=bool(full.tensors))
    facts = _combine_provenance(weighted, base, spec, method)
    combined = build_adapter(first, spec, ledger.factors, full.tensors, facts, settings.dtype)
    notes: list[str] = []
    for adapter in adapters:
        notes += conversion_note(adapter)
    notes += full.notes
    return ledger.outcome(combined, tuple(notes))


def _weight_faults(weighted: Weighted) -> list[str]:
    return [
        f"weight {weight!r} is not a finite number"
        for _, weight in weighted
        if not is_number(weight)
    ]


def _option_faults(method: str, density: float | None, whole: str) -> list[str]:
    faults: list[str] = []
    for option, value, known in (("method", method, METHODS), ("whole", whole, MODES)):
        if value not in known:
            fault = f"{option} {value!r} is none of {', '.join(known)}"
            faults.append(add_hint(fault, near_misses(value, known)))
    if method not in SPARSE_METHODS:
        if density is not None:
            faults.append(f"density {density!r}: method {method!r} keeps every weight")
    elif density is None or not 0 < density <= 1:
        faults.append(f"method {method!r} needs a density above 0 and at most 1, got {density!r}")
    return faults


def _widest_dtype(adapters: Sequence[Adapter]) -> torch.dtype:
    widest = adapters[0].dtype
    for adapter in adapters[1:]:
        widest = torch.promote_types(widest, adapter.dtype)
    return widest


def _parts_by_module(
    weighted: Weighted, first: Mapping[str, Delta], base: nn.Module | None
) -> dict[str, list[WeightedFactors]]:
    """Return the factors of each adapter that changes a module, by module."""
    parts: dict[str, list[WeightedFactors]] = {name: [] for name in first}
    for adapter, weight in weighted:
        for name, (A, B) in factors_by_module(adapter, base).items():
            parts[name].append(WeightedFactors(A, B, weight))
    return parts


def _sum_modules(
    parts: Mapping[str, Sequence[WeightedFactors]],
    first: Mapping[str, Delta],
    settings: SumSettings,
) -> Ledger:
    """Return the factors of the sum of every module, with their errors.

    Raises:
        SpecError: the rank is above that of every module.
    """
    full_ranks = {name: _full_rank(delta, parts[name]) for name, delta in first.items()}
    largest = max(full_ranks.values(), default=0)
    if settings.rank is not None and full_ranks and settings.rank > largest:
        raise SpecError(
            f"rank {settings.rank} is too high: no change here has more than {largest} directions.",
            advice="Leave the rank out: without it the sum is exact. Nothing was made.",
        )
    ledger = Ledger()
    for name, full_rank in full_ranks.items():
        if settings.method == "exact":
            module = _sum_exactly(parts[name], full_rank, settings)
        else:
            module = _merge_dense(parts[name], full_rank, settings, name)
        ledger.add(name, module)
    return ledger


def _full_rank(delta: Delta, parts: Sequence[WeightedFactors]) -> int:
    """Return the highest rank that the sum of a module can have."""
    return min(sum(part.A.shape[-2] for part in parts), *delta.shape[-2:])


def _sum_exactly(
    parts: Sequence[WeightedFactors], full_rank: int, settings: SumSettings
) -> Approximation:
    A, B = _concatenate(parts)
    rank = min(settings.rank or full_rank, full_rank)
    return truncate_product(A, B, rank, settings.energy, settings.dtype)


def _concatenate(parts: Sequence[WeightedFactors]) -> Factors:
    """Return factors whose product is the weighted sum: [A1; A2], [w1 B1, w2 B2]."""
    A = torch.cat([part.A for part in parts], -2)
    B = torch.cat([part.B * part.weight for part in parts], -1)
    return A, B


def _merge_dense(
    parts: Sequence[WeightedFactors], full_rank: int, settings: SumSettings, name: str
) -> Approximation:
    merge = SPARSE_METHODS[settings.method]
    dense = merge(parts, settings.density or 1.0, settings.seed, name)
    rank = min(settings.rank or full_rank, full_rank)
    directions = rank if settings.energy is None else min(dense.shape[-2:])
    svd = randomised_svd(dense, directions)
    return truncate_dense(dense, svd, rank, settings.energy, settings.dtype)


def _combine_specs(adapters: Sequence[Adapter], *, has_full_parameters: bool) -> Spec:
    """Return the first spec, with the full modules, biases and fused parts of all."""
    full_modules: dict[str, None] = {}
    parts: dict[str, Mapping[str, int]] = {}
    for adapter in adapters:
        full_modules |= dict.fromkeys(adapter.spec.full_modules)
    for adapter in reversed(adapters):
        parts |= adapter.spec.parts
    bias = "none"
    if has_full_parameters:
        bias = max((adapter.spec.bias for adapter in adapters), key=BIASES_BY_SIZE.index)
    first = adapters[0].spec
    return replace(first, full_modules=tuple(full_modules), bias=bias, parts=parts)


def _combine_provenance(
    weighted: Weighted, base: nn.Module | None, spec: Spec, method: str
) -> dict[str, object]:
    """Return the facts that all adapters share, the base's fingerprint, and the adapters summed."""
    adapters = [adapter for adapter, _ in weighted]
    facts = _find_shared_facts(adapters)
    fingerprint = _find_base_fingerprint(adapters, base, spec)
    if fingerprint:
        facts["base_fingerprint"] = fingerprint
    summands = [
        {"content_hash": adapter.content_hash(), "weight": weight} for adapter, weight in weighted
    ]
    facts["combined"] = {"method": method, "of": summands}
    return facts


def _find_shared_facts(adapters: Sequence[Adapter]) -> dict[str, object]:
    first = adapters[0].provenance
    facts: dict[str, object] = {}
    for key in SHARED_FACTS:
        if key in first and all(adapter.provenance.get(key) == first[key] for adapter in adapters):
            facts[key] = first[key]
    return facts


def _find_base_fingerprint(
    adapters: Sequence[Adapter], base: nn.Module | None, spec: Spec
) -> str | None:
    """Return the fingerprint of the base without the full modules of the spec, if it is known."""
    if base is not None:
        return compatibility.base_fingerprint(base, spec.full_modules)
    # Without a base only an adapter that trains the same modules in full has this fingerprint.
    for adapter in adapters:
        own = adapter.provenance.get("base_fingerprint")
        if own and tuple(adapter.spec.full_modules) == tuple(spec.full_modules):
            return own
    return None
