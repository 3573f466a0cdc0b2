"""Files of microsoft/LoRA's package: `lora.lora_state_dict(model)`, saved by torch.save.

Keys are `<module>.lora_A` and `<module>.lora_B`; biases or a head may be in the same file. The file
holds neither alpha nor the kinds of layers: the caller gives alpha, and a model gives kinds and
kernels; without a model every layer counts as linear. A MergedLinear has its factors part after
part: A (rank * parts, in), B (outputs of a part * parts, rank). The product B A of a convolution is
viewed as its kernel; as a matrix the kernel has another rank, so it is factored again, exactly, by
a singular value decomposition.

Source: github.com/microsoft/LoRA, loralib 0.1.2, `layers.py` and `utils.py`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import AdapterFileError
from lorakit.files import replace_file
from lorakit.formats.parts import AdapterParts
from lorakit.formats.tensor_files import check_named_tensors, find_value_faults, read_pickle
from lorakit.linalg import split_singular_values
from lorakit.patterns import matches
from lorakit.sites.find import site_of
from lorakit.sites.slot import base_modules
from lorakit.spec import Spec, full_name
from lorakit.text import dtype_name, plural

SUFFIXES = (".pt", ".bin", ".pth")
# The repository's scripts save the tensors under one of these keys.
WRAPPING_KEYS = ("model_state_dict", "state_dict")
FACTORS = ("lora_A", "lora_B")
Factors = dict[str, Tensor]
SMALLEST_SINGULAR_VALUE = 1e-12  # relative to the largest; smaller ones are rounding


@dataclass(frozen=True)
class LayerShape:
    """The layer that a pair of factors belongs to.

    Attributes:
        out: outputs of its matrix.
        inputs: inputs of its matrix.
        kind: the kind of site.
        kernel: axes of a convolution's kernel; empty for other layers.
        is_known: True if a model gave the shape; without one it is that of the factors.
    """

    out: int
    inputs: int
    kind: str = "linear"
    kernel: tuple[int, ...] = ()
    is_known: bool = False


class LayerDeltas(NamedTuple):
    """The deltas of one layer by name, and the outputs of each part of a MergedLinear."""

    deltas: dict[str, LowRank]
    part_sizes: dict[str, int]


def is_loralib_file(path: str | Path) -> bool:
    """Return True for a file with factors in loralib's layout."""
    path = Path(path)
    if not path.is_file() or path.suffix not in SUFFIXES:
        return False
    try:
        tensors = _load(path)
    except AdapterFileError:
        return False
    return any(_split_key(key)[1] == "lora_A" for key in tensors)


def read(
    path: str | Path,
    *,
    alpha: float,
    model: nn.Module | None = None,
    enable_lora: Mapping[str, Sequence[bool]] | None = None,
) -> AdapterParts:
    """Read the factors of a loralib model: `Adapter(*read("lora.pt", alpha=16))`.

    Args:
        path: the file.
        alpha: `lora_alpha` of the layers; the scale is alpha / r, and the file does not hold it.
        model: the base, for the kinds of its layers, kernels, and sizes of fused layers; it is not
            changed.
        enable_lora: name patterns of MergedLinear layers, and the list that each was made with.

    Returns:
        The parts of an adapter. Parts of a MergedLinear are named `<layer>.q` and so on; the
        provenance is empty.

    Raises:
        AdapterFileError: the file cannot be read, a factor is missing or does not fit its layer, it
            is unknown which parts of a MergedLinear are adapted, or an adapted layer's own weight
            is in the file; all faults are named.
    """
    path = Path(path)
    tensors = _load(path)
    factors, rest = _split_tensors(tensors)
    enabled = enable_lora or {}
    faults = list(_find_file_faults(tensors, factors, rest, enabled))
    if faults:
        raise _refusal(path, faults)
    deltas: dict[str, LowRank] = {}
    parts: dict[str, dict[str, int]] = {}
    for name, pair in factors.items():
        try:
            layer = _read_layer(name, pair, alpha, model, _find_enabled(name, enabled))
        except AdapterFileError as error:
            faults += error.faults
            continue
        deltas |= layer.deltas
        if layer.part_sizes:
            parts[name] = layer.part_sizes
    if faults:
        raise _refusal(path, faults)
    return AdapterParts(
        spec=_build_spec(alpha, deltas, parts, rest, factors),
        deltas=deltas,
        full_parameters={key: nn.Parameter(tensor) for key, tensor in rest.items()},
        provenance={},
        target_names=tuple(factors),
    )


