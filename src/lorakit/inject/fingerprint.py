"""Which base an adapter belongs to: a hash that needs no second of reading, and survives a cast to
bfloat16.
"""

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import nn

from lorakit.sites.quantised import is_from_package
from lorakit.sites.slot import base_parameters

SAMPLES = 16  # values of each tensor that count


@lru_cache(maxsize=64)  # layers of few shapes make a model
def _sampled(size: int, device: torch.device) -> torch.Tensor:
    """Return the numbers of the values that count."""
    count = min(SAMPLES, size)
    # In whole numbers: float32 cannot tell the last elements of a large embedding apart.
    at = [i * (size - 1) // max(count - 1, 1) for i in range(count)]
    return torch.tensor(at, dtype=torch.long, device=device)


def fingerprint(
    model: nn.Module,
    *,
    without: Iterable[str] = (),
    rows: Mapping[str, Iterable[int]] | None = None,
) -> str:
    """Return a hash of the names, shapes and sampled values of the base's parameters.

    The values are rounded to bfloat16 first, so a float32 checkpoint and its bfloat16 copy give the
    same print. Adapters that are attached do not count; a merge does.

    Args:
        model: with or without adapters.
        without: names of modules that do not count (those that are trained whole, such as a new
            head).
        rows: numbers of rows that do not count, by the name of their weight (those of new tokens:
            random in the base).

    Returns:
        16 hexadecimal digits; an empty string where a tensor has no values (the meta device).

    Cost: 16 values a tensor.

    >>> layer = nn.Linear(2, 2)
    >>> fingerprint(layer) == fingerprint(layer), fingerprint(layer) == fingerprint(nn.Linear(2, 2))
    (True, False)
    """
    skip, digest, seen = tuple(f"{name}." for name in without), hashlib.sha256(), set()
    own = dict(base_parameters(model)) if rows else {}
    unseen: dict[int, set[int]] = {}
    for path, numbers in (rows or {}).items():
        unseen.setdefault(id(own.get(path)), set()).update(numbers)
    for name, parameter in sorted(base_parameters(model), key=lambda item: item[0]):
        if name.startswith(skip) or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if parameter.is_meta:
            return ""
        # torchao's tensors can be multiplied by, and little else.
        own = parameter.detach()
        flat = (own.dequantize() if is_from_package(own, "torchao") else own).flatten()
        at = _sampled(flat.numel(), flat.device)
        if (leave := unseen.get(id(parameter))) is not None:
            at = at[[i // parameter[0].numel() not in leave for i in at.tolist()]]
        values = flat[at]
        values = (
            values.to(torch.bfloat16).view(torch.int16)
            if values.is_floating_point()
            else values.long()
        )
        digest.update(f"{name} {tuple(parameter.shape)} {values.tolist()}\n".encode())
    return digest.hexdigest()[:16]
