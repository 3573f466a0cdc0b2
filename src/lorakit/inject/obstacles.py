"""Models and layers that cannot be adapted in their present state, with the reason."""

from collections.abc import Iterable, Iterator, Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from lorakit.errors import ModelError
from lorakit.inject.places import Place
from lorakit.sites.obstacles import find_obstacle, find_weight_obstacles
from lorakit.sites.slot import base_modules, base_parameters
from lorakit.spec import full_name


def find_obstacles(model: nn.Module, places: Iterable[Place]) -> dict[str, str]:
    """Return the reason for each layer of a known class that no place belongs to, by name.

    Attention and recurrent modules have a reason for each weight.

    >>> import torch
    >>> layer = nn.Linear(2, 2, dtype=torch.complex64)
    >>> find_obstacles(nn.Sequential(layer), [])
    {'0': 'stores its weight as torch.complex64, which no product here takes'}
    """
    owners: set[str] = set()
    for place in places:
        owners |= {place.layer_name, place.weight_name.rpartition(".")[0]}
    obstacles: dict[str, str] = {}
    for name, module in base_modules(model):
        reason = "" if name in owners else find_obstacle(module)
        if reason:
            obstacles[name] = reason
        for weight, why in find_weight_obstacles(module).items():
            obstacles[full_name(name, weight)] = why
    return obstacles


def describe_obstacles(obstacles: Mapping[str, str]) -> list[str]:
    """Return a line for each obstacle, as the faults of an error have them."""
    return [f"{name or 'the model'}   {reason}" for name, reason in obstacles.items()]


def refuse_model(model: nn.Module) -> None:
    """Refuse a model with parameters that no adapter can work with.

    Raises:
        ModelError: the message names each of them.
    """
    faults = list(_parameter_faults(model))
    if faults:
        raise ModelError(
            f"{type(model).__name__} cannot be adapted in its present state.",
            faults,
            "Nothing was attached.",
        )


def _parameter_faults(model: nn.Module) -> Iterator[str]:
    for name, parameter in base_parameters(model):
        if is_lazy(parameter):
            yield f"{name}   is lazy: run the model on an input first, which gives it a shape"
        elif parameter.is_inference():
            yield (
                f"{name}   was made in inference mode, so no gradient passes it: "
                "copy.deepcopy(model), called outside of that mode, gives a model that can train"
            )
