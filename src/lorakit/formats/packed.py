"""Changes that other readers do not know, as plain low rank that they do: what is on disk is one A and one B a layer.

Parts of a fused layer lie in one pair of factors: their A on top of each other, their B beside each other, each in its own
rows. A note in the file's header says what lies where, so that reading gives back what was written.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorakit.delta import LowRank
from lorakit.errors import AdapterFileError
from lorakit.spec import Spec


def pack(deltas: Mapping[str, LowRank]) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """Return the deltas of whole layers, with one in place of all parts of a layer; and the note.

    Raises:
        AdapterFileError: the parts of a layer are not of one dtype, or of a kind that is not plain low rank.
    """
    plain: dict[str, LowRank] = {}
    note: dict[str, Any] = {}
    for name, delta in deltas.items():
        if not delta.rows:
            plain[name] = delta
            continue
        layer, _, part = name.rpartition(".")
        if type(delta) is not LowRank:
            raise AdapterFileError(f"{name} cannot be saved: a part of a layer with delta {delta.name!r} has no place in a "
                                   "file that other readers know.", advice="Nothing was written.")  # fmt: skip
        note.setdefault(layer, {})[part] = {"rank": delta.rank, "rows": list(delta.rows)}
    for layer, parts in note.items():
        plain[layer] = _joined([deltas[f"{layer}.{part}"] for part in parts])
    return plain, note


def _joined(parts: list[LowRank]) -> LowRank:
    """Return one delta of rank = the sum of ranks, at the scale of the first part."""
    first, rank = parts[0], sum(part.rank for part in parts)
    groups, block = first.rows[:2]
    B, at = first.B.new_zeros(groups * block, rank), 0
    for part in parts:
        rows = B.view(groups, block, rank)[:, part.rows[2] : part.rows[2] + part.rows[3], at : at + part.rank]
        rows.copy_(part.B.detach().view(groups, -1, part.rank) * (part.scale / first.scale))
        at += part.rank
    alpha = first.scale * (rank if first.scale_rule == "alpha/rank" else rank**0.5)
    A = torch.cat([part.A.detach() for part in parts])
    return LowRank(A, B, alpha=alpha, scale_rule=first.scale_rule, dropout=first.dropout, kind=first.kind)


def unpack(
    layer: str, A: Tensor, B: Tensor, scale: float, note: Mapping[str, Any], kind: str, spec: Spec
) -> dict[str, LowRank]:
    """Return the parts that `pack` put into one pair of factors.

    Args:
        layer: the layer's name.
        A: (sum of ranks, in).
        B: (out, sum of ranks).
        scale: of the pair.
        note: of this layer.
        kind: of the layer.
        spec: what the parts' settings are read from.
    """
    found, at = {}, 0
    for part, told in note.items():
        (groups, block, start, size), rank = told["rows"], told["rank"]
        settings = spec.settings(f"{layer}.{part}")
        own = B.view(groups, block, -1)[:, start : start + size, at : at + rank].reshape(groups * size, rank)
        found[f"{layer}.{part}"] = LowRank(
            A[at : at + rank].clone(), own * (scale / settings.scale), alpha=settings.alpha, scale_rule=settings.scale_rule,
            dropout=settings.dropout, kind=kind, rows=tuple(told["rows"]))  # fmt: skip
        at += rank
    return found
