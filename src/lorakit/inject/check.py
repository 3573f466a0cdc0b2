"""Check that a forward uses every adapted layer.

A weight that another module reads directly, instead of calling its layer, would silently stay
unchanged.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lorakit.errors import TargetError
from lorakit.inject.places import Place
from lorakit.inject.state import get_places, get_state
from lorakit.sites.slot import base_modules
from lorakit.text import plural

# Operations that return a tensor, but use only the shape and dtype of their arguments.
METADATA_OPERATIONS = {
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "new_empty",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_tensor",
    "type_as",
    "expand_as",
    "view_as",
    "reshape_as",
}


def check(model: nn.Module, *args: object, **kwargs: object) -> list[str]:
    """Run the model once without gradients; raise if an adapted layer has no part in it.

    Call it once after `attach`, with a batch of the training, if the model is an unusual one.
    Buffers and the random state of the CPU are restored afterwards. Reads of a weight inside a
    custom kernel cannot be detected.

    Args:
        model: the model that attach was given.
        *args: arguments of the model.
        **kwargs: keyword arguments of the model.

    Returns:
        The names of the adapted places.

    Raises:
        TargetError: another module than the adapted one reads an adapted weight, so that the change
            has no effect there; or an adapted layer did not run for this input. All are named.
        AdapterNameError: nothing is attached.

    >>> from lorakit import Spec, attach
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> adapter = attach(model, Spec(rank=1))
    >>> check(model, torch.ones(2, 4))
    ['0']
    """
    places = _find_adapted(model)
    watch = watch_places(model, places.values())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    hooks = watch.add_hooks()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), watch:
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        _restore_buffers(model, buffers)
    faults = list(_find_direct_reads(places, watch))
    faults += _find_idle(places, watch)
    if faults:
        count = f"{len(faults)} of {plural(len(places), 'adapted layer')}"
        raise TargetError(
            f"{count} without a part in {type(model).__name__}'s forward.",
            faults,
            "Leave them out with exclude=[...], or give an input that reaches them. Nothing was "
            "changed.",
        )
    return list(places)


def _find_adapted(model: nn.Module) -> dict[str, Place]:
    """Return the adapted places by name."""
    state = get_state(model)
    adapted: set[str] = set()
    for adapter in state.adapters.values():
        adapted |= adapter.deltas_by_place.keys()
    places = get_places(model, state)
    return {name: place for name, place in places.items() if name in adapted}


def _restore_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in buffers and buffer.shape == buffers[name].shape:
            buffer.copy_(buffers[name])


def _find_direct_reads(places: Mapping[str, Place], watch: "Watch") -> Iterator[str]:
    """Yield a fault for each place with a weight that another module read, weight by weight."""
    names_by_weight: dict[int, list[str]] = {}
    for name, place in places.items():
        weight = _weight_id(place)
        names_by_weight.setdefault(weight, []).append(name)
    for weight, names in names_by_weight.items():
        operation = watch.direct_reads.get(weight)
        if operation is None:
            continue
        for name in names:
            yield (
                f"{name}   is read without being called (by {operation}): the change has no effect "
                "there"
            )


def _find_idle(places: Mapping[str, Place], watch: "Watch") -> Iterator[str]:
    """Yield a fault for each place with a layer that did not run."""
    for name, place in places.items():
        is_read = _weight_id(place) in watch.direct_reads
        if place.layer not in watch.called and not is_read:
            yield f"{name}   did not run"


def _weight_id(place: Place) -> int:
    return id(place.layer.get_parameter(place.site.weight_name()))


def watch_places(model: nn.Module, places: Iterable[Place]) -> "Watch":
    """Return a watch for the weights of these places; it sees what runs between its hooks."""
    owners: dict[int, set[nn.Module]] = {}
    for _, module in base_modules(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(module)
    watched: dict[int, set[nn.Module]] = {}
    for place in places:
        weight = _weight_id(place)
        owners[weight].add(place.layer)
        watched[weight] = owners[weight]
    return Watch(watched)


class Watch(TorchFunctionMode):
    """Record of all operations on some weights, and of the modules that run.

    Args:
        owners: the modules that may read a weight, by the weight's id.

    Attributes:
        direct_reads: the first operation on a weight outside of its owners, by the weight's id.
        called: the modules that ran.
    """

    def __init__(self, owners: Mapping[int, set[nn.Module]]):
        super().__init__()
        self.owners = owners
        self.running: list[nn.Module] = []
        self.direct_reads: dict[int, str] = {}
        self.called: set[nn.Module] = set()

    def add_hooks(self) -> list[RemovableHandle]:
        """Hook the owners, so that the watch sees them run."""
        hooks: list[RemovableHandle] = []
        modules = set[nn.Module]().union(*self.owners.values())
        for module in modules:
            hooks.append(module.register_forward_pre_hook(self.enter, prepend=True))
            hooks.append(module.register_forward_hook(self.leave, always_call=True))
        return hooks

    def enter(self, module: nn.Module, args: object) -> None:
        """Note that a module begins: a forward pre-hook."""
        self.running.append(module)
        self.called.add(module)

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        """Note that a module ends: a forward hook."""
        self.running.remove(module)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        if name in METADATA_OPERATIONS or next(_tensors_in(result), None) is None:
            return result
        for tensor in _tensors_in((args, kwargs)):
            owners = self.owners.get(id(tensor))
            if owners is not None and owners.isdisjoint(self.running):
                self.direct_reads.setdefault(id(tensor), name)
        return result


def _tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
