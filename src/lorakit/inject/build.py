"""Build a fresh adapter for a model from a Spec."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta, options_of
from lorakit.deltas.kinds import DELTAS
from lorakit.deltas.offset import OffsetLowRank
from lorakit.errors import SpecError, TargetError
from lorakit.inits import start
from lorakit.inits.classic import generator_for
from lorakit.inject.fingerprint import describe_base, fingerprint
from lorakit.inject.full_parameters import copy_full_parameters, expand_norms, find_full_modules
from lorakit.inject.places import Place, check_parts, explain_unmatched, list_modules
from lorakit.inject.targets import select, short_names
from lorakit.inject.token_rows import start_token_rows
from lorakit.inject.tying import tie_factors
from lorakit.sites.slot import base_modules
from lorakit.spec import Settings, Spec
from lorakit.text import plural

# The largest share of all values in layers that "all-linear" leaves out, being below their rank.
NARROW_SHARE = 0.05


@dataclass(frozen=True)
class Selection:
    """The parts of a model that a spec adapts.

    Attributes:
        spec: the spec, with the names of the normalisation layers in the place of "norms".
        places: the places that get low-rank factors or another delta, by name.
        settings: the settings of each of them, overrides applied.
        full_modules: names of the modules that train in full.
        layers: names of the adapted modules as files list them, in the model's order.
        left_out: the reason for each layer that the preset "all-linear" leaves out.
    """

    spec: Spec
    places: dict[str, Place]
    settings: dict[str, Settings]
    full_modules: tuple[str, ...]
    layers: tuple[str, ...]
    left_out: dict[str, str]


def build_adapter(
    model: nn.Module,
    spec: Spec,
    places: Mapping[str, Place],
    *,
    seed: int,
    batches: Iterable[object] | None,
) -> Adapter:
    """Build an adapter for this model that changes nothing yet.

    Args:
        model: any module; it is not changed.
        spec: the request.
        places: all places of the model, with the parts of the spec.
        seed: as in `attach`.
        batches: as in `attach`.

    Raises:
        TargetError: a name or pattern of the spec matches nothing.
        SpecError: a layer cannot be adapted with these settings, or nothing would train.
    """
    selection = resolve_targets(model, spec, places)
    check_layers(selection)
    deltas = start_deltas(model, selection, seed, batches)
    deltas |= tie_factors(model, selection.spec, places, selection.settings, deltas)
    otherwise_adapted = (*selection.places, *selection.full_modules)
    deltas |= start_token_rows(model, selection.spec, places, otherwise_adapted)
    full_parameters = copy_full_parameters(
        model, selection.full_modules, spec.bias, {*selection.layers, *selection.places}
    )
    if not deltas and not full_parameters:
        raise SpecError(
            "Nothing would train: targets='none', and neither bias nor full_modules select a "
            "parameter.",
            advice="Name a target, a module to train in full, or a bias mode that fits the model.",
        )
    adapter = Adapter(
        selection.spec,
        {name: deltas[name] for name in places if name in deltas},
        full_parameters,
        target_names=short_names(selection.layers, dict(base_modules(model))),
    )
    adapter.left_out = selection.left_out
    adapter.provenance |= describe_origin(model, adapter, selection.full_modules, seed)
    return adapter


def resolve_targets(model: nn.Module, spec: Spec, places: Mapping[str, Place]) -> Selection:
    """Find the places and modules that a spec names.

    Raises:
        TargetError: a name or pattern matches nothing.
    """
    spec = replace(spec, full_modules=expand_norms(model, spec.full_modules))
    full_modules = tuple(find_full_modules(model, spec.full_modules))
    check_parts(spec.parts, places)
    chosen = select(
        model,
        spec.targets,
        spec.exclude,
        without=full_modules,
        parts=spec.parts,
        places=places,
    )
    check_overrides(spec, chosen)
    settings = {name: spec.settings(name) for name in chosen}
    left_out = _find_narrow_layers(spec, chosen, settings)
    chosen = {name: place for name, place in chosen.items() if name not in left_out}
    settings = {name: settings[name] for name in chosen}
    layers = list_modules(chosen.values())
    return Selection(spec, chosen, settings, full_modules, layers, left_out)


def _find_narrow_layers(
    spec: Spec, places: Mapping[str, Place], settings: Mapping[str, Settings]
) -> dict[str, str]:
    """Return the reason for each layer that "all-linear" leaves out, since it is below its rank.

    Such are gates: those of shared experts, with one output, and those with one output a head. If
    layers of more outputs hold more than a small share of all values, none of them is left out:
    the rank is refused then. The same holds if all layers have a single output.
    """
    if spec.targets != "all-linear" or not DELTAS[spec.delta].has_matrix_rank:
        return {}
    narrow = [name for name, place in places.items() if min(place.shape) < settings[name].rank]
    values = {name: place.matrix.numel() for name, place in places.items()}
    if sum(values[name] for name in narrow) > NARROW_SHARE * sum(values.values()):
        narrow = [name for name in narrow if min(places[name].shape) == 1]
    if len(narrow) == len(places):
        return {}
    reasons: dict[str, str] = {}
    for name in narrow:
        fault = f"rank {settings[name].rank} is above min(in, out) = {min(places[name].shape)}"
        reasons[name] = f"left out of 'all-linear': {fault}"
    return reasons


def check_overrides(spec: Spec, chosen: Mapping[str, Place]) -> None:
    """Refuse overrides that match no adapted place.

    Raises:
        TargetError: the message names each of them.
    """
    unmatched = explain_unmatched(spec.overrides, chosen)
    if unmatched:
        raise TargetError(
            f"{len(unmatched)} of {len(spec.overrides)} overrides match no adapted layer.",
            unmatched,
            "Nothing was attached.",
        )


def check_layers(selection: Selection) -> None:
    """Refuse settings that a layer, its delta or its start cannot use.

    Raises:
        SpecError: the message names each layer and fault.
    """
    faults: list[str] = []
    refused: list[str] = []
    for name in selection.places:
        faults_of_layer = [f"{name}   {fault}" for fault in _layer_faults(selection, name)]
        if faults_of_layer:
            refused.append(name)
            faults += faults_of_layer
    if faults:
        raise SpecError(
            f"{plural(len(refused), 'layer')} cannot be adapted with these settings.",
            faults,
            "Nothing was attached.",
        )


def _layer_faults(selection: Selection, name: str) -> Iterator[str]:
    spec, place, settings = selection.spec, selection.places[name], selection.settings[name]
    delta = DELTAS[spec.delta]
    if delta.has_matrix_rank:
        yield from place.site.rank_faults(place.layer, settings.rank)
    yield from place.site.faults(place.layer, settings)
    yield from delta.faults(place.site, settings, spec)
    yield from start.start_faults(spec.delta, settings, place)


def start_deltas(
    model: nn.Module, selection: Selection, seed: int, batches: Iterable[object] | None
) -> dict[str, Delta]:
    """Return the deltas of the selected places, at their start.

    Raises:
        SpecError: the starts need batches and there are none, or the other way round.
    """
    spec, places = selection.spec, selection.places
    observed = start.observe(model, places, selection.settings, batches)
    shapes = {name: place.shape for name, place in places.items()}
    shared = DELTAS[spec.delta].make_shared(shapes, spec, generator_for(seed, ""))
    return {
        name: start_delta(
            place,
            spec,
            selection.settings[name],
            generator_for(seed, name),
            observed.get(name),
            shared,
        )
        for name, place in places.items()
    }


def start_delta(
    place: Place,
    spec: Spec,
    settings: Settings,
    generator: torch.Generator,
    observed: start.Observation | None,
    shared: nn.Module | None,
) -> Delta:
    """Return the delta of one place, at its start.

    Args:
        place: the place.
        spec: the spec of the adapter.
        settings: the settings of the place.
        generator: source of all random values.
        observed: result of the pass over batches for this place, for starts that need one.
        shared: the module that all deltas of the adapter share.
    """
    A, B = start.initial_factors(place, settings, generator, observed, getattr(torch, spec.dtype))
    site = place.site
    options = options_of(settings, site.kind, site.kernel(place.layer), site.output_slice)
    if B is not None:
        return OffsetLowRank(A, B, **options)
    M = place.matrix
    return DELTAS[spec.delta].start(A, M, generator, shared=shared, **options)


def describe_origin(
    model: nn.Module, adapter: Adapter, full_modules: Iterable[str], seed: int
) -> dict[str, Any]:
    """Return the provenance of a fresh adapter: its base and the seed."""
    return {
        "base_fingerprint": fingerprint(model, without=full_modules, rows=adapter.trained_tokens),
        "seed": seed,
        **describe_base(model),
    }
