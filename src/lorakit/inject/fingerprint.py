"""Fingerprint of a base: a hash that takes less than a second and is the same in bfloat16."""

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from operator import itemgetter

import torch
from torch import Tensor, nn

from lorakit.sites.quantised import dequantise_weight, is_from_package
from lorakit.sites.shared import memory_of
from lorakit.sites.slot import base_parameters, unwrap
from lorakit.spec import is_inside

SAMPLES = 16  # sampled values of each tensor


def fingerprint(
    model: nn.Module,
    *,
    without: Iterable[str] = (),
    rows: Mapping[str, Iterable[int]] | None = None,
) -> str:
    """Return a hash of the names, shapes and sampled values of the base's parameters.

    The values are rounded to bfloat16 first, so a float32 checkpoint and its bfloat16 copy have the
    same fingerprint. Attached adapters have no influence; a merge does.

    Args:
        model: a model with or without adapters.
        without: names of modules to leave out (fully trained ones, such as a new head).
        rows: numbers of rows to leave out, by the name of their weight (those of new tokens, which
            are random in the base).

    Returns:
        16 hexadecimal digits; an empty string if a tensor has no values (the meta device).

    Cost: 16 values of each tensor.

    >>> layer = nn.Linear(2, 2)
    >>> fingerprint(layer) == fingerprint(layer), fingerprint(layer) == fingerprint(nn.Linear(2, 2))
    (True, False)
    """
    without = tuple(without)
    rows_by_memory = _rows_by_memory(model, rows or {})
    digest = hashlib.sha256()
    visited: set[int] = set()
    parameters = sorted(base_parameters(model), key=itemgetter(0))
    for name, parameter in parameters:
        if is_inside(name, without) or id(parameter) in visited:
            continue
        visited.add(id(parameter))
        if parameter.is_meta:
            return ""
        left_out = rows_by_memory.get(memory_of(parameter), set()) if rows_by_memory else set()
        values = _sample(parameter, left_out)
        digest.update(f"{name} {tuple(parameter.shape)} {values}\n".encode())
    return digest.hexdigest()[:16]


def describe_base(model: nn.Module) -> dict[str, str]:
    """Return the name under which transformers loads the base, as an entry of the provenance.

    It is empty for other models.

    >>> describe_base(nn.Linear(2, 2))
    {}
    """
    name = getattr(unwrap(model), "name_or_path", "")
    return {"base_model": name} if name else {}


def _rows_by_memory(
    model: nn.Module, rows: Mapping[str, Iterable[int]]
) -> dict[Hashable, set[int]]:
    """Return the rows to leave out by the memory of their weight, which may have several names."""
    if not rows:
        return {}
    parameters = dict(base_parameters(model))
    rows_by_memory: dict[Hashable, set[int]] = {}
    for name, numbers in rows.items():
        if name in parameters:
            memory = memory_of(parameters[name])
            rows_by_memory.setdefault(memory, set()).update(numbers)
    return rows_by_memory


def _sample(parameter: nn.Parameter, left_out: set[int]) -> list[int]:
    """Return the bits of the sampled values in bfloat16, or whole numbers as they are.

    Args:
        parameter: any parameter of the base.
        left_out: numbers of rows whose values are left out.
    """
    weight = parameter.detach()
    if is_from_package(weight, "torchao"):
        # torchao's tensors implement little else than products.
        weight = dequantise_weight(weight)
    flat = weight.to_dense().flatten()
    positions = _sample_positions(flat.numel(), flat.device)
    if left_out:
        row_size = parameter[0].numel()
        keep = [i // row_size not in left_out for i in positions.tolist()]
        positions = positions[keep]
    values = flat[positions]
    if values.is_floating_point():
        rounded = values.to(torch.bfloat16)
        return rounded.view(torch.int16).tolist()
    return values.long().tolist()


@lru_cache(maxsize=64)  # a model has few shapes
def _sample_positions(size: int, device: torch.device) -> Tensor:
    """Return evenly spaced positions of sampled values in a flat tensor."""
    count = min(SAMPLES, size)
    # In whole numbers: float32 cannot distinguish the last elements of a large embedding.
    last = size - 1
    intervals = max(count - 1, 1)
    positions = [i * last // intervals for i in range(count)]
    return torch.tensor(positions, dtype=torch.long, device=device)
