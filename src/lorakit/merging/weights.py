"""Add what is attached into the base's weights, and take it out again: merge and unmerge."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.inject.places import Place
from lorakit.inject.state import get_places, get_state
from lorakit.merging.quantised import Rounding, requantise
from lorakit.sites.slot import State, base_parameters, set_enabled
from lorakit.text import plural


@dataclass(frozen=True)
class Undo:
    """What `unmerge` needs: the base's own tensors, which adapters were on, and what was tied.

    Attributes:
        token: of the merge.
        weights: the base's own tensors by name.
        on: weights of the adapters that were on, by name.
        untied: parameters that were shared, and that the merge made two of, by name.
        configs: those in which the merge changed `tie_word_embeddings`.
        quantised: the base's own weights in int8 or 4 bits, by name.
        rounding: what rounding to int8 or 4 bits moved, by the name of the weight.
    """

    token: str
    weights: dict[str, Tensor]
    on: dict[str, float]
    untied: dict[str, nn.Parameter] = field(default_factory=dict)
    configs: list[Any] = field(default_factory=list)
    quantised: dict[str, nn.Parameter] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)

    @property
    def before(self) -> dict[str, Tensor]:
        """The base's tensors by the name of each weight in full that changed."""
        return {**self.weights, **self.untied}


def merge(model: nn.Module, *, allow_loss: bool = False) -> Undo:
    """Add what is on into the base's weights: summed in float32 or better, rounded once.

    Afterwards the model computes as before, and no adapter is on. `unmerge` takes it back to the
    bit; `detach` keeps the merged weights and leaves a plain model. A weight that several layers
    share stays shared where all of them change alike; otherwise each gets its own, and the model's
    config says that its embeddings are no longer tied.

    Args:
        model: with adapters on.
        allow_loss: merge into weights in int8 or 4 bits even where rounding the sum back moves a
            matrix as much as the adapter.

    Returns:
        Undo: with a copy of every weight that changed; of those in int8 or 4 bits it tells what
            rounding moved.

    Raises:
        MergeError: nothing is on, the model is merged already, a weight is computed by a
            parametrization, a sum is not finite, or rounding to int8 or 4 bits moves as much as the
            adapter; nothing is changed.
    """
    state = get_state(model)
    if state.merged:
        raise MergeError("The model is merged already.", advice="Call unmerge first.")
    if not state.enabled:
        raise MergeError(
            "No adapter is on: the merged model would equal the base.",
            advice="Call enable with a name.",
        )
    own = dict(base_parameters(model))
    trained = {
        path: tensor
        for a in state.enabled
        for path, tensor in state.adapters[a].full_parameters.items()
    }
    adapted: dict[str, list[Place]] = {}
    for name, place in get_places(model, state).items():
        if any(name in state.adapters[a].deltas_by_place for a in state.enabled):
            adapted.setdefault(place.weight_name, []).append(place)
    faults = [
        f"{path}   is computed by a parametrization"
        for path in [*trained, *adapted]
        if path not in own
    ]
    faults += [
        f"{path}   is not finite in the adapter"
        for path, new in trained.items()
        if path in own and not torch.isfinite(new).all()
    ]
    if faults:
        raise MergeError(
            f"{plural(len(faults), 'weight')} cannot be merged.", faults, "Nothing was changed."
        )
    coarse, moved = requantise(
        (
            (path, whole, layer, _changes(state, state.enabled, places))
            for path, places in adapted.items()
            if (whole := places[0].site.full_site).quantised_form(layer := places[0].layer)
        ),
        allow_loss=allow_loss,
    )
    undo = Undo(
        uuid.uuid4().hex,
        {},
        dict(state.enabled),
        quantised={path: own[path] for path in coarse},
        rounding=moved,
    )
    set_enabled(model, state, {})
    for path, parameter in coarse.items():
        _put(model, path, parameter)
    holders: dict[int, list[str]] = {}
    for path, parameter in own.items():
        holders.setdefault(id(parameter), []).append(path)
    for sharing in holders.values():
        tensor = own[sharing[0]]
        # All sums before anything that shares the tensor is written.
        with torch.no_grad():
            new = {path: trained[path].to(tensor) for path in sharing if path in trained}
            new |= {
                path: _sum(state, undo.on, adapted[path])
                for path in sharing
                if path in adapted and path not in coarse
            }
        if bad := [path for path, value in new.items() if not torch.isfinite(value).all()]:
            _restore(model, state, undo)
            raise MergeError(
                f"The sum for {bad[0]} is not finite in {tensor.dtype}.",
                advice="Nothing was changed.",
            )
        first = next(iter(new.values()), None)
        if first is None:
            continue
        if len(new) == len(sharing) and all(torch.equal(value, first) for value in new.values()):
            undo.weights[sharing[0]] = tensor.detach().clone()
            tensor.detach().copy_(first)
            continue
        for path, value in new.items():
            undo.untied[path] = tensor
            _put(model, path, nn.Parameter(value.clone(), requires_grad=tensor.requires_grad))
    if undo.untied:
        undo.configs.extend(config for config in _configs(model) if config.tie_word_embeddings)
        for config in undo.configs:
            config.tie_word_embeddings = False
    state.merged = undo.token
    return undo


def _sum(state: State, on: Mapping[str, float], places: list[Place]) -> Tensor:
    """Return a weight with all changes of all its places added, as the layer stores it."""
    whole, layer = places[0].site.full_site, places[0].layer
    return whole.to_weight(
        layer, whole.add_changes(layer, _changes(state, on, places)).to(whole.read(layer).dtype)
    )


def _changes(
    state: State, on: Mapping[str, float], places: list[Place]
) -> list[tuple[float, Any, Any]]:
    return [
        (w, place.site, state.adapters[a].deltas_by_place[place.name])
        for a, w in on.items()
        for place in places
        if place.name in state.adapters[a].deltas_by_place
    ]


def _put(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    layer, _, key = path.rpartition(".")
    model.get_submodule(layer)._parameters[key] = parameter


def _configs(model: nn.Module) -> list[Any]:
    """Return the configs of transformers models in here that can say whether embeddings are tied."""
    found = {
        id(config): config
        for module in model.modules()
        if (config := module.__dict__.get("config")) is not None
    }
    return [
        config
        for config in found.values()
        if getattr(config, "tie_word_embeddings", None) is not None
    ]


def unmerge(model: nn.Module, undo: Undo) -> None:
    """Put the base's bits back, share again what was shared, and switch on what was on.

    Raises:
        MergeError: the model is not merged, or by another merge than this Undo's.
    """
    state = get_state(model)
    if state.merged != undo.token:
        raise MergeError(
            "This Undo belongs to another merge." if state.merged else "The model is not merged.",
            advice="Nothing was changed.",
        )
    _restore(model, state, undo)


def _restore(model: nn.Module, state: State, undo: Undo) -> None:
    for path, parameter in {**undo.untied, **undo.quantised}.items():
        _put(model, path, parameter)
    for config in undo.configs:
        config.tie_word_embeddings = True
    own = dict(base_parameters(model))
    for path, tensor in undo.weights.items():
        own[path].detach().copy_(tensor)
    state.merged = None
    set_enabled(model, state, undo.on)
