"""How PEFT writes each parameterisation: its name there, the keys of its config, and which tensor
is which.

Source: huggingface/peft 0.21, `tuners/{lora,vera,loha,lokr,adalora}`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.deltas.base import Delta
from lorakit.deltas.kinds import DELTAS
from lorakit.deltas.lokr import nearest_divisors
from lorakit.deltas.vera import SharedPair, VeRA
from lorakit.spec import Settings, full_name

PREFIX, TYING = "base_model.model.", "ensure_weight_tying"
PAIR = {"base_model.vera_A": "A", "base_model.vera_B": "B"}
LETTERS = {"r": "the rank", "o": "out", "i": "in"}


@dataclass(frozen=True)
class Method:
    """One peft_type.

    Attributes:
        delta: in Spec.delta.
        peft_type: in the config.
        roles: what the config calls rank, alpha, ranks, alphas, rslora, dropout, bias and fan; what
            is left out it has not.
        read: other keys that are read, with their types.
        silent: keys that say nothing about what the tensors mean.
        refused: keys that are read only at a value that means no.
        fixed: what else is written.
        ends: parameter -> how its key ends; empty for LoRA, whose layers have keys of their own.
        axes: parameter -> a letter for each axis; where letters agree sizes must; "1" is one.
        sets: the parameters that make a delta together; any one of these.
        rank: the rank where the config gives none.
        biases: what it calls bias="adapted"; empty where it has none.
    """

    delta: str
    peft_type: str
    roles: Mapping[str, str]
    read: Mapping[str, Any]
    silent: frozenset[str]
    refused: frozenset[str]
    fixed: Mapping[str, Any]
    ends: Mapping[str, str]
    axes: Mapping[str, str]
    sets: tuple[frozenset[str], ...]
    rank: int = 8
    biases: str = "lora_only"

    @property
    def known(self) -> set[str]:
        """Every key of its config that has a meaning here."""
        return {*TYPES, *self.roles.values(), *self.read, *self.silent, *self.refused, *SILENT}

    def types(self) -> dict[str, Any]:
        """Return the types of the keys that are read."""
        return {**{key: ROLES[role] for role, key in self.roles.items()}, **TYPES, **self.read}


ROLES: dict[str, Any] = {
    "rank": int,
    "alpha": (int, float),
    "ranks": dict,
    "alphas": dict,
    "rslora": bool,
    "dropout": (int, float),
    "bias": str,
    "fan": bool,
}
TYPES: dict[str, Any] = {
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "modules_to_save": list,
}
SILENT = {
    "peft_type",
    "peft_version",
    "auto_mapping",
    "inference_mode",
    "revision",
    "base_model_name_or_path",
    "task_type",
    "runtime_config",
    "layers_pattern",
    "layers_to_transform",
}
LORA_SILENT = frozenset({"megatron_core", "qalora_group_size", "eva_config"})
# Keys of LoraConfig that change what the tensors mean, and that this reader does not carry.
LORA_REFUSED = frozenset(
    {
        "alora_invocation_tokens",
        "arrow_config",
        "corda_config",
        "kasa_config",
        "layer_replication",
        "lora_ga_config",
        "megatron_config",
        "monteclora_config",
        "use_bdlora",
        "loftq_config",
        "velora_config",
        "lora_bias",
        "use_qalora",
    }
)
LORA_ROLES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "ranks": "rank_pattern",
    "alphas": "alpha_pattern",
    "rslora": "use_rslora",
    "dropout": "lora_dropout",
    "bias": "bias",
    "fan": "fan_in_fan_out",
}
LYCORIS = {"rank": "r", "alpha": "alpha", "ranks": "rank_pattern", "alphas": "alpha_pattern"}
HADA = {key: f".hada_{key}" for key in ("w1_a", "w1_b", "w2_a", "w2_b")}
KRON = {key: f".lokr_{key}" for key in ("w1_a", "w1_b", "w2_a", "w2_b", "w1", "w2")}
NONE: frozenset[str] = frozenset()

METHODS = {
    method.delta: method
    for method in (
        Method(
            "lora",
            "LORA",
            LORA_ROLES,
            {
                "use_dora": bool,
                "init_lora_weights": (bool, str),
                "target_parameters": list,
                "trainable_token_indices": (list, dict),
                TYING: bool,
            },
            LORA_SILENT,
            LORA_REFUSED,
            {},
            {},
            {},
            (),
        ),
        Method(
            "vera",
            "VERA",
            {"rank": "r", "dropout": "vera_dropout", "bias": "bias", "fan": "fan_in_fan_out"},
            {"save_projection": bool},
            frozenset({"projection_prng_key", "d_initial", "init_weights"}),
            NONE,
            {"save_projection": True},
            {"b": ".vera_lambda_b", "d": ".vera_lambda_d"},
            {"b": "o", "d": "r"},
            (frozenset("bd"),),
            rank=256,
            biases="vera_only",
        ),
        Method(
            "loha",
            "LOHA",
            LYCORIS,
            {},
            frozenset({"rank_dropout", "module_dropout", "init_weights"}),
            frozenset({"use_effective_conv2d"}),
            {},
            HADA,
            {"w1_a": "or", "w1_b": "ri", "w2_a": "or", "w2_b": "ri"},
            (frozenset(HADA),),
            biases="",
        ),
        Method(
            "lokr",
            "LOKR",
            LYCORIS,
            {},
            frozenset(
                {
                    "rank_dropout",
                    "module_dropout",
                    "init_weights",
                    "rank_dropout_scale",
                    "decompose_both",
                    "decompose_factor",
                }
            ),
            frozenset({"use_effective_conv2d"}),
            {},
            KRON,
            {"w1": "lm", "w1_a": "lr", "w1_b": "rm", "w2": "kn", "w2_a": "kr", "w2_b": "rn"},
            tuple(
                frozenset({*one, *two})
                for one in (("w1",), ("w1_a", "w1_b"))
                for two in (("w2",), ("w2_a", "w2_b"))
            ),
            biases="",
        ),
        Method(
            "adalora",
            "ADALORA",
            {
                "rank": "init_r",
                "alpha": "lora_alpha",
                "dropout": "lora_dropout",
                "bias": "bias",
                "fan": "fan_in_fan_out",
            },
            {"rank_pattern": dict},
            LORA_SILENT
            | {
                "r",
                "target_r",
                "tinit",
                "tfinal",
                "deltaT",
                "beta1",
                "beta2",
                "orth_reg_weight",
                "total_step",
                "use_rslora",
                "alpha_pattern",
                "init_lora_weights",
            },
            LORA_REFUSED | {TYING, "use_dora", "target_parameters", "trainable_token_indices"},
            {"r": 8, "total_step": 1},
            {"A": ".lora_A", "B": ".lora_B", "E": ".lora_E"},
            {"A": "ri", "B": "or", "E": "r1"},
            (frozenset("ABE"),),
            rank=12,
        ),
    )
}
METHODS["dora"] = METHODS["lora"]
BY_TYPE = {method.peft_type: method for method in METHODS.values()}


def tensors_of(name: str, delta: Delta) -> dict[str, Tensor]:
    """Return the tensors of a delta that is no LoRA by their keys, and those that all layers share."""
    method, found = METHODS[delta.name], {}
    for key, parameter in delta.named_parameters():
        patch = delta.name == "lokr" and key == "w2" and delta.kernel
        tensor = parameter.view(len(parameter), -1, *delta.kernel) if patch else parameter
        found[PREFIX + full_name(name, method.ends[key][1:])] = tensor
    if isinstance(delta, VeRA):
        found |= {key: getattr(delta.pair, factor) for key, factor in PAIR.items()}
    return found


def pattern_of(deltas: Mapping[str, Any]) -> dict[str, list[bool]] | None:
    """Return AdaLoRA's rank_pattern: which directions are left, by the key of E; None where all
    are.
    """
    pattern = {full_name(n, "lora_E"): d.kept.tolist() for n, d in deltas.items()}
    return None if all(all(kept) for kept in pattern.values()) else pattern


def sizes_of(deltas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys by which PEFT makes LoKr's tensors of these sizes: its own rule (-1), or the
    largest size of w1.
    """
    w1 = [[*d.factors()[0].shape, *d.shape] for d in deltas.values()]
    patches = [math.prod(d.kernel) for d in deltas.values()]
    own = all(
        (nearest_divisors(o)[0], nearest_divisors(i // k)[0]) == (a, b)
        for (a, b, o, i), k in zip(w1, patches, strict=True)
    )
    return {
        "decompose_both": any(d.w1 is None for d in deltas.values()),
        "decompose_factor": -1 if own else max(size for a, b, *_ in w1 for size in (a, b)),
    }


def beside(path: str) -> str | None:
    """Return the model's own name for a tensor that is of no change, or None of a copy that PEFT
    hides.

    With all biases PEFT also writes those of the wrapper around a module trained whole, and of the
    one it hides.

    >>> beside(".score.modules_to_save.weight"), beside(".q.base_layer.bias"), beside(".score.original_module.bias")
    ('score.weight', 'q.bias', None)
    """
    hidden = ".original_module." in path
    return (
        None
        if hidden
        else path.replace(".base_layer.", ".").replace(".modules_to_save.", ".").removeprefix(".")
    )


def sort(
    method: Method, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor], list[str]]:
    """Sort the tensors of a file: parameters by module, the rest by name, what is wrong."""
    pairs: dict[str, dict[str, Any]] = {}
    rest, pair = (
        {},
        {
            PAIR[key]: tensor
            for key, tensor in tensors.items()
            if key in PAIR and method.peft_type == "VERA"
        },
    )
    for key, tensor in tensors.items():
        path = "." + key.removeprefix(PREFIX)
        at = next((at for at, end in method.ends.items() if path.endswith(end)), None)
        if at is not None:
            found = pairs.setdefault(
                path.removesuffix(method.ends[at])[1:], {"kind": "", "kernel": ()}
            )
            if at == "w2" and tensor.ndim > 2:
                found["kernel"] = tuple(tensor.shape[2:])
                tensor = tensor.flatten(1)
            found[at] = tensor
        elif not (pair and key in PAIR) and (name := beside(path)) is not None:
            rest[name] = tensor
    faults = (
        []
        if pair.keys() == {"A", "B"} or method.peft_type != "VERA"
        else [
            f"{key}   is missing: all layers need it"
            for key, factor in PAIR.items()
            if factor not in pair
        ]
    )
    for name, found in pairs.items():
        there = found.keys() & method.axes.keys()
        if there not in method.sets:
            lacking = min((wanted ^ there for wanted in method.sets), key=len)
            faults += [
                f"{PREFIX}{name}   {at} is {'extra' if at in there else 'missing'}"
                for at in sorted(lacking)
            ]
        sizes: dict[str, int] = {"1": 1}
        for at in (at for at in method.axes if at in there):
            axes, tensor = method.axes[at], found[at]
            if tensor.ndim != len(axes) or any(
                sizes.setdefault(a, n) != n for a, n in zip(axes, tensor.shape, strict=True)
            ):
                other = ", ".join(f"{LETTERS[a]} {n}" for a, n in sizes.items() if a in LETTERS)
                faults.append(
                    f"{PREFIX}{name}   {at} is {tuple(tensor.shape)}, which does not go with the others ({other})"
                )
        found["rank"] = sizes.get("r")
        if pair.keys() == {"A", "B"} and (
            pair["A"].ndim != 2
            or pair["B"].ndim != 2
            or pair["A"].shape[0] != pair["B"].shape[1]
            or sizes.get("r") != pair["A"].shape[0]
            or sizes.get("o", 0) > pair["B"].shape[0]
        ):
            faults.append(
                f"{PREFIX}{name}   does not go with the shared A {tuple(pair['A'].shape)} and B "
                f"{tuple(pair['B'].shape)}"
            )
        found["pair"] = pair
    return pairs, rest, faults


def rank_faults(
    method: Method, config: Mapping[str, Any], name: str, found: Mapping[str, Any], rank: int
) -> list[str]:
    """Return where the tensors of a module have another rank than its config says."""
    kept = (
        (config.get("rank_pattern") or {}).get(full_name(name, "lora_E"))
        if method.delta == "adalora"
        else None
    )
    if kept is not None and (
        not isinstance(kept, list) or len(kept) != rank or any(k not in (True, False) for k in kept)
    ):
        return [f"{PREFIX}{name}   rank_pattern {kept!r} is no list of {rank} truth values"]
    wanted = rank if kept is None else sum(kept)
    return [f"{PREFIX}{name}   has rank {found['rank']}, adapter_config.json says {wanted}"] * (
        found["rank"] not in (wanted, None)
    )


def made(
    method: Method,
    name: str,
    found: Mapping[str, Any],
    settings: Settings,
    config: Mapping[str, Any],
    told: Mapping[str, Any],
    shared: dict[str, Any],
) -> Delta:
    """Return the delta of one module.

    Args:
        method: of the file.
        name: the module.
        found: its tensors, as `sort` gave them.
        settings: of the module.
        config: of the file.
        told: what our header says of it beside: kind, kernel, inputs.
        shared: what the modules before had in common; filled by the first.
    """
    more: dict[str, Any] = {at: found[at] for at in method.axes if at in found}
    if method.delta == "vera":
        more |= {
            "pair": shared.setdefault("pair", SharedPair(**found["pair"])),
            "inputs": told.get("inputs", 0),
        }
    if method.delta == "lokr":
        more["rank"] = settings.rank
    kept = (
        (config.get("rank_pattern") or {}).get(full_name(name, "lora_E"))
        if method.delta == "adalora"
        else None
    )
    if kept is not None:
        more["kept"] = torch.tensor(kept, dtype=torch.bool)
    return DELTAS[method.delta](
        **more,
        alpha=settings.alpha,
        scale_rule=settings.scale_rule,
        dropout=settings.dropout,
        kind=told.get("kind", found["kind"]),
        kernel=tuple(told.get("kernel", found["kernel"])),
    )
