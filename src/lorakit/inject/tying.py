"""Deltas of layers that share their weight with an adapted embedding, and so change with it."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import cast

from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.tied import TiedLowRank
from lorakit.deltas.token_rows import TiedTokenRows, TokenRows
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.inits.start import STARTS
from lorakit.inject.places import Place
from lorakit.inject.token_rows import VOCABULARY_KINDS
from lorakit.sites.shared import memory_of
from lorakit.sites.slot import base_parameters
from lorakit.spec import Settings, Spec


def tie_token_rows(
    model: nn.Module, adapter: Adapter, places: Mapping[str, Place]
) -> dict[str, Delta]:
    """Return the deltas of layers that share their weight with an embedding whose rows train.

    Args:
        model: any module.
        adapter: an adapter that fits the model.
        places: all places of the model.

    Raises:
        AdapterMismatch: the adapter changes such a layer in another way too, or its kind cannot
            have token rows.
    """
    trained = {
        name: delta for name, delta in adapter.deltas.items() if isinstance(delta, TokenRows)
    }
    owners = _tied_to(model, trained, places)
    faults = [
        f"{name}   shares the weight of {owner}, whose rows train"
        for name, owner in owners.items()
        if name in adapter.deltas
    ]
    for name, owner in owners.items():
        kind = places[name].site.kind
        if kind not in VOCABULARY_KINDS:
            faults.append(
                f"{name}   shares the weight of {owner}, whose rows train, and is of kind {kind}"
            )
    if faults:
        raise AdapterMismatch(
            "The token rows of a shared weight cannot train together with these layers.",
            faults,
            "Nothing was attached.",
        )
    return {
        name: TiedTokenRows(trained[owner], places[name].site.kind)
        for name, owner in owners.items()
    }


def _tied_to(
    model: nn.Module, trained: Mapping[str, TokenRows], places: Mapping[str, Place]
) -> dict[str, str]:
    """Return the embedding whose weight each other layer shares, by the layer's name."""
    if not trained:
        return {}
    parameters = dict(base_parameters(model))
    embeddings: dict[Hashable, str] = {}
    for name, delta in trained.items():
        parameter = parameters.get(places[name].weight_name)
        # Rows of a head alone leave the embedding as it is, as in PEFT.
        if delta.kind == "embedding" and parameter is not None:
            embeddings[memory_of(parameter)] = name
    owners: dict[str, str] = {}
    for name, place in places.items():
        if name in trained or place.is_part:
            continue
        parameter = parameters.get(place.weight_name)
        owner = None if parameter is None else embeddings.get(memory_of(parameter))
        if owner is not None:
            owners[name] = owner
    return owners


def tie_factors(
    model: nn.Module,
    spec: Spec,
    places: Mapping[str, Place],
    settings: Mapping[str, Settings],
    deltas: Mapping[str, Delta],
) -> dict[str, Delta]:
    """Return the deltas of layers that `spec.tie` gives the factors of their embedding.

    Args:
        model: any module.
        spec: the spec of the adapter.
        places: all places of the model.
        settings: settings of the adapted places, by name.
        deltas: deltas of the adapted places, by name.

    Raises:
        SpecError: no embedding shares its weight, or the layers that share one are not all adapted
            in the same way; the message names all of them.
    """
    if not spec.tie:
        return {}
    groups = _groups_to_tie(model, places, settings)
    faults: list[str] = []
    if not groups:
        faults.append(
            f"{type(model).__name__}   has no embedding that shares its weight with another layer"
        )
    for group in groups:
        faults += _group_faults(group, spec, places, settings)
    if faults:
        raise SpecError(
            "tie: one pair of factors for a shared weight is not possible here.",
            faults,
            "Nothing was attached.",
        )
    tied: dict[str, Delta] = {}
    for embedding, *others in groups:
        # Other parameterisations are refused above.
        factors = cast(LowRank, deltas[embedding])
        for name in others:
            tied[name] = TiedLowRank(factors, places[name].site.kind, settings[name].dropout)
    return tied


def _groups_to_tie(
    model: nn.Module, places: Mapping[str, Place], settings: Mapping[str, Settings]
) -> list[list[str]]:
    """Return the places of each weight that an embedding shares, the embedding first.

    If any of these weights is adapted, only those that are adapted are returned.
    """
    parameters = dict(base_parameters(model))
    holders: dict[Hashable, list[str]] = {}
    for name, place in places.items():
        if place.weight_name in parameters and not place.is_part:
            memory = memory_of(parameters[place.weight_name])
            holders.setdefault(memory, []).append(name)
    groups: list[list[str]] = []
    for names in holders.values():
        names.sort(key=lambda name: places[name].site.kind != "embedding")
        if len(names) > 1 and places[names[0]].site.kind == "embedding":
            groups.append(names)
    adapted = [group for group in groups if any(name in settings for name in group)]
    return adapted or groups


def _group_faults(
    group: Sequence[str],
    spec: Spec,
    places: Mapping[str, Place],
    settings: Mapping[str, Settings],
) -> Iterator[str]:
    """Yield the reasons why the layers of one weight cannot have one pair of factors."""
    embedding, *others = group
    for name in group:
        if name not in settings:
            other = others[0] if name == embedding else embedding
            yield (
                f"{name}   shares a weight with {other}, and is not adapted: name both as targets"
            )
    for name in others:
        kind = places[name].site.kind
        if kind not in VOCABULARY_KINDS:
            yield (
                f"{name}   shares the weight of {embedding}, and is of kind {kind}: an embedding "
                "and linear layers can have one pair"
            )
        if embedding in settings and name in settings:
            difference = _compare_settings(settings[name], settings[embedding], embedding)
            if difference:
                yield f"{name}   {difference}"
    cause = _cause_of_other_factors(spec, settings.get(embedding))
    if cause:
        yield (
            f"{embedding}   {cause}: one pair for both is plain low rank, started by kaiming, "
            "gaussian or orthogonal"
        )


def _compare_settings(own: Settings, shared: Settings, embedding: str) -> str:
    """Return the settings in which a layer differs from its embedding; empty if there are none."""
    here, there = asdict(own), asdict(shared)
    # Dropout acts on an input, so it does not belong to the change.
    different = [field for field in here if field != "dropout" and here[field] != there[field]]
    if not different:
        return ""
    values = ", ".join(f"{field} {here[field]!r}" for field in different)
    shared_values = ", ".join(repr(there[field]) for field in different)
    return f"has {values}, {embedding} has {shared_values}"


def _cause_of_other_factors(spec: Spec, settings: Settings | None) -> str:
    """Return the option that makes the change more than plain low rank, or an empty string."""
    if spec.delta != "lora":
        return f"delta {spec.delta!r}"
    if settings is not None and not STARTS[settings.init].is_random:
        return f"init {settings.init!r}"
    return ""
