"""State of a model with adapters, and its places with the parts that they use."""

from collections.abc import Mapping

from torch import nn

from lorakit.errors import AdapterNameError
from lorakit.inject.places import Place, find_places
from lorakit.sites.slot import State, find_state


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


def get_places(model: nn.Module, state: State) -> dict[str, Place]:
    """Return the places of a model, with the parts that the specs of its adapters define."""
    parts: dict[str, Mapping[str, int]] = {}
    for adapter in state.adapters.values():
        parts |= adapter.spec.parts
    return find_places(model, parts)
