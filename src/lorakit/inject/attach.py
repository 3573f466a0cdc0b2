"""Put adapters on a model, switch them and take them off: attach, enable, detach. Plan, check
everything, then do.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta
from lorakit.deltas.kinds import DELTAS
from lorakit.deltas.offset import Moved
from lorakit.errors import AdapterMismatch, AdapterNameError, MergeError, SpecError, TargetError
from lorakit.inits import start
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.targets import Place, check_parts, places, select, short_names, spelled, whole
from lorakit.inject.token_rows import new_rows, tied, twins
from lorakit.sites.quantised import hold_unpacked, let_pack, unpacked
from lorakit.sites.slot import (
    State,
    base_parameters,
    exchange,
    find_state,
    own_modules,
    put,
    remove,
    slot_at,
    slot_of,
)
from lorakit.sites.slot import refuse_while_routed as refuse
from lorakit.spec import Spec, matches
from lorakit.text import near_misses, plural


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
    known = places(model, (what if isinstance(what, Spec) else what.spec).parts)
    with unpacked(model):  # a start may look at data
        adapter = (
            _new(model, what, known, seed, batches)
            if isinstance(what, Spec)
            else _fit(model, what, known, any_base)
        )
    adapter.tied = tied(model, adapter, known)
    on = {**state.on, name: 1.0}
    if clashes := _clashes({**state.adapters, name: adapter}, on, known):
        raise AdapterMismatch(
            "Two adapters that are on cannot train the same parameters.",
            clashes,
            "Switch the other off first: enable(model, None). Nothing was attached.",
        )
    if not state.adapters:
        state.found = {n: p.requires_grad for n, p in base_parameters(model)}
        model.requires_grad_(False)
    state.held += hold_unpacked(model)
    for path, delta in adapter.placed.items():
        place = known[path]
        delta.train(place.layer.training)
        put(place.layer, state, place.of, (name, place.key), place.site, delta)
    for parameter in (
        adapter.parameters() if adapter is what or not trainable else ()
    ):  # what is new requires gradients
        parameter.requires_grad_(trainable)
    for full, parameter in adapter.whole.items():
        path, _, key = full.rpartition(".")
        layer: Any = model.get_submodule(path)
        parameter.data = parameter.data.to(layer._parameters[key])  # a layer cannot mix dtypes
        slot_at(layer, state, path)._parameters[f"{name}:{key}"] = parameter
    state.adapters[name] = adapter
    exchange(model, state, on)
    return adapter


def _new(
    model: nn.Module,
    spec: Spec,
    known: Mapping[str, Place],
    seed: int,
    batches: Iterable[Any] | None,
) -> Adapter:
    """Build a fresh adapter for this model, or raise with every fault."""
    spec = replace(spec, whole_modules=spelled(model, spec.whole_modules))
    modules = whole(model, spec.whole_modules)
    check_parts(spec.parts, known)
    chosen = select(
        model, spec.targets, spec.exclude, without=tuple(modules), parts=spec.parts, known=known
    )
    idle = [p for p in spec.overrides if not any(matches(p, n) for n in chosen)]
    if idle:
        raise TargetError(
            f"{len(idle)} of {len(spec.overrides)} overrides match no adapted layer.",
            [
                f"{p!r}   0 layers   {near_misses(p, {n.split('.')[-1] for n in chosen})}".rstrip()
                for p in idle
            ],
            "Nothing was attached.",
        )
    resolved = {n: spec.settings(n) for n in chosen}
    kind = DELTAS[spec.delta]
    faults = [
        f"{n}   {fault}"
        for n, p in chosen.items()
        for fault in (
            *p.site.faults(p.layer, resolved[n]),
            *kind.faults(p.site, resolved[n], spec),
            *start.faults(spec.delta, resolved[n], p),
        )
    ]
    if faults:
        raise SpecError(
            f"{plural(len(faults), 'layer')} cannot be adapted as asked.",
            faults,
            "Nothing was attached.",
        )
    dtype, deltas, seen = (
        getattr(torch, spec.dtype),
        {},
        start.look(model, chosen, resolved, batches),
    )
    shared = kind.shared(
        {n: place.shape for n, place in chosen.items()}, spec, start.generator_for(seed, "")
    )
    for n, place in chosen.items():
        M, settings, generator = (
            place.site.read(place.layer),
            resolved[n],
            start.generator_for(seed, n),
        )
        A, B = start.start(place, settings, generator, seen.get(n), dtype)
        more: Any = {
            "alpha": settings.alpha,
            "dropout": settings.dropout,
            "scale_rule": settings.scale_rule,
            "kind": place.site.kind,
            "kernel": place.site.kernel(place.layer),
            "rows": place.site.rows,
        }
        deltas[n] = (
            kind.start(A, M, generator, **shared, **more) if B is None else Moved(A, B, **more)
        )
    deltas |= twins(model, spec, known, resolved, deltas)
    deltas |= new_rows(model, spec, known, (*chosen, *modules))
    deltas = {n: deltas[n] for n in known if n in deltas}
    inside = tuple(f"{n}." for n in modules)
    layers = {
        p.module: None for p in chosen.values() if p.site.kind != "experts"
    }  # files name layers, not their parts
    adapted, trained = {*layers, *chosen}, {}
    for path, own in base_parameters(model) if spec.bias != "none" or modules else ():
        layer, _, key = path.rpartition(".")
        bias = (spec.bias == "all" and "bias" in key) or (
            spec.bias == "adapted" and key == "bias" and layer in adapted
        )
        if (bias or path.startswith(inside)) and own.is_floating_point():
            trained[path] = nn.Parameter(own.detach().clone())
    if not deltas and not trained:
        raise SpecError(
            "Nothing would train: targets='none', and neither bias nor whole_modules select a parameter.",
            advice="Name a target, a bias mode that the model has biases for, or a whole module.",
        )
    adapter = Adapter(spec, deltas, trained, {}, short_names(layers, dict(own_modules(model))))
    adapter.provenance |= {
        "base_fingerprint": fingerprint(model, without=modules, rows=adapter.rows),
        "seed": seed,
    }
    if name := getattr(model, "name_or_path", ""):  # of transformers
        adapter.provenance["base_model"] = name
    return adapter


def _fit(model: nn.Module, adapter: Adapter, known: Mapping[str, Place], any_base: bool) -> Adapter:
    """Check that a value fits this model, or raise with every misfit."""
    faults = [
        f"{n}   {fault}"
        for n, delta in adapter.deltas.items()
        for fault in _misfits(model, n, delta, known)
    ]
    own = dict(base_parameters(model))
    for path, tensor in adapter.whole.items():
        if path not in own:
            faults.append(f"{path}   is not in the model")
        elif own[path].shape != tensor.shape:
            faults.append(
                f"{path}   is {tuple(tensor.shape)}, the model's is {tuple(own[path].shape)}"
            )
    modules = whole(model, adapter.spec.whole_modules, every=False)
    if isinstance(adapter.target_names, tuple):
        # Full names say no more than the factors do; shorter ones also name the layers that have
        # none.
        ends = tuple(f".{t}" for t in adapter.target_names if t not in adapter.deltas)
        inside = tuple(f"{m}." for m in modules)
        held = {known[n].of for n in adapter.deltas if n in known}
        faults += [
            f"{n}   is named by its targets, but the adapter has no factors for it"
            for n, place in known.items()
            if n == place.of
            and n not in held
            and f".{n}".endswith(ends)
            and not f"{n}.".startswith(inside)
        ]
    base = adapter.provenance.get("base_model")
    where = (f"The file says it was trained on {base}. " if base else "") + "Nothing was attached."
    if faults:
        total = 2 * len(adapter.deltas) + len(adapter.whole)
        counted = f"{plural(len(faults), 'fault')}, {plural(total, 'tensor')}"
        raise AdapterMismatch(
            f"The adapter does not fit {type(model).__name__}: {counted}.", faults, where
        )
    trained_on, here = (
        adapter.provenance.get("base_fingerprint"),
        fingerprint(model, without=modules, rows=adapter.rows),
    )
    if trained_on and here and trained_on != here and not any_base:
        raise AdapterMismatch(
            f"The adapter was trained on other base weights ({trained_on}) than this model's ({here}).",
            advice=f"{where} Pass any_base=True (--any-base) if you mean it.",
        )
    # In the model's order, whatever the file's was: optimizers know their tensors by number.
    adapter.deltas = {n: adapter.deltas[n] for n in known if n in adapter.deltas}
    for n, delta in adapter.deltas.items():
        site, layer = known[n].site, known[n].layer
        delta.to(site.read(layer).device).settle(site.kind, site.kernel(layer), known[n].shape)
    adapter.whole = {n: adapter.whole[n] for n in own if n in adapter.whole}
    return adapter


def _misfits(
    model: nn.Module, name: str, delta: Delta, known: Mapping[str, Place]
) -> Iterable[str]:
    if name not in known:
        there = name in dict(own_modules(model))
        longer = [n for n in known if n.endswith("." + name) or name.endswith("." + n)]
        hint = f"did you mean {longer[0]!r}?" if longer else near_misses(name, known, 1)
        yield f"{'is of a kind that cannot be adapted' if there else 'is not in the model'}   {hint}".rstrip()
        return
    kind, kernel = known[name].site.kind, known[name].site.kernel(known[name].layer)
    if delta.kind and delta.kind != kind and {delta.kind, kind} != {"linear", "conv1d"}:
        yield f"was made for a layer of kind {delta.kind}, the model's is {kind}"
    if delta.kind and delta.kernel != kernel:
        yield f"was made for a kernel of {delta.kernel}, the layer's is {kernel}"
    if delta.rows != known[name].site.rows:
        yield f"was made for the rows {delta.rows} (groups, rows of each, first, count), here they are {known[name].site.rows}"
    yield from delta.misfits(known[name].shape)


def _clashes(
    adapters: Mapping[str, Adapter], on: Iterable[str], known: Mapping[str, Place]
) -> list[str]:
    """Return the parameters that more than one adapter that is on would replace, or replace and
    change.
    """
    faults, holder = [], {}
    for name in on:
        for path in adapters[name].whole:
            if path in holder:
                faults.append(f"{path}   is trained whole by {holder[path]!r} and {name!r}")
            holder[path] = name
    for name in on:
        faults += [
            f"{path}   is trained whole by {holder[path]!r} and adapted by {name!r}"
            for n in adapters[name].placed
            if n in known and (path := known[n].path) in holder
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
    state = state_of(model)
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
    faults = _clashes(state.adapters, on, places_of(model, state))
    faults += [
        f"{n!r}   has weight {w:g}, but trains parameters whole: it is on (1) or off"
        for n, w in on.items()
        if w != 1 and state.adapters[n].whole
    ]
    if faults:
        raise AdapterMismatch(
            "These cannot be on together, or not at this weight.", faults, "Nothing was switched."
        )
    exchange(model, state, {n: float(w) for n, w in on.items()})


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take one adapter off, or all; after the last no trace is left. A merged model keeps its
    merged weights.

    Raises:
        AdapterNameError: nothing, or no adapter of that name, is attached.
        MergeError: one of several adapters of a merged model.
    """
    state = state_of(model)
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
    exchange(model, state, {n: w for n, w in state.on.items() if n not in gone})
    for n in gone:
        del state.adapters[n]
    for _, layer in list(own_modules(model)):
        slot = slot_of(layer)
        if slot is None:
            continue
        for n in gone:
            for key in [k for k in slot._modules if k.partition("/")[0] == n]:
                del slot._modules[key]
            for key in [k for k in slot._parameters if k.startswith(f"{n}:")]:
                del slot._parameters[key]
        if not slot._modules and not slot._parameters:
            remove(layer)
    if not state.adapters:
        let_pack(state.held)
        for path, parameter in base_parameters(model):
            parameter.requires_grad_(state.found.get(path, parameter.requires_grad))


def places_of(model: nn.Module, state: State) -> dict[str, Place]:
    """Return the places of a model, with the parts that the specs of its adapters give."""
    given: dict[str, Any] = {}
    for adapter in state.adapters.values():
        given |= adapter.spec.parts
    return places(model, given)


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters on this model by name; empty where there is none."""
    return dict((find_state(model) or State()).adapters)


def enabled(model: nn.Module) -> dict[str, float]:
    """Return the weights of the adapters that are on, by name; empty where none is."""
    return dict((find_state(model) or State()).on)


def state_of(model: nn.Module) -> State:
    """Return what is attached to this model.

    Raises:
        AdapterNameError: nothing is.
    """
    state = find_state(model)
    if state is None:
        raise AdapterNameError(
            f"No adapter is attached to this {type(model).__name__}.", advice="Call attach first."
        )
    return state


def _listed(state: State, rest: str) -> str:
    return f"Attached: {', '.join(map(repr, state.adapters))}. {rest}"
