"""Slots: what attaching adds to a model, one at each adapted layer, with one State shared by all.

A slot is the child module `lorakit` of its layer. It holds the deltas of the layer by adapter name,
and parameters that wait. While an adapter that trains a bias or a full module is enabled, its
Parameter is registered in the layer, and the base's own waits in the slot, so that it moves and
casts with the model. While the adapter is disabled, its Parameter waits instead.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorakit.errors import AdapterNameError, ModelError, RowsError
from lorakit.sites.base import Site, WeightedChange
from lorakit.sites.snapshot import all_or_nothing
from lorakit.sites.weight_swap import SwappedWeightSite
from lorakit.spec import full_name

SLOT = "lorakit"

# Classes that run another module and change nothing else, with the name of their only child. Names
# of layers leave it out: they are those of the wrapped model.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}


class RowRouter(Protocol):
    """The routing of the rows of a batch, while a block of `route` lasts."""

    def add(self, slot: "Slot", layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus the change of each row at this layer."""
        ...


class Mark:
    """An object that ends with the thread that it belongs to."""


class OwnMark(threading.local):
    """The mark of the thread that reads it."""

    def __init__(self) -> None:
        self.mark = Mark()


Requests = WeakKeyDictionary[Mark, dict[str, float]]
_own = OwnMark()
_switching = threading.RLock()


@dataclass
class State:
    """The adapters of one model; copied and pickled with it, because slots refer to it.

    Attributes:
        adapters: every attached Adapter by name (a class of a higher layer).
        enabled: weights of the enabled adapters by name; replaced and never changed, so that a
            layer that runs meanwhile in another thread reads the old ones or the new ones.
        requests: the weights that each thread has set last; replaced and never changed.
        required_grad: `requires_grad` of every parameter before the first adapter was attached.
        unpacked_layers: layers that bitsandbytes must not pack while adapters are attached.
        merged: token of the Undo that takes the merge back; None while nothing is merged.
        route: the routing of the innermost block of `route`; None outside of it.
    """

    adapters: dict[str, Any] = field(default_factory=dict)
    enabled: dict[str, float] = field(default_factory=dict)
    required_grad: dict[str, bool] = field(default_factory=dict)
    unpacked_layers: list[nn.Module] = field(default_factory=list)
    merged: str | None = None
    route: RowRouter | None = None
    requests: Requests = field(default_factory=WeakKeyDictionary)

    def __getstate__(self) -> dict[str, object]:
        """Return the attributes for a copy, which no thread has switched yet."""
        return {name: value for name, value in vars(self).items() if name != "requests"}

    def __setstate__(self, attributes: dict[str, object]) -> None:
        vars(self).update(attributes)
        self.requests = WeakKeyDictionary()

    def read_enabled(self) -> dict[str, float]:
        """Return the weights of the enabled adapters, for a forward of this thread.

        Raises:
            RowsError: this thread has enabled adapters, and another thread others after it.
        """
        enabled = self.enabled
        if torch.compiler.is_compiling():
            return enabled
        own = self.requests.get(_own.mark)
        if own is None or own is enabled or own == enabled:
            return enabled
        raise RowsError(
            f"This thread enabled {_list_weights(own)}, and then another thread "
            f"{_list_weights(enabled)}.",
            advice="Hold a lock around enable and the forwards that follow it, or give each thread "
            "a copy of the model.",
        )


def _list_weights(enabled: dict[str, float]) -> str:
    return ", ".join(map(repr, enabled)) or "none"


