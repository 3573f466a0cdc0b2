"""Adapters made with transformers 4, whose layers transformers 5 renamed or joined to stacks.

transformers 4 had a layer for each expert, such as `block_sparse_moe.experts.0.w1`; transformers 5
has one stack of matrices for all, `mlp.experts.gate_up_proj`, with gate and up in one matrix. Its
own table of conversions says which weight became what. The factors of an expert go where its
weight went: those of gate and up side by side, so that the rank is the sum of theirs, and the
change is the same. A router was a linear layer, and is a module with a weight of its own.

Source: huggingface/transformers 5, `conversion_mapping.py`; the layout of the joined factors is
    that of huggingface/peft 0.21, `utils/transformers_weight_conversion.py`. PEFT multiplies rank
    and alpha by two, which changes the scale of alpha / sqrt(rank); here the scale stays.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.errors import AdapterMismatch
from lorakit.inject.places import Place, list_modules
from lorakit.spec import alpha_for_scale

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter, WeightRenaming, WeightTransform

WEIGHT = ".weight"
# The operations that put the matrices of experts into a stack, and several stacks side by side.
STACK, JOIN = "MergeModulelist", "Concatenate"


@dataclass(frozen=True)
class Origin:
    """The position of a layer of transformers 4 in the model.

    Attributes:
        place: name of the place.
        expert: number of the expert in a stack; None for a layer that was only renamed.
        part: position among the matrices that were put side by side.
        parts: number of these matrices.
    """

    place: str
    expert: int | None = None
    part: int = 0
    parts: int = 1


def convert_adapter(model: nn.Module, adapter: Adapter, places: Mapping[str, Place]) -> None:
    """Change an adapter of transformers 4 in place into one of this model.

    Args:
        model: any module; only those of transformers have conversions.
        adapter: any adapter.
        places: all places of the model.

    Raises:
        AdapterMismatch: the deltas of single experts cannot be joined; all faults are named.
    """
    unknown = [name for name in adapter.deltas if name not in places]
    origins = _find_origins(model, unknown, places)
    origins |= {name: Origin(name) for name in _find_routers(adapter, places)}
    if not origins:
        return
    faults = list(_find_faults(adapter, origins, places))
    if faults:
        raise AdapterMismatch(
            "The adapter was made with transformers 4, and its experts cannot be joined as "
            "transformers 5 stores them.",
            faults,
            "Nothing was attached.",
        )
    deltas: dict[str, Delta] = {}
    experts: dict[str, dict[str, LowRank]] = {}
    for name, delta in adapter.deltas.items():
        origin = origins.get(name)
        if origin is None or origin.expert is None:
            deltas[origin.place if origin else name] = delta
        else:
            experts.setdefault(origin.place, {})[name] = cast(LowRank, delta)
    for name, own in experts.items():
        deltas[name] = _join_experts(own, origins, places[name])
    _replace_deltas(adapter, deltas, places)
    new_names = {name: origin.place for name, origin in origins.items()}
    adapter.renamed = {old: new for old, new in new_names.items() if old != new}


def _find_routers(adapter: Adapter, places: Mapping[str, Place]) -> Iterator[str]:
    """Yield the linear layers of an adapter that are no linear layers of the model."""
    for name, delta in adapter.deltas.items():
        place = places.get(name)
        if place and place.site.kind == "parameter" and delta.kind == "linear":
            yield name


def _replace_deltas(
    adapter: Adapter, deltas: dict[str, Delta], places: Mapping[str, Place]
) -> None:
    """Give an adapter other deltas, and a spec and target names that say so."""
    adapter.deltas = deltas
    for name, delta in deltas.items():
        if name in places and places[name].site.kind == "parameter":
            delta.kind = "parameter"
    adapter.target_names = list_modules(places[name] for name in deltas if name in places)
    wanted = {name: requested_settings(delta) for name, delta in deltas.items()}
    spec = replace(adapter.spec, targets=tuple(deltas), overrides={})
    adapter.spec = write_overrides(spec, wanted)


def _find_origins(
    model: nn.Module, names: Iterable[str], places: Mapping[str, Place]
) -> dict[str, Origin]:
    """Return the positions of layers that transformers renamed, by their old names."""
    names = list(names)
    if not names or not type(model).__module__.startswith("transformers."):
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    conversions: list[WeightTransform] = get_model_conversion_mapping(
        cast("PreTrainedModel", model)
    )
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    origins: dict[str, Origin] = {}
    for name in names:
        origin = _find_origin(name, renamings, converters)
        if origin is not None and origin.place in places:
            origins[name] = origin
    return origins


def _find_origin(
    name: str, renamings: "list[WeightRenaming]", converters: "list[WeightConverter]"
) -> Origin | None:
    """Return the position of one layer; None if no conversion is for its weight."""
    from transformers.core_model_loading import apply_renamings

    old = name + WEIGHT
    renamed = apply_renamings(old, renamings)
    for converter in converters:
        stack, pattern = converter.rename_source_key(renamed)
        if pattern is None:
            continue
        steps = [type(step).__name__ for step in converter.operations]
        experts = re.findall(r"\.(\d+)\.", name)
        if steps not in ([STACK], [STACK, JOIN]) or not experts:
            return None
        patterns = converter.source_patterns
        return Origin(stack, int(experts[-1]), patterns.index(pattern), len(patterns))
    return None if renamed == old else Origin(renamed.removesuffix(WEIGHT))


def _find_faults(
    adapter: Adapter, origins: Mapping[str, Origin], places: Mapping[str, Place]
) -> Iterator[str]:
    """Yield the reasons why deltas of single experts cannot be joined."""
    for name, origin in origins.items():
        delta = adapter.deltas[name]
        if origin.expert is None:
            if origin.place != name and origin.place in adapter.deltas:
                yield f"{name}   is {origin.place} in this model, which has factors of its own"
            continue
        matrix = places[origin.place].matrix
        experts, outputs, inputs = matrix.shape
        if type(delta) is not LowRank:
            yield f"{name}   delta {delta.name!r} cannot be joined, only 'lora' can"
        elif origin.expert >= experts:
            yield f"{name}   is of expert {origin.expert}, the model has {experts}"
        else:
            for fault in delta.shape_faults((outputs // origin.parts, inputs)):
                yield f"{name}   {fault}"


def _join_experts(
    deltas: Mapping[str, LowRank], origins: Mapping[str, Origin], place: Place
) -> LowRank:
    """Return one delta of a stack with the changes of these deltas, and zeros elsewhere.

    It has no dropout, since the input of a single expert cannot be seen.

    Args:
        deltas: by the names of transformers 4.
        origins: the positions of these names in the stack.
        place: the stack.
    """
    experts, outputs, inputs = place.matrix.shape
    ranks: dict[int, int] = {}
    for name, delta in deltas.items():
        part = origins[name].part
        ranks[part] = max(ranks.get(part, 0), delta.rank)
    first = next(iter(deltas.values()))
    rank = sum(ranks.values())
    A = first.A.detach().new_zeros(experts, rank, inputs)
    B = first.B.detach().new_zeros(experts, outputs, rank)
    for name, delta in deltas.items():
        origin = origins[name]
        height = outputs // origin.parts
        start = sum(size for part, size in ranks.items() if part < origin.part)
        own = slice(start, start + delta.rank)
        rows = slice(origin.part * height, (origin.part + 1) * height)
        A[origin.expert, own] = delta.A.detach()
        B[origin.expert, rows, own] = delta.B.detach() * (delta.scale / first.scale)
    return LowRank(
        A,
        B,
        alpha=alpha_for_scale(first.scale, rank, first.scale_rule),
        scale_rule=first.scale_rule,
        kind="experts",
    )
