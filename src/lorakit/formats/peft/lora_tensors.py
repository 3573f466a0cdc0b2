"""Tensors of LoRA and DoRA layers: A, B and the magnitude, by the kind of layer.

Keys are `<module>.lora_A.weight` (rank, in) and `<module>.lora_B.weight` (out, rank); an embedding
has `<module>.lora_embedding_A` (rank, V) and `<module>.lora_embedding_B` (d, rank). A convolution
keeps the axes of its kernel in A, and axes of size 1 in B.

Source: huggingface/peft 0.21, `tuners/lora/layer.py`.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from lorakit.deltas.base import LowRank
from lorakit.deltas.dora import DoRA
from lorakit.formats.peft.methods import PREFIX
from lorakit.formats.peft.module_tensors import ModuleTensors, SortedTensors, group_by_module
from lorakit.formats.peft.target_parameters import flatten_stack
from lorakit.spec import full_name

LINEAR_ENDINGS = {"A": ".lora_A.weight", "B": ".lora_B.weight"}
EMBEDDING_ENDINGS = {"A": ".lora_embedding_A", "B": ".lora_embedding_B"}
MAGNITUDE_ENDING = ".lora_magnitude_vector"
PARAMETERS = {  # by the ending of the key
    **{ending: factor for factor, ending in LINEAR_ENDINGS.items()},
    **{ending: factor for factor, ending in EMBEDDING_ENDINGS.items()},
    MAGNITUDE_ENDING: "magnitude",
}
GROUPS_HINT = (
    "; in PEFT's files of a convolution with groups A mixes the channels of all groups, "
    "which no change of its weight does"
)


def layout_lora_tensors(path: str, delta: LowRank) -> dict[str, Tensor]:
    """Return the tensors of one delta by key.

    Args:
        path: the module's name in the keys.
        delta: a LoRA or DoRA delta.
    """
    endings = EMBEDDING_ENDINGS if delta.kind == "embedding" else LINEAR_ENDINGS
    A, B = _layout_factors(delta)
    tensors = {endings["A"]: A, endings["B"]: B}
    if isinstance(delta, DoRA):
        magnitude = delta.magnitude
        if delta.kernel:
            magnitude = magnitude.view(1, -1, *_unit_axes(delta))
        tensors[MAGNITUDE_ENDING] = magnitude
    return {PREFIX + full_name(path, end[1:]): tensor for end, tensor in tensors.items()}


def _layout_factors(delta: LowRank) -> tuple[Tensor, Tensor]:
    """Return A and B in the shapes of the file."""
    if delta.kind == "experts":
        return flatten_stack(delta)
    if delta.kernel:
        A = delta.A.view(delta.rank, -1, *delta.kernel)
        return A, delta.B.view(*delta.B.shape, *_unit_axes(delta))
    return delta.A, delta.B


def _unit_axes(delta: LowRank) -> tuple[int, ...]:
    return (1,) * len(delta.kernel)


def sort_lora_tensors(tensors: Mapping[str, Tensor]) -> SortedTensors:
    """Sort the tensors of a file by module; modules without two matrices A and B are left out.

    Args:
        tensors: by key.
    """
    groups, rest = group_by_module(tensors, PARAMETERS)
    faults: list[str] = []
    modules: dict[str, ModuleTensors] = {}
    for name, group in groups.items():
        module = _shape_module(group)
        faults += _find_factor_faults(name, module)
        if all(_is_matrix(module.tensors.get(factor)) for factor in "AB"):
            modules[name] = module
    faults += _find_rank_differences(modules)
    return SortedTensors(modules, rest, tuple(faults))


def _shape_module(group: Mapping[str, Tensor]) -> ModuleTensors:
    """Return the tensors of a module by parameter, those of a convolution as matrices.

    Args:
        group: by ending of the key.
    """
    tensors = {PARAMETERS[ending]: tensor for ending, tensor in group.items()}
    is_embedding = not group.keys().isdisjoint(EMBEDDING_ENDINGS.values())
    kind = "embedding" if is_embedding else ""
    kernel = _find_kernel(tensors)
    if kernel:
        tensors["A"] = tensors["A"].flatten(1)
        tensors["B"] = tensors["B"].flatten(1)
        kind = f"convolution{len(kernel)}d"
    if "magnitude" in tensors:
        tensors["magnitude"] = tensors["magnitude"].flatten()
    A = tensors.get("A")
    rank = A.shape[0] if A is not None and A.ndim == 2 else None
    return ModuleTensors(tensors, kind, kernel, rank)


def _find_kernel(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the axes of the kernel if these are the factors of a convolution."""
    if not {"A", "B"} <= tensors.keys():
        return ()
    A, B = tensors["A"], tensors["B"]
    if A.ndim not in (3, 4, 5) or B.ndim != A.ndim:
        return ()
    if any(size > 1 for size in B.shape[2:]):
        return ()
    return tuple(A.shape[2:])


def _is_matrix(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.ndim == 2


def _find_factor_faults(name: str, module: ModuleTensors) -> Iterator[str]:
    tensors = module.tensors
    for factor in "AB":
        if factor not in tensors:
            yield f"{PREFIX}{name}   {factor} is missing"
    for factor in "AB":
        if factor in tensors and not _is_matrix(tensors[factor]):
            shape = tuple(tensors[factor].shape)
            yield f"{PREFIX}{name}   {factor} is {shape}, a matrix is needed"
    magnitude, B = tensors.get("magnitude"), tensors.get("B")
    if magnitude is None or B is None or B.ndim == 0:
        return
    if len(magnitude) != B.shape[0]:
        yield (
            f"{PREFIX}{name}   magnitude has {len(magnitude)} values, B has {B.shape[0]} outputs"
        )


def _find_rank_differences(modules: Mapping[str, ModuleTensors]) -> Iterator[str]:
    for name, module in modules.items():
        A, B = module.tensors["A"], module.tensors["B"]
        if A.shape[0] != B.shape[1]:
            hint = GROUPS_HINT if module.kernel else ""
            shapes = f"A is {tuple(A.shape)} and B is {tuple(B.shape)}"
            yield f"{PREFIX}{name}   {shapes}: the ranks differ{hint}"