class Slot(nn.Module):
    """The deltas of one layer, and its parameters that wait.

    The key of a delta is "adapter", or "adapter/part" for a part of the layer. The key of a waiting
    parameter is "adapter:key", or ":key" for the base's own.

    Args:
        state: what is attached to the model.
        path: full name of the layer in the model that `attach` was given.

    Attributes:
        sites: the site of each delta, by the suffix of the delta's key: "" or "/part".
        rows_first: whether an input was seen whose first axis can only be the rows of the batch.
    """

    def __init__(self, state: State, path: str):
        super().__init__()
        self.state, self.path = state, path
        self.sites: dict[str, Site] = {}
        self.rows_first = False

    def enabled_deltas(self, *, swaps_weight: bool) -> Iterator[tuple[float, Site, Any]]:
        """Yield weight, site and delta of each enabled delta whose site does (not) swap weights."""
        if self.state.route is not None:
            return
        for name, weight in self.state.read_enabled().items():
            for suffix, site in self.sites.items():
                delta = self._modules.get(name + suffix)
                if delta is not None and site.swaps_weight is swaps_weight:
                    yield weight, site, delta

    def forward(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus the changes of the enabled deltas, or of each row's if rows are routed."""
        if self.state.route is not None:
            return self.state.route.add(self, layer, x, y)
        out = y
        deltas = list(self.enabled_deltas(swaps_weight=False))
        for weight, site, delta in deltas:
            # y itself may be overwritten only if nothing else reads it, nor a later delta.
            is_copy = out is not y
            in_place = is_copy or (len(deltas) == 1 and site.owns_output(layer))
            out = delta.add_change(site, layer, x, y, out, weight, in_place=in_place)
        return out

    def swap_in(self, layer: nn.Module) -> None:
        """Give the layer its weights with the changes of the enabled deltas."""
        self.swap_out(layer)  # torch calls no hook after a Ctrl-C in the last forward
        changes: dict[str, list[WeightedChange]] = {}
        for change in self.enabled_deltas(swaps_weight=True):
            _, site, _ = change
            changes.setdefault(site.weight_name(), []).append(change)
        for changes_of_weight in changes.values():
            _, site, _ = changes_of_weight[0]
            cast(SwappedWeightSite, site.full_site).swap_in(layer, changes_of_weight)

    def swap_out(self, layer: nn.Module) -> None:
        """Give the layer its own weights again."""
        for site in self.sites.values():
            if site.swaps_weight:
                cast(SwappedWeightSite, site.full_site).swap_out(layer)

    def __prepare_scriptable__(self) -> "Slot":
        """Refuse torch.jit.script, which calls this method."""
        raise ModelError(
            f"{self.path or 'This module'} has adapters, which TorchScript cannot compile.",
            advice="Merge and detach them first; or use torch.jit.trace, torch.export or "
            "torch.compile.",
        )

    def add_waiting(self, adapter: str, key: str, parameter: nn.Parameter) -> None:
        """Add a parameter of an adapter; it waits until the adapter is enabled."""
        self._parameters[f"{adapter}:{key}"] = parameter

    def remove_adapters(self, adapters: Collection[str]) -> None:
        """Remove the deltas and waiting parameters of these adapters, by name."""
        for key in list(self._modules):
            adapter, _, _ = key.partition("/")
            if adapter in adapters:
                del self._modules[key]
        for key in list(self._parameters):
            adapter, _, _ = key.partition(":")
            if adapter in adapters:
                del self._parameters[key]

    @property
    def is_empty(self) -> bool:
        """True if the slot holds neither deltas nor waiting parameters."""
        return not self._modules and not self._parameters


if TYPE_CHECKING:

    class AdaptedLayer(nn.Module):
        """A layer with a slot, for type checkers."""

        lorakit: Slot


# The hooks are functions of this module, so that models stay picklable.


def apply_deltas(
    layer: "AdaptedLayer", args: tuple[Tensor, ...], kwargs: dict[str, object], y: Tensor
) -> Tensor:
    """Forward hook of an adapted layer: add the deltas to its output."""
    if args:
        return layer.lorakit(layer, args[0], y)
    x = next(value for value in kwargs.values() if isinstance(value, Tensor))
    return layer.lorakit(layer, x, y)


def swap_weights_in(layer: "AdaptedLayer", args: tuple[object, ...]) -> None:
    """Forward pre-hook of a layer that reads its adapted weights itself."""
    layer.lorakit.swap_in(layer)


def swap_weights_out(layer: "AdaptedLayer", args: tuple[object, ...], y: object) -> None:
    """Forward hook of a layer that reads its adapted weights itself, called after an error too."""
    layer.lorakit.swap_out(layer)


HOOKS = (apply_deltas, swap_weights_in, swap_weights_out)


def make_slot(layer: nn.Module, state: State, path: str) -> Slot:
    """Return the layer's slot; add one if there is none.

    Raises:
        ModelError: the layer has an attribute of the slot's name.
    """
    slot = get_slot(layer)
    if slot is None:
        if SLOT in layer._modules or SLOT in vars(layer):
            raise ModelError(
                f"{path or 'The model'} has an attribute {SLOT!r} of its own, the name under which "
                "a layer keeps its adapters.",
                advice="Rename it, or leave this layer out. Nothing was attached.",
            )
        slot = Slot(state, path)
        layer.add_module(SLOT, slot)
    return slot


def add_delta(
    layer: nn.Module, state: State, path: str, key: tuple[str, str], site: Site, delta: nn.Module
) -> None:
    """Put a delta into the slot of a layer, and hook the layer for it if needed.

    Args:
        layer: the layer.
        state: what is attached to the model.
        path: full name of the layer.
        key: the adapter's name, and the suffix of the delta's key: "" or "/part".
        site: site that the delta changes.
        delta: the change.
    """
    slot = make_slot(layer, state, path)
    ways = {known.swaps_weight for known in slot.sites.values()}
    if site.swaps_weight not in ways:
        _add_hooks(layer, swaps_weight=site.swaps_weight)
    # torch.compile does not guard on hooks: it would silently reuse, for this layer, a graph that
    # was compiled for the same class without hooks. It does guard on the type of this dict, which
    # nothing else depends on.
    if type(layer._parameters) is dict:
        layer.__dict__["_parameters"] = OrderedDict(layer._parameters)
    name, suffix = key
    slot.sites.setdefault(suffix, site)
    # Not by add_module: the name may be that of a method, such as "train".
    slot._modules[name + suffix] = delta


def _add_hooks(layer: nn.Module, *, swaps_weight: bool) -> None:
    if swaps_weight:
        layer.register_forward_pre_hook(swap_weights_in)
        layer.register_forward_hook(swap_weights_out, always_call=True)
    else:
        layer.register_forward_hook(apply_deltas, with_kwargs=True)


def remove_slot(layer: nn.Module) -> None:
    """Remove the slot and its hooks from a layer."""
    slot = get_slot(layer)
    if slot is not None:
        slot.swap_out(layer)
    hooks = list(layer._forward_hooks.items())
    for key, hook in hooks:
        if hook in HOOKS:
            del layer._forward_hooks[key]
            layer._forward_hooks_with_kwargs.pop(key, None)
            layer._forward_hooks_always_called.pop(key, None)
    pre_hooks = list(layer._forward_pre_hooks.items())
    for key, hook in pre_hooks:
        if hook in HOOKS:
            del layer._forward_pre_hooks[key]
    if type(layer._parameters) is OrderedDict:
        layer.__dict__["_parameters"] = dict(layer._parameters)
    del layer._modules[SLOT]


def get_slot(layer: nn.Module) -> Slot | None:
    """Return the layer's slot; None if it has none."""
    if SLOT not in layer._modules:
        return None  # the modules of TorchScript have no `get`
    slot = layer._modules[SLOT]
    return slot if isinstance(slot, Slot) else None


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that a wrapper runs, such as that of `torch.compile`; others as they are.

    >>> layer = nn.Linear(1, 1)
    >>> unwrap(nn.DataParallel(layer)) is layer is unwrap(layer)
    True
    """
    while type(module).__name__ in WRAPPERS:
        inner = module._modules.get(WRAPPERS[type(module).__name__])
        if inner is None:
            break
        module = inner
    return module


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the base's own modules with their names: no slots, and nothing inside of them.

    The order is that of `named_modules`, whose recursion is slower and limited. Wrappers are left
    out, in names too.
    """
    visited: set[nn.Module] = set()
    pending = [("", model)]
    while pending:
        name, module = pending.pop()
        if type(module).__name__ in WRAPPERS:
            module = unwrap(module)
        if module in visited or isinstance(module, Slot):
            continue
        visited.add(module)
        yield name, module
        for key, child in reversed(module._modules.items()):
            if child is not None:
                pending.append((full_name(name, key), child))


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the base's own parameters with their names, those that wait in a slot too."""
    for name, module in base_modules(model):
        for key, parameter in own_parameters(module):
            yield full_name(name, key), parameter


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the base's own parameters of one module, those that wait in its slot too."""
    slot = get_slot(module)
    for key, parameter in module._parameters.items():
        own = slot._parameters.get(f":{key}", parameter) if slot else parameter
        if own is not None:
            yield key, own


def find_state(model: nn.Module) -> State | None:
    """Return the state of this model's adapters; None if it has none.

    Raises:
        AdapterNameError: `attach` was given another module, which contains this one or is part of
            it, so that names would not fit.
    """
    for name, module in base_modules(model):
        slot = get_slot(module)
        if slot is None:
            continue
        if slot.path != name:
            raise AdapterNameError(
                f"The adapters here were attached to another module: its {slot.path!r} is this "
                f"{type(model).__name__}'s {name!r}.",
                advice="Call with the module that attach was given.",
            )
        return slot.state
    return None


def refuse_while_routed(state: State) -> None:
    """Raise RowsError inside a block of `route`, whose tables hold what is attached."""
    if state.route is not None:
        raise RowsError(
            "The rows of this model are routed: adapters cannot be attached, detached, enabled or "
            "merged until the block of route ends.",
            advice="Do it before or after the block. Nothing was changed.",
        )


def set_enabled(model: nn.Module, state: State, enabled: dict[str, float]) -> None:
    """Enable exactly these adapters, and register their full parameters (or the base's own).

    Args:
        model: the model that `attach` was given.
        state: what is attached to it.
        enabled: weights by adapter name.
    """
    refuse_while_routed(state)
    waiting: list[tuple[str, nn.Module, Slot]] = []
    for name, layer in base_modules(model):
        slot = get_slot(layer)
        if slot is not None and slot._parameters:
            waiting.append((name, layer, slot))
    layers = [layer for _, layer, _ in waiting]
    slots = [slot for _, _, slot in waiting]
    with _switching, all_or_nothing([state, *layers, *slots]):
        state.enabled = dict(enabled)
        state.requests = WeakKeyDictionary(state.requests)
        state.requests[_own.mark] = state.enabled
        for name, layer, slot in waiting:
            _register_wanted(name, layer, slot, state)


def _register_wanted(name: str, layer: nn.Module, slot: Slot, state: State) -> None:
    """Register in a layer the full parameters of the enabled adapters, or the base's own."""
    # Not a set: its order, which is random, would be that of the state dict.
    keys = dict.fromkeys(waiting.partition(":")[2] for waiting in slot._parameters)
    for key in keys:
        owners = _owners_of(full_name(name, key), state)
        wanted = next((owner for owner in owners if owner in state.enabled), "")
        _register_parameter(layer, slot, key, owners, wanted)


def _owners_of(parameter: str, state: State) -> list[str]:
    """Return the names of the adapters that train this parameter, and "" for the base."""
    owners: list[str] = []
    for name, adapter in state.adapters.items():
        if parameter in adapter.full_parameters:
            owners.append(name)
    return [*owners, ""]


def _register_parameter(
    layer: nn.Module, slot: Slot, key: str, owners: list[str], wanted: str
) -> None:
    """Register the wanted owner's parameter in the layer; the one before it waits in the slot.

    Args:
        layer: the layer.
        slot: its slot.
        key: name of the parameter in the layer.
        owners: names of the adapters that have such a parameter, and "" for the base.
        wanted: one of these names.
    """
    registered = next(owner for owner in owners if f"{owner}:{key}" not in slot._parameters)
    if wanted != registered:
        slot._parameters[f"{registered}:{key}"] = layer._parameters[key]
        parameter = slot._parameters.pop(f"{wanted}:{key}")
        # setattr and not the dict of parameters: an LSTM keeps a list too.
        setattr(layer, key, parameter)
