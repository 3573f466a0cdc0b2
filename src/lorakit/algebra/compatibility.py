"""Checks that several adapters can be combined: the same layers, trained on the same base."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.full_parameters import find_full_modules

SAME_MATRIX = {"linear", "conv1d"}  # kinds of layers that hold the same matrix, one transposed


def first_deltas(adapters: Sequence[Adapter]) -> dict[str, Delta]:
    """Return the delta of each module from the first adapter that has one."""
    first: dict[str, Delta] = {}
    for adapter in adapters:
        for name, delta in adapter.deltas.items():
            first.setdefault(name, delta)
    return first


def layer_faults(adapters: Sequence[Adapter], first: Mapping[str, Delta]) -> list[str]:
    """Return the faults of deltas that are for another layer than the first of their module.

    Args:
        adapters: to combine.
        first: as `first_deltas` returns it.
    """
    faults: list[str] = []
    for number, adapter in enumerate(adapters, start=1):
        for name, delta in adapter.deltas.items():
            fault = _layer_fault(delta, first[name], number)
            if fault:
                faults.append(f"{name}   {fault}")
    return faults


def _layer_fault(delta: Delta, first: Delta, number: int) -> str:
    shape, first_shape = (*delta.stack, *delta.shape), (*first.stack, *first.shape)
    if shape != first_shape or delta.kernel != first.kernel:
        return f"is {shape} in adapter {number}, {first_shape} before"
    if delta.output_slice != first.output_slice:
        return f"is another slice of its fused layer in adapter {number} than before"
    if delta.kind != first.kind and {delta.kind, first.kind} != SAME_MATRIX:
        return f"is of kind {delta.kind} in adapter {number}, {first.kind} before"
    return ""


def base_fingerprint(
    base: nn.Module,
    full_modules: Sequence[str],
    rows: Mapping[str, Iterable[int]] | None = None,
) -> str:
    """Return the fingerprint of a base, without the parameters that an adapter trains.

    Args:
        base: the model.
        full_modules: `Spec.full_modules`; those that the base does not have are ignored.
        rows: numbers of the rows that train by themselves, by the name of their weight.
    """
    full = find_full_modules(base, full_modules, require_match=False)
    return fingerprint(base, without=full, rows=rows)


def base_faults(adapters: Sequence[Adapter], base: nn.Module | None) -> list[str]:
    """Return the faults of adapters whose fingerprint is not that of the base, or of one another.

    Full parameters do not count in a fingerprint, so without a base only adapters that train the
    same modules in full are compared.

    Args:
        adapters: to combine.
        base: the model they are for, or None to compare the adapters with one another.
    """
    faults: list[str] = []
    first_prints: dict[tuple[str, ...], str] = {}
    for number, adapter in enumerate(adapters, start=1):
        own = adapter.provenance.get("base_fingerprint")
        if not own:
            continue
        modules = tuple(adapter.spec.full_modules)
        if base is None:
            expected = first_prints.setdefault(modules, own)
            source = "an adapter before it"
        else:
            expected = base_fingerprint(base, modules, adapter.trained_tokens)
            source = "the model's"
        # The fingerprint of a model without values (on the meta device) is empty.
        if expected and own != expected:
            faults.append(
                f"adapter {number}   was trained on other base weights ({own}) than "
                f"{source} ({expected}); any_base (--any-base) accepts it"
            )
    return faults
