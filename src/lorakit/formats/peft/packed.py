"""Changes that other readers do not know, as plain low rank that they do: what is on disk is one A
and one B a layer.

A change that is measured from a start of its own (deltas/moved.py) is one of twice the rank: [A;
A0] and [B, -B0].
Parts of a fused layer lie in one pair of factors: their A on top of each other, their B beside each
    other, each in its own
rows and multiplied by the ratio of its scale to the pair's. nn.MultiheadAttention has one rank and
one scale for both of its weights, `in_proj` under its own name and `out_proj` behind `base_layer`:
the lower rank is filled up with zeros. A note in the file's header says what lies where, so that
reading gives back what was written.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lorakit.deltas.base import LowRank
from lorakit.deltas.offset import OffsetLowRank, alpha_at_double_rank
from lorakit.errors import AdapterFileError
from lorakit.spec import Spec, full_name

BEHIND = "base_layer.out_proj"  # of a MultiheadAttention, in PEFT's files
# Times a ratio and divided by it again in these, numbers of those keep every bit.
WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


def pack(
    spec: Spec, deltas: Mapping[str, LowRank]
) -> tuple[Spec, dict[str, LowRank], dict[str, Any]]:
    """Return the spec as a config tells it, the deltas by the names that files give them, one a
    layer; and the note.

    Raises:
        AdapterFileError: a part whose change is not plain low rank.
    """
    plain: dict[str, LowRank] = {}
    packed: dict[str, dict[str, LowRank]] = {}
    moved = {name for name, delta in deltas.items() if isinstance(delta, OffsetLowRank)}
    for name, own in deltas.items():
        delta = own.to_low_rank() if isinstance(own, OffsetLowRank) else own
        layer, _, last = name.rpartition(".")
        if delta.output_slice and type(delta) is not LowRank:
            raise AdapterFileError(
                f"{name} cannot be saved: a part of a layer with delta {delta.name!r} has no place in a "
                "file that other readers know.",
                advice="Nothing was written.",
            )
        lent = (
            type(delta) is LowRank
            and delta.kind in ("in_proj", "out_proj")
            and (delta.output_slice or last == delta.kind)
        )
        if lent or delta.output_slice:
            packed.setdefault(full_name(layer, BEHIND) if delta.kind == "out_proj" else layer, {})[
                name
            ] = delta
        else:
            plain[name] = delta
    note: dict[str, Any] = {
        n: {n: {"rank": d.rank, "rows": [], "ratio": 1.0}} for n, d in plain.items() if n in moved
    }
    for name, parts in packed.items():
        layer = attention_of(name)
        mates = [packed[n] for n in (layer, full_name(layer, BEHIND)) if n in packed]
        first = next(iter(mates[0].values()))
        rank = max(sum(part.rank for part in mate.values()) for mate in mates)
        note[name] = {
            n: {"rank": d.rank, "rows": [*d.output_slice], "ratio": d.scale / first.scale}
            for n, d in parts.items()
        }
        plain[name] = _joined([*parts.values()], first, rank)
    for told in note.values():
        told |= {n: {**told[n], "moved": True} for n in told if n in moved}
    if moved:  # readers that look at one rank and alpha for all layers find those of the file
        spec = replace(
            spec, rank=2 * spec.rank, alpha=alpha_at_double_rank(spec.alpha, spec.scale_rule)
        )
    return spec, plain, note


def _joined(parts: list[LowRank], like: LowRank, rank: int) -> LowRank:
    """Return one delta of this rank, at the scale of `like`; what no part fills is zero."""
    own = parts[0]
    (groups, block), B = (
        (own.output_slice or (1, own.shape[0]))[:2],
        [part.B.detach() for part in parts],
    )
    ratios = [part.scale / like.scale for part in parts]
    dtype = (
        B[0].dtype
        if all(abs(math.frexp(ratio)[0]) == 0.5 for ratio in ratios)
        else WIDER.get(B[0].dtype, B[0].dtype)
    )
    joined, at = B[0].new_zeros(groups * block, rank, dtype=dtype), 0
    for part, ratio in zip(parts, ratios, strict=True):
        start, size = part.output_slice[2:] or (0, block)
        rows = joined.view(groups, block, rank)[:, start : start + size, at : at + part.rank]
        rows.copy_((part.B.detach().double() * ratio).view(groups, -1, part.rank))
        at += part.rank
    alpha = like.scale * (rank if like.scale_rule == "alpha/rank" else rank**0.5)
    A = torch.cat(
        [*(part.A.detach() for part in parts), own.A.detach().new_zeros(rank - at, own.shape[1])]
    )
    return LowRank(
        A, joined, alpha=alpha, scale_rule=like.scale_rule, dropout=like.dropout, kind=own.kind
    )


def unpack(
    name: str,
    A: Tensor,
    B: Tensor,
    scale: float,
    note: Mapping[str, Any],
    kind: str,
    kernel: tuple[int, ...],
    spec: Spec,
) -> dict[str, LowRank]:
    """Return what `pack` put into one pair of factors: the parts of a layer, or a change with its
    start.

    Args:
        name: the pair's, in the file.
        A: (sum of ranks or more, in).
        B: (out, as many).
        scale: of the pair.
        note: of this pair.
        kind: of the layer.
        kernel: of the layer, where it has one.
        spec: what the parts' settings are read from.

    Raises:
        AdapterFileError: the scale of a part is not the pair's times its ratio.
    """
    found, at = {}, 0
    for part, told in note.items():
        rank, settings = told["rank"], spec.settings(part)
        if abs(settings.scale - scale * told["ratio"]) > 1e-9 * abs(settings.scale):
            raise AdapterFileError(
                f"{name}   scale is {settings.scale:g} for {part} in the header, "
                f"{scale * told['ratio']:g} by the config: one of them was edited",
                advice="Nothing was loaded.",
            )
        own = B[..., at : at + rank]
        if told["rows"]:
            groups, block, start, size = told["rows"]
            own = own.unflatten(0, (groups, block))[:, start : start + size].reshape(
                groups * size, rank
            )
        found[part] = (OffsetLowRank.from_low_rank if told.get("moved") else LowRank)(
            A[..., at : at + rank, :].clone(),
            (own.double() / told["ratio"]).to(A.dtype),
            alpha=settings.alpha,
            scale_rule=settings.scale_rule,
            dropout=settings.dropout,
            kind=kind,
            kernel=kernel,
            output_slice=tuple(told["rows"]),
        )
        at += rank
    return found


def attention_of(name: str) -> str:
    """Return the name of the module that a file's config knows a pair of factors by: for out_proj,
    the attention's.

    >>> attention_of("h.0.attn.base_layer.out_proj"), attention_of("h.0.attn")
    ('h.0.attn', 'h.0.attn')
    """
    return name.removesuffix(BEHIND).removesuffix(".")


def attentions(names: Iterable[str]) -> dict[str, str]:
    """Return what PEFT's files call the two weights of each MultiheadAttention, by the names that
    lorakit gives them.
    """
    found = {}
    for behind in [n for n in names if f".{n}".endswith(f".{BEHIND}")]:
        layer = attention_of(behind)
        found |= {full_name(layer, "in_proj"): layer, full_name(layer, "out_proj"): behind}
    return found
