"""Put adapters on a model, switch them, and take them off.

Every function checks the whole request first and changes the model only then.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.errors import AdapterMismatch, AdapterNameError, MergeError, ModelError, SpecError
from lorakit.inject.build import build_adapter
from lorakit.inject.fit import fit_adapter
from lorakit.inject.obstacles import refuse_model
from lorakit.inject.places import Place, find_places
from lorakit.inject.state import (
    AdapterRequest,
    get_places,
    get_state,
    keep_or_restore,
    list_attached,
    read_request,
    suggest_adapter,
)
from lorakit.inject.tying import tie_token_rows
from lorakit.sites.quantised import allow_packing, prevent_packing, without_packing
from lorakit.sites.slot import (
    State,
    add_delta,
    base_modules,
    base_parameters,
    find_state,
    get_slot,
    make_slot,
    refuse_while_routed,
    remove_slot,
    set_enabled,
)
from lorakit.spec import Spec, is_number
from lorakit.text import add_hint


@torch.inference_mode(False)  # or the adapter could never train
def attach(
    model: nn.Module,
    what: Spec | Adapter,
    *,
    name: str = "default",
    seed: int = 0,
    trainable: bool = True,
    any_base: bool = False,
    batches: Iterable[object] | None = None,
) -> Adapter:
    """Put an adapter on a model, enable it at weight 1, and freeze the base.

    A new adapter changes no bit of the output. Adapters that were attached before stay as they are.

    Args:
        model: any module; it is changed in place.
        what: a Spec, for a new adapter; or an Adapter, whose factors are used as they are (moved to
            their layers).
        name: the name for `enable` and `detach`.
        seed: seed of the initial A, which depends on it and the layer's name alone.
        trainable: whether the adapter's parameters require gradients.
        any_base: accept an adapter that was trained on other base weights of the same shapes.
        batches: data for the starts "eva" and "lora-ga": dicts, tuples or tensors that the model
            is called with, or functions of the model; "lora-ga" needs a loss from each. Other
            starts use no data.

    Returns:
        The Adapter that is on the model: its tensors are those that train.

    Raises:
        AdapterNameError: the name is in use or not valid.
        TargetError: a target matches nothing.
        SpecError: a rank above min(in, out), or an option that a layer cannot use; all are named.
        AdapterMismatch: the adapter does not fit this model, or trains the same parameters as
            another that is enabled; all are named.
        MergeError: the model is merged.
        ModelError: bitsandbytes has packed 4-bit layers for inference on this CPU, or the model
            is lazy, was made in inference mode, or is wrapped for training in several processes.

    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> attach(model, Spec(rank=2))
    Adapter(1 modules, rank 2, 16 parameters)
    """
    _check_request(model, what, batches)
    refuse_model(model)
    if trainable:
        _refuse_parallel(model)
    state = find_state(model) or State()
    refuse_while_routed(state)
    _check_name(name, state)
    _refuse_merged(
        state,
        "The model is merged; what is attached now would be trained on other weights.",
        "Call unmerge, or detach to keep the merged weights as a new base.",
    )
    spec = what if isinstance(what, Spec) else what.spec
    places = find_places(model, spec.parts)
    with keep_or_restore(model, what):
        # A start may run the model on data, which would let bitsandbytes pack its layers.
        with without_packing(model):
            if isinstance(what, Spec):
                adapter = build_adapter(model, what, places, seed=seed, batches=batches)
            else:
                adapter = fit_adapter(model, what, places, any_base=any_base)
        adapter.tied_deltas = tie_token_rows(model, adapter, places)
        for parameter in adapter.parameters():
            parameter.requires_grad_(trainable)
        _put_on(model, state, name, adapter, places)
        return adapter


def _put_on(
    model: nn.Module, state: State, name: str, adapter: Adapter, places: Mapping[str, Place]
) -> None:
    """Put an adapter that fits on the model, and enable it."""
    weights = {**state.enabled, name: 1.0}
    clashes = _find_clashes({**state.adapters, name: adapter}, weights, places)
    if clashes:
        raise AdapterMismatch(
            "Two enabled adapters cannot train the same parameters.",
            clashes,
            "Disable the other first: enable(model, None). Nothing was attached.",
        )
    _freeze_base(model, state)
    _add_deltas(state, name, adapter, places)
    _add_full_parameters(model, state, name, adapter)
    state.adapters[name] = adapter
    set_enabled(model, state, weights)


def _check_request(model: object, what: object, batches: Iterable[object] | None) -> None:
    """Refuse arguments of a wrong type, and batches for an adapter that needs none."""
    if isinstance(what, Adapter) and batches is not None:
        raise SpecError(
            "batches are for the start of a new adapter, and this one is not new.",
            advice="Nothing was attached.",
        )
    if not isinstance(model, nn.Module) or not isinstance(what, Spec | Adapter):
        raise SpecError(
            "A model and a Spec or an Adapter are needed, got "
            f"{type(model).__name__} and {type(what).__name__}.",
            advice="Adapter.load(folder) reads one from disk. Nothing was attached.",
        )


def _refuse_parallel(model: nn.Module) -> None:
    """Refuse a model that processes train together, which would not average new gradients."""
    if type(model).__name__ == "DistributedDataParallel":
        raise ModelError(
            "DistributedDataParallel averages the gradients of the parameters that it was given; "
            "those of a new adapter would differ between the processes.",
            advice="Attach to the model first, then wrap it. Nothing was attached.",
        )


def _check_name(name: object, state: State) -> None:
    """Refuse a name that is in use, or that cannot be part of a module's name."""
    is_word = isinstance(name, str) and name != "" and not any(sign in name for sign in ".:/ ")
    # A child named "training" would hide the attribute that every module sets.
    if not is_word or name == "training":
        raise AdapterNameError(
            f"{name!r} cannot name an adapter: use a word without '.', ':', '/' or spaces."
        )
    if name in state.adapters:
        raise AdapterNameError(
            f"An adapter {name!r} is attached already.",
            advice=f"{list_attached(state)} Give another name.",
        )


