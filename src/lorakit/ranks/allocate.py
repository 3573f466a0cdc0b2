"""How rank is spread over the layers under a budget of parameters: a Spec to a Spec."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn

from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.errors import SpecError
from lorakit.inits.from_data import as_batch_list, observe_inputs
from lorakit.inits.start import STARTS
from lorakit.inject.full_parameters import find_full_modules
from lorakit.inject.places import Place
from lorakit.inject.targets import select
from lorakit.spec import SCALES, Settings, Spec, matches
from lorakit.text import near_misses, plural

HEAVY = 3.0  # times the rank of the light end
# Name -> weight of a layer at depth t, from 0 (the first block) to 1 (the last).
SHAPES: dict[str, Callable[[float], float]] = {
    "even": lambda t: 1.0,
    "bottom-heavy": lambda t: HEAVY if t < 0.5 else 1.0,
    "top-heavy": lambda t: HEAVY if t > 0.5 else 1.0,
    "linear": lambda t: 1.0 + (HEAVY - 1) * t,
    "linear-falling": lambda t: HEAVY - (HEAVY - 1) * t,
}
EXPLAINED = "explained-variance"
SUGGESTED = "suggested"  # by lorakit.ranks.probe
BY_DATA = (EXPLAINED, SUGGESTED)  # what looks at batches


def allocate_ranks(
    model: nn.Module,
    spec: Spec,
    *,
    shape: str | Callable[[float], float] | Mapping[str, float] = "even",
    budget: int | None = None,
    batches: Iterable[Any] | None = None,
) -> Spec:
    """Return the spec with the rank of every layer so that ranks have this shape and no more than
    `budget` values train.

    What is left of the budget is less than one rank of any layer that could still take one. A
    layer's scale stays what the spec gives it, so alpha follows its rank. Every layer keeps a rank
    of at least 1.

    Args:
        model: what the spec is for.
        spec: its targets, scale and ranks; the ranks count where no budget is given.
        shape: "even", "bottom-heavy" (three times the rank in the first half), "top-heavy",
            "linear" (rising from the first block to the last, to three times the rank),
            "linear-falling"; "explained-variance", as much as the inputs of each layer have
            directions that matter; a function of the depth from 0 to 1; or weights by name pattern.
        budget: values of all A and B together; those of the spec as it is where it is not given.
        batches: of model inputs, for "explained-variance" alone.

    Raises:
        SpecError: an unknown shape, a weight that is none, a budget that is too small for rank 1;
            all faults are named.
        TargetError: a target or a pattern matches nothing.

    Source: explained variance: Paischer et al., EVA, arXiv 2410.07170, section 3.3.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    >>> chosen = allocate_ranks(model, Spec(rank=4, targets="all-linear"), shape="bottom-heavy")
    >>> [chosen.settings(name).rank for name in ("0", "1")]
    [6, 2]
    """
    chosen, costs, budget = count_rank_costs(model, spec, budget)
    most = {n: min(p.shape) // _vectors(spec.settings(n)) for n, p in chosen.items()}
    if isinstance(shape, str) and shape == EXPLAINED:
        if batches is None:
            raise SpecError(
                f"shape {shape!r} looks at data.",
                advice="Give batches=[...]: batches of model inputs.",
            )
        seen = observe_inputs(model, chosen, dict.fromkeys(chosen, 1), as_batch_list(batches))
        shares = {n: (s.leading.square().sum(1) / s.total).tolist() for n, s in seen.items()}
        ranks = _spread(
            budget, costs, most, lambda n, i: shares[n][i - 1] if i <= len(shares[n]) else 0.0
        )
    else:
        if batches is not None:
            raise SpecError(f"batches are given, but shape {shape!r} looks at none.")
        weights = _weights(chosen, shape)
        # The next rank goes to where weight / (rank + 1/2) is largest: ranks in the ratio of the
        # weights (Sainte-Laguë).
        ranks = _spread(budget, costs, most, lambda n, i: weights[n] / (i - 0.5))
    return _with(spec, ranks)


def count_rank_costs(
    model: nn.Module, spec: Spec, budget: int | None
) -> tuple[dict[str, Place], dict[str, int], int]:
    """Return the layers that the spec selects, what one rank of each costs, and the budget (the
    spec's own for None).
    """
    if spec.delta not in ("lora", "dora"):
        raise SpecError(f"Ranks are counted by A and B; delta {spec.delta!r} has others.")
    if budget is not None and (
        isinstance(budget, bool) or not isinstance(budget, int) or budget < 1
    ):
        raise SpecError(f"budget: a whole number of at least 1 is needed, got {budget!r}.")
    modules = find_full_modules(model, spec.full_modules)
    chosen = select(model, spec.targets, spec.exclude, without=tuple(modules), parts=spec.parts)
    costs = {n: sum(p.shape) * p.site.read(p.layer).shape[:-2].numel() for n, p in chosen.items()}
    return (
        chosen,
        costs,
        sum(costs[n] * spec.settings(n).rank for n in chosen) if budget is None else budget,
    )


def _vectors(settings: Settings) -> int:
    start = STARTS[settings.init]
    return start.vectors_per_rank if start else 1


def _weights(chosen: Mapping[str, Place], shape: Any) -> dict[str, float]:
    """Return the weight of every layer."""
    weights: dict[str, Any]
    if isinstance(shape, Mapping):
        given: Mapping[str, Any] = cast(Mapping[str, Any], shape)
        missed = [p for p in given if not any(matches(p, n) for n in chosen)]
        weights = {n: next((w for p, w in given.items() if matches(p, n)), None) for n in chosen}
        faults = [
            f"{p!r}   0 layers   {near_misses(str(p), {n.split('.')[-1] for n in chosen})}".rstrip()
            for p in missed
        ]
        faults += [f"{n}   no pattern gives it a weight" for n, w in weights.items() if w is None]
    elif callable(shape) or shape in SHAPES:
        at, weigh = layer_depths(chosen), shape if callable(shape) else SHAPES[shape]
        weights, faults = {n: weigh(at[n]) for n in chosen}, []
    else:
        known = (*SHAPES, EXPLAINED)
        raise SpecError(
            f"shape {shape!r} is none of {', '.join(known)} {near_misses(str(shape), known)}".rstrip()
            + ".",
            advice="A function of the depth, or weights by name pattern, say any other.",
        )
    faults += [
        f"{n}   weight {w!r} is no number above 0"
        for n, w in weights.items()
        if w is not None and not (isinstance(w, int | float) and 0 < w < float("inf"))
    ]
    if faults:
        raise SpecError(f"{plural(len(faults), 'fault')} in the shape.", faults)
    return weights


def layer_depths(names: Iterable[str]) -> dict[str, float]:
    """Return how deep each layer lies, by its block: the name as far as its first number.

    >>> layer_depths(["embed", "h.0.q", "h.0.k", "h.1.q"])
    {'embed': 0.0, 'h.0.q': 0.5, 'h.0.k': 0.5, 'h.1.q': 1.0}
    """
    block = {}
    for name in names:
        words = name.split(".")
        number = next((i for i, word in enumerate(words) if word.isdigit()), len(words))
        block[name] = ".".join(words[: number + 1])
    order = {b: i for i, b in enumerate(dict.fromkeys(block.values()))}
    return {name: order[b] / max(len(order) - 1, 1) for name, b in block.items()}


def _spread(
    budget: int,
    costs: Mapping[str, int],
    most: Mapping[str, int],
    gain: Callable[[str, int], float],
) -> dict[str, int]:
    """Return ranks of at least 1: each further one goes where `gain` of it is largest, as long as
    it fits.
    """
    least = sum(costs.values())
    if least > budget:
        raise SpecError(
            f"A budget of {budget:,} values is too small: rank 1 of {plural(len(costs), 'layer')} takes {least:,}.",
            advice="Give a larger budget, or fewer targets.",
        )
    ranks, left = dict.fromkeys(costs, 1), budget - least
    order = {n: i for i, n in enumerate(costs)}
    heap = [(-gain(n, 2), order[n], n) for n in costs]
    heapq.heapify(heap)
    while heap:
        _, _, n = heapq.heappop(heap)
        if ranks[n] < most[n] and costs[n] <= left:
            ranks[n] += 1
            left -= costs[n]
            heapq.heappush(heap, (-gain(n, ranks[n] + 1), order[n], n))
    return ranks


def _with(spec: Spec, ranks: Mapping[str, int]) -> Spec:
    wanted = {}
    for n, rank in ranks.items():
        settings = spec.settings(n)
        alpha = settings.scale / SCALES[settings.scale_rule](1.0, rank)
        wanted[n] = replace(requested_settings(settings), rank=rank, alpha=round(alpha, 10))
    return write_overrides(spec, wanted)
