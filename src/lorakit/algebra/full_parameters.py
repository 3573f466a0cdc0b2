"""Sums of parameters that adapters train in full: heads, norms, biases."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.sites.slot import base_parameters

MODES = ("sum", "first", "drop")
TOLERANCE = 1e-9  # of a sum of weights that is 1


class WeightedTensor(NamedTuple):
    """The value of one parameter in one adapter, and the weight of the adapter."""

    weight: float
    tensor: Tensor


class FullParameters(NamedTuple):
    """The full parameters of a combined adapter.

    Attributes:
        tensors: by name.
        notes: remarks for the user.
        faults: parameters that cannot be summed.
    """

    tensors: dict[str, Tensor]
    notes: list[str]
    faults: list[str]


def combine_full_parameters(
    weighted: Sequence[tuple[Adapter, float]], mode: str, base: nn.Module | None
) -> FullParameters:
    """Return the full parameters of a weighted sum of adapters.

    Args:
        weighted: (adapter, weight) pairs.
        mode: "sum" to add up their changes, "first" to take those of the first adapter that has
            them, "drop" to leave them out.
        base: the model; its values are needed for a sum whose weights do not add up to 1.
    """
    values: dict[str, list[WeightedTensor]] = {}
    for adapter, weight in weighted:
        for path, tensor in adapter.full_parameters.items():
            values.setdefault(path, []).append(WeightedTensor(weight, tensor.detach()))
    paths = ", ".join(values)
    if not values:
        return FullParameters({}, [], [])
    if mode == "drop":
        return FullParameters({}, [f"left out, though trained in full: {paths}"], [])
    if mode == "first":
        first = {path: parts[0].tensor for path, parts in values.items()}
        return FullParameters(first, [f"from the first adapter that has it: {paths}"], [])
    return _sum(values, _label_faults(weighted, paths), base)


def _label_faults(weighted: Sequence[tuple[Adapter, float]], paths: str) -> list[str]:
    """Return a fault if the adapters have heads for different labels."""
    labels = {
        str(adapter.provenance["labels"])
        for adapter, _ in weighted
        if adapter.provenance.get("labels") and adapter.full_parameters
    }
    if len(labels) <= 1:
        return []
    return [f"{paths}   is trained in full for different labels: {' and '.join(sorted(labels))}"]


def _sum(
    values: Mapping[str, list[WeightedTensor]], faults: list[str], base: nn.Module | None
) -> FullParameters:
    base_values = dict(base_parameters(base)) if base is not None else {}
    tensors: dict[str, Tensor] = {}
    for path, parts in values.items():
        fault = _shape_fault(parts)
        if fault:
            faults.append(f"{path}   {fault}")
            continue
        total = _sum_tensors(parts, base_values.get(path))
        if total is None:
            weights = sum(part.weight for part in parts)
            faults.append(
                f"{path}   is trained in full, and its weights add up to {weights:g}, not 1, so "
                "the base's own value counts: give the base (--model), or choose whole='first' or "
                "'drop' (--whole)"
            )
        else:
            tensors[path] = total
    summed = [path for path, parts in values.items() if len(parts) > 1]
    notes = [f"summed with the weights: {', '.join(summed)}"] if summed else []
    return FullParameters(tensors, notes, faults)


def _shape_fault(parts: Sequence[WeightedTensor]) -> str:
    shapes = {tuple(part.tensor.shape) for part in parts}
    if len(shapes) == 1:
        return ""
    return f"is trained in full in shapes {' and '.join(map(str, sorted(shapes)))}"


def _sum_tensors(parts: Sequence[WeightedTensor], base_value: Tensor | None) -> Tensor | None:
    """Return the base value plus the weighted changes; None if it is needed and does not fit."""
    like = parts[0].tensor
    if abs(sum(part.weight for part in parts) - 1) < TOLERANCE:
        # The base value cancels out.
        total = torch.zeros(())
        for part in parts:
            total = total + part.weight * part.tensor.double()
        return total.to(like.dtype)
    if base_value is None or base_value.shape != like.shape:
        return None
    start = base_value.detach().double()
    total = start
    for part in parts:
        total = total + part.weight * (part.tensor.double() - start)
    return total.to(like.dtype)
