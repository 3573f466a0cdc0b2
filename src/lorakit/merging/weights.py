"""Merge adapters into the base weights, and unmerge them."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.inject.state import get_state, keep_or_restore
from lorakit.merging.quantised import Rounding, requantise
from lorakit.merging.sums import WeightSum, find_sums, group_shared
from lorakit.sites.slot import State, base_modules, base_parameters, set_enabled
from lorakit.text import plural


@dataclass(frozen=True)
class Undo:
    """Everything that `unmerge` needs to restore a model.

    Attributes:
        token: it identifies the merge.
        weights: the base's values, by the name of the weight.
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


@torch.inference_mode(False)  # or the merged weights could never train
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
        Undo: with the base's values of every weight that changed, and the effect of rounding on
            those in int8 or 4 bits.

    Raises:
        MergeError: no adapter is on, the model is merged already, a weight is computed by a
            parametrization or has no values (the meta device), a sum is not finite, or rounding to
            int8 or 4 bits moves as much as the adapter; nothing is changed.

    After any other error, such as a lack of memory or Ctrl-C, the model is as before too.
    """
    state = get_state(model)
    _check_mergeable(state)
    base = dict(base_parameters(model))
    full: dict[str, Tensor] = {**_enabled_full_parameters(state)}
    sums = find_sums(model, state)
    _check_weights(base, full, sums)
    # While the adapters are on, their sum is with the weight that one of them brings along.
    full |= {path: sums.pop(path).stored() for path in full.keys() & sums.keys()}
    quantised_sums = {path: total for path, total in sums.items() if total.site.is_quantised}
    new_quantised, rounding = requantise(quantised_sums, allow_loss=allow_loss)
    undo = Undo(
        token=uuid.uuid4().hex,
        weights={},
        enabled=dict(state.enabled),
        quantised={path: base[path] for path in new_quantised},
        rounding=rounding,
    )
    plain_sums = {path: total for path, total in sums.items() if path not in new_quantised}
    configs = list(_tied_configs(model))
    with keep_or_restore(model, *configs):
        set_enabled(model, state, {})
        _set_parameters(model, new_quantised)
        for paths in group_shared(base):
            new = _new_values(paths, base[paths[0]], full, plain_sums)
            _write_values(model, undo, base, paths, new)
        if undo.untied:
            undo.configs.extend(configs)
            _tie(configs, tied=False)
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
    full: Mapping[str, Tensor],
    sums: Mapping[str, WeightSum],
) -> None:
    """Refuse weights that the model does not store, and trained values that are not finite."""
    faults = [
        f"{path}   is computed by a parametrization" for path in [*full, *sums] if path not in base
    ]
    without_values = [path for path in [*full, *sums] if path in base and base[path].is_meta]
    faults += [f"{path}   has no values: it is on the meta device" for path in without_values]
    faults += [
        f"{path}   is not finite in the adapter"
        for path, value in full.items()
        if path in base and not value.is_meta and not torch.isfinite(value).all()
    ]
    if faults:
        raise MergeError(
            f"{plural(len(faults), 'weight')} cannot be merged.", faults, "Nothing was changed."
        )


def _new_values(
    paths: list[str],
    weight: nn.Parameter,
    full: Mapping[str, Tensor],
    sums: Mapping[str, WeightSum],
) -> dict[str, Tensor]:
    """Return the merged values of those of these names that change.

    Raises:
        MergeError: a sum is not finite.
    """
    values: dict[str, Tensor] = {}
    for path in paths:
        if path in full:
            values[path] = full[path].detach().to(weight)
    for path in paths:
        if path in sums:
            values[path] = sums[path].stored()
    for path, value in values.items():
        if not torch.isfinite(value).all():
            raise MergeError(
                f"The sum for {path} is not finite in {value.dtype}.",
                advice="Nothing was changed.",
            )
    return values


def _write_values(
    model: nn.Module,
    undo: Undo,
    base: Mapping[str, nn.Parameter],
    paths: list[str],
    values: Mapping[str, Tensor],
) -> None:
    """Give a weight its merged values, or separate weights if its names change differently.

    Args:
        model: the model.
        undo: what the weight had is added to it.
        base: the base's parameters by name.
        paths: all names of the weight.
        values: merged values by name, for those that change.
    """
    if not values:
        return
    first = next(iter(values.values()))
    change_alike = all(torch.equal(value, first) for value in values.values())
    if len(values) == len(paths) and change_alike:
        new = _lay_out(first, base[paths[0]])
        path_of = {base[path]: path for path in reversed(paths)}
        for weight, path in path_of.items():
            undo.weights[path] = weight.data
            _set_values(weight, new)
        return
    for path, value in values.items():
        undo.untied[path] = base[path]
        new = _lay_out(value, base[path])
        own = nn.Parameter(new, requires_grad=base[path].requires_grad)
        _set_parameters(model, {path: own})


def _lay_out(values: Tensor, weight: Tensor) -> Tensor:
    """Return a copy of values with the layout of a weight in memory."""
    return torch.empty_like(weight.data).copy_(values)


def _set_values(weight: nn.Parameter, values: Tensor) -> None:
    """Let a parameter hold other values, wherever the old ones lie."""
    # Into the memory of the old values nothing is written: it may be shared or read-only.
    weight.data = values
    # A backward pass of a forward with the old values is refused, as after any change in place.
    torch.autograd.graph.increment_version(weight)


def _set_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    """Register parameters in place of those of the same names."""
    layers = dict(base_modules(model))
    for path, parameter in parameters.items():
        layer, _, key = path.rpartition(".")
        # setattr and not the dict of parameters: an LSTM keeps a list too.
        setattr(layers[layer], key, parameter)


def _tied_configs(model: nn.Module) -> Iterator[Any]:
    """Yield the configs of the model that say that its embeddings are tied, each once."""
    configs: dict[int, Any] = {}
    for _, module in base_modules(model):
        config = module.__dict__.get("config")
        if getattr(config, "tie_word_embeddings", None):
            configs[id(config)] = config
    yield from configs.values()


def _tie(configs: list[Any], *, tied: bool) -> None:
    for config in configs:
        config.tie_word_embeddings = tied


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
    with keep_or_restore(model, *undo.configs):
        _set_parameters(model, {**undo.untied, **undo.quantised})
        _tie(undo.configs, tied=True)
        base = dict(base_parameters(model))
        for path, tensor in undo.weights.items():
            _set_values(base[path], tensor)
        state.merged = None
        set_enabled(model, state, undo.enabled)
