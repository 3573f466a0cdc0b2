"""Changes to the files of an adapter that leave its hashes right, as no accident does."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.formats.peft.weights import SIGNATURE, sign

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Change = Callable[[dict[str, Tensor]], object]


def read_metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / WEIGHTS, "pt") as file:
        return dict(file.metadata())


def rewrite(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    change: Change = lambda tensors: None,
    entries: Mapping[str, Any] | None = None,
) -> None:
    """Change values of the config, tensors, and values of lorakit's entry, and sign the file."""
    tensors = load_file(folder / WEIGHTS)
    metadata = read_metadata(folder)
    change(tensors)
    path = folder / CONFIG
    values = {**json.loads(path.read_text()), **(config or {})}
    path.write_text(json.dumps(values))
    if "lorakit" in metadata:
        entry = {**json.loads(metadata["lorakit"]), "config": values, **(entries or {})}
        metadata["lorakit"] = json.dumps(entry)
        metadata[SIGNATURE] = sign(metadata, tensors)
    save_file(tensors, folder / WEIGHTS, metadata)


def make_foreign(folder: Path) -> None:
    """Remove everything that says that lorakit wrote an adapter."""
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt"})
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_mapping": None}))
