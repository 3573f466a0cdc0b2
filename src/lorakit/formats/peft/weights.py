"""The weights file of an adapter folder: `adapter_model.safetensors`, or PEFT's old pickle."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorakit.errors import AdapterFileError
from lorakit.formats.peft.header import ENTRY, Header
from lorakit.formats.tensor_files import check_named_tensors, read_pickle, unreadable

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"


def read_weights(folder: Path) -> tuple[dict[str, Tensor], object]:
    """Return the tensors of an adapter folder by key, and the parsed JSON of lorakit's entry.

    Raises:
        AdapterFileError: there is no weights file, or it cannot be read.
    """
    path = folder / WEIGHTS
    if path.is_file():
        return _read_safetensors(path)
    path = folder / PICKLE
    if path.is_file():
        return check_named_tensors(path, read_pickle(path)), {}
    raise AdapterFileError(
        f"{folder} has a config, but neither {WEIGHTS} nor {PICKLE}.",
        advice="Nothing was loaded.",
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], object]:
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118  a file, not a dictionary
                # A copy: tensors inside the file are not aligned, and kernels may then round
                # differently.
                tensors[key] = file.get_tensor(key).clone()
    except Exception as error:  # a faulty file can raise any exception
        raise unreadable(path, error) from error
    try:
        return tensors, json.loads(metadata.get(ENTRY, "{}"))
    except ValueError as error:
        raise AdapterFileError(
            f"The {ENTRY} entry in the header of {path} is not JSON: {error}.",
            advice="Nothing was loaded.",
        ) from error


def save_weights(path: Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write tensors and lorakit's entry to a safetensors file.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full.
    """
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    metadata = {"format": "pt", ENTRY: header.to_json()}
    try:
        save_file(on_cpu, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path.parent} cannot be written: {error}") from error
