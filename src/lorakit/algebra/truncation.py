"""A smaller adapter: the best of a rank, of an energy, or under one budget for all modules."""

import heapq
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.algebra.combination import size_faults, truncate_product
from lorakit.algebra.outcome import Ledger, Outcome, build_adapter, factors_by_module, pool_spectra
from lorakit.analysis.spectra import rank_for_energy
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import SpecError
from lorakit.linalg import singular_values
from lorakit.text import plural


def resize(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
    base: nn.Module | None = None,
) -> Outcome:
    """Return the adapter of a smaller size that is nearest to this one: the truncated SVD of every
    change, from its factors.

    Args:
        adapter: any; its whole parameters (heads, biases) are kept as they are.
        rank: of every module at most; modules of a lower one keep theirs, bit for bit but for the
            scale.
        energy: or the share of each module's squared norm that is kept, above 0 and at most 1:
            ranks differ by module.
        parameters: or how many parameters the factors of all modules may have together: each
            direction goes to the module where it saves most energy per parameter; a module that
            gets none is left out, which is said.
        base: the model; only needed by deltas whose change depends on its matrix (DoRA), which are
            made plain.

    Raises:
        SpecError: none or several sizes, one out of its range, one that changes nothing, or a
            budget below one direction.

    Source: Eckart and Young, 1936: no other factors of these ranks are nearer.

    >>> import torch, lorakit
    >>> from lorakit.deltas.base import LowRank
    >>> delta = LowRank(torch.eye(2), torch.diag(torch.tensor([3.0, 1.0])), alpha=2.0)
    >>> told = resize(Adapter(lorakit.Spec(rank=2), {"0": delta}), rank=1)
    >>> told.ranks, round(told.energy, 4), told.adapter.deltas["0"].matrix().abs().round(decimals=4).tolist()
    ({'0': 1}, 0.9, [[3.0, 0.0], [0.0, 0.0]])
    """
    faults = size_faults(rank=rank, energy=energy, parameters=parameters)
    if rank is None and energy is None and parameters is None:
        faults.append("no size is given: a rank, an energy, or a number of parameters is needed")
    if faults:
        raise SpecError("This size cannot be meant.", faults, "Nothing was made.")
    # What shares its factors with an embedding goes with it.
    changes = {
        n: change
        for n, change in factors_by_module(adapter, base).items()
        if not isinstance(adapter.deltas[n], TiedLowRank)
    }
    spectra = {name: pool_spectra(singular_values(A, B)) for name, (A, B) in changes.items()}
    most = max((len(values) for values in spectra.values()), default=0)
    if rank is not None and rank >= most:
        raise SpecError(
            f"rank {rank} makes nothing smaller: no change here has more than {most} directions.",
            advice="Nothing was made.",
        )
    costs = {name: B[..., 0].numel() + A[..., 0, :].numel() for name, (A, B) in changes.items()}
    ranks = choose_ranks(spectra, costs, rank=rank, energy=energy, parameters=parameters)
    ledger, dtype = Ledger(), adapter.dtype
    for name, (A, B) in changes.items():
        if ranks[name]:
            truncate_product(ledger, name, A, B, ranks[name], None, dtype)
        else:
            lost = float(spectra[name].square().sum())
            ledger.book(name, lost, lost, lost, None)
    left_out = [name for name, count in ranks.items() if not count]
    plain = [name for name, delta in adapter.deltas.items() if delta.name != "lora"]
    notes = [f"left out, no direction of theirs fits: {', '.join(left_out)}"] if left_out else []
    notes += [f"{plural(len(plain), 'module')} of {adapter.spec.delta} made plain"] if plain else []
    origin = {
        **adapter.provenance,
        "resized": {"of": adapter.content_hash(), **_asked(rank, energy, parameters)},
    }
    made = build_adapter(
        adapter.deltas, adapter.spec, ledger.factors, adapter.full_parameters, origin, dtype
    )
    return ledger.close(made, tuple(notes))


def _asked(rank: int | None, energy: float | None, parameters: int | None) -> dict[str, Any]:
    return {
        k: v
        for k, v in (("rank", rank), ("energy", energy), ("parameters", parameters))
        if v is not None
    }


def choose_ranks(
    spectra: Mapping[str, Tensor],
    costs: Mapping[str, int],
    *,
    rank: int | None = None,
    energy: float | None = None,
    parameters: int | None = None,
) -> dict[str, int]:
    """Return the rank of every module: the same for all, by energy, or under one budget.

    Args:
        spectra: singular values by module, descending.
        costs: parameters of one direction, by module.
        rank: at most this for every module.
        energy: or the smallest that holds this share of each; at least 1.
        parameters: or a budget: directions by the energy they hold per parameter, the best first;
            may be 0.

    Raises:
        SpecError: the budget is below one direction of the cheapest module.

    >>> import torch
    >>> spectra = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 2.0])}
    >>> choose_ranks(spectra, {"a": 4, "b": 4}, parameters=12), choose_ranks(spectra, {"a": 4, "b": 4}, energy=0.9)
    ({'a': 1, 'b': 2}, {'a': 1, 'b': 2})
    """
    if rank is not None:
        return {name: min(rank, len(values)) for name, values in spectra.items()}
    if energy is not None:
        return {name: max(1, rank_for_energy(values, energy)) for name, values in spectra.items()}
    left, ranks = parameters or 0, dict.fromkeys(spectra, 0)
    if ranks and left < min(costs.values()):
        raise SpecError(
            f"A budget of {left:,} parameters is below one direction of any module ({min(costs.values()):,}).",
            advice="Nothing was made.",
        )
    worth = [
        (-(float(values[0]) ** 2) / costs[name], name)
        for name, values in spectra.items()
        if float(values[0])
    ]
    heapq.heapify(worth)
    while worth:
        _, name = heapq.heappop(worth)
        if costs[name] > left:
            continue
        left -= costs[name]
        ranks[name] += 1
        values = spectra[name]
        if ranks[name] < len(values) and float(values[ranks[name]]):
            heapq.heappush(worth, (-(float(values[ranks[name]]) ** 2) / costs[name], name))
    return ranks
