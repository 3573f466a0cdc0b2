"""What `adapter_config.json` of PEFT says of an adapter: written from a Spec, and read back into one.

Source: huggingface/peft 0.21, `tuners/lora/config.py`.
"""

import glob
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from lorakit.delta import LowRank
from lorakit.errors import near
from lorakit.formats.packed import attention_of
from lorakit.spec import Settings, Spec, matches

CONFIG = "adapter_config.json"
BIAS = {"none": "none", "adapted": "lora_only", "all": "all"}
# Keys of LoraConfig that say nothing about what the tensors mean.
SILENT = {
    "peft_type", "peft_version", "auto_mapping", "inference_mode", "revision", "base_model_name_or_path", "task_type",
    "runtime_config", "megatron_core", "qalora_group_size", "layers_pattern", "layers_to_transform", "eva_config",
}  # fmt: skip
READ = {  # key -> types
    "r": int, "lora_alpha": (int, float), "use_rslora": bool, "use_dora": bool, "lora_dropout": (int, float), "bias": str,
    "fan_in_fan_out": bool, "target_modules": (str, list), "exclude_modules": (str, list), "modules_to_save": list,
    "target_parameters": list, "rank_pattern": dict, "alpha_pattern": dict, "init_lora_weights": (bool, str),
}  # fmt: skip
# Keys that change what the tensors mean, and that this reader does not carry: any value but the default is refused.
REFUSED = {
    "alora_invocation_tokens", "arrow_config", "corda_config", "kasa_config", "layer_replication", "lora_ga_config",
    "megatron_config", "monteclora_config", "trainable_token_indices", "use_bdlora", "loftq_config",
    "velora_config", "lora_bias", "use_qalora", "ensure_weight_tying",
}  # fmt: skip
KNOWN = SILENT | READ.keys() | REFUSED
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "kaiming")


def asked(layer: LowRank | Settings) -> dict[str, Any]:
    return {key: getattr(layer, key) for key in ("rank", "alpha", "scale_rule", "dropout")}


def spelled_out(spec: Spec, wanted: Mapping[str, Mapping[str, Any]]) -> Spec:
    """Return the spec, with overrides by full name where it does not give a layer what is wanted for it."""
    own: dict[str, Any] = {}
    full = spec
    while lacking := {n: w for n, w in wanted.items() if asked(full.settings(n)) != w}:
        own |= {n: {**spec.change(n), **w} for n, w in lacking.items()}
        # The longest first: a full name also matches names that end in it.
        first = {glob.escape(name): own[name] for name in sorted(own, key=len, reverse=True)}
        full = replace(spec, overrides={**first, **{p: c for p, c in spec.overrides.items() if p not in first}})
    return full


def config_of(spec: Spec, deltas: Mapping[str, LowRank], whole: Mapping[str, Tensor], provenance: Mapping[str, Any],
            target_names: Any) -> dict[str, Any]:  # fmt: skip
    ranks, alphas = {}, {}
    stacks = [name for name, delta in deltas.items() if delta.kind == "experts"]
    for name, delta in deltas.items():
        key = "^" + re.escape(attention_of(name)) + "$"
        if delta.rank != spec.rank:
            ranks[key] = delta.rank
        # One rule holds for the whole file; a module with another gets the alpha that gives its scale by this rule.
        alpha = delta.alpha
        if delta.scale_rule != spec.scale_rule:
            alpha = delta.scale * (delta.rank if spec.scale_rule == "alpha/rank" else delta.rank**0.5)
        if alpha != spec.alpha:
            alphas[key] = alpha
    return {
        "peft_type": "LORA", "task_type": provenance.get("task_type"), "inference_mode": True,
        "base_model_name_or_path": provenance.get("base_model"), "r": spec.rank, "lora_alpha": _whole_number(spec.alpha),
        "use_dora": spec.delta == "dora", "use_rslora": spec.scale_rule == "alpha/sqrt(rank)", "lora_dropout": spec.dropout,
        "bias": BIAS[spec.bias],
        "fan_in_fan_out": any(delta.kind == "conv1d" for delta in deltas.values()),
        "target_modules": target_names if isinstance(target_names, str) else [n for n in target_names if n not in stacks],
        "target_parameters": stacks or None,
        "modules_to_save": _modules_of(whole, spec.whole_modules) or None, "rank_pattern": ranks, "alpha_pattern": alphas,
        "init_lora_weights": "gaussian" if spec.init == "gaussian" else True,
    }  # fmt: skip


