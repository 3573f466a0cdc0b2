"""Parameters that PEFT adapts by name: the weight of a module, and stacks of experts.

The keys of their factors name the module. If several of its parameters are adapted, the last
registered has the module's own name, and each before it has one more `.base_layer`. A and B of a
stack are matrices: A (experts, rank, in) is written as (experts * rank, in), and B (experts, out,
rank) as (out, rank * experts) with the expert as the fastest axis.

Source: huggingface/peft 0.21, `ParamWrapper` in `tuners/lora/layer.py` and `_inject_parameters` in
    `tuners/tuners_utils.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from lorakit.deltas.base import Delta, LowRank
from lorakit.formats.peft.config import PeftConfig
from lorakit.formats.peft.module_tensors import ModuleTensors
from lorakit.formats.peft.patterns import list_last_parts
from lorakit.sites.experts import STACK_NAMES
from lorakit.spec import full_name, is_whole

INNER = ".base_layer"
WEIGHT = "weight"


def list_parameters(deltas: Mapping[str, Delta]) -> dict[str, str]:
    """Return the config's names of adapted parameters, by the name of the delta."""
    parameters: dict[str, str] = {}
    for name, delta in deltas.items():
        if delta.kind == "experts":
            parameters[name] = name
        elif delta.kind == "parameter":
            parameters[name] = full_name(name, WEIGHT)
    return parameters


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


def restore_parameters(
    modules: Mapping[str, ModuleTensors], config: PeftConfig
) -> tuple[dict[str, ModuleTensors], list[str]]:
    """Return the modules of a file with stacks of experts under their own names, and the faults.

    Args:
        modules: by the path in the keys.
        config: of the file.
    """
    restored = dict(modules)
    if not config.target_parameters:
        return restored, []
    stacks: list[str] = []
    faults: list[str] = []
    for name in dict.fromkeys(path.replace(INNER, "") for path in modules):
        for parameter in _find_parameters(name, modules, config):
            full = f"{name}.{parameter}"
            if parameter == WEIGHT and _has_rank(modules.get(name), config.settings(full).rank):
                restored[name] = replace(modules[name], kind="parameter")
            elif parameter in STACK_NAMES:
                stacks.append(full)
            else:
                known = ", ".join(STACK_NAMES)
                faults.append(f"{full}   is not a known stack of experts: {known}")
    for name, path in find_stack_paths(stacks).items():
        if path not in modules:
            faults.append(f"{name}   is missing: target_parameters names it")
            continue
        module, rank = restored.pop(path), config.settings(name).rank
        A, B = module.tensors["A"], module.tensors["B"]
        if not is_whole(rank, least=1) or A.shape[0] % rank or B.shape[1] % rank:
            shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
            faults.append(f"{path}   {shapes} are not stacks of factors of rank {rank}")
        else:
            restored[name] = _unflatten_stack(module, rank)
    return restored, faults


def _find_parameters(
    name: str, modules: Mapping[str, ModuleTensors], config: PeftConfig
) -> list[str]:
    """Return the parameters of one module that the config names.

    A name without a module, such as `down_proj`, stands for the parameters of this name in all
    modules that the config does not name otherwise.

    Args:
        name: of the module.
        modules: by the path in the keys.
        config: of the file.
    """
    ends = list_last_parts(name)
    targets = [target.rpartition(".") for target in config.target_parameters]
    named = [parameter for module, _, parameter in targets if module in ends]
    if named:
        return list(dict.fromkeys(named))
    if isinstance(config.targets, list):
        is_layer = not set(ends).isdisjoint(config.targets)
    else:
        is_layer = _has_rank(modules.get(name), config.settings(name).rank)
    return [] if is_layer else [parameter for module, _, parameter in targets if not module]


def _has_rank(module: ModuleTensors | None, rank: int) -> bool:
    """Return True for the factors of one matrix, and False for those of a stack."""
    return module is not None and module.rank == rank


def _unflatten_stack(module: ModuleTensors, rank: int) -> ModuleTensors:
    A = module.tensors["A"].unflatten(0, (-1, rank))
    B = module.tensors["B"].unflatten(1, (rank, -1)).permute(2, 0, 1).contiguous()
    return replace(module, tensors={**module.tensors, "A": A, "B": B}, kind="experts", rank=rank)
