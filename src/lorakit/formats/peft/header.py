"""The `lorakit` entry in the safetensors header: everything PEFT's config has no key for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from lorakit.spec import is_number, is_whole

ENTRY = "lorakit"
OBJECTS = ("spec", "modules", "packed", "told", "token_rows", "provenance")
Value = TypeVar("Value")


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
        spec: fields of the spec under the names of the file; None if the entry has none.
        kinds: kind of site by module name; None if the entry lists no modules.
        provenance: JSON-like facts about the training.
        packed: the parts of joined deltas, by the name of the joined delta.
        token_layers: layers with trained token rows, by name.
        shapes: shapes by module name; None for LoRA, whose tensors show them.
    """

    spec: Mapping[str, object] | None = None
    kinds: Mapping[str, str] | None = None
    provenance: Mapping[str, object] = field(default_factory=dict[str, object])
    packed: Mapping[str, Parts] = field(default_factory=dict[str, Parts])
    token_layers: Mapping[str, TokenLayer] = field(default_factory=dict[str, TokenLayer])
    shapes: Mapping[str, MatrixShape] | None = None

    def to_json(self) -> str:
        """Return the entry as JSON text."""
        values: dict[str, object] = {
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
        entry: the value of the entry's JSON; an empty object if the file has no entry.
    """
    if not isinstance(entry, dict):
        return Header(), [f"header: an object is needed, got {entry!r}"]
    values = cast(dict[str, object], entry)
    faults: list[str] = []
    objects: dict[str, dict[str, object]] = {}
    for key in OBJECTS:
        value = values.get(key)
        if isinstance(value, dict):
            objects[key] = cast(dict[str, object], value)
        elif key in values:
            faults.append(f"header: {key} = {value!r} is not an object")
    kinds = _parse_entries("modules", objects, _parse_kind, faults)
    header = Header(
        spec=objects.get("spec"),
        kinds=kinds if "modules" in objects else None,
        provenance=objects.get("provenance", {}),
        packed=_parse_entries("packed", objects, _parse_parts, faults),
        token_layers=_parse_entries("token_rows", objects, _parse_token_layer, faults),
        shapes=_parse_entries("told", objects, _parse_shape, faults),
    )
    return header, faults


def _parse_entries(
    key: str,
    objects: Mapping[str, Mapping[str, object]],
    parse: Callable[[Any], Value | None],
    faults: list[str],
) -> dict[str, Value]:
    """Return the parsed entries of one object; add a fault for each that cannot be parsed."""
    parsed: dict[str, Value] = {}
    for name, value in objects.get(key, {}).items():
        result = parse(value)
        if result is None:
            faults.append(f"header: {key}[{name!r}] = {value!r} is malformed")
        else:
            parsed[name] = result
    return parsed


def _parse_kind(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _parse_parts(value: object) -> dict[str, PackedPart] | None:
    if not isinstance(value, dict):
        return None
    parts: dict[str, PackedPart] = {}
    for name, note in cast(dict[str, object], value).items():
        part = _parse_part(note)
        if part is None:
            return None
        parts[name] = part
    return parts


def _parse_part(value: object) -> PackedPart | None:
    if not isinstance(value, dict):
        return None
    note = cast(dict[str, Any], value)
    output_slice = _parse_sizes(note.get("rows"))
    if output_slice is None or len(output_slice) not in (0, 4):
        return None
    if not is_whole(note.get("rank"), least=1) or not is_number(note.get("ratio")):
        return None
    return PackedPart(note["rank"], output_slice, note["ratio"], bool(note.get("moved")))


def _parse_token_layer(value: object) -> TokenLayer | None:
    if not isinstance(value, dict):
        return None
    layer = cast(dict[str, object], value)
    kind, size = layer.get("kind", ""), layer.get("size", 0)
    if not isinstance(kind, str) or not is_whole(size, least=0):
        return None
    return TokenLayer(kind, size)


def _parse_shape(value: object) -> MatrixShape | None:
    if not isinstance(value, dict):
        return None
    shape = cast(dict[str, object], value)
    inputs = shape.get("inputs", 0)
    if not is_whole(inputs, least=0):
        return None
    if "kernel" not in shape:
        return MatrixShape(None, inputs)
    kernel = _parse_sizes(shape["kernel"])
    return None if kernel is None else MatrixShape(kernel, inputs)


def _parse_sizes(value: object) -> tuple[int, ...] | None:
    """Return a list of whole numbers as a tuple; None for any other value."""
    if not isinstance(value, list):
        return None
    sizes = cast(list[object], value)
    if not all(is_whole(size, least=0) for size in sizes):
        return None
    return tuple(cast(list[int], sizes))
