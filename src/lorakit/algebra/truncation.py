"""Truncated singular value decompositions of changes, and smaller adapters made from them.

Source: Eckart and Young, 1936: no factors of a rank are nearer than the truncated SVD (U, S, Vh).
"""

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.algebra.outcome import (
    Approximation,
    Ledger,
    Outcome,
    build_adapter,
    conversion_note,
    factors_by_module,
    pool_spectra,
    round_as_stored,
)
from lorakit.analysis.spectra import rank_for_energy
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import SpecError
from lorakit.linalg import (
    Factors,
    Svd,
    product_norm,
    singular_values,
    split_singular_values,
    svd_of_product,
)
from lorakit.spec import is_number, is_whole


def resize(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
    base: nn.Module | None = None,
) -> Outcome:
    """Return the smaller adapter nearest to this one: the truncated SVD of each change.

    Exactly one of `rank`, `energy` and `parameters` sets the size.

    Args:
        adapter: any; its full parameters (heads, biases) are kept.
        rank: largest rank of a module; a module of a lower rank keeps its factors, with the scale
            multiplied in.
        energy: share of the squared norm of each module to keep, above 0 and at most 1; ranks
            differ by module.
        parameters: budget for the factors of all modules together: each direction goes to the
            module where it keeps most energy per parameter. A module without any is left out, with
            a note.
        base: the model; needed only by deltas whose change depends on its matrix (DoRA).

    Raises:
        SpecError: no size or several, one out of its range, one that changes nothing, or a budget
            below one direction.

    >>> import torch, lorakit
    >>> from lorakit.deltas.base import LowRank
    >>> delta = LowRank(torch.eye(2), torch.diag(torch.tensor([3.0, 1.0])), alpha=2.0)
    >>> outcome = resize(Adapter(lorakit.Spec(rank=2), {"0": delta}), rank=1)
    >>> outcome.ranks, round(outcome.energy, 4)
    ({'0': 1}, 0.9)
    >>> outcome.adapter.deltas["0"].matrix().abs().round(decimals=4).tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    faults = size_faults(rank=rank, energy=energy, parameters=parameters)
    if rank is None and energy is None and parameters is None:
        faults.append("no size is given: a rank, an energy, or a number of parameters is needed")
    if faults:
        raise SpecError("This size is not possible.", faults, "Nothing was made.")
    factors = _own_factors(adapter, base)
    spectra = {name: pool_spectra(singular_values(A, B)) for name, (A, B) in factors.items()}
    if rank is not None:
        _check_is_smaller(rank, spectra)
    costs = {name: _direction_cost(pair) for name, pair in factors.items()}
    ranks = choose_ranks(spectra, costs, rank=rank, energy=energy, parameters=parameters)
    ledger = Ledger()
    for name, (A, B) in factors.items():
        if ranks[name]:
            module = truncate_product(A, B, ranks[name], None, adapter.dtype)
        else:
            module = Approximation.left_out(float(spectra[name].square().sum()))
        ledger.add(name, module)
    size = {"rank": rank, "energy": energy, "parameters": parameters}
    given_size = {key: value for key, value in size.items() if value is not None}
    resized = build_adapter(
        adapter.deltas,
        adapter.spec,
        ledger.factors,
        adapter.full_parameters,
        {**adapter.provenance, "resized": {"of": adapter.content_hash(), **given_size}},
        adapter.dtype,
    )
    left_out = [name for name in factors if name not in ledger.factors]
    notes = [*left_out_note(left_out), *conversion_note(adapter)]
    return ledger.outcome(resized, tuple(notes))


def _own_factors(adapter: Adapter, base: nn.Module | None) -> dict[str, Factors]:
    """Return the factors by module, without modules that share those of an embedding."""
    factors = factors_by_module(adapter, base)
    return {
        name: pair
        for name, pair in factors.items()
        if not isinstance(adapter.deltas[name], TiedLowRank)
    }


def _direction_cost(factors: Factors) -> int:
    """Return the number of parameters that one more rank takes."""
    A, B = factors
    return B[..., 0].numel() + A[..., 0, :].numel()


def _check_is_smaller(rank: int, spectra: Mapping[str, Tensor]) -> None:
    largest = max((len(values) for values in spectra.values()), default=0)
    if rank >= largest:
        raise SpecError(
            f"rank {rank} makes no module smaller: no change here has more than "
            f"{largest} directions.",
            advice="Give a lower rank. Nothing was made.",
        )


def left_out_note(names: Sequence[str]) -> list[str]:
    """Return the remark that these modules are left out; empty if there are none."""
    if not names:
        return []
    return [f"left out, no direction of it is kept: {', '.join(names)}"]


def size_faults(**sizes: float | None) -> list[str]:
    """Return the faults of a requested size: several are given, or one is out of its range.

    Args:
        **sizes: `energy`, and whole numbers under any other name; None if not given.
    """
    given = {name: value for name, value in sizes.items() if value is not None}
    faults: list[str] = []
    if len(given) > 1:
        faults.append(f"{' and '.join(given)} are given: each sets the size, so give only one")
    for name, value in given.items():
        if name != "energy":
            if not is_whole(value, least=1):
                faults.append(f"{name} {value!r}: a whole number of at least 1 is needed")
        elif not is_number(value) or not 0 < value <= 1:
            faults.append(f"energy {value!r}: a share above 0 and at most 1 is needed")
    return faults


def choose_ranks(
    spectra: Mapping[str, Tensor],
    costs: Mapping[str, int],
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
) -> dict[str, int]:
    """Return the rank of each module: the same for all, by energy, or under one budget.

    Args:
        spectra: singular values by module, descending.
        costs: parameters of one direction, by module.
        rank: largest rank of every module.
        energy: share to keep in each module; the smallest rank that does, at least 1.
        parameters: budget for all modules: directions by energy per parameter, the best first; a
            rank may be 0.

    Raises:
        SpecError: the budget is below one direction of the cheapest module.

    >>> import torch
    >>> spectra = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 2.0])}
    >>> choose_ranks(spectra, {"a": 4, "b": 4}, parameters=12)
    {'a': 1, 'b': 2}
    >>> choose_ranks(spectra, {"a": 4, "b": 4}, energy=0.9)
    {'a': 1, 'b': 2}
    """
    if rank is not None:
        return {name: min(rank, len(values)) for name, values in spectra.items()}
    if energy is not None:
        return {name: max(1, rank_for_energy(values, energy)) for name, values in spectra.items()}
    return _spend_budget(parameters or 0, spectra, costs)


def _spend_budget(
    budget: int, spectra: Mapping[str, Tensor], costs: Mapping[str, int]
) -> dict[str, int]:
    """Return the ranks that keep most energy under a budget of parameters."""
    ranks = dict.fromkeys(spectra, 0)
    if ranks and budget < min(costs.values()):
        raise SpecError(
            f"A budget of {budget:,} parameters is below one direction of any module "
            f"({min(costs.values()):,}).",
            advice="Give a larger budget. Nothing was made.",
        )
    candidates: list[tuple[float, str]] = []

    def push_next_direction(name: str) -> None:
        values, used = spectra[name], ranks[name]
        if used < len(values) and float(values[used]):
            energy_per_parameter = float(values[used]) ** 2 / costs[name]
            heapq.heappush(candidates, (-energy_per_parameter, name))

    for name in spectra:
        push_next_direction(name)
    while candidates:
        _, name = heapq.heappop(candidates)
        # A module that does not fit now never fits again.
        if costs[name] <= budget:
            budget -= costs[name]
            ranks[name] += 1
            push_next_direction(name)
    return ranks


def truncate_product(
    A: Tensor, B: Tensor, rank: int, energy: float | None, dtype: torch.dtype
) -> Approximation:
    """Return the best factors of `B @ A` of a rank, or of the smallest rank that keeps an energy.

    Args:
        A: (rank, in), float64, or a stack.
        B: (out, rank).
        rank: to keep; if it is A's own, the factors stay as they are.
        energy: share of the squared norm to keep; it replaces `rank`. None to use `rank`.
        dtype: of the factors once stored; the error includes their rounding.
    """
    if energy is None and rank >= A.shape[-2]:
        factors = A, B
        requested, least_error = product_norm(A, B) ** 2, 0.0
    else:
        U, S, Vh = svd_of_product(A, B)
        spectrum = pool_spectra(S)
        if energy is not None:
            rank = max(1, rank_for_energy(spectrum, energy))
        factors = split_singular_values(U, S, Vh, rank)
        requested = float(S.square().sum())
        least_error = float(spectrum[rank:].square().sum())
    stored_A, stored_B = (factor.double() for factor in round_as_stored(factors, dtype))
    # B A - B' A' is again a product: [B, -B'] [A; A'].
    difference_A = torch.cat([A, stored_A], -2)
    difference_B = torch.cat([B, -stored_B], -1)
    error = product_norm(difference_A, difference_B) ** 2
    return Approximation(factors, requested, error, min(least_error, error))


def truncate_dense(
    dense: Tensor, svd: Svd, rank: int, energy: float | None, dtype: torch.dtype
) -> Approximation:
    """Return factors of a dense change, of a rank or of the smallest rank that keeps an energy.

    Args:
        dense: (out, in), or a stack.
        svd: of `dense`, of all or the leading directions; what they leave is the energy of the
            others.
        rank: to keep.
        energy: share of the squared norm to keep; it replaces `rank`. None to use `rank`.
        dtype: of the factors once stored; the error includes their rounding.
    """
    U, S, Vh = svd
    spectrum = pool_spectra(S)
    requested = squared_norm(dense)
    if energy is not None:
        rest = max(0.0, requested - float(spectrum.square().sum()))
        complete = torch.cat([spectrum, spectrum.new_tensor([rest**0.5])])
        rank = max(1, rank_for_energy(complete, energy))
    factors = split_singular_values(U, S, Vh, min(rank, S.shape[-1]))
    stored_A, stored_B = (factor.double() for factor in round_as_stored(factors, dtype))
    error = float((dense.double() - stored_B @ stored_A).square().sum())
    least_error = float(spectrum[rank:].square().sum())
    return Approximation(factors, requested, error, min(least_error, error))


def squared_norm(dense: Tensor) -> float:
    """Return the squared Frobenius norm, summed in float64."""
    return float(dense.double().square().sum())
