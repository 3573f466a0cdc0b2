"""Layers that share their weight with an embedding: the deltas that change them with it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta
from lorakit.deltas.tied import TiedLowRank
from lorakit.deltas.token_rows import TiedTokenRows, TokenRows
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.inits.start import STARTS
from lorakit.inject.places import Place
from lorakit.sites.slot import base_parameters
from lorakit.spec import Settings, Spec


def tie_token_rows(
    model: nn.Module, adapter: Adapter, known: Mapping[str, Place]
) -> dict[str, Delta]:
    """Return the changes of layers that share their weight with one whose rows train.

    Raises:
        AdapterMismatch: such a layer changes otherwise too, or is of a kind that has no rows of
            tokens.
    """
    rows = {n: d for n, d in adapter.deltas.items() if isinstance(d, TokenRows)}
    own = dict(base_parameters(model)) if rows else {}
    # Rows of a head alone leave the embedding as it is, as in PEFT.
    weights = {
        id(own[known[n].weight_name]): n
        for n, d in rows.items()
        if d.kind == "embedding" and known[n].weight_name in own
    }
    shared = {
        n: weights[key]
        for n, place in known.items()
        if n not in rows
        and not place.is_part
        and (key := id(own.get(place.weight_name))) in weights
    }
    faults = [
        f"{n}   shares the weight of {of}, whose rows train"
        for n, of in shared.items()
        if n in adapter.deltas
    ]
    faults += [
        f"{n}   shares the weight of {of}, whose rows train, and is of kind {known[n].site.kind}"
        for n, of in shared.items()
        if known[n].site.kind not in ("embedding", "linear")
    ]
    if faults:
        raise AdapterMismatch(
            "Rows of a shared weight cannot be trained beside this.",
            faults,
            "Nothing was attached.",
        )
    return {n: TiedTokenRows(rows[of], known[n].site.kind) for n, of in shared.items()}


def tie_factors(
    model: nn.Module,
    spec: Spec,
    known: Mapping[str, Place],
    resolved: Mapping[str, Settings],
    deltas: Mapping[str, Any],
) -> dict[str, Delta]:
    """Return the deltas of layers that `spec.tie` gives the factors of an embedding whose weight
    they share.

    Args:
        model: any module.
        spec: what is asked.
        known: what can be adapted.
        resolved: settings of what is adapted, by name.
        deltas: of the embeddings, by name.

    Raises:
        SpecError: no weight is shared by an embedding, not all that share one are adapted, or not
            alike; all are named.
    """
    if not spec.tie:
        return {}
    own, holders = dict(base_parameters(model)), dict[int, list[str]]()
    for n, place in known.items():
        if place.weight_name in own and not place.is_part:
            holders.setdefault(id(own[place.weight_name]), []).append(n)
    groups = [
        sorted(g, key=lambda n: known[n].site.kind != "embedding")
        for g in holders.values()
        if len(g) > 1
    ]
    groups = [g for g in groups if known[g[0]].site.kind == "embedding"]
    groups = [g for g in groups if any(n in resolved for n in g)] or groups
    faults = (
        []
        if groups
        else [
            f"{type(model).__name__}   has no embedding that shares its weight with another layer"
        ]
    )
    for first, *rest in groups:
        faults += [
            f"{n}   shares a weight with {rest[0] if n == first else first}, and is not adapted: name both as targets"
            for n in (first, *rest)
            if n not in resolved
        ]
        faults += [
            f"{n}   {fault}"
            for n in rest
            for fault in _unlike(first, n, known[n].site.kind, resolved)
        ]
        start = STARTS[resolved[first].init] if first in resolved else None
        if spec.delta != "lora" or start:
            how = (
                f"delta {spec.delta!r}"
                if spec.delta != "lora"
                else f"init {resolved[first].init!r}"
            )
            faults.append(
                f"{first}   {how}: one pair for both is plain low rank, started by kaiming, gaussian or orthogonal"
            )
    if faults:
        raise SpecError(
            "tie: one pair of factors for a shared weight is not possible here.",
            faults,
            "Nothing was attached.",
        )
    return {
        n: TiedLowRank(deltas[first], known[n].site.kind, resolved[n].dropout)
        for first, *rest in groups
        for n in rest
    }


def _unlike(first: str, name: str, kind: str, resolved: Mapping[str, Settings]) -> Iterator[str]:
    if kind not in ("embedding", "linear"):
        yield f"shares the weight of {first}, and is of kind {kind}: an embedding and linear layers can have one pair"
    if first in resolved and name in resolved:
        there, here = asdict(resolved[first]), asdict(resolved[name])
        # Dropout is of an input, not of the change.
        if unlike := [f"{k} {v!r}" for k, v in here.items() if v != there[k] and k != "dropout"]:
            yield f"has {', '.join(unlike)}, {first} has {', '.join(f'{there[u.split()[0]]!r}' for u in unlike)}"
