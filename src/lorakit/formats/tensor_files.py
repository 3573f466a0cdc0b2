"""Tensors in files: reading of pickled ones, and the checks that all formats share."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lorakit.errors import AdapterFileError
from lorakit.text import dtype_name, first_line


def read_pickle(path: Path) -> object:
    """Return the content of a file of `torch.save`; no code in it is run.

    Raises:
        AdapterFileError: there is no such file, or it cannot be read; the message names the reason.
    """
    if not path.is_file():
        raise AdapterFileError(f"There is no file {path}.", advice="Nothing was loaded.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a faulty file can raise any exception
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> AdapterFileError:
    """Return the refusal of a file that its reader failed on."""
    reason = first_line(error).rstrip(".")
    return AdapterFileError(
        f"{path} ({path.stat().st_size:,} bytes) is cut off, or does not hold tensors: {reason}.",
        advice="Nothing was loaded.",
    )


def check_named_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Return the content of a file as tensors by name.

    Raises:
        AdapterFileError: it is not a dictionary of tensors by name.
    """
    if isinstance(content, dict):
        items = cast(dict[object, object], content).items()
        if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items):
            return cast(dict[str, Tensor], content)
    raise AdapterFileError(f"{path} does not hold tensors by name.", advice="Nothing was loaded.")


def find_value_faults(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the tensors that cannot be a part of an adapter, each with the reason.

    Args:
        tensors: by key.

    >>> list(find_value_faults({"q": torch.tensor([1.0, float("nan")]), "v": torch.ones(2)}))
    ['q   1 of 2 values are NaN or infinite']
    """
    for key, tensor in tensors.items():
        fault = _find_value_fault(tensor)
        if fault:
            yield f"{key}   {fault}"


def _find_value_fault(tensor: Tensor) -> str:
    """Return why a tensor cannot be a part of an adapter, or an empty string."""
    if tensor.is_meta:
        return "has no values: it is on the meta device"
    if not tensor.is_floating_point():
        return f"is {dtype_name(tensor.dtype)}: a floating dtype is needed"
    unusable = int((~torch.isfinite(tensor)).sum())
    if unusable == 0:
        return ""
    return f"{unusable} of {tensor.numel()} values are NaN or infinite"
