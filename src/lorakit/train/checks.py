"""Checks of a run at its first step: the right parameters train, and a gradient reaches each."""

from collections.abc import Iterator

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.errors import TrainingError
from lorakit.text import plural


def check_trainable(model: nn.Module, adapter: Adapter) -> None:
    """Check that the parameters of the adapter train, in its dtype, and no others.

    Raises:
        TrainingError: nothing trains, a dtype differs from the spec, or the base trains too.
    """
    parameters = list(adapter.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise TrainingError("Nothing would train: no parameter of the adapter requires a gradient.")
    faults = [*_wrong_dtypes(adapter), *_trainable_base_parameters(model, adapter)]
    if faults:
        raise TrainingError(
            f"{plural(len(faults), 'parameter')} cannot be trained with this spec.",
            faults,
            "Nothing was trained.",
        )


def _wrong_dtypes(adapter: Adapter) -> Iterator[str]:
    expected = getattr(torch, adapter.spec.dtype)
    for name, delta in adapter.deltas.items():
        for key, parameter in delta.named_parameters():
            if parameter.dtype != expected:
                yield f"{name}.{key}   is {parameter.dtype}, the spec says {expected}"


def _trainable_base_parameters(model: nn.Module, adapter: Adapter) -> Iterator[str]:
    known = {id(parameter) for parameter in adapter.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            yield f"{name}   of the base requires a gradient"


def check_gradients(adapter: Adapter) -> None:
    """Check after the first backward pass that every adapted module has a gradient.

    Only the factor that starts at zero (such as B) has one at the first step; the other factors
    have none until it has moved.

    Raises:
        TrainingError: modules that the loss does not depend on; all are named.
    """
    faults = [*_adapted_without_gradient(adapter), *_full_without_gradient(adapter)]
    if faults:
        total = len(adapter.deltas) + len(adapter.full_parameters)
        raise TrainingError(
            f"At the first step {len(faults)} of {total} trained modules got no gradient.",
            faults,
            "The loss does not depend on them: leave them out with --exclude.",
        )


def _adapted_without_gradient(adapter: Adapter) -> Iterator[str]:
    for name, delta in adapter.deltas.items():
        if not delta.zero_parameter:
            continue
        parameter = delta.get_parameter(delta.zero_parameter)
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            yield f"{name}   no gradient arrives"
        elif not parameter.grad.any():
            yield f"{name}   its gradient is zero throughout"


def _full_without_gradient(adapter: Adapter) -> Iterator[str]:
    for name, parameter in adapter.full_parameters.items():
        if parameter.requires_grad and parameter.grad is None:
            yield f"{name}   no gradient arrives"
