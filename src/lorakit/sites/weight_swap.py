"""Weights that a module reads itself, in an operation of its own: no input and output of one matrix
can be seen there.

While such a module runs it is lent W plus the change, under the weight's own name; before and
after, it has its own W. Gradients flow through the sum. Cost: the dense change, once a forward. So
dropout on the input of A has no place.
"""

from typing import Any

from torch import Tensor, nn

from lorakit.sites.linear import Linear
from lorakit.spec import Settings


class SwappedWeightSite(Linear):
    """The weight called `key` from a layer on: M is the weight with all axes but the first in one."""

    lends = True

    def __init__(self, kind: str, key: str):
        self.kind, self.key = kind, key

    def weight_name(self) -> str:
        return self.key

    def own(self, layer: nn.Module) -> Tensor:
        """Return the stored weight, also while another is lent."""
        owner, _, key = self.key.rpartition(".")
        weight = layer.get_submodule(owner)._parameters[key]
        if weight is None:
            raise KeyError(self.key)
        return weight

    def read(self, layer: Any) -> Tensor:
        return self.own(layer).detach().flatten(1)

    def to_weight(self, layer: Any, M: Tensor) -> Tensor:
        return M.reshape(self.own(layer).shape)

    def swap_in(self, layer: nn.Module, changes: list[tuple[float, Any, Any]]) -> None:
        """Let the layer find its weight with changes added, summed as a merge sums them and rounded
        once.

        A tensor of its instance hides the parameter of its name.

        Args:
            layer: the layer.
            changes: weight, site and delta of what is on: of this matrix, and of parts of it.
        """
        owner, _, key = self.key.rpartition(".")
        layer.get_submodule(owner).__dict__[key] = self.to_weight(
            layer, self.add_changes(layer, changes)
        ).to(self.own(layer).dtype)

    def swap_out(self, layer: nn.Module) -> None:
        """Let the layer find its own weight again."""
        owner, _, key = self.key.rpartition(".")
        layer.get_submodule(owner).__dict__.pop(key, None)

    def matrix_faults(self, layer: Any, settings: Settings) -> list[str]:
        """Return what is wrong whether the matrix is lent or not."""
        return super().faults(layer, settings)

    def faults(self, layer: Any, settings: Settings) -> list[str]:
        faults = self.matrix_faults(layer, settings)
        if settings.dropout:
            faults.append(
                f"dropout {settings.dropout:g}: {type(layer).__name__} reads this weight itself, so the input of A "
                "cannot be seen; set it to 0 for this name with overrides"
            )
        return faults


IN_PROJ = SwappedWeightSite("in_proj", "in_proj_weight")
OUT_PROJ = SwappedWeightSite("out_proj", "out_proj.weight")
# Of an attention whose keys and values are of other widths than its queries.
SEPARATE_PROJECTIONS = {
    part: SwappedWeightSite(f"{part}_proj", f"{part}_proj_weight") for part in ("q", "k", "v")
}
