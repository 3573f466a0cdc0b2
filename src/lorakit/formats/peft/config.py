"""adapter_config.json: read into a typed value, checked, and made into a Spec.

Source: huggingface/peft 0.21, `tuners/*/config.py`; `methods` lists the keys of each PEFT type.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.deltas.token_rows import TokenRows
from lorakit.errors import AdapterFileError
from lorakit.formats.checked_json import format_value, is_object, parse_json
from lorakit.formats.peft.methods import ADALORA, HARMLESS_KEYS, METHODS_BY_TYPE, TYING, Method
from lorakit.formats.peft.patterns import (
    MOST_EXPRESSIONS,
    ValuesByPattern,
    count_expressions,
    find_expression_fault,
    list_last_parts,
)
from lorakit.formats.peft.token_rows import NO_TARGETS, list_token_ids
from lorakit.patterns import matches
from lorakit.spec import SETTING_NAMES, Settings, Spec, full_name
from lorakit.text import add_hint, dtype_name, near_misses, print_message

CONFIG = "adapter_config.json"
EPSILON = 1e-5  # PEFT divides the alpha of AdaLoRA by rank + EPSILON
DEFAULT_ALPHA = 8
MOST_KEYS = 300
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "kaiming", "mica")
# PEFT writes these layers along after a change of the vocabulary, without a word in the config.
VOCABULARY_LAYERS = (
    "embed_tokens",
    "lm_head",
    "wte",
    "shared",
    "word_embeddings",
    "tok_embeddings",
    "embed_in",
    "embed_out",
)
# The last PEFT that adds the change of an attention's out_proj twice: every forward merges, and
# merging writes W + change and then merges the layer once more.
LAST_DOUBLING_VERSION = [0, 21]
JsonObject = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """A checked adapter_config.json.

    Attributes:
        method: the PEFT type.
        rank: of the modules that no pattern in `ranks` matches.
        alpha: likewise; None if the type has none and its scale is 1.
        ranks: by pattern.
        alphas: likewise.
        scale_rule: a name from `lorakit.spec.SCALES`.
        dropout: probability, on the input of A.
        init: the start of A, as in `Spec`.
        bias: PEFT's word for the biases that train.
        fan_in_fan_out: True if the layers are Conv1D of transformers.
        use_dora: True for DoRA.
        tie: True if an embedding and the layers that share its weight have one pair of factors.
        targets: `target_modules`; None if the config has none.
        exclude: `exclude_modules`; empty if the config has none.
        limits_layers: True if `layers_to_transform` selects some of the layers.
        full_modules: `modules_to_save`.
        target_parameters: names of adapted stacks of experts.
        kept_directions: AdaLoRA's directions that are left, by the key of E.
        base_model: name or path of the base model.
        task_type: PEFT's name of the task.
        doubles_out_proj: True if the PEFT that wrote the file adds out_proj's change twice.
    """

    method: Method
    rank: int
    alpha: float | None
    ranks: ValuesByPattern[int]
    alphas: ValuesByPattern[float]
    scale_rule: str
    dropout: float
    init: str
    bias: str
    fan_in_fan_out: bool
    use_dora: bool
    tie: bool
    targets: str | list[str] | None
    exclude: str | list[str]
    limits_layers: bool
    full_modules: list[str]
    target_parameters: list[str]
    kept_directions: Mapping[str, object]
    base_model: object
    task_type: object
    doubles_out_proj: bool

    def settings(self, name: str, kind: str = "") -> Settings:
        """Return the settings of one module.

        Args:
            name: the name that the config uses for it.
            kind: the kind of site; PEFT has no dropout for an embedding.
        """
        rank = self.ranks.find(name, self.rank)
        alpha = rank if self.alpha is None else self.alphas.find(name, self.alpha)
        return self._build_settings(rank, alpha, kind)

    def default_settings(self) -> Settings:
        """Return the settings of a module that no pattern matches."""
        return self._build_settings(self.rank, self.rank if self.alpha is None else self.alpha)

    def _build_settings(self, rank: int, alpha: float, kind: str = "") -> Settings:
        if self.method is ADALORA:
            alpha = alpha * rank / (rank + EPSILON)
        return Settings(
            rank=rank,
            alpha=alpha,
            scale_rule=self.scale_rule,
            dropout=0.0 if kind == "embedding" else self.dropout,
            init=self.init,
            init_std=None,
        )

    def kept(self, name: str) -> object:
        """Return the value that the config has for the kept directions of a module, or None."""
        return self.kept_directions.get(full_name(name, "lora_E"))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the values of a folder's config, nulls included.

    Raises:
        AdapterFileError: there is no config, or it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterFileError(
            f"{folder} is not an adapter: there is no {path}.",
            advice=f"Nothing was loaded.{_hint_at_folder(folder)}",
        )
    return parse_config_file(path)


def parse_config_file(path: Path) -> dict[str, Any]:
    """Return the values of a config, nulls included.

    Raises:
        AdapterFileError: the file cannot be read, or is not a JSON object.
    """
    try:
        content = parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
        fault = "is not JSON" if isinstance(error, ValueError) else "cannot be read"
        raise AdapterFileError(f"{path} {fault}: {error}.", advice="Nothing was loaded.") from error
    if isinstance(content, dict):
        return cast(dict[str, Any], content)
    raise _unsupported_type(path, content)


def find_method(path: Path, values: JsonObject) -> Method:
    """Return the PEFT type of a config.

    Raises:
        AdapterFileError: it is none that is supported.
    """
    peft_type = values.get("peft_type")
    method = METHODS_BY_TYPE.get(peft_type) if isinstance(peft_type, str) else None
    if method is None:
        raise _unsupported_type(path, peft_type)
    return method


def _unsupported_type(path: Path, found: object) -> AdapterFileError:
    supported = ", ".join(METHODS_BY_TYPE)
    return AdapterFileError(
        f"{path} describes {format_value(found)}; the supported values of peft_type are "
        f"{supported}.",
        advice="Nothing was loaded.",
    )


def _hint_at_folder(folder: Path) -> str:
    """Return a sentence that names the folder that was probably meant, or an empty string."""
    if folder.is_file():
        return f" Name its folder: {folder.parent}"
    if not folder.is_dir():
        return ""
    adapters = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if not adapters:
        return ""
    return f" There are adapters in it: {', '.join(adapters[:5])}."


def find_config_faults(values: JsonObject, method: Method) -> Iterator[str]:
    """Yield the keys and values that are not understood.

    Args:
        values: of the config, without nulls.
        method: the PEFT type of the file.
    """
    if len(values) > MOST_KEYS:
        yield f"{CONFIG}: {len(values):,} keys are more than the {MOST_KEYS} that are read"
        return
    for key, value in values.items():
        fault = _find_key_fault(key, value, method)
        if fault:
            yield f"{CONFIG}: {fault}"
    init = values.get("init_lora_weights", True)
    if method.is_lora and init not in PLAIN_INITS:
        yield (
            f"{CONFIG}: init_lora_weights = {format_value(init)} stores the factors relative to a "
            "base that it changed; save with PEFT's path_initial_model_for_weight_conversion"
        )
    if values.get("save_projection") is False:
        yield (
            f"{CONFIG}: save_projection is off: the shared factors are not in the file; "
            "save with save_projection=True"
        )
    words = [word for word in method.bias_words.values() if word]
    bias = values.get("bias", "none")
    if bias not in words:
        yield f"{CONFIG}: bias = {format_value(bias)} is none of {', '.join(words)}"
    yield from _find_pattern_faults(values, method)


def _find_key_fault(key: str, value: object, method: Method) -> str:
    """Return why a key with this value is not understood, or an empty string."""
    found = f"{key} = {format_value(value)}"
    kind = method.key_kinds.get(key)
    if kind is not None and not kind.check(value):
        return f"{found} is of the wrong type: {kind.name} is needed"
    is_off = value in (False, {}, [])
    if key in method.refused_keys and not is_off:
        return f"{found} is not supported"
    known = method.known_keys
    if key in known or is_off or value in ("", 0):
        return ""
    hint = near_misses(key, method.meaningful_keys, count=1)
    shown = f"{key!r} = {format_value(value)}"
    problem = f"unknown key {shown} may change the meaning of the tensors"
    return add_hint(problem, hint)


def tell_ignored_keys(folder: Path, values: JsonObject) -> None:
    """Print the keys of other programs that are ignored, if there are any.

    Args:
        folder: of the config.
        values: of the config, without nulls.
    """
    ignored = sorted(HARMLESS_KEYS.intersection(values))
    if ignored:
        print_message(f"{folder / CONFIG}: ignored, no tensor depends on it: {', '.join(ignored)}")


def _find_pattern_faults(values: JsonObject, method: Method) -> Iterator[str]:
    for setting in ("ranks", "alphas"):
        key = method.setting_keys.get(setting, "")
        patterns = cast(JsonObject, values.get(key) if is_object(values.get(key)) else {})
        count = count_expressions(patterns)
        if count > MOST_EXPRESSIONS:
            limit = f"{MOST_EXPRESSIONS:,} are the limit"
            yield f"{CONFIG}: {key} holds {count:,} regular expressions, {limit}; use names"
            continue
        for pattern in patterns:
            fault = find_expression_fault(pattern)
            if fault:
                shown = format_value(pattern)
                problem = f"holds {shown}, which is not a regular expression: {fault}"
                yield f"{CONFIG}: {key} {problem}"


def parse_config(values: JsonObject, method: Method) -> PeftConfig:
    """Return the typed config.

    Args:
        values: of the config, without nulls and without faults.
        method: the PEFT type of the file.
    """
    keys = method.setting_keys
    settings = {setting: values[key] for setting, key in keys.items() if key in values}
    is_gaussian = method.is_lora and values.get("init_lora_weights") == "gaussian"
    kept_directions: JsonObject = {}
    if method is ADALORA:
        kept_directions = values.get("rank_pattern", {})
    return PeftConfig(
        method=method,
        rank=settings.get("rank", method.default_rank),
        alpha=settings.get("alpha", DEFAULT_ALPHA) if "alpha" in keys else None,
        ranks=ValuesByPattern(settings.get("ranks", {})),
        alphas=ValuesByPattern(settings.get("alphas", {})),
        scale_rule="alpha/sqrt(rank)" if settings.get("rslora") else "alpha/rank",
        dropout=settings.get("dropout", 0.0),
        init="gaussian" if is_gaussian else "kaiming",
        bias=values.get("bias", "none"),
        fan_in_fan_out=values.get("fan_in_fan_out", False),
        use_dora=values.get("use_dora", False),
        tie=values.get(TYING, False),
        targets=values.get("target_modules"),
        exclude=values.get("exclude_modules", []),
        limits_layers=values.get("layers_to_transform") is not None,
        full_modules=values.get("modules_to_save", []),
        target_parameters=values.get("target_parameters", []),
        kept_directions=kept_directions,
        base_model=values.get("base_model_name_or_path"),
        task_type=values.get("task_type"),
        doubles_out_proj=_doubles_out_proj(values),
    )


def _doubles_out_proj(values: JsonObject) -> bool:
    version = re.findall(r"\d+", str(values.get("peft_version", "0")))
    return [int(number[:9]) for number in version[:2]] <= LAST_DOUBLING_VERSION


def is_part_of_adapter(path: str, config: PeftConfig, adapted: Collection[str]) -> bool:
    """Return True if the config lets a parameter that is no part of a delta be in the file.

    Args:
        path: the base model's name of the parameter.
        config: of the file.
        adapted: names of the adapted modules.
    """
    layer, _, key = path.rpartition(".")
    if is_saved_along(path):
        return True
    inside: set[str] = set()
    for module in _list_outer_modules(layer):
        inside.update(list_last_parts(module))
    if not inside.isdisjoint(config.full_modules):
        return True
    # PEFT's "all" takes every name with the word in it, such as T5's
    # relative_attention_bias.weight.
    if config.bias == "all":
        return "bias" in path
    return config.bias.endswith("_only") and key == "bias" and layer in adapted


def is_saved_along(path: str) -> bool:
    """Return True for a parameter of an embedding or a head that PEFT writes by itself."""
    layer, _, key = path.rpartition(".")
    return key in ("weight", "bias") and layer.rpartition(".")[2] in VOCABULARY_LAYERS


def _list_outer_modules(name: str) -> list[str]:
    """Return a module's name, and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def build_spec(
    config: PeftConfig,
    settings: Mapping[str, Settings],
    dtype: torch.dtype,
    token_rows: Mapping[str, TokenRows],
    full_parameters: Iterable[str] = (),
) -> Spec:
    """Return the spec of a file that PEFT wrote.

    Args:
        config: of the file.
        settings: by module name; those that differ from the config's defaults become overrides.
        dtype: of the tensors.
        token_rows: trained token rows by layer name.
        full_parameters: names of the fully trained parameters.
    """
    full_modules = list(config.full_modules)
    # PEFT trains no module in full that has, or shares, trained token rows.
    saved_along = [] if token_rows else filter(is_saved_along, full_parameters)
    for path in saved_along:
        layer = path.rpartition(".")[0]
        if layer not in settings and not any(matches(pattern, layer) for pattern in full_modules):
            full_modules.append(layer)
    words = {word: bias for bias, word in config.method.bias_words.items()}
    token_ids = {name: tuple(ids) for name, ids in list_token_ids(token_rows).items()}
    defaults = config.default_settings()
    spec = Spec(
        **{name: getattr(defaults, name) for name in SETTING_NAMES},
        targets=_choose_targets(config, settings),
        bias=words[config.bias],
        full_modules=tuple(full_modules),
        delta="dora" if config.use_dora else config.method.delta,
        dtype=dtype_name(dtype),
        token_rows=token_ids or (),
        tie=config.tie,
    )
    wanted = {name: requested_settings(own) for name, own in settings.items()}
    return write_overrides(spec, wanted)


def _choose_targets(config: PeftConfig, names: Iterable[str]) -> str | tuple[str, ...]:
    """Return the targets of a spec: PEFT's if they select the same in lorakit, or full names."""
    full_names = tuple(names) or "none"
    targets = config.targets
    if isinstance(targets, str) or config.exclude or config.limits_layers or config.tie:
        return full_names
    parameters = [_name_parameter(name, full_names) for name in config.target_parameters]
    return (*(targets or ()), *parameters) or full_names


def _name_parameter(parameter: str, names: Iterable[str]) -> str:
    """Return lorakit's name of a target parameter: that of the module for a module's weight."""
    module = parameter.removesuffix(".weight")
    return module if any(matches(module, name) for name in names) else parameter


def find_target_names(config: PeftConfig, names: Iterable[str]) -> tuple[str, ...] | str:
    """Return `target_modules` after exclusions: as the config has it, or an expression of names.

    Args:
        config: of the file.
        names: of the adapted modules.
    """
    names = list(names)
    targets = config.targets or names
    if targets == NO_TARGETS:
        return ()
    if isinstance(targets, str) or config.exclude or config.limits_layers:
        return "|".join(re.escape(name) for name in names)
    return tuple(targets)
