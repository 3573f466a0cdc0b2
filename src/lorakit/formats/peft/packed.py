"""Deltas that PEFT has no layout for, packed as plain LoRA: one A and one B for each layer.

A delta with a start of its own (`OffsetLowRank`) becomes LoRA of twice the rank: [A; A0] and
[B, -B0]. The parts of a fused layer share one pair of factors: their A below each other, their B
next to each other, each in the outputs of its part and multiplied by the ratio of its scale to the
pair's. `nn.MultiheadAttention` has one rank and one scale for both of its weights, in_proj under
the layer's own name and out_proj under `base_layer`: the lower rank is padded with zeros. PEFT adds
the change of out_proj twice, so the B of out_proj is halved. Notes in the header say how to restore
the deltas as they were.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorakit.deltas.base import Delta, LowRank, options_of
from lorakit.deltas.offset import OffsetLowRank, alpha_at_double_rank
from lorakit.errors import AdapterFileError
from lorakit.formats.peft.header import PackedPart
from lorakit.formats.peft.module_tensors import ModuleTensors
from lorakit.spec import Settings, Spec, alpha_for_scale, full_name

OUT_PROJ_PATH = "base_layer.out_proj"  # of an nn.MultiheadAttention, in the keys
# A ratio can be multiplied into values of these dtypes, and divided out again, without loss.
WIDER_DTYPES = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float64,
}
Notes = dict[str, dict[str, PackedPart]]


@dataclass(frozen=True)
class Packed:
    """Deltas as a file holds them.

    Attributes:
        config_spec: the spec that the config is written from.
        deltas: by the name in the file, one for each layer.
        notes: the parts of packed deltas, by the name in the file.
    """

    config_spec: Spec
    deltas: dict[str, Delta]
    notes: Notes


def pack(spec: Spec, deltas: Mapping[str, Delta]) -> Packed:
    """Pack the deltas of an adapter.

    Raises:
        AdapterFileError: a part of a fused layer is not plain LoRA.
    """
    plain: dict[str, Delta] = {}
    parts_by_layer: dict[str, dict[str, LowRank]] = {}
    notes: Notes = {}
    with_offset = {name for name, delta in deltas.items() if isinstance(delta, OffsetLowRank)}
    for name, delta in deltas.items():
        if isinstance(delta, OffsetLowRank):
            delta = delta.to_low_rank()
        _check_part(name, delta)
        if isinstance(delta, LowRank) and _is_packed(name, delta):
            layer = _find_layer(name, delta)
            parts_by_layer.setdefault(layer, {})[name] = delta
            continue
        plain[name] = delta
        if name in with_offset:
            notes[name] = {name: PackedPart(delta.rank, (), 1.0, has_offset=True)}
    for layer, parts in parts_by_layer.items():
        rank, first = _find_shared_rank(layer, parts_by_layer)
        pair_scale = first.scale * count_additions(layer)
        ratios = [delta.scale / pair_scale for delta in parts.values()]
        plain[layer] = _join_parts([*parts.values()], ratios, first, rank)
        notes[layer] = {
            name: PackedPart(delta.rank, delta.output_slice, ratio, name in with_offset)
            for (name, delta), ratio in zip(parts.items(), ratios, strict=True)
        }
    if with_offset:
        # Some readers use one rank and one alpha for all layers: those of the file.
        alpha = alpha_at_double_rank(spec.alpha, spec.scale_rule)
        spec = replace(spec, rank=2 * spec.rank, alpha=alpha)
    return Packed(spec, plain, notes)


def _check_part(name: str, delta: Delta) -> None:
    if delta.output_slice and type(delta) is not LowRank:
        raise AdapterFileError(
            f"{name} cannot be saved: PEFT has no layout for a part of a fused layer with "
            f"delta {delta.name!r}.",
            advice="Nothing was written.",
        )


def _is_packed(name: str, delta: LowRank) -> bool:
    """Return True for a part of a fused layer, and for a weight of an nn.MultiheadAttention."""
    if delta.output_slice:
        return True
    is_attention_weight = delta.kind in ("in_proj", "out_proj")
    is_full_weight = name.rpartition(".")[2] == delta.kind
    return type(delta) is LowRank and is_attention_weight and is_full_weight


def _find_layer(name: str, delta: LowRank) -> str:
    """Return the file's name of the layer that this part belongs to."""
    layer = name.rpartition(".")[0]
    return full_name(layer, OUT_PROJ_PATH) if delta.kind == "out_proj" else layer


def _find_shared_rank(
    layer: str, parts_by_layer: Mapping[str, Mapping[str, LowRank]]
) -> tuple[int, LowRank]:
    """Return the rank of a joined pair, and the part whose scale it has.

    Both are the same for the two weights of an attention.
    """
    attention = attention_name(layer)
    weights = (attention, full_name(attention, OUT_PROJ_PATH))
    groups = [parts_by_layer[weight] for weight in weights if weight in parts_by_layer]
    ranks = [sum(part.rank for part in group.values()) for group in groups]
    first = next(iter(groups[0].values()))
    return max(ranks), first


