"""What attaching leaves on a model: a Slot at each adapted layer, and one State that all slots
share.

A slot is the child module `lorakit` of its layer. It holds the layer's deltas by adapter name, and
the parameters that
wait to be exchanged: while an adapter that trains a bias or a module whole is on, its Parameter
    stands in the layer and
the base's own waits here (so that it moves and casts with the model); otherwise it is the other way
round.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lorakit.errors import AdapterNameError, RowsError
from lorakit.sites.base import Site
from lorakit.spec import full_name

SLOT = "lorakit"


@dataclass
class State:
    """What is attached to one model. It travels with deepcopy and pickle, because slots refer to
    it.
    """

    adapters: dict[str, Any] = field(default_factory=dict)  # name -> Adapter
    enabled: dict[str, float] = field(default_factory=dict)  # name -> weight
    required_grad: dict[str, bool] = field(
        default_factory=dict
    )  # requires_grad of every parameter, as found
    unpacked_layers: list[Any] = field(
        default_factory=list
    )  # layers that bitsandbytes is kept from packing
    merged: str | None = None  # token of the Undo that takes the merge back
    route: Any = None  # of the rows of a batch, while a block of `route` lasts


class Slot(nn.Module):
    """The deltas of one layer, under "adapter" or, of a part of it, "adapter/part"; and the
    parameters that wait.

    The keys of waiting parameters are "adapter:key", and ":key" for the base's own.
    """

    def __init__(self, state: State, path: str):
        super().__init__()
        self.state, self.path = (
            state,
            path,
        )  # path: the layer's name in the model that attach was given
        self.sites: dict[str, Site] = {}  # by the end of the keys of its deltas: "", or "/part"
        self.rows_first = (
            False  # whether inputs were seen whose first axis can only be the rows of the batch
        )

    def on(self, *, lends: bool) -> Iterator[tuple[float, Any, Any]]:
        """Yield weight, site and delta of what is on, and enters the layer in this way."""
        for name, weight in self.state.enabled.items() if self.state.route is None else ():
            for end, site in self.sites.items():
                delta = self._modules.get(name + end)
                if delta is not None and site.swaps_weight is lends:
                    yield weight, site, delta

    def forward(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus what each delta that is on adds to it, or what each row of the batch is
        routed to.
        """
        if self.state.route is not None:
            return self.state.route.add(self, layer, x, y)
        out, on = y, list(self.on(lends=False))
        for weight, site, delta in on:
            # y itself is overwritten only where nothing else reads it: not the deltas that come
            # after, either.
            into = out is not y or (len(on) == 1 and site.owns_output(layer))
            out = delta.add_change(site, layer, x, y, out, weight, into=into)
        return out

    def swap_in(self, layer: nn.Module) -> None:
        """Lend the layer the weights that are changed by what is on."""
        changes: dict[str, list[tuple[float, Any, Any]]] = {}
        for change in self.on(lends=True):
            changes.setdefault(change[1].weight_name(), []).append(change)
        for found in changes.values():
            found[0][1].full_site.swap_in(layer, found)

    def swap_out(self, layer: nn.Module) -> None:
        """Give the layer its own weights back."""
        wholes: list[Any] = [site.full_site for site in self.sites.values() if site.swaps_weight]
        for whole in wholes:
            whole.swap_out(layer)


def add_deltas(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor:
    """The forward hook of every adapted layer; a function of this module, so that models stay
    picklable.
    """
    return layer.lorakit(
        layer, args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor)), y
    )


def swap_weights_in(layer: Any, args: tuple[Any, ...]) -> None:
    """The hook before a layer that reads its adapted weights itself."""
    layer.lorakit.swap_in(layer)


def swap_weights_out(layer: Any, args: tuple[Any, ...], y: Any) -> None:
    """The hook after it, also where it failed."""
    layer.lorakit.swap_out(layer)


def make_slot(layer: nn.Module, state: State, path: str) -> Slot:
    """Return the layer's slot, made where it is missing."""
    slot = get_slot(layer)
    if slot is None:
        slot = Slot(state, path)
        layer.add_module(SLOT, slot)
    return slot


