"""Tensors of VeRA, LoHa, LoKr and AdaLoRA: every parameter of a delta has one key ending.

Source: huggingface/peft 0.21, `tuners/{vera,loha,lokr,adalora}/layer.py`.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from lorakit.deltas.base import Delta
from lorakit.deltas.vera import VeRA
from lorakit.formats.peft.methods import METHODS_BY_DELTA, PREFIX, SHARED_FACTORS, VERA, Method
from lorakit.formats.peft.module_tensors import ModuleTensors, SortedTensors, group_by_module
from lorakit.spec import full_name

AXIS_NAMES = {"r": "rank", "o": "out", "i": "in"}


def layout_parameters(name: str, delta: Delta) -> dict[str, Tensor]:
    """Return the tensors of one delta by key; for VeRA also those that all deltas share."""
    method = METHODS_BY_DELTA[delta.name]
    tensors: dict[str, Tensor] = {}
    for parameter, tensor in delta.named_parameters():
        if parameter == "w2" and delta.kernel:
            tensor = tensor.view(len(tensor), -1, *delta.kernel)
        ending = method.key_endings[parameter]
        tensors[PREFIX + full_name(name, ending[1:])] = tensor
    if isinstance(delta, VeRA):
        factors = {"A": delta.pair.A, "B": delta.pair.B}
        tensors |= {key: factors[factor] for key, factor in SHARED_FACTORS.items()}
    return tensors


def sort_parameters(method: Method, tensors: Mapping[str, Tensor]) -> SortedTensors:
    """Sort the tensors of a file by module.

    Args:
        method: the type of the file, not LoRA.
        tensors: by key.
    """
    shared, own = _split_shared_factors(method, tensors)
    parameters = {ending: parameter for parameter, ending in method.key_endings.items()}
    groups, rest = group_by_module(own, parameters)
    faults = list(_find_missing_factors(method, shared))
    modules: dict[str, ModuleTensors] = {}
    for name, tensors_by_ending in groups.items():
        group = {parameters[ending]: tensor for ending, tensor in tensors_by_ending.items()}
        kernel = _flatten_kernel(group)
        faults += _find_set_faults(method, name, group)
        sizes, size_faults = _measure_axes(method, name, group)
        faults += size_faults
        faults += _find_shared_faults(name, shared, sizes)
        modules[name] = ModuleTensors(group, kernel=kernel, rank=sizes.get("r"))
    return SortedTensors(modules, rest, tuple(faults), shared)


def _split_shared_factors(
    method: Method, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the factors that all layers share, by name, and the other tensors by key."""
    shared: dict[str, Tensor] = {}
    own = dict(tensors)
    for key, factor in SHARED_FACTORS.items():
        if method is VERA and key in own:
            shared[factor] = own.pop(key)
    return shared, own


def _flatten_kernel(group: dict[str, Tensor]) -> tuple[int, ...]:
    """Make the w2 of a convolution a matrix, and return the axes of its kernel."""
    w2 = group.get("w2")
    if w2 is None or w2.ndim <= 2:
        return ()
    group["w2"] = w2.flatten(1)
    return tuple(w2.shape[2:])


def _find_missing_factors(method: Method, shared: Mapping[str, Tensor]) -> Iterator[str]:
    if method is not VERA:
        return
    for key, factor in SHARED_FACTORS.items():
        if factor not in shared:
            yield f"{key}   is missing: all layers need it"


def _find_set_faults(method: Method, name: str, group: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the parameters that are missing from the nearest complete set, or not part of it."""
    present = frozenset(group)
    if present in method.parameter_sets:
        return
    differences = [complete ^ present for complete in method.parameter_sets]
    for parameter in sorted(min(differences, key=len)):
        problem = "extra" if parameter in present else "missing"
        yield f"{PREFIX}{name}   {parameter} is {problem}"


def _measure_axes(
    method: Method, name: str, group: Mapping[str, Tensor]
) -> tuple[dict[str, int], list[str]]:
    """Return the sizes of a module's axes by letter, and a fault for each tensor that differs."""
    sizes = {"1": 1}
    faults: list[str] = []
    for parameter, axes in method.parameter_axes.items():
        if parameter not in group:
            continue
        shape = tuple(group[parameter].shape)
        if not _add_sizes(sizes, axes, shape):
            faults.append(
                f"{PREFIX}{name}   {parameter} is {shape}, which does not fit the others "
                f"({_format_sizes(sizes)})"
            )
    return sizes, faults


def _add_sizes(sizes: dict[str, int], axes: str, shape: tuple[int, ...]) -> bool:
    """Add the sizes of a tensor's axes; return False at the first that differs from the known."""
    if len(axes) != len(shape):
        return False
    pairs = zip(axes, shape, strict=True)
    return all(sizes.setdefault(axis, size) == size for axis, size in pairs)


def _format_sizes(sizes: Mapping[str, int]) -> str:
    """Return the sizes of the axes that have a name.

    >>> _format_sizes({"1": 1, "o": 16, "r": 3})
    'out 16, rank 3'
    """
    named = [f"{AXIS_NAMES[axis]} {size}" for axis, size in sizes.items() if axis in AXIS_NAMES]
    return ", ".join(named)


def _find_shared_faults(
    name: str, shared: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> Iterator[str]:
    """Yield a fault if a module of VeRA cannot be cut out of the shared factors."""
    if set(shared) != {"A", "B"}:
        return
    A, B = shared["A"], shared["B"]
    rank, out = sizes.get("r"), sizes.get("o", 0)
    are_matrices = A.ndim == 2 and B.ndim == 2
    if are_matrices and A.shape[0] == B.shape[1] == rank and out <= B.shape[0]:
        return
    shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
    yield f"{PREFIX}{name}   does not fit the shared {shapes}"
