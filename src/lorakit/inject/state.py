"""State of a model with adapters, and its places with the parts that they use."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TypeAlias, cast

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.errors import AdapterNameError
from lorakit.inject.places import Place, find_places
from lorakit.sites.slot import State, base_modules, find_state, get_slot, own_parameters
from lorakit.sites.snapshot import all_or_nothing
from lorakit.text import near_misses

# Names of adapters, or weights by name; None for the base alone.
AdapterRequest: TypeAlias = str | Iterable[str] | Mapping[str, float] | None


def get_state(model: nn.Module) -> State:
    """Return the state of a model that has adapters.

    Raises:
        AdapterNameError: the model has none.
    """
    state = find_state(model)
    if state is None:
        raise AdapterNameError(
            f"No adapter is attached to this {type(model).__name__}.", advice="Call attach first."
        )
    return state


def read_request(request: AdapterRequest) -> dict[str, float]:
    """Return the weights of the adapters of a request by name, not checked."""
    if request is None:
        return {}
    if isinstance(request, Mapping):
        return dict(cast(Mapping[str, float], request))
    if isinstance(request, Iterable) and not isinstance(request, str):
        return dict.fromkeys(request, 1.0)
    return {request: 1.0}


def suggest_adapter(state: State, name: object) -> str:
    """Return `did you mean …?` with the nearest names of attached adapters, or an empty string."""
    return near_misses(str(name), state.adapters)


def list_attached(state: State) -> str:
    """Return the names of the attached adapters as a sentence of a message."""
    return f"Attached: {', '.join(map(repr, state.adapters))}."


def get_places(model: nn.Module, state: State) -> dict[str, Place]:
    """Return the places of a model, with the parts that the specs of its adapters define."""
    parts: dict[str, Mapping[str, int]] = {}
    for adapter in state.adapters.values():
        parts |= adapter.spec.parts
    return find_places(model, parts)


def keep_or_restore(model: nn.Module, *others: object) -> AbstractContextManager[None]:
    """Return a context that restores a model with its adapters if the block raises anything.

    Args:
        model: any module.
        *others: adapters that are not on the model, and other objects that the block may change.
    """
    objects: list[object] = []
    parameters: list[nn.Parameter] = []
    for _, module in base_modules(model):
        parameters += [parameter for _, parameter in own_parameters(module)]
        if isinstance(module, torch.jit.ScriptModule):
            continue  # nothing is attached to it, and its attributes lie in C++
        objects.append(module)
        slot = get_slot(module)
        if slot is not None:
            objects.append(slot)
    state = find_state(model)
    adapters = list(state.adapters.values()) if state else []
    if state:
        objects.append(state)
    for other in (*adapters, *others):
        objects.append(other)
        if isinstance(other, Adapter):
            parameters += other.parameters()
            for delta in other.deltas.values():
                objects += delta.modules()
    return all_or_nothing(objects, parameters)
