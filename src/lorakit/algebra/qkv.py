"""State dicts and adapters of fused layers with their projections apart, and back: every bit is the
same again.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorakit.adapter import Adapter
from lorakit.deltas.base import LowRank
from lorakit.errors import AdapterMismatch
from lorakit.sites.fused_parts import Layout
from lorakit.spec import full_name
from lorakit.text import plural

Layouts = Mapping[str, Layout]  # by the name of the fused layer


def split_qkv(
    state: Mapping[str, Tensor], layouts: Layouts, *, transposed: bool = False
) -> dict[str, Tensor]:
    """Return a state dict in which each fused layer is a layer a part: `<layer>.q.weight` and so
    on.

    Args:
        state: weights and biases by name.
        layouts: which rows are whose, by layer.
        transposed: whether these layers store their matrices transposed, as GPT-2 does.

    >>> split_qkv({"a.bias": torch.arange(4)}, {"a": Layout({"k": 1, "v": 1}, groups=2)})["a.v.bias"].tolist()
    [1, 3]
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, key = name.rpartition(".")
        if layer not in layouts or key not in ("weight", "bias"):
            found[name] = tensor
            continue
        layout, whole = layouts[layer], tensor.T if transposed and tensor.ndim == 2 else tensor
        if whole.shape[0] != layout.outputs:
            raise AdapterMismatch(
                f"{name} has {whole.shape[0]} outputs, its layout {layout.outputs}.",
                advice="Nothing was split.",
            )
        blocks = whole.unflatten(0, (layout.groups, -1)).split([*layout.sizes.values()], dim=1)
        for part, rows in zip(layout.sizes, blocks, strict=True):
            own = rows.flatten(0, 1)
            found[f"{layer}.{part}.{key}"] = (own.T if whole is not tensor else own).contiguous()
    return found


def fuse_qkv(
    state: Mapping[str, Tensor], layouts: Layouts, *, transposed: bool = False
) -> dict[str, Tensor]:
    """Return the state dict that `split_qkv` gave `state` for.

    Args:
        state: weights and biases by name, of each part one.
        layouts: as `split_qkv` takes them.
        transposed: as `split_qkv` takes it.

    Raises:
        AdapterMismatch: a part of a layer is missing; all are named.
    """
    found: dict[str, Tensor] = {}
    faults: list[str] = []
    for name, tensor in state.items():
        above, _, key = name.rpartition(".")
        layer, _, part = above.rpartition(".")
        if (
            layer not in layouts
            or part not in layouts[layer].sizes
            or key not in ("weight", "bias")
        ):
            found[name] = tensor
        elif full_name(layer, key) not in found:
            names = [f"{layer}.{other}.{key}" for other in layouts[layer].sizes]
            if missing := [n for n in names if n not in state]:
                faults += [
                    f"{n}   is missing" for n in missing if f"{n}   is missing" not in faults
                ]
                continue
            turned = transposed and tensor.ndim == 2
            parts = [
                (state[n].T if turned else state[n]).unflatten(0, (layouts[layer].groups, -1))
                for n in names
            ]
            whole = torch.cat(parts, dim=1).flatten(0, 1)
            found[full_name(layer, key)] = (whole.T if turned else whole).contiguous()
    if faults:
        raise AdapterMismatch("Parts of fused layers are missing.", faults, "Nothing was fused.")
    return found


def split_adapter(adapter: Adapter, layouts: Layouts) -> Adapter:
    """Return an adapter in which a change of a whole fused layer is one of each part: all with its
    A, each with its rows of B.

    Args:
        adapter: any; other layers stay as they are.
        layouts: as `split_qkv` takes them.
    """
    deltas: dict[str, Any] = {}
    for name, delta in adapter.deltas.items():
        if name not in layouts or delta.output_slice or type(delta) is not LowRank:
            deltas[name] = delta
            continue
        layout = layouts[name]
        B, block, start = delta.B.detach(), sum(layout.sizes.values()), 0
        for part, own in split_qkv({f"{name}.weight": B}, layouts).items():
            last = part.removesuffix(".weight")
            size = layout.sizes[last.rpartition(".")[2]]
            deltas[last] = _like(
                delta, delta.A.detach().clone(), own.clone(), (layout.groups, block, start, size)
            )
            start += size
    return Adapter(
        adapter.spec, deltas, adapter.full_parameters, adapter.provenance, adapter.target_names
    ).copy()


def fuse_adapter(adapter: Adapter, layouts: Layouts) -> Adapter:
    """Return the adapter that `split_adapter` gave `adapter` for.

    Args:
        adapter: of each layer all parts, with one A and one scale.
        layouts: as `split_qkv` takes them.

    Raises:
        AdapterMismatch: a part is missing, or has an A or a scale of its own: then no change of the
            same rank is the same.
    """
    deltas: dict[str, Any] = {}
    faults: list[str] = []
    held: dict[str, Any] = adapter.deltas
    for name, delta in held.items():
        layer, _, part = name.rpartition(".")
        if layer not in layouts or part not in layouts[layer].sizes:
            deltas[name] = delta
            continue
        parts = [held.get(f"{layer}.{other}") for other in layouts[layer].sizes]
        alike = type(delta) is LowRank and all(
            type(p) is LowRank and torch.equal(p.A, delta.A) and p.scale == delta.scale
            for p in parts
        )
        if not alike:
            faults.append(f"{name}   has an A or a scale of its own, or stands alone")
        elif layer not in deltas:
            stacked = {
                f"{layer}.{n}.weight": p.B.detach()
                for n, p in zip(layouts[layer].sizes, parts, strict=True)
                if p
            }
            B = fuse_qkv(stacked, layouts)[f"{layer}.weight"]
            deltas[layer] = _like(delta, delta.A.detach().clone(), B, ())
    if faults:
        raise AdapterMismatch(
            f"{plural(len(faults), 'part')} cannot be fused.", faults, "Nothing was fused."
        )
    return Adapter(
        adapter.spec, deltas, adapter.full_parameters, adapter.provenance, adapter.target_names
    ).copy()


def _like(delta: Any, A: Tensor, B: Tensor, rows: tuple[int, ...]) -> LowRank:
    return LowRank(
        A,
        B,
        alpha=delta.alpha,
        scale_rule=delta.scale_rule,
        dropout=delta.dropout,
        kind=delta.kind,
        output_slice=rows,
    )
