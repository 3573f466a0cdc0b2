"""Stacks of experts in PEFT's layout: factors as two matrices, keys nested by parameter.

A (experts, rank, in) is written as (experts * rank, in), and B (experts, out, rank) as
(out, rank * experts) with the expert as the fastest axis. The keys name the module. If several of
its parameters are adapted, the last registered has the module's own name, and each before it has
one more `.base_layer`.

Source: huggingface/peft 0.21, `ParamWrapper` in `tuners/lora/layer.py` and `_inject_parameters` in
    `tuners/tuners_utils.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from lorakit.deltas.base import LowRank
from lorakit.formats.peft.module_tensors import ModuleTensors
from lorakit.formats.peft.patterns import list_last_parts
from lorakit.sites.experts import STACK_NAMES
from lorakit.spec import is_whole

INNER = ".base_layer"


def find_stack_paths(names: Iterable[str]) -> dict[str, str]:
    """Return the module path that a file uses for each stack of experts.

    >>> find_stack_paths(["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    {'mlp.experts.gate_up_proj': 'mlp.experts.base_layer', 'mlp.experts.down_proj': 'mlp.experts'}
    """
    stacks_by_module: dict[str, list[str]] = {}
    for name in sorted(names, key=_registration_order):
        module = name.rpartition(".")[0]
        stacks_by_module.setdefault(module, []).append(name)
    paths: dict[str, str] = {}
    for module, stacks in stacks_by_module.items():
        for position, name in enumerate(stacks):
            depth = len(stacks) - 1 - position
            paths[name] = module + INNER * depth
    return paths


def _registration_order(name: str) -> int:
    return STACK_NAMES.index(name.rpartition(".")[2])


def flatten_stack(delta: LowRank) -> tuple[Tensor, Tensor]:
    """Return A and B of a stack as the two matrices of a file."""
    return delta.A.flatten(0, 1), delta.B.permute(1, 2, 0).flatten(1)


def restore_stacks(
    modules: Mapping[str, ModuleTensors],
    target_parameters: Iterable[str],
    rank_of: Callable[[str], int],
) -> tuple[dict[str, ModuleTensors], list[str]]:
    """Return the modules of a file with stacks of experts under their own names, and the faults.

    Args:
        modules: by the path in the keys.
        target_parameters: the config's names of adapted parameters.
        rank_of: the config's rank of a module, by name.
    """
    stacks, faults = _find_stacks(modules, list(target_parameters))
    stack_at = {path: name for name, path in find_stack_paths(stacks).items()}
    for path, name in stack_at.items():
        if path not in modules:
            faults.append(f"{name}   is missing: target_parameters names it")
    restored: dict[str, ModuleTensors] = {}
    for path, module in modules.items():
        if path not in stack_at:
            restored[path] = module
            continue
        name = stack_at[path]
        rank = rank_of(name)
        A, B = module.tensors["A"], module.tensors["B"]
        if not is_whole(rank, least=1) or A.shape[0] % rank or B.shape[1] % rank:
            shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
            faults.append(f"{path}   {shapes} are not stacks of factors of rank {rank}")
        else:
            restored[name] = _unflatten_stack(module, rank)
    return restored, faults


def _find_stacks(
    modules: Iterable[str], target_parameters: list[str]
) -> tuple[list[str], list[str]]:
    """Return the names of the stacks that the config adapts, and a fault for each unknown one."""
    stacks: list[str] = []
    faults: list[str] = []
    parameters_by_path: dict[str, dict[str, None]] = {}
    for target in target_parameters:
        path, _, parameter = target.rpartition(".")
        parameters_by_path.setdefault(path, {})[parameter] = None
    for module in dict.fromkeys(path.replace(INNER, "") for path in modules):
        parameters: dict[str, None] = {}
        for path in list_last_parts(module):
            parameters |= parameters_by_path.get(path, {})
        for end in parameters:
            if end in STACK_NAMES:
                stacks.append(f"{module}.{end}")
            else:
                known = ", ".join(STACK_NAMES)
                faults.append(f"{module}.{end}   is not a known stack of experts: {known}")
    return stacks, faults


def _unflatten_stack(module: ModuleTensors, rank: int) -> ModuleTensors:
    A = module.tensors["A"].unflatten(0, (-1, rank))
    B = module.tensors["B"].unflatten(1, (rank, -1)).permute(2, 0, 1).contiguous()
    return replace(module, tensors={**module.tensors, "A": A, "B": B}, kind="experts", rank=rank)
