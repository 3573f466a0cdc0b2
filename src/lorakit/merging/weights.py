"""Merge adapters into the base weights, and unmerge them."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.inject.state import get_state
from lorakit.merging.quantised import Rounding, requantise
from lorakit.merging.sums import WeightSum, find_sums, group_shared
from lorakit.sites.slot import State, base_parameters, set_enabled
from lorakit.text import plural


@dataclass(frozen=True)
class Undo:
    """Everything that `unmerge` needs to restore a model.

    Attributes:
        token: it identifies the merge.
        weights: copies of the base's values, by the name of the weight.
        enabled: weights of the adapters that were on, by name.
        untied: shared parameters that the merge replaced by separate ones, by name.
        configs: those in which the merge changed `tie_word_embeddings`.
        quantised: the base's weights in int8 or 4 bits, by name.
        rounding: the effect of rounding to int8 or 4 bits, by the name of the weight.
    """

    token: str
    weights: dict[str, Tensor]
    enabled: dict[str, float]
    untied: dict[str, nn.Parameter] = field(default_factory=dict)
    configs: list[Any] = field(default_factory=list)
    quantised: dict[str, nn.Parameter] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)

    @property
    def before(self) -> dict[str, Tensor]:
        """Base tensors of all changed weights in full precision, by name."""
        return {**self.weights, **self.untied}


def merge(model: nn.Module, *, allow_loss: bool = False) -> Undo:
    """Merge the enabled adapters into the base weights, summed in float32 or better, rounded once.

    Afterwards the model computes as before, and no adapter is on. `unmerge` restores it to the bit;
    `detach` keeps the merged weights and leaves a plain model. A weight that several layers share
    stays shared if it changes alike in all of them. Otherwise each layer gets its own, and the
    model's config says that its embeddings are no longer tied.

    Args:
        model: with adapters on.
        allow_loss: merge into weights in int8 or 4 bits even where rounding the sum moves a matrix
            as much as the adapter.

    Returns:
        Undo: with a copy of every weight that changed, and the effect of rounding on those in int8
            or 4 bits.

    Raises:
        MergeError: no adapter is on, the model is merged already, a weight is computed by a
            parametrization, a sum is not finite, or rounding to int8 or 4 bits moves as much as the
            adapter; nothing is changed.
    """
    state = get_state(model)
    _check_mergeable(state)
    base = dict(base_parameters(model))
    full = _enabled_full_parameters(state)
    sums = find_sums(model, state)
    _check_weights(base, full, sums)
    quantised_sums = {path: total for path, total in sums.items() if total.site.is_quantised}
    new_quantised, rounding = requantise(quantised_sums, allow_loss=allow_loss)
    undo = Undo(
        token=uuid.uuid4().hex,
        weights={},
        enabled=dict(state.enabled),
        quantised={path: base[path] for path in new_quantised},
        rounding=rounding,
    )
    set_enabled(model, state, {})
    for path, parameter in new_quantised.items():
        _set_parameter(model, path, parameter)
    plain_sums = {path: total for path, total in sums.items() if path not in new_quantised}
    for paths in group_shared(base):
        # All sums are computed before anything that shares the weight is written.
        new = _new_values(paths, base[paths[0]], full, plain_sums)
        _check_finite(model, state, undo, new)
        _write_values(model, undo, paths, base[paths[0]], new)
    if undo.untied:
        _untie_configs(model, undo)
    state.merged = undo.token
    return undo


def _check_mergeable(state: State) -> None:
    """Refuse a model that is merged already, or that has no adapter on."""
    if state.merged:
        raise MergeError("The model is merged already.", advice="Call unmerge first.")
    if not state.enabled:
        raise MergeError(
            "No adapter is on: the merged model would equal the base.",
            advice="Call enable with a name.",
        )


def _enabled_full_parameters(state: State) -> dict[str, nn.Parameter]:
    """Return the fully trained parameters of the enabled adapters, by name."""
    parameters: dict[str, nn.Parameter] = {}
    for name in state.enabled:
        parameters |= state.adapters[name].full_parameters
    return parameters


def _check_weights(
    base: Mapping[str, nn.Parameter],
    full: Mapping[str, nn.Parameter],
    sums: Mapping[str, WeightSum],
) -> None:
    """Refuse weights that the model does not store, and trained values that are not finite."""
    faults = [
        f"{path}   is computed by a parametrization" for path in [*full, *sums] if path not in base
    ]
    faults += [
        f"{path}   is not finite in the adapter"
        for path, value in full.items()
        if path in base and not torch.isfinite(value).all()
    ]
    if faults:
        raise MergeError(
            f"{plural(len(faults), 'weight')} cannot be merged.", faults, "Nothing was changed."
        )


def _new_values(
    paths: list[str],
    weight: nn.Parameter,
    full: Mapping[str, nn.Parameter],
    sums: Mapping[str, WeightSum],
) -> dict[str, Tensor]:
    """Return the merged values of those of these names that change."""
    values: dict[str, Tensor] = {}
    for path in paths:
        if path in full:
            values[path] = full[path].detach().to(weight)
    for path in paths:
        if path in sums:
            values[path] = sums[path].stored()
    return values


def _check_finite(model: nn.Module, state: State, undo: Undo, values: Mapping[str, Tensor]) -> None:
    """Restore the model and refuse the merge if a sum is not finite."""
    for path, value in values.items():
        if not torch.isfinite(value).all():
            _restore(model, state, undo)
            raise MergeError(
                f"The sum for {path} is not finite in {value.dtype}.",
                advice="Nothing was changed.",
            )


def _write_values(
    model: nn.Module,
    undo: Undo,
    paths: list[str],
    weight: nn.Parameter,
    values: Mapping[str, Tensor],
) -> None:
    """Write merged values into a weight, or into separate ones if its names change differently."""
    if not values:
        return
    first = next(iter(values.values()))
    change_alike = all(torch.equal(value, first) for value in values.values())
    if len(values) == len(paths) and change_alike:
        undo.weights[paths[0]] = weight.detach().clone()
        weight.detach().copy_(first)
        return
    for path, value in values.items():
        undo.untied[path] = weight
        own = nn.Parameter(value.clone(), requires_grad=weight.requires_grad)
        _set_parameter(model, path, own)


def _set_parameter(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    layer, _, key = path.rpartition(".")
    model.get_submodule(layer)._parameters[key] = parameter


def _untie_configs(model: nn.Module, undo: Undo) -> None:
    """Set `tie_word_embeddings` to False in all configs of the model."""
    for module in model.modules():
        config: Any = module.__dict__.get("config")
        if getattr(config, "tie_word_embeddings", None):
            undo.configs.append(config)
            config.tie_word_embeddings = False


def unmerge(model: nn.Module, undo: Undo) -> None:
    """Restore the base weights to the bit, their sharing, and the adapters that were on.

    Args:
        model: a merged model.
        undo: the result of `merge`.

    Raises:
        MergeError: the model is not merged, or by another merge than this Undo's.
    """
    state = get_state(model)
    if state.merged != undo.token:
        fault = "The model is not merged."
        if state.merged:
            fault = "This Undo belongs to another merge."
        raise MergeError(fault, advice="Nothing was changed.")
    _restore(model, state, undo)


def _restore(model: nn.Module, state: State, undo: Undo) -> None:
    for path, parameter in {**undo.untied, **undo.quantised}.items():
        _set_parameter(model, path, parameter)
    for config in undo.configs:
        config.tie_word_embeddings = True
    base = dict(base_parameters(model))
    for path, tensor in undo.weights.items():
        base[path].detach().copy_(tensor)
    state.merged = None
    set_enabled(model, state, undo.enabled)
