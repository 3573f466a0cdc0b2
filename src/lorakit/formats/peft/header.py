"""The `lorakit` entry in the safetensors header: everything PEFT's config has no key for.

It also holds a copy of the config, so that a config that was edited, or that belongs to other
weights, is seen. The hash beside the entry (`weights.sign`) is over the entry and the tensors.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from lorakit.formats.checked_json import (
    Check,
    format_value,
    has_fields,
    is_list_of,
    is_object_of,
    is_rank,
    is_size,
    is_text,
    is_truth_value,
)
from lorakit.spec import is_number, is_whole

ENTRY = "lorakit"
FORMAT = 2
# The layout of models that a conversion will need: names of modules, counts of heads. No reader
# of this version uses it.
RESERVED = "model"
OBJECTS = ("config", "spec", "modules", "packed", "told", "token_rows", "provenance", RESERVED)
Value = TypeVar("Value")


def _is_output_slice(value: object) -> bool:
    return is_list_of(is_size)(value) and len(cast(list[int], value)) in (0, 4)


def _is_ratio(value: object) -> bool:
    return is_number(value) and value != 0


_is_part = has_fields(
    {"rank": is_rank, "rows": _is_output_slice, "ratio": _is_ratio}, {"moved": is_truth_value}
)
CHECKS: Mapping[str, Check] = {  # of the values in the objects
    "modules": is_text,
    "packed": is_object_of(_is_part),
    "token_rows": has_fields({}, {"kind": is_text, "size": is_size}),
    "told": has_fields({}, {"kernel": is_list_of(is_size), "inputs": is_size}),
}


@dataclass(frozen=True)
class PackedPart:
    """One of the deltas that share a pair of factors in the file.

    Attributes:
        rank: columns of B, and rows of A, that are the part's.
        output_slice: outputs of a fused layer, as in `Delta`; empty for all.
        ratio: scale of the part divided by the scale of the pair.
        has_offset: True for a delta with a start of its own (`OffsetLowRank`).
    """

    rank: int
    output_slice: tuple[int, ...]
    ratio: float
    has_offset: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the part as the header holds it."""
        values: dict[str, object] = {
            "rank": self.rank,
            "rows": list(self.output_slice),
            "ratio": self.ratio,
        }
        if self.has_offset:
            values["moved"] = True
        return values


Parts = Mapping[str, PackedPart]


@dataclass(frozen=True)
class MatrixShape:
    """The facts about a matrix that the tensors of VeRA, LoHa, LoKr and AdaLoRA leave open.

    Attributes:
        kernel: axes of a convolution's kernel; None if the header does not name them.
        inputs: inputs of the matrix; 0 if the header does not name them.
    """

    kernel: tuple[int, ...] | None = None
    inputs: int = 0

    def to_json(self) -> dict[str, object]:
        """Return the shape as the header holds it."""
        return {"kernel": self.kernel, "inputs": self.inputs}


@dataclass(frozen=True)
class TokenLayer:
    """The layer that trained token rows belong to.

    Attributes:
        kind: the kind of site; empty if not known.
        size: rows of its weight; 0 if not known.
    """

    kind: str = ""
    size: int = 0

    def to_json(self) -> dict[str, object]:
        """Return the layer as the header holds it."""
        return {"kind": self.kind, "size": self.size}


@dataclass(frozen=True)
class Header:
    """The content of the entry; a file that lorakit did not write has none of it.

    Attributes:
        version: of the format; 0 if the file has no entry, 1 for files of lorakit 0.1.0.
        config: the content of adapter_config.json.
        spec: fields of the spec under the names of the file; None if the entry has none.
        kinds: kind of site by module name; None if the entry lists no modules.
        provenance: JSON-like facts about the training.
        packed: the parts of joined deltas, by the name of the joined delta.
        token_layers: layers with trained token rows, by name.
        shapes: shapes by module name; None for LoRA, whose tensors show them.
    """

    version: int = 0
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    spec: Mapping[str, object] | None = None
    kinds: Mapping[str, str] | None = None
    provenance: Mapping[str, object] = field(default_factory=dict[str, object])
    packed: Mapping[str, Parts] = field(default_factory=dict[str, Parts])
    token_layers: Mapping[str, TokenLayer] = field(default_factory=dict[str, TokenLayer])
    shapes: Mapping[str, MatrixShape] | None = None

    def to_json(self) -> str:
        """Return the entry as JSON text."""
        values: dict[str, object] = {
            "format": self.version,
            "config": dict(self.config),
            "spec": self.spec,
            "modules": self.kinds,
            "provenance": dict(self.provenance),
        }
        if self.packed:
            values["packed"] = {
                name: {part: note.to_json() for part, note in parts.items()}
                for name, parts in self.packed.items()
            }
        if self.token_layers:
            values["token_rows"] = {
                name: layer.to_json() for name, layer in self.token_layers.items()
            }
        if self.shapes is not None:
            values["told"] = {name: shape.to_json() for name, shape in self.shapes.items()}
        return json.dumps(values)


def parse_header(entry: object) -> tuple[Header, list[str]]:
    """Return the header of a parsed entry, and its faults.

    Args:
        entry: the value of the entry's JSON; None if the file has no entry.
    """
    if entry is None:
        return Header(), []
    if not isinstance(entry, dict):
        return Header(), [f"header: an object is needed, got {format_value(entry)}"]
    values = cast(dict[str, object], entry)
    faults = _find_faults(values)
    if faults:
        return Header(), faults
    objects = {key: cast(dict[str, Any], values[key]) for key in OBJECTS if key in values}
    header = Header(
        version=cast(int, values.get("format", 1)),
        config=objects.get("config", {}),
        spec=objects.get("spec"),
        kinds=objects.get("modules"),
        provenance=objects.get("provenance", {}),
        packed=_build_all(_build_parts, objects.get("packed", {})),
        token_layers=_build_all(lambda layer: TokenLayer(**layer), objects.get("token_rows", {})),
        shapes=_build_all(_build_shape, objects.get("told", {})),
    )
    return header, []


def _find_faults(values: Mapping[str, object]) -> list[str]:
    version = values.get("format", 1)
    if not is_whole(version, least=1):
        return [f"header: format = {format_value(version)} is not a version"]
    if version > FORMAT:
        return [f"header: format {version} is newer than {FORMAT}; a newer lorakit reads it"]
    faults: list[str] = []
    for key, value in values.items():
        if key == "format":
            continue
        if key not in OBJECTS:
            faults.append(f"header: unknown key {key!r}")
        elif not isinstance(value, dict):
            faults.append(f"header: {key} = {format_value(value)} is not an object")
        elif key in CHECKS:
            for name, item in cast(dict[str, object], value).items():
                if not CHECKS[key](item):
                    faults.append(f"header: {key}[{name!r}] = {format_value(item)} is malformed")
    return faults


def _build_all(build: Callable[[Any], Value], items: Mapping[str, object]) -> dict[str, Value]:
    return {name: build(item) for name, item in items.items()}


def _build_parts(parts: Mapping[str, Mapping[str, Any]]) -> Parts:
    return {
        name: PackedPart(note["rank"], tuple(note["rows"]), note["ratio"], note.get("moved", False))
        for name, note in parts.items()
    }


def _build_shape(shape: Mapping[str, Any]) -> MatrixShape:
    kernel = tuple(shape["kernel"]) if "kernel" in shape else None
    return MatrixShape(kernel, shape.get("inputs", 0))