def _refuse_merged(state: State, message: str, advice: str) -> None:
    if state.merged:
        raise MergeError(message, advice=advice)


def _freeze_base(model: nn.Module, state: State) -> None:
    """Freeze the base's parameters, and note which of them required gradients."""
    if not state.adapters:
        parameters = dict(base_parameters(model))
        state.required_grad = {name: own.requires_grad for name, own in parameters.items()}
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    state.unpacked_layers += prevent_packing(model)


def _add_deltas(state: State, name: str, adapter: Adapter, places: Mapping[str, Place]) -> None:
    """Put the deltas of an adapter into the slots of their layers."""
    for place_name, delta in adapter.deltas_by_place.items():
        place = places[place_name]
        delta.train(place.layer.training)
        key = (name, place.slot_suffix)
        add_delta(place.layer, state, place.layer_name, key, place.site, delta)


def _add_full_parameters(model: nn.Module, state: State, name: str, adapter: Adapter) -> None:
    """Put the parameters that train in full into the slots of their layers."""
    layers = dict(base_modules(model)) if adapter.full_parameters else {}
    for parameter_name, parameter in adapter.full_parameters.items():
        layer_name, _, key = parameter_name.rpartition(".")
        layer = layers[layer_name]
        # All parameters of a layer must be of one dtype.
        parameter.data = parameter.data.to(layer.get_parameter(key))
        make_slot(layer, state, layer_name).add_waiting(name, key, parameter)


def _find_clashes(
    adapters: Mapping[str, Adapter], names: Iterable[str], places: Mapping[str, Place]
) -> list[str]:
    """Return the parameters that one adapter trains in full and another trains or adapts.

    Args:
        adapters: adapters by name.
        names: names of those that are to be enabled together.
        places: all places of the model.
    """
    names = list(names)
    faults: list[str] = []
    owners: dict[str, str] = {}
    for name in names:
        for path in adapters[name].full_parameters:
            if path in owners:
                faults.append(f"{path}   is trained in full by {owners[path]!r} and {name!r}")
            owners[path] = name
    for name in names:
        for path in _adapted_weights(adapters[name], places):
            # An adapter may change a weight that it brings along itself.
            if owners.get(path, name) != name:
                faults.append(
                    f"{path}   is trained in full by {owners[path]!r} and adapted by {name!r}"
                )
    return faults


