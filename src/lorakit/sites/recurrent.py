"""Sites of recurrent modules, their cells and nn.Bilinear, which read their weights themselves.

Each weight is a place of its own with the name of the parameter: `lstm.weight_ih_l0` is
(gates x hidden, in). A recurrent module of several layers hands its kernel a list of its parameters
(`_flat_weights`); the changed weight is swapped into that list.
"""

from collections.abc import Iterator
from typing import final

from torch import Tensor, nn

from lorakit.sites.base import Site, WeightedChange, own_weight
from lorakit.sites.weight_swap import NamedWeightSite, SwappedWeightSite


@final
class FlatWeightSite(SwappedWeightSite[nn.RNNBase]):
    """A parameter of a module that reads its parameters from `_flat_weights`.

    Args:
        name: name of the parameter.
    """

    def __init__(self, name: str):
        super().__init__("recurrent", name)

    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.RNNBase) and own_weight(layer, self.name) is not None

    def swap_in(self, layer: nn.RNNBase, changes: list[WeightedChange]) -> None:
        self._replace(layer, self.changed_weight(layer, changes))

    def swap_out(self, layer: nn.RNNBase) -> None:
        self._replace(layer, self.stored_weight(layer))

    def _replace(self, layer: nn.RNNBase, weight: Tensor) -> None:
        # In a new list, because a copy of the module may share the old one.
        weights = list(layer._flat_weights)
        weights[layer._flat_weights_names.index(self.name)] = weight
        layer._flat_weights = weights


BILINEAR = NamedWeightSite("bilinear", "weight")


def recurrent_sites(layer: nn.Module) -> Iterator[tuple[str, Site]]:
    """Yield the sites of a module of this file, each with the rest of its place's name."""
    if isinstance(layer, nn.RNNBase):
        for name in layer._flat_weights_names:
            if name.startswith("weight"):
                yield name, FlatWeightSite(name)
    elif isinstance(layer, nn.RNNCellBase):
        for name in ("weight_ih", "weight_hh"):
            yield name, NamedWeightSite("recurrent", name)
    elif isinstance(layer, nn.Bilinear):
        yield "", BILINEAR