def count_additions(layer: str) -> int:
    """Return how often PEFT adds the change of a pair to the layer's weight.

    Every forward of an attention in PEFT merges, and adds the change of out_proj twice.

    Args:
        layer: the pair's name in the file.
    """
    return 2 if layer.endswith(OUT_PROJ_PATH) else 1


def _join_parts(parts: list[LowRank], ratios: list[float], like: LowRank, rank: int) -> LowRank:
    """Return one delta of this rank at the scale of `like`, with zeros where no part has values.

    Args:
        parts: the deltas.
        ratios: the number by which the values of each part's B are multiplied.
        like: the delta whose scale the pair has.
        rank: of the pair.
    """
    first = parts[0]
    groups, block = first.output_slice[:2] or (1, first.shape[0])
    B_shape = (groups * block, rank)
    B = first.B.detach().new_zeros(B_shape, dtype=_choose_joined_dtype(first.B.dtype, ratios))
    B_by_group = B.view(groups, block, rank)
    column = 0
    for part, ratio in zip(parts, ratios, strict=True):
        start, size = part.output_slice[2:] or (0, block)
        scaled = part.B.detach().double() * ratio
        target = B_by_group[:, start : start + size, column : column + part.rank]
        target.copy_(scaled.view(groups, -1, part.rank))
        column += part.rank
    padding = first.A.detach().new_zeros(rank - column, first.shape[1])
    A = torch.cat([*(part.A.detach() for part in parts), padding])
    return LowRank(
        A,
        B,
        alpha=alpha_for_scale(like.scale, rank, like.scale_rule),
        scale_rule=like.scale_rule,
        dropout=like.dropout,
        kind=first.kind,
    )


def _choose_joined_dtype(dtype: torch.dtype, ratios: Iterable[float]) -> torch.dtype:
    """Return the dtype in which no bit is lost: a wider one unless all ratios are powers of two."""
    if all(abs(math.frexp(ratio)[0]) == 0.5 for ratio in ratios):
        return dtype
    return WIDER_DTYPES.get(dtype, dtype)


def unpack(
    name: str,
    module: ModuleTensors,
    scale: float,
    parts: Mapping[str, PackedPart],
    kind: str,
    spec: Spec,
) -> dict[str, LowRank]:
    """Return the deltas that `pack` put into one pair of factors.

    Args:
        name: the pair's name in the file.
        module: the pair.
        scale: of the pair, times how often it is added.
        parts: the header's notes on this pair.
        kind: the kind of site.
        spec: the adapter's spec, which gives the settings of the parts.

    Raises:
        AdapterFileError: the scale of a part is not the pair's scale times its ratio.
    """
    A, B = module.tensors["A"], module.tensors["B"]
    deltas: dict[str, LowRank] = {}
    column = 0
    for part_name, part in parts.items():
        settings = spec.settings(part_name)
        _check_scale(name, part_name, settings, scale * part.ratio)
        columns = slice(column, column + part.rank)
        part_B = _select_outputs(B[..., columns], part)
        make = OffsetLowRank.from_low_rank if part.has_offset else LowRank
        deltas[part_name] = make(
            A[..., columns, :].clone(),
            (part_B.double() / part.ratio).to(A.dtype),
            **options_of(settings, kind, module.kernel, part.output_slice),
        )
        column += part.rank
    return deltas


def _check_scale(name: str, part_name: str, settings: Settings, scale: float) -> None:
    if not math.isclose(settings.scale, scale):
        raise AdapterFileError(
            f"{name}   the scale of {part_name} is {settings.scale:g} in the header, {scale:g} "
            "in the config: one of them was edited",
            advice="Nothing was loaded.",
        )


def _select_outputs(B: Tensor, part: PackedPart) -> Tensor:
    """Return the outputs of B that are the part's."""
    if not part.output_slice:
        return B
    groups, block, start, size = part.output_slice
    by_group = B.unflatten(0, (groups, block))
    return by_group[:, start : start + size].reshape(groups * size, part.rank)


def attention_name(name: str) -> str:
    """Return the name that the config uses for a pair: for out_proj, that of the attention.

    >>> attention_name("h.0.attn.base_layer.out_proj"), attention_name("h.0.attn")
    ('h.0.attn', 'h.0.attn')
    """
    return name.removesuffix(OUT_PROJ_PATH).removesuffix(".")


def find_attention_paths(names: Iterable[str]) -> dict[str, str]:
    """Return the file's names of the two weights of each nn.MultiheadAttention, by lorakit's names.

    >>> find_attention_paths(["attn.base_layer.out_proj", "attn", "rest"])
    {'attn.in_proj': 'attn', 'attn.out_proj': 'attn.base_layer.out_proj'}
    """
    paths: dict[str, str] = {}
    for name in names:
        if f".{name}".endswith(f".{OUT_PROJ_PATH}"):
            attention = attention_name(name)
            paths[full_name(attention, "in_proj")] = attention
            paths[full_name(attention, "out_proj")] = name
    return paths
