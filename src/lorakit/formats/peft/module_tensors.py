"""Tensors of a file by module: the result of sorting the keys of a weights file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lorakit.formats.peft.methods import PREFIX


@dataclass(frozen=True)
class ModuleTensors:
    """The tensors of one module.

    Attributes:
        tensors: by parameter name, in the shapes that the delta takes.
        kind: the kind of site if the keys or the shapes show it; empty otherwise.
        kernel: axes of a convolution's kernel; empty if there is none or it is not known.
        rank: the rank of the tensors; None if no axis of theirs is the rank.
    """

    tensors: Mapping[str, Tensor]
    kind: str = ""
    kernel: tuple[int, ...] = ()
    rank: int | None = None


@dataclass(frozen=True)
class SortedTensors:
    """All tensors of a weights file.

    Attributes:
        modules: tensors of the deltas, by module name.
        rest: other tensors, by the name of the base parameter that they replace.
        faults: missing, extra and wrongly shaped tensors.
        shared_factors: A and B of VeRA, which all modules share; empty for other types.
    """

    modules: Mapping[str, ModuleTensors]
    rest: Mapping[str, Tensor]
    faults: tuple[str, ...]
    shared_factors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def group_by_module(
    tensors: Mapping[str, Tensor], endings: Iterable[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the tensors of deltas, and the other tensors.

    Args:
        tensors: by key.
        endings: of the keys of deltas, each with its leading dot.

    Returns:
        Tensors of deltas by module name and ending; other tensors by the name of the base parameter
        that they replace.
    """
    endings = tuple(endings)
    # Some programs leave the name of PEFT's adapter in the keys.
    named = {_add_adapter_name(ending): ending for ending in endings}
    groups: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path = "." + key.removeprefix(PREFIX)  # a leading dot, since endings begin with one
        for with_name, ending in named.items():
            if path.endswith(with_name):
                path = path.removesuffix(with_name) + ending
        found = [ending for ending in endings if path.endswith(ending)]
        if found:
            name = path.removesuffix(found[0])[1:]
            groups.setdefault(name, {})[found[0]] = tensor
            continue
        base_name = _base_parameter_name(path)
        if base_name is not None:
            rest[base_name] = tensor
    return groups, rest


def _add_adapter_name(ending: str) -> str:
    """Return the ending of a key with the name of PEFT's usual adapter in it.

    >>> _add_adapter_name(".lora_A.weight"), _add_adapter_name(".lora_embedding_A")
    ('.lora_A.default.weight', '.lora_embedding_A.default')
    """
    parameter, dot, rest = ending[1:].partition(".")
    return f".{parameter}.default{dot}{rest}"


def _base_parameter_name(path: str) -> str | None:
    """Return the base model's name of a tensor that is no part of a delta.

    With bias="all" PEFT also writes the biases of its wrapper around a fully trained module, and
    those of the original module inside the wrapper. The latter are copies: None.

    Args:
        path: the key without its prefix, with a leading dot.

    >>> _base_parameter_name(".score.modules_to_save.weight")
    'score.weight'
    >>> _base_parameter_name(".score.modules_to_save.default.dense.bias")
    'score.dense.bias'
    >>> _base_parameter_name(".q.base_layer.bias")
    'q.bias'
    >>> _base_parameter_name(".score.original_module.bias") is None
    True
    """
    if ".original_module." in path:
        return None
    inner = path.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    inner = inner.replace(".modules_to_save.", ".")
    return inner.removeprefix(".")
