"""Checks of a run at its first step: the right parameters train, and a gradient reaches each."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.errors import TrainingError
from lorakit.spec import is_number
from lorakit.text import plural

SKIPPING = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # attributes of LayerDrop
SKIPPED_RUNS = 1e-6  # share of good runs that may be stopped


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


def check_loss(loss: Tensor, adapter: Adapter) -> None:
    """Check before the first backward pass that the loss depends on a trained parameter.

    Raises:
        TrainingError: it depends on none; all trained modules are named.
    """
    if not loss.requires_grad:
        check_gradients(adapter)


def check_gradients(adapter: Adapter) -> None:
    """Check after the first backward pass that every adapted module has a gradient.

    Only the factor that starts at zero (such as B) has one at the first step; the other factors
    have none until it has moved.

    Raises:
        TrainingError: modules that the loss does not depend on; all are named.
    """
    GradientCheck(1).see(adapter)


class GradientCheck:
    """A check over the first steps of a run that every adapted module gets a gradient.

    Args:
        steps: number of backward passes in which a module may get its first gradient.
    """

    def __init__(self, steps: int):
        self.steps, self.seen = steps, 0
        self.missing: set[str] = set()

    def see(self, adapter: Adapter) -> None:
        """Note which modules have a gradient after a backward pass.

        Raises:
            TrainingError: it is the last of the steps, and modules had none in all of them; all
                are named.
        """
        if self.seen == self.steps:
            return
        faults = {*_adapted_without_gradient(adapter), *_full_without_gradient(adapter)}
        self.missing = self.missing & faults if self.seen else faults
        self.seen += 1
        if not self.missing:
            self.seen = self.steps
        elif self.seen == self.steps:
            total = len(adapter.deltas) + len(adapter.full_parameters)
            when = "At the first step" if self.steps == 1 else f"In the first {self.steps} steps"
            names = [*adapter.deltas, *adapter.full_parameters]
            raise TrainingError(
                f"{when} {len(self.missing)} of {total} trained modules got no gradient.",
                sorted(self.missing, key=lambda fault: names.index(fault.partition("   ")[0])),
                "The loss does not depend on them: leave them out with --exclude.",
            )


def count_steps_to_see(model: nn.Module) -> int:
    """Return the number of steps after which every layer has run, but for one run in a million.

    It is 1 for a model that runs all of its layers. OPT, BART, Wav2Vec2 and Whisper may skip layers
    in training (LayerDrop), with a probability in their configs.

    >>> layer = nn.Linear(1, 1)
    >>> layer.layerdrop = 0.5
    >>> count_steps_to_see(layer), count_steps_to_see(nn.Linear(1, 1))
    (20, 1)
    """
    modules = list(model.modules())
    chance = max(_skip_probability(module) for module in modules)
    if not 0 < chance < 1:
        return 1
    wanted = SKIPPED_RUNS / len(modules)
    return max(1, math.ceil(math.log(wanted) / math.log(chance)))


def _skip_probability(module: nn.Module) -> float:
    """Return the probability with which a module skips layers in training, by its attributes."""
    config = module.__dict__.get("config")
    values: list[object] = [0.0]
    for attributes in (vars(module), getattr(config, "__dict__", {})):
        values += [attributes.get(key) for key in SKIPPING]
    return max(value for value in values if is_number(value))


def _adapted_without_gradient(adapter: Adapter) -> Iterator[str]:
    for name, delta in adapter.deltas.items():
        if not delta.zero_parameter:
            continue
        parameter = delta.get_parameter(delta.zero_parameter)
        # AdaLoRA's budget may leave a layer with no direction at all.
        if not parameter.requires_grad or parameter.numel() == 0:
            continue
        if parameter.grad is None:
            yield f"{name}   no gradient arrives"
        elif not parameter.grad.any():
            yield f"{name}   its gradient is zero throughout"


def _full_without_gradient(adapter: Adapter) -> Iterator[str]:
    for name, parameter in adapter.full_parameters.items():
        if parameter.requires_grad and parameter.grad is None:
            yield f"{name}   no gradient arrives"
