"""Obstacles: reasons why a layer of a known class cannot be adapted in its present state."""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lorakit.sites.base import is_plain

KNOWN_CLASSES = (nn.Linear, nn.Embedding, _ConvNd)
# Modules that read weights of several names themselves; each such weight is a place.
READERS = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
PARAMETRIZED = (
    "has a parametrization: torch.nn.utils.parametrize.remove_parametrizations makes its weight a "
    "parameter again"
)


def find_obstacle(layer: nn.Module) -> str:
    """Return the reason why a layer that no site supports cannot be adapted; empty if unknown.

    >>> import torch.nn.utils.prune as prune
    >>> find_obstacle(prune.identity(nn.Linear(2, 2), "weight"))
    'is pruned: torch.nn.utils.prune.remove makes its weight a parameter again'
    """
    if isinstance(layer, torch.jit.ScriptModule):
        return "is compiled by TorchScript: attach to the module that it was made from"
    if isinstance(layer, READERS):
        return ""  # `find_weight_obstacles` tells of each weight
    if is_parametrized(layer):
        return PARAMETRIZED
    if not isinstance(layer, KNOWN_CLASSES):
        return ""
    computed = find_computed_weights(layer).get("weight")
    if computed:
        return computed
    weight = layer._parameters.get("weight")
    if weight is None:
        return "has a weight that is no parameter of its own"
    if is_lazy(weight):
        return "is lazy: it has no shape before its first input"
    if not is_plain(weight):
        layout = "" if weight.layout == torch.strided else f" ({weight.layout})"
        return f"stores its weight as {weight.dtype}{layout}, which no product here takes"
    if not _keeps_forward(layer):
        return "has a forward of its own, which may use the weight in another way"
    return ""


def find_weight_obstacles(layer: nn.Module) -> dict[str, str]:
    """Return the reason for each weight of an attention or recurrent module that is no parameter.

    >>> import torch.nn.utils.prune as prune
    >>> list(find_weight_obstacles(prune.identity(nn.GRUCell(2, 2), "weight_hh")))
    ['weight_hh']
    """
    if not isinstance(layer, READERS):
        return {}
    reasons = find_computed_weights(layer)
    if is_parametrized(layer):
        reasons |= dict.fromkeys(layer.get_submodule("parametrizations")._modules, PARAMETRIZED)
    return {name: reason for name, reason in reasons.items() if "weight" in name}


def find_computed_weights(layer: nn.Module) -> dict[str, str]:
    """Return why each weight that a hook computes from other tensors is none of the parameters."""
    names = {*layer._parameters, *layer._buffers}
    reasons: dict[str, str] = {}
    for (first, second), state, remove in STATES:
        for name in sorted(names):
            weight = name.removesuffix(first)
            if weight != name and f"{weight}{second}" in names:
                reason = f"{state}: torch.nn.utils.{remove} makes its weight a parameter again"
                reasons[weight] = reason
    return reasons


# Ends of the names of the tensors that stand for "weight", the state, and what undoes it.
STATES = [
    (("_orig", "_mask"), "is pruned", "prune.remove"),
    (("_g", "_v"), "is under weight_norm", "remove_weight_norm"),
    (("_orig", "_u"), "is under spectral_norm", "remove_spectral_norm"),
]


def _keeps_forward(layer: nn.Module) -> bool:
    """Return True for a forward that torch defines."""
    return type(layer).forward.__module__.partition(".")[0] == "torch"