def _modules_of(whole: Mapping[str, Tensor], patterns: tuple[str, ...]) -> list[str]:
    """Return the full names of the outermost modules that the patterns name: other readers know no `*`."""
    outermost = {}
    for path in whole:
        parts = path.split(".")[:-1]
        above = (".".join(parts[: i + 1]) for i in range(len(parts)))
        outermost.update(dict.fromkeys([n for n in above if any(matches(p, n) for p in patterns)][:1]))
    return list(outermost)


def _whole_number(value: float) -> float:
    # Some readers of these files take only whole numbers for alpha.
    return int(value) if float(value).is_integer() else value


def config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        if key in READ and not isinstance(value, READ[key]):
            yield f"{CONFIG}: {key} = {value!r} is of the wrong type"
        elif key in REFUSED and value not in (False, {}, []):
            yield f"{CONFIG}: {key} = {value!r} is not supported"
        elif key not in KNOWN and value not in (False, {}, [], "", 0):
            hint = near(key, KNOWN, 1)
            yield f"{CONFIG}: unknown key {key!r} = {value!r} may change what the tensors mean {hint}".rstrip()
    if (init := config.get("init_lora_weights", True)) not in PLAIN_INITS:
        yield (f"{CONFIG}: init_lora_weights = {init!r} stores the factors relative to a base that it changed; save with "
               "PEFT's path_initial_model_for_weight_conversion")  # fmt: skip
    if (bias := config.get("bias", "none")) not in BIAS.values():
        yield f"{CONFIG}: bias = {bias!r} is none of {', '.join(BIAS.values())}"
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config.get(key) or ():
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{CONFIG}: {key} holds {pattern!r}, which is no regular expression: {error}"


def belongs(path: str, saved: list[str], bias: str, adapted: Collection[str]) -> bool:
    layer, _, key = path.rpartition(".")
    if any(f".{name}." in f".{layer}." for name in saved):
        return True
    # PEFT's "all" takes every name that holds the word, such as T5's relative_attention_bias.weight.
    return (bias == "all" and "bias" in path) or (bias == "lora_only" and key == "bias" and layer in adapted)


def counts_twice(config: Mapping[str, Any]) -> bool:
    """Tell whether the PEFT that trained this added the change of an attention's out_proj twice: all up to 0.21 do.

    Its `merge`, which every forward calls, writes W + change and then merges the layer once more.
    """
    return [int(n) for n in re.findall(r"\d+", str(config.get("peft_version", "0")))[:2]] <= [0, 21]


def _pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), default)


def settings_of(config: Mapping[str, Any], name: str, embedded: bool) -> Settings:
    return Settings(
        rank=_pattern(config.get("rank_pattern", {}), name, config.get("r", 8)),
        alpha=_pattern(config.get("alpha_pattern", {}), name, config.get("lora_alpha", 8)),
        scale_rule="alpha/sqrt(rank)" if config.get("use_rslora") else "alpha/rank",
        # PEFT has no dropout in front of an embedding either.
        dropout=0.0 if embedded else config.get("lora_dropout", 0.0),
        init="gaussian" if config.get("init_lora_weights") == "gaussian" else "kaiming",
        init_std=None,
    )


def spec_of(config: Mapping[str, Any], settings: Mapping[str, Settings], tensors: Mapping[str, Tensor]) -> Spec:
    """Return the Spec that a file of PEFT's means; settings that differ are written as overrides by full name."""
    targets, exclude = config.get("target_modules"), config.get("exclude_modules", ())
    if (stacks := config.get("target_parameters")) and not isinstance(targets, str):
        targets = (*(targets or ()), *stacks)
    if isinstance(target_names_of(config, settings), str) or not targets:
        targets, exclude = tuple(settings) or "none", ()
    spec = Spec(
        **asdict(settings_of({**config, "rank_pattern": {}, "alpha_pattern": {}}, "", False)),
        targets=targets, exclude=exclude, bias={v: k for k, v in BIAS.items()}[config.get("bias", "none")],
        whole_modules=config.get("modules_to_save", ()), delta="dora" if config.get("use_dora") else "lora",
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    )  # fmt: skip
    return spelled_out(spec, {n: asked(s) for n, s in settings.items()})


def target_names_of(config: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Return what `target_modules` means once what the config takes out of it again is left out."""
    targets = config.get("target_modules") or list(names)
    if isinstance(targets, str) or config.get("exclude_modules") or config.get("layers_to_transform") is not None:
        return "|".join(re.escape(n) for n in names)
    return tuple(targets)
