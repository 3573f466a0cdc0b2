"""The state of a model with adapters: what is attached to it, and the places it has with their parts."""

from typing import Any

from torch import nn

from lorakit.errors import AdapterNameError
from lorakit.inject.places import Place, find_places
from lorakit.sites.slot import State, find_state


def get_state(model: nn.Module) -> State:
    """Return what is attached to this model.

    Raises:
        AdapterNameError: nothing is.
    """
    state = find_state(model)
    if state is None:
        raise AdapterNameError(
            f"No adapter is attached to this {type(model).__name__}.", advice="Call attach first."
        )
    return state


def get_places(model: nn.Module, state: State) -> dict[str, Place]:
    """Return the places of a model, with the parts that the specs of its adapters give."""
    given: dict[str, Any] = {}
    for adapter in state.adapters.values():
        given |= adapter.spec.parts
    return find_places(model, given)
