"""Ask a forward whether it uses what is adapted: a weight that is read past its layer would go on
unchanged, without a word.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lorakit.errors import TargetError
from lorakit.inject.state import get_places, get_state
from lorakit.text import plural

# Operations that take no more of a tensor than its shape and dtype, and yet return one.
LIKE = {
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


def check(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """Run the model once, without gradients, and return the names of what is adapted: all of it
    took part.

    Call it once after `attach`, with a batch as the training gives it, where a model is none of the
    usual ones. Buffers and the random state of the CPU are as before afterwards. What a kernel of
    its own does with a weight cannot be seen.

    Args:
        model: what attach was given.
        *args: as the model is called.
        **kwargs: likewise.

    Raises:
        TargetError: an adapted weight is read by another module than the one that is adapted, so
            that the change would not count there; or an adapted layer did not run for this input.
            All are named.
        AdapterNameError: nothing is attached.

    >>> from lorakit import Spec, attach
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> adapter = attach(model, Spec(rank=1))
    >>> check(model, torch.ones(2, 4))
    ['0']
    """
    state = get_state(model)
    adapted = {n for adapter in state.adapters.values() for n in adapter.deltas_by_place}
    places = {name: place for name, place in get_places(model, state).items() if name in adapted}
    owners: dict[int, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(module)
    stored: dict[int, list[str]] = {}
    for name, place in places.items():
        weight = model.get_parameter(place.weight_name)
        owners[id(weight)].add(place.layer)
        stored.setdefault(id(weight), []).append(name)
    watch = _Watch({key: owners[key] for key in stored})
    hooks = [
        hook
        for module in set().union(*watch.owners.values())
        for hook in (
            module.register_forward_pre_hook(watch.enter, prepend=True),
            module.register_forward_hook(watch.leave, always_call=True),
        )
    ]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), watch:
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for name, buffer in model.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])
    faults = [
        f"{name}   is read without being called (by {watch.past[key]}): there the change would not count"
        for key, names in stored.items()
        if key in watch.past
        for name in names
    ]
    faults += [
        f"{name}   did not run"
        for name, place in places.items()
        if place.layer not in watch.ran
        and id(model.get_parameter(place.weight_name)) not in watch.past
    ]
    if faults:
        counted = f"{len(faults)} of {plural(len(places), 'adapted layer')}"
        raise TargetError(
            f"{counted} without a part in {type(model).__name__}'s forward.",
            faults,
            "Leave them out with exclude=[...], or give an input that reaches them. Nothing was "
            "changed.",
        )
    return list(places)


class _Watch(TorchFunctionMode):
    """Sees every operation on the weights that are asked after, and which modules run meanwhile.

    Attributes:
        owners: the modules that may read a weight, by its id.
        past: the operation that another module did with it, by its id.
        ran: the modules that ran.
    """

    def __init__(self, owners: Mapping[int, set[nn.Module]]):
        super().__init__()
        self.owners, self.running = owners, list[nn.Module]()
        self.past, self.ran = dict[int, str](), set[nn.Module]()

    def enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)
        self.ran.add(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.remove(module)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), getattr(func, "__name__", str(func))
        if name not in LIKE and next(_tensors(result), None) is not None:
            for tensor in _tensors((args, kwargs)):
                allowed = self.owners.get(id(tensor))
                if allowed is not None and allowed.isdisjoint(self.running):
                    self.past.setdefault(id(tensor), name)
        return result


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple | dict):
        for inner in found.values() if isinstance(found, dict) else found:
            yield from _tensors(inner)