def add_delta(
    layer: nn.Module, state: State, path: str, key: tuple[str, str], site: Site, delta: nn.Module
) -> None:
    """Put a delta into the slot of a layer, and hook the layer where nothing of this kind did
    before.

    Args:
        layer: the layer.
        state: what is attached to the model.
        path: the layer's full name.
        key: the adapter's name, and the end of its key.
        site: what the delta changes.
        delta: the change.
    """
    slot = make_slot(layer, state, path)
    if not any(known.swaps_weight is site.swaps_weight for known in slot.sites.values()):
        if site.swaps_weight:
            layer.register_forward_pre_hook(swap_weights_in)
            layer.register_forward_hook(swap_weights_out, always_call=True)
        else:
            layer.register_forward_hook(add_deltas, with_kwargs=True)
    # torch.compile does not guard on hooks, so a graph of the same class that was compiled without
    # them would be taken for this layer too, without a word. It does guard on the type of this
    # dict, which nothing else asks for.
    if type(layer._parameters) is dict:
        layer.__dict__["_parameters"] = OrderedDict(layer._parameters)
    slot.sites.setdefault(key[1], site)
    # Not by add_module: the name may be that of a method, such as "train".
    slot._modules[key[0] + key[1]] = delta


def remove_slot(layer: nn.Module) -> None:
    """Take the slot and its hooks off a layer."""
    hooks = (add_deltas, swap_weights_in, swap_weights_out)
    for key in [key for key, hook in layer._forward_hooks.items() if hook in hooks]:
        del layer._forward_hooks[key]
        layer._forward_hooks_with_kwargs.pop(key, None)
        layer._forward_hooks_always_called.pop(key, None)
    for key in [key for key, hook in layer._forward_pre_hooks.items() if hook in hooks]:
        del layer._forward_pre_hooks[key]
    if type(layer._parameters) is OrderedDict:
        layer.__dict__["_parameters"] = dict(layer._parameters)
    del layer._modules[SLOT]


def get_slot(layer: nn.Module) -> Slot | None:
    slot = layer._modules.get(SLOT)
    return slot if isinstance(slot, Slot) else None


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the model's own modules by name: not the slots, nor what is in them."""
    # In the order of named_modules, without the chain of generators that it puts between a module
    # and who asks for it.
    seen, left = set[nn.Module](), [("", model)]
    while left:
        name, module = left.pop()
        if module not in seen and not isinstance(module, Slot):
            seen.add(module)
            yield name, module
            left += [
                (full_name(name, k), child)
                for k, child in reversed(module._modules.items())
                if child is not None
            ]


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the base's own parameters by name, also those that wait in a slot."""
    for name, module in base_modules(model):
        slot = get_slot(module)
        for key, parameter in module._parameters.items():
            own = slot._parameters.get(f":{key}", parameter) if slot else parameter
            if own is not None:
                yield full_name(name, key), own


def find_state(model: nn.Module) -> State | None:
    """Return what is attached to this model, or None.

    Raises:
        AdapterNameError: it was attached to a part of this model, or to what this is a part of:
            names would not fit.
    """
    name, slot = next(
        ((name, slot) for name, module in base_modules(model) if (slot := get_slot(module))),
        ("", None),
    )
    if slot is not None and slot.path != name:
        raise AdapterNameError(
            f"The adapters here were attached to another module: its {slot.path!r} is this "
            f"{type(model).__name__}'s {name!r}.",
            advice="Call with the module that attach was given.",
        )
    return slot.state if slot else None


def refuse_while_routed(state: State) -> None:
    """Raise RowsError in a block of `route`: what it looked up once would no longer be what is
    attached.
    """
    if state.route is not None:
        raise RowsError(
            "The rows of this model are routed: what is attached and on stays as it is until the block ends.",
            advice="Do it before or after the block. Nothing was changed.",
        )


def set_enabled(model: nn.Module, state: State, on: dict[str, float]) -> None:
    """Set what is on, and put the parameters of those adapters (or the base's own) in their places."""
    refuse_while_routed(state)
    state.enabled.clear()
    state.enabled.update(on)
    for name, layer in base_modules(model):
        slot = get_slot(layer)
        if slot is None:
            continue
        for key in {waiting.partition(":")[2] for waiting in slot._parameters}:
            sides = [
                *(
                    n
                    for n, a in state.adapters.items()
                    if full_name(name, key) in a.full_parameters
                ),
                "",
            ]
            now = next(n for n in sides if f"{n}:{key}" not in slot._parameters)
            want = next((n for n in sides if n in on), "")
            if want != now:
                slot._parameters[f"{now}:{key}"] = layer._parameters[key]
                setattr(
                    layer, key, slot._parameters.pop(f"{want}:{key}")
                )  # not in its dict: an LSTM keeps a list too
