"""Writing of an adapter in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

Source: huggingface/peft 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import AdapterFileError
from lorakit.files import replace_files
from lorakit.formats.parts import AdapterParts
from lorakit.formats.peft.config import CONFIG
from lorakit.formats.peft.config_writer import build_config
from lorakit.formats.peft.header import FORMAT, Header, MatrixShape
from lorakit.formats.peft.lora_tensors import layout_lora_tensors
from lorakit.formats.peft.methods import METHODS_BY_DELTA, PREFIX
from lorakit.formats.peft.packed import OUT_PROJ_PATH, Notes, Packed, pack
from lorakit.formats.peft.parameter_tensors import layout_parameters
from lorakit.formats.peft.spec_header import spec_to_header
from lorakit.formats.peft.target_parameters import find_stack_paths
from lorakit.formats.peft.token_rows import (
    FROZEN_WEIGHT,
    describe_token_layers,
    layout_token_rows,
    select_token_rows,
)
from lorakit.formats.peft.weights import WEIGHTS, save_weights
from lorakit.formats.tensor_files import find_value_faults
from lorakit.spec import Spec, full_name
from lorakit.text import plural


@dataclass(frozen=True)
class Layout:
    """The contents of a file.

    Attributes:
        tensors: by key.
        deltas: by the names that the file gives them; packed, and without token rows.
        header_spec: the spec that the header holds.
        config_spec: the spec that the config is written from.
        notes: the parts of packed deltas, by the name in the file.
    """

    tensors: dict[str, Tensor]
    deltas: dict[str, Delta]
    header_spec: Spec
    config_spec: Spec
    notes: Notes


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
    config = build_config(layout.config_spec, layout.deltas, parts)
    header = _build_header(parts, layout, config)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with replace_files(folder, [CONFIG, WEIGHTS]) as places:
        places[CONFIG].write_text(text, encoding="utf-8")
        save_weights(places[WEIGHTS], layout.tensors, header)
    return folder


def _find_faults(parts: AdapterParts, layout: Layout) -> Iterator[str]:
    is_tied = any(isinstance(delta, TiedLowRank) for delta in parts.deltas.values())
    if parts.spec.tie and not is_tied:
        yield "spec   tie is on, but no delta has the factors of an embedding"
    yield from find_value_faults(layout.tensors)


def _build_header(parts: AdapterParts, layout: Layout, config: Mapping[str, object]) -> Header:
    method = METHODS_BY_DELTA[layout.header_spec.delta]
    shapes = None if method.is_lora else _list_shapes(layout.deltas)
    return Header(
        version=FORMAT,
        config=config,
        spec=spec_to_header(layout.header_spec),
        kinds={name: delta.kind for name, delta in layout.deltas.items()},
        provenance=parts.provenance,
        packed=layout.notes,
        token_layers=describe_token_layers(parts.deltas),
        shapes=shapes,
    )


def _list_shapes(deltas: Mapping[str, Delta]) -> dict[str, MatrixShape]:
    """Return the shapes of the layers whose kind is known."""
    return {
        name: MatrixShape(delta.kernel, delta.shape[1])
        for name, delta in deltas.items()
        if delta.kind
    }


def layout_tensors(
    spec: Spec, deltas: Mapping[str, Delta], full_parameters: Mapping[str, Tensor]
) -> Layout:
    """Return the contents of a file of this adapter.

    Args:
        spec: of the adapter.
        deltas: by module name; they may be on the meta device.
        full_parameters: fully trained parameters by name.

    Raises:
        AdapterFileError: a part of a fused layer is not plain LoRA.
    """
    token_rows = select_token_rows(deltas)
    own_deltas: dict[str, Delta] = {}
    for name, delta in deltas.items():
        if name not in token_rows:
            is_tied = isinstance(delta, TiedLowRank)
            own_deltas[name] = delta.to_low_rank() if is_tied else delta
    requested = {name: requested_settings(delta) for name, delta in own_deltas.items()}
    header_spec = write_overrides(spec, requested)
    packed = pack(header_spec, own_deltas)
    tensors = layout_token_rows(token_rows) | _layout_deltas(packed.deltas)
    for path, tensor in full_parameters.items():
        tensors[_find_parameter_key(path, packed, token_rows)] = tensor
    return Layout(tensors, packed.deltas, header_spec, packed.config_spec, packed.notes)


def _layout_deltas(deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    stacks = find_stack_paths(name for name, delta in deltas.items() if delta.kind == "experts")
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        if METHODS_BY_DELTA[delta.name].is_lora:
            path = stacks.get(name, name)
            tensors |= layout_lora_tensors(path, cast(LowRank, delta))
        else:
            tensors |= layout_parameters(name, delta)
    return tensors


def _find_parameter_key(path: str, packed: Packed, token_rows: Collection[str]) -> str:
    """Return the key of a fully trained parameter: PEFT moves those of adapted layers."""
    layer, _, parameter = path.rpartition(".")
    for packed_name, parts in packed.notes.items():
        if layer in parts and packed_name.endswith(OUT_PROJ_PATH):
            layer = packed_name
            break
    if layer in token_rows:
        return PREFIX + full_name(layer, FROZEN_WEIGHT)
    if layer in packed.deltas:
        return PREFIX + full_name(layer, f"base_layer.{parameter}")
    return PREFIX + path
