"""Names of an adapter that carry the prefix of a wrapper, mapped to those of the model.

An adapter that was trained on a compiled model, or whose file another tool wrote, may say
`_orig_mod.layers.0` where the model says `layers.0`, or the other way round.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from lorakit.adapter import Adapter
from lorakit.inject.places import Place, list_modules
from lorakit.sites.slot import WRAPPERS
from lorakit.spec import Spec

# torch.compile, activation checkpointing and FSDP wrap modules anywhere; the others wrap a model.
INNER = "|".join(sorted({*WRAPPERS.values()} - {"module"}))
PREFIXES = re.compile(rf"(^|\.)({INNER})(?=\.|$)|^(module|base_model\.model)(?=\.)")
Value = TypeVar("Value")


def strip_wrappers(name: str) -> str:
    """Return a name without the parts that wrappers add.

    >>> strip_wrappers("module._orig_mod.layers.0"), strip_wrappers("base_model.model.lm_head")
    ('layers.0', 'lm_head')
    """
    stripped = PREFIXES.sub("", name).removeprefix(".")
    return stripped if stripped == name else strip_wrappers(stripped)


def map_names(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Return the known name that each name means; empty if they do not map one to one.

    Args:
        names: names of an adapter.
        known: names of the model.

    >>> map_names(["_orig_mod.0", "_orig_mod.2"], ["0", "1", "2"])
    {'_orig_mod.0': '0', '_orig_mod.2': '2'}
    >>> map_names(["_orig_mod.0", "0"], ["0", "1"]), map_names(["_orig_mod.3"], ["0"])
    ({}, {})
    """
    by_plain_name: dict[str, list[str]] = {}
    for name in known:
        by_plain_name.setdefault(strip_wrappers(name), []).append(name)
    mapped: dict[str, str] = {}
    for name in names:
        candidates = [name] if name in known else by_plain_name.get(strip_wrappers(name), [])
        if len(candidates) != 1:
            return {}
        mapped[name] = candidates[0]
    is_one_to_one = len(set(mapped.values())) == len(mapped)
    return mapped if is_one_to_one else {}


def fit_names(
    adapter: Adapter, places: Mapping[str, Place], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Rename the layers of an adapter in place, where its names mean those of the model.

    Args:
        adapter: any adapter.
        places: all places of the model.
        parameters: the base's parameters by name.
    """
    layers = map_names(adapter.deltas, places)
    tensors = map_names(adapter.full_parameters, parameters)
    if len(layers) < len(adapter.deltas) or len(tensors) < len(adapter.full_parameters):
        return
    renamed = {old: new for old, new in {**layers, **tensors}.items() if old != new}
    if not renamed:
        return
    adapter.renamed = renamed
    adapter.deltas = {layers[name]: delta for name, delta in adapter.deltas.items()}
    adapter.full_parameters = {
        tensors[name]: tensor for name, tensor in adapter.full_parameters.items()
    }
    adapter.target_names = list_modules(places[name] for name in adapter.deltas)
    adapter.spec = _strip_spec(adapter.spec)


def _strip_spec(spec: Spec) -> Spec:
    """Return a spec without wrappers in the names by which it is read again."""
    return replace(
        spec,
        full_modules=tuple(map(strip_wrappers, spec.full_modules)),
        overrides=_strip_keys(spec.overrides),
        parts=_strip_keys(spec.parts),
    )


def _strip_keys(values: Mapping[str, Value]) -> dict[str, Value]:
    return {strip_wrappers(name): value for name, value in values.items()}
