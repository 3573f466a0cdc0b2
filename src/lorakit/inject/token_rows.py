"""Which rows of an embedding train by themselves, and which layers change with an embedding because
they share its weight.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lorakit.deltas.base import Delta
from lorakit.deltas.token_rows import TokenRows
from lorakit.errors import TargetError
from lorakit.inject.places import Place
from lorakit.sites.slot import base_parameters
from lorakit.spec import Spec, matches
from lorakit.text import plural


def start_token_rows(
    model: nn.Module, spec: Spec, known: Mapping[str, Place], taken: Collection[str]
) -> dict[str, Delta]:
    """Return the deltas that `spec.token_rows` means, as they start: the base's rows.

    Args:
        model: any module.
        spec: what is asked.
        known: what can be adapted.
        taken: names of places that are adapted otherwise, and of modules that are trained whole.
    """
    deltas: dict[str, Delta] = {}
    for n, ids in resolve_token_ids(model, spec.token_rows, known, taken).items():
        site, turned = known[n].site, known[n].site.kind == "embedding"
        M = site.read(known[n].layer)
        tokens = torch.tensor(
            ids, device=None if M.is_meta else M.device
        )  # known also where the rows have no values
        start = (M.T if turned else M)[tokens].to(getattr(torch, spec.dtype), copy=True)
        deltas[n] = TokenRows(start, tokens, M.shape[turned], site.kind)
    return deltas


def resolve_token_ids(
    model: nn.Module, asked: Any, known: Mapping[str, Place], taken: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Return the ids that `Spec.token_rows` gives each embedding or head, by its name.

    Ids alone are those of the model's input embedding. A module that shares the weight of one
    before it, and is given the same ids, changes with that one.

    Args:
        model: any module.
        asked: ids, or {module: ids}.
        known: what can be adapted.
        taken: names of places that are adapted otherwise, and of modules that are trained whole.

    Raises:
        TargetError: no such module, or one that cannot be served; or an id that it has no row for.
            All are named.
    """
    if not asked:
        return {}
    own, found, faults = dict(base_parameters(model)), dict[str, tuple[int, ...]](), []
    items = asked.items() if isinstance(asked, Mapping) else [("", asked)]
    for pattern, ids in items:
        names = [n for n in known if matches(pattern, n)] if pattern else _inputs(model, known)
        if len(names) == 1:
            found[names[0]] = tuple(ids)
        else:
            there = (
                ", ".join(map(repr, [n for n, p in known.items() if p.site.kind == "embedding"]))
                or "none"
            )
            what = f"{pattern!r}   names" if pattern else "the input embedding   is"
            faults.append(
                f"{what} {plural(len(names), 'module')} of a known kind; one is needed. Embeddings here: {there}"
            )
    # What a head shares with an embedding is the embedding's.
    for name in sorted(found, key=lambda name: known[name].site.kind != "embedding"):
        place, ids = known[name], found[name]
        sharing = [
            n
            for n, p in known.items()
            if not p.is_part and own.get(p.weight_name, n) is own.get(place.weight_name)
        ]
        if any(
            found.get(n) == ids and known[n].site.kind == "embedding" for n in sharing if n != name
        ):
            del found[name]
        faults += [
            f"{name}   {fault}" for fault in _row_faults(place, ids, place.weight_name in own)
        ]
        faults += [
            f"{n}   {'is' if n == name else f'shares the weight of {name} and is'} trained otherwise by this adapter: "
            "leave one out, or attach two"
            for n in sharing
            if _inside(n, taken)
        ]
    if faults:
        raise TargetError(
            f"token_rows does not fit {type(model).__name__}.", faults, "Nothing was attached."
        )
    return found


def _row_faults(place: Place, ids: tuple[int, ...], stored: bool) -> Iterator[str]:
    if place.site.kind not in ("embedding", "linear") or not stored:
        yield f"is of kind {place.site.kind}: rows of tokens are those of an embedding or a linear head in full"
        return
    if getattr(place.layer, "max_norm", None) is not None:
        yield "max_norm: the layer rescales its rows as it reads them, so a change of them cannot be merged"
    size = place.shape[1] if place.site.kind == "embedding" else place.shape[0]
    if beyond := [i for i in ids if i >= size]:
        yield (
            f"has no row for token {', '.join(map(str, beyond))}: they go from 0 to {size - 1} (is the vocabulary to be "
            "resized first?)"
        )
    if getattr(place.layer, "padding_idx", None) in ids:
        yield f"never trains the row of token {place.layer.padding_idx}, its padding"


def _inside(name: str, outer: Collection[str]) -> bool:
    """Tell whether a name is one of these, or in one."""
    return any(name == o or name.startswith(f"{o}.") for o in outer)


def _inputs(model: nn.Module, known: Mapping[str, Place]) -> list[str]:
    """Return the name of the input embedding: as transformers tells it, or the only one."""
    method = getattr(type(model), "get_input_embeddings", None)
    if method is not None:
        layer = method(model)
        return [n for n, place in known.items() if place.layer is layer and not place.is_part]
    return [n for n, place in known.items() if place.site.kind == "embedding"]
