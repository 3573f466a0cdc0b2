"""Rows of single tokens in PEFT's layout: the rows themselves in the weights, whose they are in the
config.

Source: huggingface/peft 0.21, `TrainableTokensWrapper` in `utils/other.py` and
    `tuners/trainable_tokens`.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from lorakit.deltas.token_rows import TokenRows
from lorakit.formats.peft.methods import PREFIX
from lorakit.spec import full_name

KEY, END = "trainable_token_indices", "token_adapter.trainable_tokens_delta"
NO_TARGETS = "dummy-target-modules"  # what PEFT takes for target_modules where no layer is adapted


def rows_of(deltas: Mapping[str, Any]) -> dict[str, TokenRows]:
    """Return the deltas that are of single rows."""
    return {name: delta for name, delta in deltas.items() if isinstance(delta, TokenRows)}


def written(rows: Mapping[str, TokenRows]) -> dict[str, Tensor]:
    """Return the tensors of a file by key."""
    return {PREFIX + full_name(name, END): delta.new for name, delta in rows.items()}


def noted(rows: Mapping[str, TokenRows]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what goes into the config, and what our header says beside."""
    told = {name: {"kind": delta.kind, "size": delta.size} for name, delta in rows.items()}
    return {name: delta.tokens.tolist() for name, delta in rows.items()}, told


def take(
    tensors: dict[str, Tensor], config: Mapping[str, Any], header: Mapping[str, Any]
) -> tuple[dict[str, TokenRows], list[str]]:
    """Take the rows of tokens out of a file's tensors: deltas by module, and what is wrong.

    Args:
        tensors: by key; the rows are removed, and the base's weight that PEFT writes beside them.
        config: of the file.
        header: ours, empty in others' files.
    """
    given: Any = config.get(KEY) or {}
    found: dict[str, TokenRows] = {}
    faults: list[str] = []
    new = {
        key.removeprefix(PREFIX)[: -len(END)].rstrip("."): tensors.pop(key)
        for key in [*tensors]
        if key.endswith(END)
    }
    used: set[str] = set()
    for name, rows in new.items():
        for beside in ("weight", "base_layer.weight", "token_adapter.base_layer.weight"):
            tensors.pop(PREFIX + full_name(name, beside), None)
        mine = (
            {k: ids for k, ids in given.items() if f".{name}".endswith(f".{k}")}
            if isinstance(given, dict)
            else {"": given}
        )
        used |= mine.keys()
        ids: Any = next(iter(mine.values()), None)
        if not isinstance(ids, list) or any(
            isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in cast(list[Any], ids)
        ):
            faults.append(
                f"{PREFIX}{name}   has rows of tokens, {KEY} says {ids!r} of it: ids are needed"
            )
        elif len(set(ids)) != len(ids) or rows.ndim != 2 or len(rows) != len(ids):
            faults.append(
                f"{PREFIX}{name}   has rows {tuple(rows.shape)}, {KEY} names {len(set(ids))} different tokens"
            )
        else:
            told = header.get("token_rows", {}).get(name, {})
            found[name] = TokenRows(
                rows, torch.tensor(ids), told.get("size", 0), told.get("kind", "")
            )
    if given and not new:
        faults.append(f"{KEY} = {given!r}, but the file holds no {END}")
    elif isinstance(
        given, dict
    ):  # a module that is tied to another of the same ids has no tensor of its own
        there = [given[k] for k in used]
        faults += [
            f"{k}   has no rows in the file: {KEY} names it"
            for k in given.keys() - used
            if given[k] not in there
        ]
    return found, faults
