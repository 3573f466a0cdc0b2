"""adapter_config.json: made from a spec and its deltas.

Source: huggingface/peft 0.21, `tuners/*/config.py`; `methods` lists the keys of each PEFT type.
"""

import math
import re
from collections.abc import Iterable, Mapping

from lorakit.deltas.adalora import AdaLoRA
from lorakit.deltas.base import Delta
from lorakit.deltas.lokr import LoKr, nearest_divisors
from lorakit.deltas.overrides import requested_settings
from lorakit.formats.parts import AdapterParts
from lorakit.formats.peft.config import EPSILON
from lorakit.formats.peft.methods import ADALORA, LOKR, METHODS_BY_DELTA, TYING, Method
from lorakit.formats.peft.origin import MARK
from lorakit.formats.peft.packed import attention_name
from lorakit.formats.peft.target_parameters import list_parameters
from lorakit.formats.peft.token_rows import IDS_KEY, NO_TARGETS, list_token_ids
from lorakit.patterns import matches
from lorakit.spec import Settings, Spec, alpha_for_scale, full_name


def build_config(spec: Spec, deltas: Mapping[str, Delta], parts: AdapterParts) -> dict[str, object]:
    """Return the values of adapter_config.json.

    Args:
        spec: the spec that the config is written from.
        deltas: as the file holds them, by the names in the file.
        parts: the adapter.
    """
    method = METHODS_BY_DELTA[spec.delta]
    token_ids = list_token_ids(parts.deltas)
    parameters = list_parameters(deltas)
    only_token_rows = bool(token_ids) and not deltas
    targets = parts.target_names
    if not isinstance(targets, str):
        others = {*parameters, *token_ids}
        targets = [name for name in targets if name not in others]
    full_modules = _find_full_modules(parts.full_parameters, spec.full_modules)
    config: dict[str, object] = {
        "auto_mapping": MARK,
        "peft_type": method.peft_type,
        "task_type": parts.provenance.get("task_type"),
        "inference_mode": True,
        "base_model_name_or_path": parts.provenance.get("base_model"),
        "target_modules": NO_TARGETS if only_token_rows else targets,
        "modules_to_save": full_modules or None,
    }
    settings = _list_settings(spec, deltas, method)
    config |= {key: settings[setting] for setting, key in method.setting_keys.items()}
    config |= method.constants
    if method.is_lora:
        config |= _list_lora_values(spec, [*parameters.values()], token_ids)
    elif method is LOKR:
        config |= _list_lokr_values(deltas)
    elif method is ADALORA:
        config |= _list_adalora_values(deltas)
    return config


def _list_settings(spec: Spec, deltas: Mapping[str, Delta], method: Method) -> dict[str, object]:
    """Return the values of the settings in `Method.setting_keys`."""
    has_rslora = "rslora" in method.setting_keys
    rule = spec.scale_rule if has_rslora else "alpha/rank"
    alpha = _alpha_under_rule(spec.settings(""), rule, method)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    parameters = list_parameters(deltas)
    for name, delta in deltas.items():
        config_name = parameters.get(name, attention_name(name))
        pattern = f"^{re.escape(config_name)}$"
        if delta.initial_rank != spec.rank:
            ranks[pattern] = delta.initial_rank
        own_alpha = _alpha_under_rule(delta, rule, method)
        if own_alpha != alpha:
            alphas[pattern] = own_alpha
    return {
        "rank": spec.rank,
        "alpha": _use_whole_number(alpha),
        "ranks": ranks,
        "alphas": alphas,
        "dropout": spec.dropout,
        "rslora": rule == "alpha/sqrt(rank)",
        "bias": method.bias_words[spec.bias],
        "fan": any(delta.kind == "conv1d" for delta in deltas.values()),
    }


def _alpha_under_rule(layer: Delta | Settings, rule: str, method: Method) -> float:
    """Return the alpha that gives a layer its scale under the one scale rule of the file."""
    rank = requested_settings(layer).rank
    alpha = layer.alpha
    if layer.scale_rule != rule:
        alpha = alpha_for_scale(layer.scale, rank, rule)
    if method is ADALORA:
        return alpha * (rank + EPSILON) / rank
    return alpha


def _use_whole_number(value: float) -> float:
    """Return a whole number as an int: some readers accept no other alpha."""
    return int(value) if float(value).is_integer() else value


def _list_lora_values(
    spec: Spec, parameters: list[str], token_ids: Mapping[str, list[int]]
) -> dict[str, object]:
    values: dict[str, object] = {
        "use_dora": spec.delta == "dora",
        "target_parameters": parameters or None,
        IDS_KEY: token_ids or None,
        "init_lora_weights": "gaussian" if spec.init == "gaussian" else True,
    }
    if spec.tie:
        values[TYING] = True
    return values


def _list_lokr_values(deltas: Mapping[str, Delta]) -> dict[str, object]:
    """Return the keys by which PEFT makes tensors of the same sizes.

    A factor of -1 is PEFT's own rule, the divisors nearest to each other; any other factor is the
    largest size of w1.
    """
    kroneckers = [delta for delta in deltas.values() if isinstance(delta, LoKr)]
    has_own_sizes = all(_has_nearest_divisors(delta) for delta in kroneckers)
    largest = [max(delta.factor("w1").shape) for delta in kroneckers]
    return {
        "decompose_both": any(delta.w1 is None for delta in kroneckers),
        "decompose_factor": -1 if has_own_sizes else max(largest),
    }


def _has_nearest_divisors(delta: LoKr) -> bool:
    """Return True if w1 has the sizes that PEFT would choose for this layer."""
    out, inputs = delta.shape
    channels = inputs // math.prod(delta.kernel)
    sizes = (nearest_divisors(out)[0], nearest_divisors(channels)[0])
    return sizes == tuple(delta.factor("w1").shape)


def _list_adalora_values(deltas: Mapping[str, Delta]) -> dict[str, object]:
    """Return the directions that are left, by the key of E, and the mean rank."""
    kept: dict[str, list[bool]] = {}
    for name, delta in deltas.items():
        if isinstance(delta, AdaLoRA):
            kept[full_name(name, "lora_E")] = delta.kept.tolist()
    is_complete = all(all(directions) for directions in kept.values())
    mean_rank = sum(delta.rank for delta in deltas.values()) / max(1, len(deltas))
    return {"rank_pattern": None if is_complete else kept, "target_r": round(mean_rank)}


def _find_full_modules(parameters: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the full names of the outermost modules that the patterns match.

    Other readers do not understand `*` in a name.

    Args:
        parameters: names of the fully trained parameters.
        patterns: `Spec.full_modules`.

    >>> _find_full_modules(["model.score.dense.weight", "model.score.out.weight"], ["sc*"])
    ['model.score']
    """
    patterns = tuple(patterns)
    outermost: dict[str, None] = {}
    for parameter in parameters:
        parts = parameter.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            module = ".".join(parts[:depth])
            if any(matches(pattern, module) for pattern in patterns):
                outermost[module] = None
                break
    return list(outermost)
