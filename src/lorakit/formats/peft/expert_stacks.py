"""Experts in PEFT's layout: the factors of a stack as two matrices, and keys nested by parameter.

A (experts, rank, in) is written (experts * rank, in), and B (experts, out, rank) as (out, rank *
experts), where the expert is the fastest axis. The keys name the module; where several of its
parameters are adapted, all but the last registered have `.base_layer` in them, one more for each
that follows.

Source: huggingface/peft 0.21, `ParamWrapper` in `tuners/lora/layer.py` and `_inject_parameters` in
    `tuners/tuners_utils.py`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lorakit.deltas.base import LowRank
from lorakit.sites.experts import STACK_NAMES

INNER = ".base_layer"


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """Return where the factors of each stack stand in a file, by its name.

    >>> keys_of(["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    {'mlp.experts.gate_up_proj': 'mlp.experts.base_layer', 'mlp.experts.down_proj': 'mlp.experts'}
    """
    modules: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: STACK_NAMES.index(name.rpartition(".")[2])):
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        name: module + INNER * (len(stacks) - 1 - at)
        for module, stacks in modules.items()
        for at, name in enumerate(stacks)
    }


def flat(delta: LowRank) -> tuple[Tensor, Tensor]:
    """Return A and B of a stack as the file's two matrices."""
    return delta.A.flatten(0, 1), delta.B.permute(1, 2, 0).flatten(1)


def stacked(
    pairs: Mapping[str, dict[str, Any]], config: Mapping[str, Any], rank_of: Any
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the factors of a file by name, those of stacks with the stack's own name and shape;
    and what is wrong.

    Args:
        pairs: factors by what the keys name.
        config: of the file; its `target_parameters` say which parameters of a module are adapted.
        rank_of: a function of a name that gives the rank that the config says.
    """
    found, faults, names = {}, [], []
    targets = config.get("target_parameters") or []
    for module in dict.fromkeys(path.replace(INNER, "") for path in pairs):
        ends = [
            t.rpartition(".")[2]
            for t in targets
            if f".{module}".endswith(f".{t.rpartition('.')[0]}")
        ]
        faults += [
            f"{module}.{end}   is no name of a stack of experts that is known: {', '.join(STACK_NAMES)}"
            for end in dict.fromkeys(ends)
            if end not in STACK_NAMES
        ]
        names += [f"{module}.{end}" for end in dict.fromkeys(ends) if end in STACK_NAMES]
    places = {path: name for name, path in keys_of(names).items()}
    faults += [
        f"{name}   is missing: target_parameters names it"
        for path, name in places.items()
        if path not in pairs
    ]
    for path, factors in pairs.items():
        if path not in places:
            found[path] = factors
            continue
        A, B, rank = factors["A"], factors["B"], rank_of(places[path])
        if rank < 1 or A.shape[0] % rank:
            faults.append(f"{path}   A has {A.shape[0]} rows, no multiple of rank {rank}")
            continue
        B = B.unflatten(1, (rank, -1)).permute(2, 0, 1)
        found[places[path]] = {
            **factors,
            "A": A.unflatten(0, (-1, rank)),
            "B": B.contiguous(),
            "kind": "experts",
        }
    return found, faults