def _adapted_weights(adapter: Adapter, places: Mapping[str, Place]) -> Iterator[str]:
    """Yield the names of the stored weights that an adapter changes."""
    for name in adapter.deltas_by_place:
        if name in places:
            yield places[name].weight_name


def enable(model: nn.Module, which: AdapterRequest) -> None:
    """Switch adapters on and off; those that are not named are off.

    All threads share what is on. A thread that has enabled adapters itself gets those or a
    RowsError in its forwards, never others that another thread has enabled meanwhile.

    Args:
        model: a model with adapters.
        which: one name, several names, {name: weight}, or None for the base alone.

    Raises:
        AdapterNameError: an unknown name, or a weight that is not a finite number; nothing is
            switched.
        AdapterMismatch: two adapters that train the same parameters in full, or a weight other than
            1 for one that trains parameters in full.
        MergeError: the model is merged.

    Cost: no weight is written.
    """
    state = get_state(model)
    _refuse_merged(
        state,
        "The model is merged: its weights hold the adapters already.",
        "Call unmerge first.",
    )
    weights = read_request(which)
    _check_weights(weights, state)
    faults = _find_clashes(state.adapters, weights, get_places(model, state))
    for name, weight in weights.items():
        if weight != 1 and state.adapters[name].full_parameters:
            faults.append(
                f"{name!r}   has weight {weight:g}, but trains parameters in full: "
                "it can only be on (1) or off"
            )
    if faults:
        raise AdapterMismatch(
            "These cannot be enabled together, or not at this weight.",
            faults,
            "Nothing was switched.",
        )
    set_enabled(model, state, {name: float(weight) for name, weight in weights.items()})


def _check_weights(weights: Mapping[str, float], state: State) -> None:
    """Refuse unknown names, and weights that are not finite numbers."""
    faults = [
        f"{name!r}   is not attached   {suggest_adapter(state, name)}".rstrip()
        for name in weights
        if name not in state.adapters
    ]
    faults += [
        f"{name!r}   has weight {weight!r}, which is not a finite float32 number"
        for name, weight in weights.items()
        if not is_number(weight)
    ]
    if faults:
        raise AdapterNameError(
            "These adapters cannot be enabled.",
            faults,
            f"{list_attached(state)} Nothing was switched.",
        )


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take one adapter off the model, or all of them.

    After the last one the model is as it was before, except that a merged model keeps its merged
    weights.

    Args:
        model: a model with adapters.
        name: the adapter's name; None for all.

    Raises:
        AdapterNameError: no adapter is attached, or none of this name.
        MergeError: one of several adapters of a merged model.
    """
    state = get_state(model)
    if name is not None and name not in state.adapters:
        raise AdapterNameError(
            add_hint(f"No adapter {name!r} is attached.", suggest_adapter(state, name)),
            advice=f"{list_attached(state)} Nothing was detached.",
        )
    names = list(state.adapters) if name is None else [name]
    if len(names) < len(state.adapters):
        _refuse_merged(
            state,
            "The model is merged: one adapter of several cannot be taken off.",
            "Call unmerge first.",
        )
    remaining = {other: weight for other, weight in state.enabled.items() if other not in names}
    with keep_or_restore(model):
        set_enabled(model, state, remaining)
        for gone in names:
            del state.adapters[gone]
        for _, layer in list(base_modules(model)):
            slot = get_slot(layer)
            if slot is None:
                continue
            slot.remove_adapters(names)
            if slot.is_empty:
                remove_slot(layer)
        if not state.adapters:
            _unfreeze_base(model, state)


def _unfreeze_base(model: nn.Module, state: State) -> None:
    """Let the base's parameters require gradients as they did before the first adapter."""
    allow_packing(state.unpacked_layers)
    for path, parameter in base_parameters(model):
        parameter.requires_grad_(state.required_grad.get(path, parameter.requires_grad))


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters on this model by name; empty if there are none."""
    state = find_state(model)
    return {} if state is None else dict(state.adapters)


def enabled(model: nn.Module) -> dict[str, float]:
    """Return the weights of the enabled adapters by name; empty if there are none."""
    state = find_state(model)
    return {} if state is None else dict(state.enabled)
