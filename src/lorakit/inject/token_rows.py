"""Token rows: rows of an embedding or a head that train by themselves, given by token ids."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import nn

from lorakit.deltas.base import Delta
from lorakit.deltas.token_rows import TokenRows
from lorakit.errors import TargetError
from lorakit.inject.places import Place
from lorakit.patterns import matches
from lorakit.sites.shared import memory_of
from lorakit.sites.slot import base_parameters, unwrap
from lorakit.spec import Spec, is_inside
from lorakit.text import plural

VOCABULARY_KINDS = ("embedding", "linear")  # kinds of sites that have one row per token


def start_token_rows(
    model: nn.Module,
    spec: Spec,
    places: Mapping[str, Place],
    otherwise_adapted: Collection[str],
) -> dict[str, Delta]:
    """Return the deltas for `spec.token_rows`, at their start: the rows of the base.

    Args:
        model: any module.
        spec: the spec of the adapter.
        places: all places of the model.
        otherwise_adapted: names of places and modules that the adapter trains in another way.

    Raises:
        TargetError: as `resolve_token_ids`.
    """
    deltas: dict[str, Delta] = {}
    resolved = resolve_token_ids(model, spec.token_rows, places, otherwise_adapted)
    for name, ids in resolved.items():
        site = places[name].site
        M = site.read(places[name].layer)
        rows = M.T if site.kind == "embedding" else M  # (tokens, width)
        # Ids have values also where the rows have none, on the meta device.
        tokens = torch.tensor(ids, device=None if M.is_meta else M.device)
        start = rows[tokens].to(getattr(torch, spec.dtype), copy=True)
        deltas[name] = TokenRows(start, tokens, len(rows), site.kind)
    return deltas


def resolve_token_ids(
    model: nn.Module,
    requested: Sequence[int] | Mapping[str, Sequence[int]],
    places: Mapping[str, Place],
    otherwise_adapted: Collection[str],
) -> dict[str, tuple[int, ...]]:
    """Return the ids that `Spec.token_rows` gives to each embedding or head, by its name.

    Ids without a module are those of the model's input embedding. A module that shares the weight
    of an embedding with the same ids is left out: it changes with that embedding.

    Args:
        model: any module.
        requested: ids, or {module: ids}.
        places: all places of the model.
        otherwise_adapted: names of places and modules that the adapter trains in another way.

    Raises:
        TargetError: a module is missing or cannot train rows, or an id has no row; the message
            names all of them.
    """
    if not requested:
        return {}
    parameters = dict(base_parameters(model))
    by_pattern = requested if isinstance(requested, Mapping) else {"": requested}
    resolved: dict[str, tuple[int, ...]] = {}
    faults: list[str] = []
    for pattern, ids in by_pattern.items():
        names = _match_one(model, pattern, places)
        if len(names) == 1:
            resolved[names[0]] = tuple(ids)
        else:
            faults.append(_count_fault(pattern, len(names), places))
    embeddings_first = sorted(resolved, key=lambda name: not _is_embedding(places[name]))
    for name in embeddings_first:
        ids = resolved[name]
        sharing = _places_of_weight(places[name], places, parameters)
        is_stored = places[name].weight_name in parameters
        faults += [f"{name}   {fault}" for fault in _id_faults(places[name], ids, is_stored)]
        faults += _conflicts(name, sharing, otherwise_adapted)
        same_rows = [other for other in sharing if other != name and resolved.get(other) == ids]
        if any(_is_embedding(places[other]) for other in same_rows):
            del resolved[name]
    if faults:
        raise TargetError(
            f"token_rows does not fit {type(model).__name__}.", faults, "Nothing was attached."
        )
    return resolved


def _is_embedding(place: Place) -> bool:
    return place.site.kind == "embedding"


def _match_one(model: nn.Module, pattern: str, places: Mapping[str, Place]) -> list[str]:
    """Return the names that a pattern matches, or those of the input embedding for an empty one."""
    if pattern:
        return [name for name in places if matches(pattern, name)]
    model = unwrap(model)
    get_input_embeddings = getattr(type(model), "get_input_embeddings", None)
    if get_input_embeddings is None:
        return [name for name, place in places.items() if _is_embedding(place)]
    layer = get_input_embeddings(model)
    return [name for name, place in places.items() if place.layer is layer and not place.is_part]


def _count_fault(pattern: str, count: int, places: Mapping[str, Place]) -> str:
    """Return the fault of a request that names no module, or several."""
    embeddings = [repr(name) for name, place in places.items() if _is_embedding(place)]
    subject = f"{pattern!r}   names" if pattern else "the input embedding   is"
    return (
        f"{subject} {plural(count, 'module')} of a known kind; one is needed. "
        f"Embeddings here: {', '.join(embeddings) or 'none'}"
    )


def _places_of_weight(
    place: Place, places: Mapping[str, Place], parameters: Mapping[str, nn.Parameter]
) -> list[str]:
    """Return the names of the layers that share the stored weight of a place, itself included.

    The result is empty if the weight is not a parameter.
    """
    parameter = parameters.get(place.weight_name)
    if parameter is None:
        return []
    memory = memory_of(parameter)
    sharing: list[str] = []
    for name, other in places.items():
        shown = None if other.is_part else parameters.get(other.weight_name)
        if shown is not None and memory_of(shown) == memory:
            sharing.append(name)
    return sharing


def _id_faults(place: Place, ids: Collection[int], is_stored: bool) -> Iterator[str]:
    """Yield the reasons why these rows of a place cannot train."""
    if place.site.kind not in VOCABULARY_KINDS or not is_stored:
        yield (
            f"is of kind {place.site.kind}: token rows are those of an embedding, or of a linear "
            "head whose weight is a parameter of its own"
        )
        return
    if getattr(place.layer, "max_norm", None) is not None:
        yield (
            "max_norm: the layer rescales its rows as it reads them, so a change of them cannot be "
            "merged"
        )
    outputs, inputs = place.shape
    size = inputs if _is_embedding(place) else outputs
    beyond = [str(token) for token in ids if token >= size]
    if beyond:
        yield (
            f"has no row for token {', '.join(beyond)}: they go from 0 to {size - 1} "
            "(is the vocabulary to be resized first?)"
        )
    padding = getattr(place.layer, "padding_idx", None)
    if padding in ids:
        yield f"never trains the row of token {padding}, its padding"


def _conflicts(
    name: str, sharing: Collection[str], otherwise_adapted: Collection[str]
) -> Iterator[str]:
    """Yield the places of a weight that the adapter also trains in another way."""
    for other in sharing:
        if not is_inside(other, otherwise_adapted):
            continue
        relation = "is" if other == name else f"shares the weight of {name} and is"
        yield (
            f"{other}   {relation} trained in another way by this adapter: leave one out, or "
            "attach two adapters"
        )
