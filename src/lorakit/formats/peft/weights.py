"""The weights file of an adapter folder: `adapter_model.safetensors`, or PEFT's old pickle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorakit.errors import AdapterFileError
from lorakit.formats.checked_json import parse_json
from lorakit.formats.peft.header import ENTRY, Header
from lorakit.formats.tensor_files import check_named_tensors, read_pickle, unreadable
from lorakit.text import dtype_name

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
MOST_TENSORS = 100_000
SIGNATURE = "lorakit_sha256"  # the entry beside lorakit's, for the hash of the whole file


@dataclass(frozen=True)
class Weights:
    """A weights file as it is on the disk.

    Attributes:
        tensors: by key.
        metadata: texts of the safetensors header.
        entry: the parsed JSON of lorakit's entry; None if there is none.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    entry: object


def read_weights(folder: Path) -> Weights:
    """Read the weights of an adapter folder.

    Raises:
        AdapterFileError: there is no weights file, or it cannot be read.
    """
    path = folder / WEIGHTS
    if path.is_file():
        return _read_safetensors(path)
    path = folder / PICKLE
    if path.is_file():
        return Weights(check_named_tensors(path, read_pickle(path)), {}, None)
    raise AdapterFileError(
        f"{folder} has a config, but neither {WEIGHTS} nor {PICKLE}.",
        advice="Nothing was loaded.",
    )


def _read_safetensors(path: Path) -> Weights:
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            keys = file.keys()
            if len(keys) > MOST_TENSORS:
                raise ValueError(f"{len(keys):,} tensors are more than the {MOST_TENSORS:,} read")
            for key in keys:
                # A copy: tensors inside the file are not aligned, and kernels may then round
                # differently.
                tensors[key] = file.get_tensor(key).clone()
    except Exception as error:  # a faulty file can raise any exception
        raise unreadable(path, error) from error
    if ENTRY not in metadata:
        return Weights(tensors, metadata, None)
    try:
        return Weights(tensors, metadata, parse_json(metadata[ENTRY]))
    except ValueError as error:
        raise AdapterFileError(
            f"The {ENTRY} entry in the header of {path} is not JSON: {error}.",
            advice="Nothing was loaded.",
        ) from error


def sign(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a weights file.

    Args:
        metadata: of the header; an earlier signature in it does not count.
        tensors: by key, on the CPU.
    """
    digest = hashlib.sha256()
    for key, text in sorted(metadata.items()):
        if key != SIGNATURE:
            digest.update(json.dumps([key, text]).encode())
    for key, tensor in sorted(tensors.items()):
        facts = [key, dtype_name(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(facts).encode())
        bits = tensor.detach().contiguous().flatten().view(torch.uint8)
        digest.update(bits.numpy().data)
    return digest.hexdigest()


def save_weights(path: Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write tensors, lorakit's entry and the hash of both to a safetensors file.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full.
    """
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    metadata = {"format": "pt", ENTRY: header.to_json()}
    metadata[SIGNATURE] = sign(metadata, on_cpu)
    try:
        save_file(on_cpu, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path.parent} cannot be written: {error}") from error
