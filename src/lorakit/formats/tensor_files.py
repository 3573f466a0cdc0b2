"""Tensors in files: reading of pickled ones, and the checks that all formats share."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lorakit.errors import AdapterFileError
from lorakit.text import dtype_name, first_line, plural


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
        AdapterFileError: it is not a dictionary of tensors by name, or a tensor has no values of
            its own for every element.
    """
    if isinstance(content, dict):
        items = cast(dict[object, object], content).items()
        if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items):
            tensors = cast(dict[str, Tensor], content)
            _check_storage(path, tensors)
            return tensors
    raise AdapterFileError(f"{path} does not hold tensors by name.", advice="Nothing was loaded.")


def _check_storage(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that a small file makes of any size: sparse and nested ones, and views.

    Raises:
        AdapterFileError: each is named.
    """
    faults = [
        f"{key}   is not stored value by value" for key, x in tensors.items() if _is_virtual(x)
    ]
    if faults:
        raise AdapterFileError(
            f"{path} has {plural(len(faults), 'tensor')} that cannot be read.",
            faults,
            "Nothing was loaded.",
        )


def _is_virtual(tensor: Tensor) -> bool:
    if tensor.is_meta:
        return False
    if tensor.layout != torch.strided or tensor.is_nested:
        return True
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


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
