"""Fused layers split into one layer for each part (q, k, v), and fused again, bit for bit.

Both state dicts and adapters are converted. Splitting and fusing are inverses of each other.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta, LowRank
from lorakit.errors import AdapterMismatch
from lorakit.sites.fused_parts import Layout
from lorakit.spec import full_name
from lorakit.text import plural

Layouts = Mapping[str, Layout]  # by the name of the fused layer
KEYS = ("weight", "bias")  # tensors of a layer that have an output axis


def split_qkv(
    state: Mapping[str, Tensor], layouts: Layouts, *, transposed: bool = False
) -> dict[str, Tensor]:
    """Return a state dict with a layer for each part of a fused layer, as `<layer>.q.weight`.

    Args:
        state: weights and biases by name.
        layouts: order of the outputs, by fused layer.
        transposed: True if these layers store their matrices transposed, as GPT-2 does.

    Raises:
        AdapterMismatch: a tensor has another number of outputs than its layout.

    >>> layouts = {"a": Layout({"k": 1, "v": 1}, groups=2)}
    >>> split_qkv({"a.bias": torch.arange(4)}, layouts)["a.v.bias"].tolist()
    [1, 3]
    """
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, _, key = name.rpartition(".")
        if layer not in layouts or key not in KEYS:
            split[name] = tensor
            continue
        is_turned = transposed and tensor.ndim == 2
        parts = _split_outputs(name, tensor.T if is_turned else tensor, layouts[layer])
        for part, outputs in parts.items():
            own = outputs.T if is_turned else outputs
            split[f"{layer}.{part}.{key}"] = own.contiguous()
    return split


def _split_outputs(name: str, tensor: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return the outputs of each part: (part, …) of a tensor (out, …)."""
    if tensor.shape[0] != layout.outputs:
        raise AdapterMismatch(
            f"{name} has {tensor.shape[0]} outputs, its layout {layout.outputs}.",
            advice="Give the layout of this layer. Nothing was split.",
        )
    groups = tensor.unflatten(0, (layout.groups, -1))
    blocks = groups.split(list(layout.sizes.values()), dim=1)
    flat = [block.flatten(0, 1) for block in blocks]
    return dict(zip(layout.sizes, flat, strict=True))


def _fuse_outputs(parts: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return the tensor (out, …) of the outputs of all parts, in the order of the layout."""
    blocks = [part.unflatten(0, (layout.groups, -1)) for part in parts]
    return torch.cat(blocks, dim=1).flatten(0, 1)


def fuse_qkv(
    state: Mapping[str, Tensor], layouts: Layouts, *, transposed: bool = False
) -> dict[str, Tensor]:
    """Return the state dict with fused layers: the inverse of `split_qkv`.

    Args:
        state: weights and biases by name, one of each part.
        layouts: as in `split_qkv`.
        transposed: as in `split_qkv`.

    Raises:
        AdapterMismatch: a part of a layer is missing; all are named.
    """
    fused: dict[str, Tensor] = {}
    missing: dict[str, None] = {}
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        layer = _fused_layer(path, layouts)
        if layer is None or key not in KEYS:
            fused[name] = tensor
            continue
        fused_name = full_name(layer, key)
        if fused_name in fused:
            continue
        layout = layouts[layer]
        names = [f"{layer}.{part}.{key}" for part in layout.sizes]
        absent = [other for other in names if other not in state]
        if absent:
            missing |= dict.fromkeys(absent)
            continue
        is_turned = transposed and tensor.ndim == 2
        parts = [state[other].T if is_turned else state[other] for other in names]
        outputs = _fuse_outputs(parts, layout)
        fused[fused_name] = (outputs.T if is_turned else outputs).contiguous()
    if missing:
        raise AdapterMismatch(
            "Parts of fused layers are missing.",
            [f"{name}   is missing" for name in missing],
            "Nothing was fused.",
        )
    return fused


def _fused_layer(path: str, layouts: Layouts) -> str | None:
    """Return the fused layer that a layer is a part of, or None."""
    layer, _, part = path.rpartition(".")
    if layer in layouts and part in layouts[layer].sizes:
        return layer
    return None


def split_adapter(adapter: Adapter, layouts: Layouts) -> Adapter:
    """Return an adapter with a delta for each part of a fused layer.

    Each part has the A of the fused layer, and its own outputs of B.

    Args:
        adapter: any; its other layers stay the same.
        layouts: as in `split_qkv`.
    """
    deltas: dict[str, Delta] = {}
    for name, delta in adapter.deltas.items():
        if name not in layouts or delta.output_slice or type(delta) is not LowRank:
            deltas[name] = delta
        else:
            deltas |= _split_delta(name, delta, layouts[name])
    return _replace_deltas(adapter, deltas)


def _split_delta(name: str, delta: LowRank, layout: Layout) -> dict[str, Delta]:
    parts: dict[str, Delta] = {}
    for part, B in _split_outputs(f"{name}.B", delta.B.detach(), layout).items():
        size = layout.sizes[part]
        output_slice = (layout.groups, layout.group_size, layout.start(part), size)
        A = delta.A.detach().clone()
        parts[f"{name}.{part}"] = _replace_factors(delta, A, B.clone(), output_slice)
    return parts


def fuse_adapter(adapter: Adapter, layouts: Layouts) -> Adapter:
    """Return the adapter with deltas of fused layers: the inverse of `split_adapter`.

    Args:
        adapter: with all parts of each layer, of the same A and scale.
        layouts: as in `split_qkv`.

    Raises:
        AdapterMismatch: a part is missing, or has another A or scale, so no change of the same rank
            is equal to them; all are named.
    """
    deltas: dict[str, Delta] = {}
    faults: list[str] = []
    for name, delta in adapter.deltas.items():
        layer = _fused_layer(name, layouts)
        if layer is None:
            deltas[name] = delta
            continue
        layout = layouts[layer]
        parts = _matching_parts(adapter, layer, delta, layout)
        if parts is None:
            faults.append(f"{name}   has another A or scale than the other parts, or is alone")
        elif layer not in deltas:
            B = _fuse_outputs([part.B.detach() for part in parts], layout).contiguous()
            # The part that comes first in the adapter gives the settings.
            deltas[layer] = _replace_factors(delta, parts[0].A.detach().clone(), B, ())
    if faults:
        raise AdapterMismatch(
            f"{plural(len(faults), 'part')} cannot be fused.", faults, "Nothing was fused."
        )
    return _replace_deltas(adapter, deltas)


def _matching_parts(
    adapter: Adapter, layer: str, delta: Delta, layout: Layout
) -> list[LowRank] | None:
    """Return the deltas of all parts if they have the A and the scale of this one, else None."""
    if type(delta) is not LowRank:
        return None
    parts: list[LowRank] = []
    for part in layout.sizes:
        other = adapter.deltas.get(f"{layer}.{part}")
        if type(other) is not LowRank:
            return None
        if not torch.equal(other.A, delta.A) or other.scale != delta.scale:
            return None
        parts.append(other)
    return parts


def _replace_deltas(adapter: Adapter, deltas: Mapping[str, Delta]) -> Adapter:
    """Return a copy of an adapter with other deltas."""
    changed = Adapter(
        adapter.spec, deltas, adapter.full_parameters, adapter.provenance, adapter.target_names
    )
    return changed.copy()


def _replace_factors(delta: Delta, A: Tensor, B: Tensor, output_slice: tuple[int, ...]) -> LowRank:
    """Return a low-rank delta of these factors, with the other settings of a delta."""
    options = delta.options()
    options["output_slice"] = output_slice
    return LowRank(A, B, **options)
