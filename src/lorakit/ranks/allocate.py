"""Allocation of ranks to layers under a budget of parameters."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from lorakit.deltas.overrides import RequestedSettings, requested_settings, write_overrides
from lorakit.errors import SpecError
from lorakit.inits.from_data import as_batch_list, observe_inputs
from lorakit.inits.start import STARTS
from lorakit.inject.build import resolve_targets
from lorakit.inject.places import Place, explain_unmatched, find_places
from lorakit.patterns import first_match
from lorakit.spec import Settings, Spec, alpha_for_scale, is_number, is_whole
from lorakit.text import add_hint, near_misses, plural

Places = Mapping[str, Place]
ShapeFunction = Callable[[float], float]

HEAVY = 3.0  # ratio of the highest to the lowest rank
# Weight of a layer by its depth, from 0 (the first block) to 1 (the last).
SHAPES: dict[str, ShapeFunction] = {
    "even": lambda depth: 1.0,
    "bottom-heavy": lambda depth: HEAVY if depth < 0.5 else 1.0,
    "top-heavy": lambda depth: HEAVY if depth > 0.5 else 1.0,
    "linear": lambda depth: 1.0 + (HEAVY - 1) * depth,
    "linear-falling": lambda depth: HEAVY - (HEAVY - 1) * depth,
}
EXPLAINED = "explained-variance"
SUGGESTED = "suggested"  # by lorakit.ranks.probe
BY_DATA = (EXPLAINED, SUGGESTED)  # shapes that need batches

Shape = str | ShapeFunction | Mapping[str, float]
Gain = Callable[[str, int], float]  # of raising a layer (its name) to a rank


class RankCosts(NamedTuple):
    """The layers that a spec selects, and the number of values that train.

    Attributes:
        places: by name.
        costs: values of one rank, by name.
        budget: values of all layers together.
    """

    places: dict[str, Place]
    costs: dict[str, int]
    budget: int


def allocate_ranks(
    model: nn.Module,
    spec: Spec,
    *,
    shape: Shape = "even",
    budget: int | None = None,
    batches: Iterable[object] | None = None,
) -> Spec:
    """Return the spec with the ranks of all layers in a given shape, within a budget of values.

    The budget is used up to less than one rank of any layer that could still take one. Every layer
    keeps its scale, so alpha follows the rank, and has a rank of at least 1.

    Args:
        model: the model to adapt.
        spec: its targets, scale and ranks; the ranks count only if no budget is given.
        shape: "even"; "bottom-heavy" (three times the rank in the first half), "top-heavy";
            "linear" (rising from the first block to the last, to three times the rank),
            "linear-falling"; "explained-variance" (by the variance of each layer's inputs along
            their principal directions); a function of the depth from 0 to 1; or weights by name
            pattern.
        budget: values of all A and B together; None for those of the spec.
        batches: of model inputs, for "explained-variance" only.

    Raises:
        SpecError: an unknown shape, a weight that is not a positive number, or a budget too small
            for rank 1; all faults are named.
        TargetError: a target or a pattern matches nothing.

    Source: explained variance: Paischer et al., EVA, arXiv 2410.07170, section 3.3.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    >>> spec = allocate_ranks(model, Spec(rank=4, targets="all-linear"), shape="bottom-heavy")
    >>> [spec.settings(name).rank for name in ("0", "1")]
    [6, 2]
    """
    places, costs, budget = count_rank_costs(model, spec, budget)
    largest = {name: _largest_rank(place, spec.settings(name)) for name, place in places.items()}
    if isinstance(shape, str) and shape == EXPLAINED:
        gain = _explained_variance(model, places, batches)
    else:
        if batches is not None:
            raise SpecError(
                f"batches are given, but shape {shape!r} uses none.",
                advice=f"Leave them out, or choose shape={EXPLAINED!r}.",
            )
        gain = _proportional(_layer_weights(places, shape))
    ranks = _spend_budget(budget, costs, largest, gain)
    wanted = {name: _settings_at(spec.settings(name), rank) for name, rank in ranks.items()}
    return write_overrides(spec, wanted)


def count_rank_costs(model: nn.Module, spec: Spec, budget: int | None) -> RankCosts:
    """Return the layers that the spec selects, and the values of one rank of each.

    Args:
        model: the model to adapt.
        spec: its targets and ranks.
        budget: values that may train; None for those of the spec.

    Raises:
        SpecError: the spec's deltas have no A and B, or the budget is not a whole number.
        TargetError: a target matches nothing.
    """
    if spec.delta not in ("lora", "dora"):
        raise SpecError(
            f"Ranks are allocated by the sizes of A and B; delta {spec.delta!r} has other factors.",
            advice="Use delta='lora' or 'dora'.",
        )
    if budget is not None and not is_whole(budget, least=1):
        raise SpecError(f"budget: a whole number of at least 1 is needed, got {budget!r}.")
    places = resolve_targets(model, spec, find_places(model, spec.parts)).places
    costs = {name: place.values_per_rank for name, place in places.items()}
    if budget is None:
        budget = sum(cost * spec.settings(name).rank for name, cost in costs.items())
    return RankCosts(places, costs, budget)


def _largest_rank(place: Place, settings: Settings) -> int:
    """Return the largest rank for which the initialisation has enough singular vectors."""
    return min(place.shape) // STARTS[settings.init].vectors_per_rank


def _settings_at(settings: Settings, rank: int) -> RequestedSettings:
    """Return settings with another rank and the same scale."""
    alpha = round(alpha_for_scale(settings.scale, rank, settings.scale_rule), 10)
    return replace(requested_settings(settings), rank=rank, alpha=alpha)


def _explained_variance(model: nn.Module, places: Places, batches: Iterable[object] | None) -> Gain:
    """Return the gain that is the share of a layer's input variance that a rank adds.

    Raises:
        SpecError: there are no batches.
    """
    if batches is None:
        raise SpecError(
            f"shape {EXPLAINED!r} needs data.",
            advice="Give batches=[...]: batches of model inputs.",
        )
    one_each = dict.fromkeys(places, 1)
    directions = observe_inputs(model, places, one_each, as_batch_list(batches))
    shares: dict[str, list[float]] = {}
    for name, inputs in directions.items():
        variances = inputs.leading.square().sum(1)
        shares[name] = (variances / inputs.total).tolist()

    def gain(name: str, rank: int) -> float:
        return shares[name][rank - 1] if rank <= len(shares[name]) else 0.0

    return gain


def _proportional(weights: Mapping[str, float]) -> Gain:
    """Return the gain that leads to ranks in the ratio of the weights.

    Source: the divisor method of Sainte-Laguë: weight / (rank - 1/2).
    """

    def gain(name: str, rank: int) -> float:
        return weights[name] / (rank - 0.5)

    return gain


def _layer_weights(places: Places, shape: Shape) -> dict[str, float]:
    """Return the weight of every layer.

    Raises:
        SpecError: the shape is unknown, or gives a layer no positive weight; all are named.
    """
    faults: list[str] = []
    weights: Mapping[str, float | None]
    if isinstance(shape, Mapping):
        faults += explain_unmatched(shape, places)
        patterns = {name: first_match(shape, name) for name in places}
        weights = {
            name: None if pattern is None else shape[pattern] for name, pattern in patterns.items()
        }
    else:
        weigh = _shape_function(shape)
        weights = {name: weigh(depth) for name, depth in layer_depths(places).items()}
    given: dict[str, float] = {}
    for name, weight in weights.items():
        if weight is None:
            faults.append(f"{name}   no pattern gives it a weight")
        else:
            given[name] = weight
    for name, weight in given.items():
        if not is_number(weight) or weight <= 0:
            faults.append(f"{name}   weight {weight!r} is not a number above 0")
    if faults:
        raise SpecError(f"{plural(len(faults), 'fault')} in the shape.", faults)
    return given


def _shape_function(shape: str | ShapeFunction) -> ShapeFunction:
    if callable(shape):
        return shape
    if shape in SHAPES:
        return SHAPES[shape]
    known = (*SHAPES, EXPLAINED)
    hint = near_misses(str(shape), known)
    raise SpecError(
        add_hint(f"shape {shape!r} is none of {', '.join(known)}.", hint),
        advice="Other shapes are given as a function of the depth, or as weights by name pattern.",
    )


def layer_depths(names: Iterable[str]) -> dict[str, float]:
    """Return the depth of each layer from 0 to 1: the position of its block among all blocks.

    Layers with the same name up to their first number are in one block.

    >>> layer_depths(["embed", "h.0.q", "h.0.k", "h.1.q"])
    {'embed': 0.0, 'h.0.q': 0.5, 'h.0.k': 0.5, 'h.1.q': 1.0}
    """
    blocks = {name: _block_of(name) for name in names}
    order = dict.fromkeys(blocks.values())
    positions = {block: position for position, block in enumerate(order)}
    last = max(len(order) - 1, 1)
    return {name: positions[block] / last for name, block in blocks.items()}


def _block_of(name: str) -> str:
    words = name.split(".")
    for position, word in enumerate(words):
        if word.isdigit():
            return ".".join(words[: position + 1])
    return name


def _spend_budget(
    budget: int,
    costs: Mapping[str, int],
    largest: Mapping[str, int],
    gain: Gain,
) -> dict[str, int]:
    """Return ranks of at least 1; each further rank goes where it gains most, while it fits.

    Args:
        budget: values of all layers together.
        costs: values of one rank, by layer.
        largest: the largest rank, by layer.
        gain: of a further rank.

    Raises:
        SpecError: the budget is too small for rank 1.
    """
    needed = sum(costs.values())
    if needed > budget:
        raise SpecError(
            f"A budget of {budget:,} values is too small: rank 1 of {plural(len(costs), 'layer')} "
            f"takes {needed:,}.",
            advice="Give a larger budget, or fewer targets.",
        )
    budget -= needed
    ranks = dict.fromkeys(costs, 1)
    positions = {name: position for position, name in enumerate(costs)}
    # The position decides between equal gains.
    candidates = [(-gain(name, 2), positions[name], name) for name in costs]
    heapq.heapify(candidates)
    while candidates:
        _, position, name = heapq.heappop(candidates)
        if ranks[name] < largest[name] and costs[name] <= budget:
            budget -= costs[name]
            ranks[name] += 1
            next_gain = gain(name, ranks[name] + 1)
            heapq.heappush(candidates, (-next_gain, position, name))
    return ranks
