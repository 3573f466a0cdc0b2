"""The sum of a stored weight and the changes that enabled adapters make to it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorakit.inject.state import get_places
from lorakit.sites.base import Site, WeightedChange
from lorakit.sites.shared import memory_of
from lorakit.sites.slot import State


@dataclass(frozen=True)
class WeightSum:
    """A stored weight, with the changes of it that are to be added.

    Attributes:
        layer: the module that holds the weight.
        site: access to the full matrix.
        changes: of the matrix or of slices of it.
    """

    layer: nn.Module
    site: Site
    changes: list[WeightedChange]

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """Return the sum as a matrix (out, in), in float32 or better."""
        return self.site.add_changes(self.layer, self.changes)

    @torch.no_grad()
    def stored(self) -> Tensor:
        """Return the sum as the layer stores it, rounded to the dtype of the weight."""
        dtype = self.site.read(self.layer).dtype
        return self.site.to_weight(self.layer, self.matrix().to(dtype))


def find_sums(model: nn.Module, state: State) -> dict[str, WeightSum]:
    """Return the sums of all weights that enabled adapters change, by the name of the weight."""
    enabled = [
        (weight, state.adapters[name].deltas_by_place) for name, weight in state.enabled.items()
    ]
    places = get_places(model, state)
    names_by_weight: dict[str, list[str]] = {}
    for name, place in places.items():
        if any(name in deltas for _, deltas in enabled):
            names_by_weight.setdefault(place.weight_name, []).append(name)
    sums: dict[str, WeightSum] = {}
    for weight_name, names in names_by_weight.items():
        changes: list[WeightedChange] = []
        for weight, deltas in enabled:
            changed = [name for name in names if name in deltas]
            changes += [(weight, places[name].site, deltas[name]) for name in changed]
        first = places[names[0]]
        sums[weight_name] = WeightSum(first.layer, first.site.full_site, changes)
    return sums


def group_shared(parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Return the names of parameters, those of shared values together."""
    names: dict[Hashable, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(memory_of(parameter), []).append(name)
    return list(names.values())
