"""nn.LSTM, nn.GRU, nn.RNN and their cells, and nn.Bilinear: they read their weights themselves, and
are lent them.

A recurrent module of several layers hands its kernel a list that it made of its parameters: a lent
    weight stands in that list.
Each weight is a place of its own, called as the parameter is: `lstm.weight_ih_l0` is (gates x
    hidden, in).
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lorakit.sites.base import Site
from lorakit.sites.weight_swap import NamedWeightSite, SwappedWeightSite


class FlatWeightSite(SwappedWeightSite):
    """The parameter `key` of a module that reads its parameters from `_flat_weights`."""

    def __init__(self, key: str):
        super().__init__("recurrent", key)

    def supports(self, layer: nn.Module) -> bool:
        return isinstance(layer, nn.RNNBase) and self.name in layer._flat_weights_names

    def swap_in(self, layer: Any, changes: list[tuple[float, Any, Any]]) -> None:
        self._list(
            layer,
            self.to_weight(layer, self.add_changes(layer, changes)).to(
                self.stored_weight(layer).dtype
            ),
        )

    def swap_out(self, layer: Any) -> None:
        self._list(layer, self.stored_weight(layer))

    def _list(self, layer: Any, weight: Tensor) -> None:
        # Another list: a copy of the module may share the first.
        names = layer._flat_weights_names
        layer._flat_weights = [
            weight if n == self.name else w for n, w in zip(names, layer._flat_weights, strict=True)
        ]


BILINEAR = NamedWeightSite("bilinear", "weight")


def recurrent_sites(layer: nn.Module) -> Iterator[tuple[str, Site]]:
    """Yield the matrices of a module of this file: the rest of the name, and the site."""
    if isinstance(layer, nn.RNNBase):
        yield from (
            (key, FlatWeightSite(key))
            for key in layer._flat_weights_names
            if key.startswith("weight")
        )
    if isinstance(layer, nn.RNNCellBase):
        yield from ((key, NamedWeightSite("recurrent", key)) for key in ("weight_ih", "weight_hh"))
    if isinstance(layer, nn.Bilinear):
        yield "", BILINEAR