def _refusal(path: Path, faults: list[str]) -> AdapterFileError:
    return AdapterFileError(
        f"{path} cannot be read as a file of loralib: {plural(len(faults), 'fault')}.",
        faults,
        "Nothing was loaded.",
    )


def _load(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by key.

    Raises:
        AdapterFileError: the file cannot be read, or does not hold tensors by name.
    """
    content = read_pickle(path)
    if isinstance(content, dict):
        values = cast(dict[str, object], content)
        wrapped = [values[key] for key in WRAPPING_KEYS if isinstance(values.get(key), dict)]
        return check_named_tensors(path, wrapped[0] if wrapped else values)
    return check_named_tensors(path, content)


def _split_key(key: str) -> tuple[str, str]:
    name, _, end = key.rpartition(".")
    return name, end


def _split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Return the factors by module name, and the other tensors by key."""
    factors: dict[str, Factors] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, end = _split_key(key)
        if end in FACTORS:
            factors.setdefault(name, {})[end] = tensor
        else:
            rest[key] = tensor
    return factors, rest


def _find_file_faults(
    tensors: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
    rest: Mapping[str, Tensor],
    enabled: Mapping[str, Sequence[bool]],
) -> Iterator[str]:
    """Yield the faults of the file as a whole."""
    yield from find_value_faults(tensors)
    if not factors:
        yield "no key ends in lora_A"
    for name in factors:
        if _has_weight(name, rest):
            yield (
                f"{name}   has its weight in the file, and in eval mode loralib adds the change to "
                "it: save lora.lora_state_dict(model)"
            )
    for pattern in enabled:
        if not any(matches(pattern, name) for name in factors):
            yield f"enable_lora: {pattern!r} matches none of the factors"


def _has_weight(name: str, rest: Mapping[str, Tensor]) -> bool:
    return full_name(name, "weight") in rest or full_name(name, "conv.weight") in rest


def _find_enabled(name: str, enabled: Mapping[str, Sequence[bool]]) -> list[bool] | None:
    """Return the `enable_lora` of a layer; None if no pattern matches its name."""
    for pattern, parts in enabled.items():
        if matches(pattern, name):
            return list(parts)
    return None


def _read_layer(
    name: str, pair: Factors, alpha: float, model: nn.Module | None, enabled: list[bool] | None
) -> LayerDeltas:
    """Return the deltas of one pair of factors: several for a MergedLinear.

    Raises:
        AdapterFileError: a factor is missing or does not fit the layer.
    """
    for factor in FACTORS:
        if factor not in pair:
            raise _misfit(f"{name}   {factor} is missing")
    A, B = pair["lora_A"], pair["lora_B"]
    if not _share_rank(A, B):
        shapes = _format_shapes(name, A, B)
        raise _misfit(f"{shapes}: matrices with one rank are needed")
    layer = LayerShape(B.shape[0], A.shape[1])
    if model is not None:
        layer = _find_layer(name, model)
    if layer.kernel:
        return LayerDeltas({name: _factor_kernel(name, A, B, alpha, layer)}, {})
    return _read_linear(name, A, B, alpha, layer, enabled)


def _find_layer(name: str, model: nn.Module) -> LayerShape:
    """Return the shape of a layer of the model.

    Raises:
        AdapterFileError: there is no such layer, or it cannot be adapted.
    """
    layer = dict(base_modules(model)).get(name)
    if layer is None:
        raise _misfit(f"{name}   is not in {type(model).__name__}")
    site = site_of(layer)
    if site is None:
        raise _misfit(f"{name}   is a {type(layer).__name__}, which cannot be adapted")
    out, inputs = site.read(layer).shape
    return LayerShape(out, inputs, site.kind, site.kernel(layer), is_known=True)


def _share_rank(A: Tensor, B: Tensor) -> bool:
    """Return True for matrices of which A has the rank of B, or a multiple of it."""
    if A.ndim != 2 or B.ndim != 2:
        return False
    height, rank = A.shape[0], B.shape[1]
    return height > 0 and rank > 0 and height % rank == 0


def _format_shapes(name: str, A: Tensor, B: Tensor) -> str:
    return f"{name}   lora_A is {tuple(A.shape)}, lora_B is {tuple(B.shape)}"


def _read_linear(
    name: str,
    A: Tensor,
    B: Tensor,
    alpha: float,
    layer: LayerShape,
    enabled: list[bool] | None,
) -> LayerDeltas:
    """Return the delta of a linear layer or an embedding, or the deltas of a MergedLinear."""
    shapes = _format_shapes(name, A, B)
    count = A.shape[0] // B.shape[1]
    size = B.shape[0] // count
    if enabled is None and count == 1 and size == layer.out:
        if A.shape[1] != layer.inputs:
            raise _misfit(f"{shapes}; the layer is {layer.inputs} -> {layer.out}")
        return LayerDeltas({name: LowRank(A, B, alpha=alpha, kind=layer.kind)}, {})
    if enabled is None and layer.is_known and layer.out == size * count:
        enabled = [True] * count
    if enabled is None:
        parts = plural(count, "part")
        raise _misfit(
            f"{shapes}: {parts} of a MergedLinear; enable_lora={{{name!r}: [True, False, True]}} "
            "or the like says which"
        )
    fits = sum(enabled) == count and B.shape[0] % count == 0 and A.shape[1] == layer.inputs
    if layer.is_known and layer.out != size * len(enabled):
        fits = False
    if not fits:
        known = f" the layer, {layer.inputs} -> {layer.out}" if layer.is_known else ""
        raise _misfit(f"{shapes}; enable_lora={enabled} does not fit{known}")
    return _split_parts(name, A, B, alpha, layer.kind, enabled)


def _split_parts(
    name: str, A: Tensor, B: Tensor, alpha: float, kind: str, enabled: list[bool]
) -> LayerDeltas:
    """Return one delta for each enabled part of a MergedLinear."""
    part_names = ["q", "k", "v"]
    if len(enabled) != 3:
        part_names = [f"part{position}" for position in range(len(enabled))]
    count = sum(enabled)
    size = B.shape[0] // count
    positions = [position for position, is_enabled in enumerate(enabled) if is_enabled]
    deltas: dict[str, LowRank] = {}
    for position, A_part, B_part in zip(positions, A.chunk(count), B.chunk(count), strict=True):
        deltas[f"{name}.{part_names[position]}"] = LowRank(
            A_part.clone(),
            B_part.clone(),
            alpha=alpha,
            kind=kind,
            output_slice=(1, size * len(enabled), position * size, size),
        )
    return LayerDeltas(deltas, dict.fromkeys(part_names, size))


def _factor_kernel(name: str, A: Tensor, B: Tensor, alpha: float, layer: LayerShape) -> LowRank:
    """Return the delta of a convolution: scale * B A viewed as its kernel, factored again.

    The matrix of the kernel is (out, in / groups * kernel).
    """
    side = layer.kernel[0]
    if A.shape[0] % side or B.shape[0] * A.shape[1] != layer.out * layer.inputs:
        raise _misfit(
            f"{_format_shapes(name, A, B)}; the layer's matrix is {layer.out} x {layer.inputs} "
            f"with a kernel of {layer.kernel}"
        )
    scale = alpha * side / A.shape[0]
    change = (B.double() @ A.double()).view(layer.out, layer.inputs)
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    rank = max(1, int((SMALLEST_SINGULAR_VALUE * values[0] < values).sum()))
    new_A, new_B = split_singular_values(left, values, right, rank)
    return LowRank(
        new_A.to(A.dtype),
        new_B.to(B.dtype),
        alpha=scale * rank,
        kind=layer.kind,
        kernel=layer.kernel,
    )


def _misfit(fault: str) -> AdapterFileError:
    return AdapterFileError("These factors do not fit.", [fault])


def _build_spec(
    alpha: float,
    deltas: Mapping[str, LowRank],
    parts: Mapping[str, Mapping[str, int]],
    rest: Mapping[str, Tensor],
    factors: Mapping[str, Factors],
) -> Spec:
    """Return the spec of a file: the most common rank, and overrides for the others."""
    ranks = Counter(delta.rank for delta in deltas.values())
    bias_keys = _find_bias_keys(rest)
    if not bias_keys:
        bias = "none"
    elif all(_split_key(key)[0] in factors for key in bias_keys):
        bias = "adapted"
    else:
        bias = "all"
    full_modules = dict.fromkeys(_split_key(key)[0] for key in rest if key not in bias_keys)
    first = next(iter(deltas.values()))
    spec = Spec(
        rank=ranks.most_common(1)[0][0],
        alpha=alpha,
        targets=tuple(deltas),
        parts=parts,
        bias=bias,
        full_modules=tuple(full_modules),
        dtype=dtype_name(first.A.dtype),
    )
    wanted = {name: requested_settings(delta) for name, delta in deltas.items()}
    return write_overrides(spec, wanted)


def _find_bias_keys(rest: Mapping[str, Tensor]) -> set[str]:
    """Return the keys of biases whose module has no weight in the file."""
    keys: set[str] = set()
    for key in rest:
        name, end = _split_key(key)
        if "bias" in end and full_name(name, "weight") not in rest:
            keys.add(key)
    return keys


def write(
    path: str | Path,
    spec: Spec,
    deltas: Mapping[str, Delta],
    full_parameters: Mapping[str, Tensor],
) -> Path:
    """Write the tensors of `lora.lora_state_dict`, for layers with lora_alpha = `spec.alpha`.

    The scale of a layer with another alpha is multiplied into its B.

    Args:
        path: the file; `.pt` by convention.
        spec: its alpha is that of the file.
        deltas: by name.
        full_parameters: fully trained parameters by name.

    Returns:
        The path.

    Raises:
        AdapterFileError: a delta is not plain LoRA, or of a convolution, or parts are not equal
            blocks of outputs of one rank; all are named and nothing is written.
    """
    path = Path(path)
    layers, faults = _group_by_layer(deltas)
    for name, parts in layers.items():
        if not _are_equal_blocks(parts):
            faults.append(
                f"{name}   its parts are not equal blocks of outputs of one rank, as those of a "
                "MergedLinear are"
            )
    if faults:
        raise AdapterFileError(
            f"{plural(len(faults), 'layer')} cannot be written for loralib.",
            faults,
            "Nothing was written.",
        )
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in full_parameters.items()}
    for name, parts in layers.items():
        scaled = [part.B.detach().cpu() * (part.scale * part.rank / spec.alpha) for part in parts]
        tensors[full_name(name, "lora_A")] = torch.cat([part.A.detach().cpu() for part in parts])
        tensors[full_name(name, "lora_B")] = torch.cat(scaled)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as place:
        torch.save(tensors, place)
    return path


