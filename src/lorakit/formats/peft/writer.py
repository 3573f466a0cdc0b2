"""Writing of an adapter in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

Source: huggingface/peft 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lorakit.deltas.base import Delta
from lorakit.deltas.dora import DoRA
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import AdapterFileError
from lorakit.files import replace_files
from lorakit.formats.parts import AdapterParts
from lorakit.formats.peft.config import CONFIG, config_of
from lorakit.formats.peft.expert_stacks import flat, keys_of
from lorakit.formats.peft.methods import METHODS, PREFIX, tensors_of
from lorakit.formats.peft.packed import BEHIND, pack
from lorakit.formats.peft.spec_header import spec_to_header
from lorakit.formats.peft.token_rows import noted, rows_of, written
from lorakit.formats.values import value_fault
from lorakit.spec import Spec, full_name
from lorakit.text import plural

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Layout:
    """The tensors of a file, and what its header and its config say about them.

    Attributes:
        tensors: by key.
        deltas: by the names that the file gives them: parts of a fused layer joined, token rows
            left out.
        header_spec: the spec that the header holds.
        config_spec: the spec that the config is written from.
        packed: the header's note on joined parts, by the name of the joined delta.
    """

    tensors: dict[str, Tensor]
    deltas: dict[str, Any]
    header_spec: Spec
    config_spec: Spec
    packed: dict[str, Any]


def write(folder: str | Path, parts: AdapterParts) -> Path:
    """Write an adapter; both files are complete before either takes its place.

    Returns:
        The folder.

    Raises:
        AdapterFileError: a tensor is not finite or has no values, or the folder is a file; all
            faults are named and nothing is written.
    """
    folder = Path(folder)
    layout = layout_tensors(parts.spec, parts.deltas, parts.full_parameters)
    faults = list(_find_faults(parts, layout))
    if faults:
        raise AdapterFileError(
            f"{plural(len(faults), 'tensor')} cannot be saved.",
            faults,
            f"Nothing was written to {folder}.",
        )
    if folder.exists() and not folder.is_dir():
        raise AdapterFileError(
            f"{folder} is a file; an adapter is a folder.", advice="Nothing was written."
        )
    metadata = {"format": "pt", "lorakit": json.dumps(_build_header(parts, layout))}
    config = _format_config(parts, layout)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in layout.tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with replace_files(folder, [CONFIG, WEIGHTS]) as places:
        places[CONFIG].write_text(config, encoding="utf-8")
        _save_tensors(tensors, places[WEIGHTS], metadata)
    return folder


def _find_faults(parts: AdapterParts, layout: Layout) -> Iterator[str]:
    if parts.spec.tie and not any(
        isinstance(delta, TiedLowRank) for delta in parts.deltas.values()
    ):
        yield "spec   says tie, but no delta has the factors of an embedding"
    for key, tensor in layout.tensors.items():
        fault = value_fault(tensor)
        if fault:
            yield f"{key}   {fault}"


def _build_header(parts: AdapterParts, layout: Layout) -> dict[str, Any]:
    """Return the `lorakit` entry of the safetensors header."""
    deltas = layout.deltas
    header: dict[str, Any] = {
        "spec": spec_to_header(layout.header_spec),
        "modules": {name: delta.kind for name, delta in deltas.items()},
        "provenance": dict(parts.provenance),
    }
    if layout.packed:
        header["packed"] = layout.packed
    _, token_rows = noted(rows_of(parts.deltas))
    if token_rows:
        header["token_rows"] = token_rows
    if METHODS[layout.header_spec.delta].ends:
        # The tensors of these methods do not give the whole shape of the matrix they change.
        header["told"] = {
            name: {"kernel": delta.kernel, "inputs": delta.shape[1]}
            for name, delta in deltas.items()
            if delta.kind
        }
    return header


def _format_config(parts: AdapterParts, layout: Layout) -> str:
    indices, _ = noted(rows_of(parts.deltas))
    config = config_of(
        layout.config_spec,
        layout.deltas,
        parts.full_parameters,
        parts.provenance,
        parts.target_names,
        indices,
    )
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        # A full disk is the usual cause; callers expect the class that other writers raise for it.
        raise OSError(f"{path.parent} cannot be written: {error}") from error


def layout_tensors(spec: Spec, deltas: Mapping[str, Delta], whole: Mapping[str, Tensor]) -> Layout:
    """Return the contents of a file of this adapter.

    Args:
        spec: of the adapter.
        deltas: by module name; they may be on the meta device.
        whole: parameters by name.
    """
    rows = rows_of(deltas)
    tensors: dict[str, Tensor] = written(rows)
    deltas = {
        n: d.to_low_rank() if isinstance(d, TiedLowRank) else d
        for n, d in deltas.items()
        if n not in rows
    }
    spec = write_overrides(
        spec, {name: requested_settings(delta) for name, delta in deltas.items()}
    )
    plain, deltas, packed = pack(spec, deltas)
    stacks = keys_of(n for n, delta in deltas.items() if delta.kind == "experts")
    for name, delta in deltas.items():
        if METHODS[delta.name].ends:
            tensors |= tensors_of(name, delta)
            continue
        ends = (
            ("lora_embedding_A", "lora_embedding_B")
            if delta.kind == "embedding"
            else ("lora_A.weight", "lora_B.weight")
        )
        ones = [1] * len(delta.kernel)
        factors = (
            (delta.A.view(delta.rank, -1, *delta.kernel), delta.B.view(*delta.B.shape, *ones))
            if ones
            else (delta.A, delta.B)
        )
        if name in stacks:
            factors = flat(delta)
        if isinstance(delta, DoRA):
            ends = (*ends, "lora_magnitude_vector")
            factors = (*factors, delta.magnitude.view(1, -1, *ones) if ones else delta.magnitude)
        for end, factor in zip(ends, factors, strict=True):
            tensors[PREFIX + full_name(stacks.get(name, name), end)] = factor
    for path, tensor in whole.items():
        layer, _, key = path.rpartition(".")
        layer = next(
            (n for n, parts in packed.items() if layer in parts and n.endswith(BEHIND)), layer
        )
        tensors[PREFIX + (full_name(layer, f"base_layer.{key}") if layer in deltas else path)] = (
            tensor
        )
    return Layout(tensors, deltas, spec, plain, packed)
