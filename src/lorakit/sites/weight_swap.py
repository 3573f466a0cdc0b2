"""Sites of weights that a module reads itself, in an operation whose inputs cannot be hooked.

While such a module runs, W + change stands under the weight's name; before and after, W does.
Gradients flow through the sum. The dense sum is built once in each forward. Dropout on the input of
A is impossible.
"""

from typing import final

from torch import Tensor, nn

from lorakit.sites.base import LayerT, Site, WeightedChange, is_plain, own_weight
from lorakit.spec import Settings


class SwappedWeightSite(Site[LayerT]):
    """A weight that is swapped for the changed one while the layer runs.

    M is the weight with all axes but the first flattened.

    Args:
        kind: name of this kind of site.
        name: name of the weight, relative to the layer.
    """

    swaps_weight = True

    def __init__(self, kind: str, name: str):
        self.kind, self.name = kind, name
        self.owner_name, _, self.key = name.rpartition(".")

    def owner(self, layer: LayerT) -> nn.Module:
        """Return the module that holds the weight: the layer, or one in it."""
        return layer.get_submodule(self.owner_name)

    def weight_name(self) -> str:
        return self.name

    def stored_weight(self, layer: LayerT) -> nn.Parameter:
        """Return the layer's own parameter, also while another weight is swapped in."""
        weight = self.owner(layer)._parameters[self.key]
        if weight is None:
            raise KeyError(self.name)
        return weight

    def read(self, layer: LayerT) -> Tensor:
        weight = self.stored_weight(layer)
        return weight.detach().flatten(1)

    def to_weight(self, layer: LayerT, M: Tensor) -> Tensor:
        return M.reshape(self.stored_weight(layer).shape)

    def changed_weight(self, layer: LayerT, changes: list[WeightedChange]) -> Tensor:
        """Return the weight plus its changes, summed as a merge sums them and rounded once."""
        M = self.add_changes(layer, changes)
        weight = self.to_weight(layer, M)
        return weight.to(self.stored_weight(layer).dtype)

    def swap_in(self, layer: LayerT, changes: list[WeightedChange]) -> None:
        """Let the layer read its weight plus these changes, of the matrix or of slices of it."""
        # An attribute of the instance hides the parameter of the same name.
        self.owner(layer).__dict__[self.key] = self.changed_weight(layer, changes)

    def swap_out(self, layer: LayerT) -> None:
        """Let the layer read its own weight again."""
        self.owner(layer).__dict__.pop(self.key, None)

    def matrix_faults(self, layer: LayerT, settings: Settings) -> list[str]:
        """Return the reasons that hold for the matrix, swapped or not."""
        return super().faults(layer, settings)

    def faults(self, layer: LayerT, settings: Settings) -> list[str]:
        faults = self.matrix_faults(layer, settings)
        if settings.dropout:
            faults.append(
                f"dropout {settings.dropout:g}: {type(layer).__name__} reads this weight itself, "
                "so the input of A cannot be seen; set it to 0 for this name with overrides"
            )
        return faults


@final
class NamedWeightSite(SwappedWeightSite[nn.Module]):
    """A weight with a name that is known beforehand."""

    def supports(self, layer: nn.Module) -> bool:
        try:
            weight = self.owner(layer)._parameters.get(self.key)
        except AttributeError:
            return False
        return weight is not None and is_plain(weight)


@final
class OwnWeightSite(SwappedWeightSite[nn.Module]):
    """The matrix that a module keeps as its parameter `weight`, such as the router of experts."""

    def supports(self, layer: nn.Module) -> bool:
        if any(known.__module__.startswith("torch.") for known in _list_own_classes(layer)):
            return False
        weight = own_weight(layer)
        return weight is not None and weight.ndim == 2


def _list_own_classes(layer: nn.Module) -> list[type]:
    """Return the class of a module and those that it derives from, without nn.Module."""
    return [known for known in type(layer).__mro__ if known is not nn.Module]


OWN_WEIGHT = OwnWeightSite("parameter", "weight")
IN_PROJ = NamedWeightSite("in_proj", "in_proj_weight")
OUT_PROJ = NamedWeightSite("out_proj", "out_proj.weight")
# Of an attention with keys and values of other widths than its queries.
SEPARATE_PROJECTIONS = {
    "q": NamedWeightSite("q_proj", "q_proj_weight"),
    "k": NamedWeightSite("k_proj", "k_proj_weight"),
    "v": NamedWeightSite("v_proj", "v_proj_weight"),
}
