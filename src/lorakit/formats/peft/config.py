"""What `adapter_config.json` of PEFT says of an adapter: written from a Spec, and read back into
one.

Source: huggingface/peft 0.21, `tuners/*/config.py`; which method has which keys, `methods` says.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lorakit.deltas.base import Delta
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.formats.peft.methods import BY_TYPE, METHODS, TYING, Method, pattern_of, sizes_of
from lorakit.formats.peft.packed import attention_of
from lorakit.formats.peft.token_rows import KEY, NO_TARGETS
from lorakit.spec import Settings, Spec, matches
from lorakit.text import near_misses

CONFIG = "adapter_config.json"
EPSILON = 1e-5  # what PEFT adds to the rank that it divides AdaLoRA by
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "kaiming")


def config_of(
    spec: Spec,
    deltas: Mapping[str, Delta],
    whole: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    target_names: Any,
    rows: Mapping[str, list[int]],
) -> dict[str, Any]:
    method = METHODS[spec.delta]
    rule = spec.scale_rule if "rslora" in method.roles else "alpha/rank"

    def alpha_of(layer: Delta | Settings) -> float:
        # One rule holds for the whole file; a module with another gets the alpha that gives its
        # scale by this rule.
        alpha, rank = layer.alpha, requested_settings(layer).rank
        if layer.scale_rule != rule:
            alpha = layer.scale * (rank if rule == "alpha/rank" else rank**0.5)
        return alpha * (rank + EPSILON) / rank if spec.delta == "adalora" else alpha

    stacks = [name for name, delta in deltas.items() if delta.kind == "experts"]
    ranks, alphas, alpha = {}, {}, alpha_of(spec.settings(""))
    for name, delta in deltas.items():
        key = "^" + re.escape(attention_of(name)) + "$"
        if delta.initial_rank != spec.rank:
            ranks[key] = delta.initial_rank
        if alpha_of(delta) != alpha:
            alphas[key] = alpha_of(delta)
    told = {
        "rank": spec.rank,
        "alpha": _whole_number(alpha),
        "ranks": ranks,
        "alphas": alphas,
        "dropout": spec.dropout,
        "rslora": rule == "alpha/sqrt(rank)",
        "bias": _biases(method)[spec.bias],
        "fan": any(delta.kind == "conv1d" for delta in deltas.values()),
    }
    targets = (
        target_names
        if isinstance(target_names, str)
        else [n for n in target_names if n not in (*stacks, *rows)]
    )
    config = {
        "peft_type": method.peft_type,
        "task_type": provenance.get("task_type"),
        "inference_mode": True,
        "base_model_name_or_path": provenance.get("base_model"),
        "target_modules": NO_TARGETS if rows and not deltas else targets,
        "modules_to_save": _modules_of(whole, spec.full_modules) or None,
        **{key: told[role] for role, key in method.roles.items()},
        **method.fixed,
    }
    if method.peft_type == "LORA":
        config |= {
            "use_dora": spec.delta == "dora",
            "target_parameters": stacks or None,
            KEY: dict(rows) or None,
        }
        config |= {TYING: True} if spec.tie else {}
        config |= {"init_lora_weights": "gaussian" if spec.init == "gaussian" else True}
    if spec.delta == "lokr":
        config |= sizes_of(deltas)
    if spec.delta == "adalora":
        mean = sum(delta.rank for delta in deltas.values()) / max(1, len(deltas))
        config |= {"rank_pattern": pattern_of(deltas), "target_r": round(mean)}
    return config


def _biases(method: Method) -> dict[str, str]:
    return {"none": "none", "adapted": method.biases, "all": "all"}


def _modules_of(whole: Mapping[str, Tensor], patterns: tuple[str, ...]) -> list[str]:
    """Return the full names of the outermost modules that the patterns name: other readers know no
    `*`.
    """
    outermost = {}
    for path in whole:
        parts = path.split(".")[:-1]
        above = (".".join(parts[: i + 1]) for i in range(len(parts)))
        outermost.update(
            dict.fromkeys([n for n in above if any(matches(p, n) for p in patterns)][:1])
        )
    return list(outermost)


def _whole_number(value: float) -> float:
    # Some readers of these files take only whole numbers for alpha.
    return int(value) if float(value).is_integer() else value


def config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    method = BY_TYPE[config["peft_type"]]
    types, known = method.types(), method.known
    for key, value in config.items():
        if key in types and not isinstance(value, types[key]):
            yield f"{CONFIG}: {key} = {value!r} is of the wrong type"
        elif key in method.refused and value not in (False, {}, []):
            yield f"{CONFIG}: {key} = {value!r} is not supported"
        elif key not in known and value not in (False, {}, [], "", 0):
            hint = near_misses(key, known, 1)
            yield f"{CONFIG}: unknown key {key!r} = {value!r} may change what the tensors mean {hint}".rstrip()
    if (
        method.peft_type == "LORA"
        and (init := config.get("init_lora_weights", True)) not in PLAIN_INITS
    ):
        yield (
            f"{CONFIG}: init_lora_weights = {init!r} stores the factors relative to a base that it changed; save with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    if config.get("save_projection") is False:
        yield f"{CONFIG}: save_projection is off: the shared factors are not in the file; save with save_projection=True"
    biases = [name for name in _biases(method).values() if name]
    if (bias := config.get("bias", "none")) not in biases:
        yield f"{CONFIG}: bias = {bias!r} is none of {', '.join(biases)}"
    for key in (method.roles[role] for role in ("ranks", "alphas") if role in method.roles):
        for pattern in config.get(key) or ():
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{CONFIG}: {key} holds {pattern!r}, which is no regular expression: {error}"


def belongs(path: str, saved: list[str], bias: str, adapted: Collection[str]) -> bool:
    layer, _, key = path.rpartition(".")
    if any(f".{name}." in f".{layer}." for name in saved):
        return True
    # PEFT's "all" takes every name that holds the word, such as T5's
    # relative_attention_bias.weight.
    return (bias == "all" and "bias" in path) or (
        bias.endswith("_only") and key == "bias" and layer in adapted
    )


def counts_twice(config: Mapping[str, Any]) -> bool:
    """Tell whether the PEFT that trained this added the change of an attention's out_proj twice:
    all up to 0.21 do.

    Its `merge`, which every forward calls, writes W + change and then merges the layer once more.
    """
    return [int(n) for n in re.findall(r"\d+", str(config.get("peft_version", "0")))[:2]] <= [0, 21]


def _pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), default)


def settings_of(config: Mapping[str, Any], name: str, embedded: bool) -> Settings:
    method = BY_TYPE[config["peft_type"]]
    told = {role: config[key] for role, key in method.roles.items() if key in config}
    rank = _pattern(told.get("ranks", {}), name, told.get("rank", method.rank))
    # Where the config has no alpha, nothing scales: alpha / rank is 1.
    alpha = (
        _pattern(told.get("alphas", {}), name, told.get("alpha", 8))
        if "alpha" in method.roles
        else rank
    )
    return Settings(
        rank=rank,
        alpha=alpha * rank / (rank + EPSILON) if method.delta == "adalora" else alpha,
        scale_rule="alpha/sqrt(rank)" if told.get("rslora") else "alpha/rank",
        # PEFT has no dropout in front of an embedding either.
        dropout=0.0 if embedded else told.get("dropout", 0.0),
        init="gaussian"
        if config.get("init_lora_weights") == "gaussian" and method.peft_type == "LORA"
        else "kaiming",
        init_std=None,
    )


def spec_of(
    config: Mapping[str, Any],
    settings: Mapping[str, Settings],
    dtype: torch.dtype,
    rows: Mapping[str, Any],
) -> Spec:
    """Return the Spec that a file of PEFT's means; settings that differ are written as overrides by
    full name.
    """
    targets, exclude = config.get("target_modules"), config.get("exclude_modules", ())
    if (stacks := config.get("target_parameters")) and not isinstance(targets, str):
        targets = (*(targets or ()), *stacks)
    if (
        isinstance(target_names_of(config, settings), str)
        or not targets
        or targets == NO_TARGETS
        or config.get(TYING)
    ):
        targets, exclude = tuple(settings) or "none", ()
    method = BY_TYPE[config["peft_type"]]
    spec = Spec(
        **asdict(settings_of({**config, "rank_pattern": {}, "alpha_pattern": {}}, "", False)),
        targets=targets,
        exclude=exclude,
        bias={v: k for k, v in _biases(method).items()}[config.get("bias", "none")],
        full_modules=config.get("modules_to_save", ()),
        delta="dora" if config.get("use_dora") else method.delta,
        dtype=str(dtype).removeprefix("torch."),
        token_rows={n: delta.tokens.tolist() for n, delta in rows.items()} or (),
        tie=config.get(TYING, False),
    )
    return write_overrides(spec, {n: requested_settings(s) for n, s in settings.items()})


def target_names_of(config: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Return what `target_modules` means once what the config takes out of it again is left out."""
    targets = config.get("target_modules") or list(names)
    if targets == NO_TARGETS:
        return ()
    if (
        isinstance(targets, str)
        or config.get("exclude_modules")
        or config.get("layers_to_transform") is not None
    ):
        return "|".join(re.escape(n) for n in names)
    return tuple(targets)
