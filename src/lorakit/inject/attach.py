"""Put adapters on a model, switch them and take them off: attach, enable, detach. Plan, check
everything, then do.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lorakit.adapter import Adapter
from lorakit.errors import AdapterMismatch, AdapterNameError, MergeError, SpecError
from lorakit.inject.build import build_adapter
from lorakit.inject.fit import fit_adapter
from lorakit.inject.places import Place, find_places
from lorakit.inject.state import get_places, get_state
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
    remove_slot,
    set_enabled,
)
from lorakit.sites.slot import refuse_while_routed as refuse
from lorakit.spec import Spec
from lorakit.text import near_misses


def attach(
    model: nn.Module,
    what: Spec | Adapter,
    *,
    name: str = "default",
    seed: int = 0,
    trainable: bool = True,
    any_base: bool = False,
    batches: Iterable[Any] | None = None,
) -> Adapter:
    """Put an adapter on a model, on at weight 1, and freeze everything that no adapter trains.

    A new adapter changes no bit of the output. Adapters that were attached before stay as they are.

    Args:
        model: any module; it is changed in place.
        what: a Spec, for a new adapter; or an Adapter, whose factors are used as they are (moved to
            their layers).
        name: what `enable` and `detach` call it.
        seed: of the initial A, which depends on it and the layer's name alone.
        trainable: whether the adapter's parameters require gradients.
        any_base: take an adapter that was trained on other base weights of the same shapes.
        batches: what the starts "eva" and "lora-ga" look at: dicts, tuples or tensors that the
            model is called with, or functions of the model; "lora-ga" needs a loss from each. Other
            starts look at none.

    Returns:
        The Adapter that is on the model: its tensors are those that train.

    Raises:
        AdapterNameError: the name is taken or unusable.
        TargetError: a target matches nothing.
        SpecError: a rank above min(in, out), or an option that a layer cannot use; all are named.
        AdapterMismatch: the adapter does not fit this model, or trains what another that is on
            trains; all are named.
        MergeError: the model is merged.
        ModelError: bitsandbytes has packed 4-bit layers for inference on this CPU.

    >>> model = nn.Sequential(nn.Linear(4, 4))
    >>> attach(model, Spec(rank=2))
    Adapter(1 modules, rank 2, 16 parameters)
    """
    if isinstance(what, Adapter) and batches is not None:
        raise SpecError(
            "batches are for the start of a new adapter; this one has started.",
            advice="Nothing was attached.",
        )
    if not isinstance(model, nn.Module) or not isinstance(what, Spec | Adapter):
        raise SpecError(
            f"A model and a Spec or an Adapter are needed, got {type(model).__name__} and {type(what).__name__}.",
            advice="Adapter.load(folder) reads one from disk. Nothing was attached.",
        )
    state = find_state(model) or State()
    refuse(state)
    # A module sets its own `training`, which a child of that name would hide.
    if not isinstance(name, str) or name in ("", "training") or any(c in name for c in ".:/ "):
        raise AdapterNameError(
            f"{name!r} cannot name an adapter: use a word without '.', ':', '/' or spaces."
        )
    if name in state.adapters:
        raise AdapterNameError(
            f"An adapter {name!r} is attached already.", advice=_listed(state, "Give another name.")
        )
    if state.merged:
        raise MergeError(
            "The model is merged; what is attached now would be trained on other weights.",
            advice="Call unmerge, or detach to keep the merged weights as a new base.",
        )
    known = find_places(model, (what if isinstance(what, Spec) else what.spec).parts)
    with without_packing(model):  # a start may look at data
        adapter = (
            build_adapter(model, what, known, seed, batches)
            if isinstance(what, Spec)
            else fit_adapter(model, what, known, any_base)
        )
    adapter.tied_deltas = tie_token_rows(model, adapter, known)
    on = {**state.enabled, name: 1.0}
    if clashes := _clashes({**state.adapters, name: adapter}, on, known):
        raise AdapterMismatch(
            "Two adapters that are on cannot train the same parameters.",
            clashes,
            "Switch the other off first: enable(model, None). Nothing was attached.",
        )
    if not state.adapters:
        state.required_grad = {n: p.requires_grad for n, p in base_parameters(model)}
        model.requires_grad_(False)
    state.unpacked_layers += prevent_packing(model)
    for path, delta in adapter.deltas_by_place.items():
        place = known[path]
        delta.train(place.layer.training)
        add_delta(
            place.layer, state, place.layer_name, (name, place.slot_suffix), place.site, delta
        )
    for parameter in (
        adapter.parameters() if adapter is what or not trainable else ()
    ):  # what is new requires gradients
        parameter.requires_grad_(trainable)
    for full, parameter in adapter.full_parameters.items():
        path, _, key = full.rpartition(".")
        layer: Any = model.get_submodule(path)
        parameter.data = parameter.data.to(layer._parameters[key])  # a layer cannot mix dtypes
        make_slot(layer, state, path)._parameters[f"{name}:{key}"] = parameter
    state.adapters[name] = adapter
    set_enabled(model, state, on)
    return adapter


def _clashes(
    adapters: Mapping[str, Adapter], on: Iterable[str], known: Mapping[str, Place]
) -> list[str]:
    """Return the parameters that more than one adapter that is on would replace, or replace and
    change.
    """
    faults, holder = [], {}
    for name in on:
        for path in adapters[name].full_parameters:
            if path in holder:
                faults.append(f"{path}   is trained whole by {holder[path]!r} and {name!r}")
            holder[path] = name
    for name in on:
        faults += [
            f"{path}   is trained whole by {holder[path]!r} and adapted by {name!r}"
            for n in adapters[name].deltas_by_place
            if n in known and (path := known[n].weight_name) in holder
        ]
    return faults


def enable(model: nn.Module, which: str | Iterable[str] | Mapping[str, float] | None) -> None:
    """Switch adapters: one name, several names, {name: weight}, or None for the base alone.

    Raises:
        AdapterNameError: an unknown name, or a weight that is no finite number; nothing is
            switched.
        AdapterMismatch: two adapters that train the same parameters whole, or a weight other than 1
            for one that does.
        MergeError: the model is merged.

    Cost: no weight is written.
    """
    state = get_state(model)
    if state.merged:
        raise MergeError(
            "The model is merged: its weights hold the adapters already.",
            advice="Call unmerge first.",
        )
    names = [which] if isinstance(which, str) else [] if which is None else list(which)
    on = {n: which[n] if isinstance(which, Mapping) else 1.0 for n in names}
    faults = [
        f"{n!r}   is not attached   {near_misses(str(n), state.adapters)}".rstrip()
        for n in on
        if n not in state.adapters
    ]
    faults += [
        f"{n!r}   has weight {w!r}, which is no finite number"
        for n, w in on.items()
        if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w)
    ]
    if faults:
        raise AdapterNameError(
            "This cannot be switched on.", faults, _listed(state, "Nothing was switched.")
        )
    faults = _clashes(state.adapters, on, get_places(model, state))
    faults += [
        f"{n!r}   has weight {w:g}, but trains parameters whole: it is on (1) or off"
        for n, w in on.items()
        if w != 1 and state.adapters[n].full_parameters
    ]
    if faults:
        raise AdapterMismatch(
            "These cannot be on together, or not at this weight.", faults, "Nothing was switched."
        )
    set_enabled(model, state, {n: float(w) for n, w in on.items()})


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take one adapter off, or all; after the last no trace is left. A merged model keeps its
    merged weights.

    Raises:
        AdapterNameError: nothing, or no adapter of that name, is attached.
        MergeError: one of several adapters of a merged model.
    """
    state = get_state(model)
    gone = list(state.adapters) if name is None else [name]
    if missing := [n for n in gone if n not in state.adapters]:
        raise AdapterNameError(
            f"No adapter {name!r} is attached. {near_misses(str(missing[0]), state.adapters)}".rstrip(),
            advice=_listed(state, "Nothing was detached."),
        )
    if state.merged and len(gone) < len(state.adapters):
        raise MergeError(
            "The model is merged: one adapter of several cannot be taken off.",
            advice="Call unmerge first.",
        )
    set_enabled(model, state, {n: w for n, w in state.enabled.items() if n not in gone})
    for n in gone:
        del state.adapters[n]
    for _, layer in list(base_modules(model)):
        slot = get_slot(layer)
        if slot is None:
            continue
        for n in gone:
            for key in [k for k in slot._modules if k.partition("/")[0] == n]:
                del slot._modules[key]
            for key in [k for k in slot._parameters if k.startswith(f"{n}:")]:
                del slot._parameters[key]
        if not slot._modules and not slot._parameters:
            remove_slot(layer)
    if not state.adapters:
        allow_packing(state.unpacked_layers)
        for path, parameter in base_parameters(model):
            parameter.requires_grad_(state.required_grad.get(path, parameter.requires_grad))


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters on this model by name; empty where there is none."""
    return dict((find_state(model) or State()).adapters)


def enabled(model: nn.Module) -> dict[str, float]:
    """Return the weights of the adapters that are on, by name; empty where none is."""
    return dict((find_state(model) or State()).enabled)


def _listed(state: State, rest: str) -> str:
    return f"Attached: {', '.join(map(repr, state.adapters))}. {rest}"
