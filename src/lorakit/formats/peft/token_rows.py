"""Trained rows of single tokens in PEFT's layout: rows in the weights, token ids in the config.

Source: huggingface/peft 0.21, `TrainableTokensWrapper` in `utils/other.py` and
    `tuners/trainable_tokens`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lorakit.deltas.base import Delta
from lorakit.deltas.token_rows import TokenRows
from lorakit.formats.checked_json import format_value
from lorakit.formats.peft.header import TokenLayer
from lorakit.formats.peft.methods import PREFIX
from lorakit.formats.peft.patterns import list_last_parts
from lorakit.spec import full_name, is_whole

IDS_KEY, ROWS_ENDING = "trainable_token_indices", "token_adapter.trainable_tokens_delta"
NO_TARGETS = "dummy-target-modules"  # PEFT's target_modules where no layer is adapted
# PEFT also writes the frozen weight of the layer, under one of these names.
FROZEN_WEIGHT = "token_adapter.base_layer.weight"
FROZEN_WEIGHTS = ("weight", "base_layer.weight", FROZEN_WEIGHT)
LARGEST_ID = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class SplitTensors:
    """The tensors of a file without those of token rows.

    Attributes:
        deltas: the token rows, by layer name.
        rest: the other tensors, by key.
        faults: disagreements between the tensors and the config.
    """

    deltas: Mapping[str, TokenRows]
    rest: Mapping[str, Tensor]
    faults: tuple[str, ...]


def select_token_rows(deltas: Mapping[str, Delta]) -> dict[str, TokenRows]:
    """Return the deltas that are trained token rows."""
    return {name: delta for name, delta in deltas.items() if isinstance(delta, TokenRows)}


def layout_token_rows(rows: Mapping[str, TokenRows]) -> dict[str, Tensor]:
    """Return the tensors of token rows by key."""
    return {PREFIX + full_name(name, ROWS_ENDING): delta.new for name, delta in rows.items()}


def list_token_ids(deltas: Mapping[str, Delta]) -> dict[str, list[int]]:
    """Return the ids of trained tokens by layer name, as the config holds them."""
    return {name: delta.tokens.tolist() for name, delta in select_token_rows(deltas).items()}


def describe_token_layers(deltas: Mapping[str, Delta]) -> dict[str, TokenLayer]:
    """Return the layers of trained token rows by name, as the header holds them."""
    rows = select_token_rows(deltas)
    return {name: TokenLayer(delta.kind, delta.size) for name, delta in rows.items()}


def split_token_rows(
    tensors: Mapping[str, Tensor], ids: object, layers: Mapping[str, TokenLayer]
) -> SplitTensors:
    """Split the tensors of a file into token rows and others.

    Args:
        tensors: by key.
        ids: the config's token ids: one list for all layers, or lists by layer name.
        layers: the header's entries; empty in files of PEFT.
    """
    rest = dict(tensors)
    rows: dict[str, Tensor] = {}
    for key in tensors:
        if key.endswith(ROWS_ENDING):
            name = key.removeprefix(PREFIX)[: -len(ROWS_ENDING)].rstrip(".")
            rows[name] = rest.pop(key)
    deltas: dict[str, TokenRows] = {}
    faults: list[str] = []
    for name, new in rows.items():
        for weight in FROZEN_WEIGHTS:
            frozen = rest.pop(PREFIX + full_name(name, weight), None)
            if frozen is not None:
                rest[PREFIX + full_name(name, "weight")] = frozen
        own_ids = _find_ids(ids, name)
        fault = _find_row_fault(new, own_ids)
        if fault:
            faults.append(f"{PREFIX}{name}   {fault}")
            continue
        if not new.is_floating_point():
            continue  # `find_value_faults` names it
        layer = layers.get(name, TokenLayer())
        tokens = torch.tensor(own_ids)
        deltas[name] = TokenRows(new, tokens, layer.size, layer.kind)
    faults += _find_missing_rows(ids, rows)
    return SplitTensors(deltas, rest, tuple(faults))


def _find_ids(ids: object, name: str) -> object:
    """Return the ids of one layer; None if the config has none."""
    if not isinstance(ids, dict):
        return ids or None
    ids_by_pattern = cast(dict[str, object], ids)
    pattern = _find_pattern(ids_by_pattern, name)
    return None if pattern is None else ids_by_pattern[pattern]


def _find_pattern(patterns: Mapping[str, object], name: str) -> str | None:
    """Return the longest of the patterns that is the name of a layer, or its last parts."""
    return next((part for part in list_last_parts(name) if part in patterns), None)


def _find_row_fault(new: Tensor, ids: object) -> str:
    """Return why these rows cannot be those of these ids, or an empty string."""
    tokens = cast(list[int], ids) if isinstance(ids, list) else None
    if tokens is None or not all(map(_is_id, tokens)):
        return (
            f"has token rows, but {IDS_KEY} is {format_value(ids)} for it: a list of ids is needed"
        )
    distinct = set(tokens)
    if len(distinct) != len(tokens) or new.ndim != 2 or len(new) != len(tokens):
        return f"has rows {tuple(new.shape)}, but {IDS_KEY} names {len(distinct)} different tokens"
    return ""


def _is_id(token: object) -> bool:
    return is_whole(token, least=0) and token <= LARGEST_ID


def _find_missing_rows(ids: object, rows: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the layers of the config that have no rows in the file."""
    if not ids:
        return
    if not rows:
        yield f"{IDS_KEY} = {format_value(ids)}, but the file holds no {ROWS_ENDING}"
        return
    if not isinstance(ids, dict):
        return
    ids_by_pattern = cast(dict[str, object], ids)
    used: set[str] = set()
    for name in rows:
        used.update(part for part in list_last_parts(name) if part in ids_by_pattern)
    used_ids = [ids_by_pattern[pattern] for pattern in used]
    for pattern in ids_by_pattern:
        # A layer that shares its weight with another and has the same ids has no tensor.
        if pattern not in used and ids_by_pattern[pattern] not in used_ids:
            yield f"{pattern}   has no rows in the file: {IDS_KEY} names it"
