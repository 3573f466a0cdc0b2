"""Check that an adapter fits a model, and prepare it for that model."""

from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta
from lorakit.errors import AdapterMismatch
from lorakit.inject.conversions import convert_adapter
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.full_parameters import find_full_modules
from lorakit.inject.names import fit_names
from lorakit.inject.places import Place
from lorakit.sites.shared import memory_of
from lorakit.sites.slot import base_modules, base_parameters
from lorakit.spec import is_inside
from lorakit.text import did_you_mean, near_misses, plural

# Kinds of sites whose factors fit one another.
SAME_FACTORS = ({"linear", "conv1d"}, {"linear", "parameter"})


def fit_adapter(
    model: nn.Module, adapter: Adapter, places: Mapping[str, Place], *, any_base: bool
) -> Adapter:
    """Check that an adapter fits this model, and bring it into the model's order and devices.

    Args:
        model: any module; it is not changed.
        adapter: the adapter; changed in place once it is known to fit.
        places: all places of the model, with the parts of the adapter's spec.
        any_base: accept an adapter that was trained on other base weights.

    Returns:
        The same adapter.

    Raises:
        AdapterMismatch: names, kinds or shapes differ, or the base weights do.
    """
    base = adapter.provenance.get("base_model")
    origin = f"The file says it was trained on {base}. " if base else ""
    advice = f"{origin}Nothing was attached."
    parameters = dict(base_parameters(model))
    convert_adapter(model, adapter, places)
    fit_names(adapter, places, parameters)
    full_modules = find_full_modules(model, adapter.spec.full_modules, require_match=False)
    faults = [
        *_delta_faults(model, adapter, places),
        *_full_parameter_faults(adapter, parameters),
        *_missing_layers(adapter, places, full_modules),
    ]
    if faults:
        tensors = 2 * len(adapter.deltas) + len(adapter.full_parameters)
        counts = f"{plural(len(faults), 'fault')}, {plural(tensors, 'tensor')}"
        raise AdapterMismatch(
            f"The adapter does not fit {type(model).__name__}: {counts}.", faults, advice
        )
    check_base(model, adapter, full_modules, any_base=any_base, advice=advice)
    _settle_own_weights(adapter, places, parameters)
    _move_to_layers(adapter, places, parameters)
    return adapter


def check_base(
    model: nn.Module,
    adapter: Adapter,
    full_modules: Iterable[str],
    *,
    any_base: bool,
    advice: str,
) -> None:
    """Refuse an adapter that was trained on other base weights, as far as both are known.

    Raises:
        AdapterMismatch: the fingerprints differ; the message holds both.
    """
    trained_on = adapter.provenance.get("base_fingerprint")
    found = fingerprint(model, without=full_modules, rows=adapter.trained_tokens)
    if trained_on and found and trained_on != found and not any_base:
        raise AdapterMismatch(
            f"The adapter was trained on other base weights ({trained_on}) than this model's "
            f"({found}).",
            advice=f"{advice} Pass any_base=True (--any-base) if you mean it.",
        )


def _settle_own_weights(
    adapter: Adapter, places: Mapping[str, Place], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Leave out the weights of adapted layers that the model has too.

    PEFT writes the weights of adapted embeddings along. Those of a vocabulary that was resized
    differ from the model's, and replace them in all layers that share them.
    """
    for name in adapter.deltas:
        path = places[name].weight_name
        own, weight = adapter.full_parameters.get(path), parameters.get(path)
        if own is None or weight is None:
            continue
        if torch.equal(own.to(weight), weight):
            del adapter.full_parameters[path]
            continue
        for other, shared in parameters.items():
            if memory_of(shared) == memory_of(weight) and other not in adapter.full_parameters:
                adapter.full_parameters[other] = nn.Parameter(own.detach().clone())


def _move_to_layers(
    adapter: Adapter, places: Mapping[str, Place], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Order an adapter as the model is, and move its deltas to their layers."""
    # Optimizers know their tensors by number, so the order of the file must not matter.
    adapter.deltas = {name: adapter.deltas[name] for name in places if name in adapter.deltas}
    full_parameters = adapter.full_parameters
    adapter.full_parameters = {
        name: full_parameters[name] for name in parameters if name in full_parameters
    }
    for name, delta in adapter.deltas.items():
        place = places[name]
        delta.to(place.matrix.device)
        delta.complete_for_layer(place.site.kind, place.site.kernel(place.layer), place.shape)


def _delta_faults(model: nn.Module, adapter: Adapter, places: Mapping[str, Place]) -> Iterator[str]:
    for name, delta in adapter.deltas.items():
        place = places.get(name)
        if place is None:
            yield f"{name}   {_explain_absence(model, name, places)}".rstrip()
            continue
        for fault in _mismatches(delta, place):
            yield f"{name}   {fault}"


def _explain_absence(model: nn.Module, name: str, places: Mapping[str, Place]) -> str:
    """Return the reason why the model has no place of this name, and the nearest that it has."""
    longer = [known for known in places if known.endswith(f".{name}") or name.endswith(f".{known}")]
    hint = did_you_mean(longer[:1]) if longer else near_misses(name, places, 1)
    if name in dict(base_modules(model)):
        return f"is of a kind that cannot be adapted   {hint}"
    return f"is not in the model   {hint}"


def _mismatches(delta: Delta, place: Place) -> Iterator[str]:
    """Yield the ways in which a delta does not fit a place of its name."""
    kind = place.site.kind
    kernel = place.site.kernel(place.layer)
    if delta.kind and delta.kind != kind and {delta.kind, kind} not in SAME_FACTORS:
        yield f"was made for a layer of kind {delta.kind}, the model's is {kind}"
    if delta.kind and delta.kernel != kernel:
        yield f"was made for a kernel of {delta.kernel}, the layer's is {kernel}"
    if delta.output_slice != place.site.output_slice:
        yield (
            f"was made for the outputs {delta.output_slice} (groups, outputs of each, first, "
            f"count), here they are {place.site.output_slice}"
        )
    yield from delta.shape_faults(place.shape)


def _full_parameter_faults(
    adapter: Adapter, parameters: Mapping[str, nn.Parameter]
) -> Iterator[str]:
    for name, tensor in adapter.full_parameters.items():
        if name not in parameters:
            yield f"{name}   is not in the model"
        elif parameters[name].shape != tensor.shape:
            shape = tuple(parameters[name].shape)
            yield f"{name}   is {tuple(tensor.shape)}, the model's is {shape}"


def _missing_layers(
    adapter: Adapter, places: Mapping[str, Place], full_modules: Collection[str]
) -> Iterator[str]:
    """Yield the layers that the adapter's target names select but that have no factors."""
    if isinstance(adapter.target_names, str):
        return
    # A full name is that of a delta; a shorter one selects every layer that ends in it.
    endings = tuple(f".{name}" for name in adapter.target_names if name not in adapter.deltas)
    adapted = {places[name].layer_name for name in adapter.deltas if name in places}
    for name, place in places.items():
        if name != place.layer_name or name in adapted:
            continue
        if f".{name}".endswith(endings) and not is_inside(name, full_modules):
            yield f"{name}   is named by its targets, but the adapter has no factors for it"