def _group_by_layer(deltas: Mapping[str, Delta]) -> tuple[dict[str, list[LowRank]], list[str]]:
    """Return the deltas of each layer in the order of its outputs, and the faults of other deltas.

    Plain LoRA has a layout in loralib, except in convolutions.
    """
    layers: dict[str, list[LowRank]] = {}
    faults: list[str] = []
    for name, delta in deltas.items():
        if isinstance(delta, TiedLowRank):
            delta = delta.to_low_rank()
        if type(delta) is not LowRank or delta.kernel or delta.A.ndim != 2:
            what = f"{delta.name} of a {delta.kind} layer"
            faults.append(f"{name}   is {what}, which loralib's layout cannot hold")
        layer = name.rpartition(".")[0] if delta.output_slice else name
        layers.setdefault(layer, []).append(cast(LowRank, delta))
    for parts in layers.values():
        parts.sort(key=_first_output)
    return layers, faults


def _first_output(delta: LowRank) -> int:
    return delta.output_slice[2] if delta.output_slice else 0


def _are_equal_blocks(parts: Iterable[LowRank]) -> bool:
    """Return True if the parts are blocks of one size and rank, like those of a MergedLinear."""
    if len({(part.rank, part.shape[0]) for part in parts}) > 1:
        return False
    slices = [part.output_slice for part in parts if part.output_slice]
    return all(
        groups == 1 and first % size == 0 and total % size == 0
        for groups, total, first, size in slices
    )
