"""PEFT's layout: `adapter_config.json` beside `adapter_model.safetensors`. It is lorakit's own layout too.

Keys are `base_model.model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank); an embedding has the bare
`.lora_embedding_A` (rank, V) and `.lora_embedding_B` (d, rank). What is trained whole stands under its own name.
The safetensors header also carries a `lorakit` entry: the spec, the list of modules, and where the adapter came from.

Source: huggingface/peft 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.delta import LowRank
from lorakit.errors import AdapterFileError, SpecError, near
from lorakit.spec import Settings, Spec

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SUFFIXES = {  # how a key ends -> (factor, kind); None: linear or conv1d, which the config tells
    ".lora_A.weight": ("A", None), ".lora_B.weight": ("B", None),
    ".lora_embedding_A": ("A", "embedding"), ".lora_embedding_B": ("B", "embedding"),
}  # fmt: skip
BIAS = {"none": "none", "adapted": "lora_only", "all": "all"}
# Keys of LoraConfig that say nothing about what the tensors mean.
SILENT = {
    "peft_type", "peft_version", "auto_mapping", "inference_mode", "revision", "base_model_name_or_path", "task_type",
    "runtime_config", "megatron_core", "qalora_group_size", "layers_pattern", "layers_to_transform", "eva_config",
}  # fmt: skip
READ = {
    "r", "lora_alpha", "use_rslora", "lora_dropout", "bias", "fan_in_fan_out", "target_modules", "exclude_modules",
    "modules_to_save", "rank_pattern", "alpha_pattern", "init_lora_weights",
}  # fmt: skip
# Keys that change what the tensors mean, and that this reader does not carry: any value but the default is refused.
DEFAULTS = dict.fromkeys(
    ["alora_invocation_tokens", "arrow_config", "corda_config", "kasa_config", "layer_replication", "lora_ga_config",
     "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "loftq_config",
     "velora_config", "lora_bias", "use_dora", "use_qalora", "ensure_weight_tying"])  # fmt: skip
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "kaiming")


def write(
    folder: str | Path,
    spec: Spec,
    deltas: Mapping[str, LowRank],
    whole: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    target_names: tuple[str, ...] | str,
) -> Path:
    """Write an adapter; each file appears whole or not at all, the weights last.

    Returns:
        The folder.

    Raises:
        AdapterFileError: a tensor is not finite; all such are named and nothing is written.
    """
    spec, folder = _exact(spec, deltas), Path(folder)
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        ends = (".lora_embedding_A", ".lora_embedding_B") if delta.kind == "embedding" else (".lora_A.weight", ".lora_B.weight")
        for end, factor in zip(ends, (delta.A, delta.B), strict=True):
            tensors[f"{PREFIX}{name}{end}"] = factor.detach().cpu().contiguous()
    for path, tensor in whole.items():
        layer, _, key = path.rpartition(".")
        tensors[f"{PREFIX}{layer}.base_layer.{key}" if layer in deltas else PREFIX + path] = tensor.detach().cpu().contiguous()
    faults = [f"{key}   {fault}" for key, t in tensors.items() if (fault := _not_finite(t))]
    if faults:
        raise AdapterFileError(f"{len(faults)} tensors are not finite.", faults, f"Nothing was written to {folder}.")
    header = {"spec": spec.to_dict(), "modules": list(deltas), "provenance": dict(provenance)}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_config(spec, deltas, provenance, target_names), indent=2, sort_keys=True)
    replace_file(folder / CONFIG, lambda part: part.write_text(text + "\n"))
    metadata = {"format": "pt", "lorakit": json.dumps(header)}
    replace_file(folder / WEIGHTS, lambda part: save_file(tensors, part, metadata))
    return folder


def replace_file(path: Path, make: Any) -> None:
    """Let `make` write a file beside `path`, then put it in place in one step: a reader sees the old one or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _exact(spec: Spec, deltas: Mapping[str, LowRank]) -> Spec:
    """Return a spec whose settings give each delta's own rank, scale and dropout."""
    changed = {}
    for name, delta in deltas.items():
        want = {"rank": delta.rank, "alpha": delta.alpha, "scale_rule": delta.scale_rule, "dropout": delta.dropout}
        have = asdict(spec.settings(name))
        if any(have[k] != v for k, v in want.items()):
            changed[name] = {**{k: v for k, v in have.items() if v is not None}, **want}
    return replace(spec, overrides={**changed, **spec.overrides}) if changed else spec


def _config(spec: Spec, deltas: Mapping[str, LowRank], provenance: Mapping[str, Any], target_names: Any) -> dict[str, Any]:
    ranks, alphas = {}, {}
    for name, delta in deltas.items():
        key = "^" + re.escape(name) + "$"
        if delta.rank != spec.rank:
            ranks[key] = delta.rank
        # One rule holds for the whole file; a module with another gets the alpha that gives its scale by this rule.
        alpha = delta.alpha
        if delta.scale_rule != spec.scale_rule:
            alpha = delta.scale * (delta.rank if spec.scale_rule == "alpha/rank" else delta.rank**0.5)
        if alpha != spec.alpha:
            alphas[key] = alpha
    kinds = Counter(delta.kind for delta in deltas.values())
    return {
        "peft_type": "LORA", "task_type": provenance.get("task_type"), "inference_mode": True,
        "base_model_name_or_path": provenance.get("base_model"), "r": spec.rank, "lora_alpha": _whole_number(spec.alpha),
        "use_rslora": spec.scale_rule == "alpha/sqrt(rank)", "lora_dropout": spec.dropout, "bias": BIAS[spec.bias],
        "fan_in_fan_out": kinds["conv1d"] > 0,
        "target_modules": target_names if isinstance(target_names, str) else list(target_names),
        "modules_to_save": list(spec.whole_modules) or None, "rank_pattern": ranks, "alpha_pattern": alphas,
        "init_lora_weights": "gaussian" if spec.init == "gaussian" else True,
    }  # fmt: skip


def _whole_number(value: float) -> float:
    # Some readers of these files take only whole numbers for alpha.
    return int(value) if float(value).is_integer() else value


def _not_finite(tensor: Tensor) -> str:
    bad = int((~torch.isfinite(tensor)).sum())
    return f"{bad} of {tensor.numel()} values are NaN or infinite" if bad else ""


def read(folder: str | Path) -> tuple[Spec, dict[str, LowRank], dict[str, nn.Parameter], dict[str, Any], Any]:
    """Read an adapter folder, written by lorakit or by PEFT.

    Returns:
        Spec, deltas by module name, whole parameters by name, provenance, and the target names of the config.

    Raises:
        AdapterFileError: no such folder or file, a file cut off, a wrong shape, a missing or an extra key, a value that is
            not finite, a config key that changes the meaning and is not understood; all faults are named.
    """
    folder = Path(folder)
    config, (tensors, header) = _read_config(folder), _read_tensors(folder)
    faults = _config_faults(config) + [f"{key}   {fault}" for key, t in tensors.items() if (fault := _not_finite(t))]
    factors: dict[str, dict[str, Any]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path = key.removeprefix(PREFIX)
        end = next((end for end in SUFFIXES if path.endswith(end)), None)
        if end is None:
            rest[path.replace(".base_layer.", ".")] = tensor
        else:
            factor, kind = SUFFIXES[end]
            kind = kind or ("conv1d" if config.get("fan_in_fan_out") else "linear")
            factors.setdefault(path.removesuffix(end), {"kind": kind})[factor] = tensor
    for name, found in factors.items():
        faults += [f"{PREFIX}{name}   {factor} is missing" for factor in "AB" if factor not in found]
        faults += [f"{PREFIX}{name}   {factor} is {tuple(t.shape)}, a matrix is needed"
                   for factor in "AB" if (t := found.get(factor)) is not None and t.ndim != 2]  # fmt: skip
    pairs = {n: f for n, f in factors.items() if all(x in f and f[x].ndim == 2 for x in "AB")}
    faults += [f"{PREFIX}{n}   A is {tuple(f['A'].shape)} and B is {tuple(f['B'].shape)}: the ranks differ"
               for n, f in pairs.items() if f["A"].shape[0] != f["B"].shape[1]]  # fmt: skip
    saved, mode = config.get("modules_to_save") or [], config.get("bias", "none")
    faults += [f"{PREFIX}{path}   is no part of the adapter that {CONFIG} describes" for path in rest
               if not _belongs(path, saved, mode, pairs)]  # fmt: skip
    modules = header.get("modules")
    if modules is not None:
        faults += [f"{PREFIX}{n}   is missing: the header lists it" for n in modules if n not in factors]
        faults += [f"{PREFIX}{n}   is extra: the header does not list it" for n in factors if n not in modules]
    if not tensors:
        faults.append("the file holds no tensor")
    if faults:
        raise _refusal(folder, faults)
    settings = {n: _settings(config, n, f["kind"]) for n, f in pairs.items()}
    faults = [f"{PREFIX}{n}   A has rank {f['A'].shape[0]}, {CONFIG} says {settings[n].rank}"
              for n, f in pairs.items() if f["A"].shape[0] != settings[n].rank]  # fmt: skip
    try:
        spec = Spec.from_dict(header["spec"]) if "spec" in header else _spec(config, settings, tensors)
    except SpecError as error:
        raise _refusal(folder, [*faults, *(error.faults or [str(error)])]) from error
    if "spec" in header:
        for n in pairs:
            told, said = spec.settings(n), settings[n]
            if abs(told.scale - said.scale) > 1e-9 * abs(told.scale):
                faults.append(f"{PREFIX}{n}   scale is {told.scale:g} in the header and {said.scale:g} by {CONFIG}: "
                              "one of them was edited")  # fmt: skip
            settings[n] = told
    if faults:
        raise _refusal(folder, faults)
    deltas = {n: LowRank(f["A"], f["B"], alpha=settings[n].alpha, scale_rule=settings[n].scale_rule,
                         dropout=settings[n].dropout, kind=f["kind"]) for n, f in pairs.items()}  # fmt: skip
    origin = {"base_model": config.get("base_model_name_or_path"), "task_type": config.get("task_type")}
    origin = {k: v for k, v in origin.items() if v} | header.get("provenance", {})
    names = config.get("target_modules") or tuple(deltas)
    whole = {path: nn.Parameter(tensor) for path, tensor in rest.items()}
    return spec, deltas, whole, origin, names if isinstance(names, str) else tuple(names)


def _refusal(folder: Path, faults: list[str]) -> AdapterFileError:
    return AdapterFileError(f"The adapter in {folder} cannot be trusted: {len(faults)} faults.", faults, "Nothing was loaded.")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        hint = f" Name its folder: {folder.parent}" if folder.is_file() else ""
        beside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        hint = hint or (f" There are adapters in it: {', '.join(beside[:5])}." if beside else "")
        raise AdapterFileError(f"{folder} is no adapter: there is no {path}.", advice=f"Nothing was loaded.{hint}")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise AdapterFileError(f"{path} is not JSON: {error}.", advice="Nothing was loaded.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise AdapterFileError(f"{path} describes {found!r}; only peft_type 'LORA' is read.", advice="Nothing was loaded.")
    return config


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLE).is_file():
        return torch.load(folder / PICKLE, map_location="cpu", weights_only=True), {}
    if not path.is_file():
        raise AdapterFileError(f"{folder} holds {CONFIG}, but neither {WEIGHTS} nor {PICKLE}.", advice="Nothing was loaded.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, no dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        size = path.stat().st_size
        raise AdapterFileError(f"{path} ({size:,} bytes) is cut off or no safetensors file: {error}.",
                               advice="Nothing was loaded.") from error  # fmt: skip
    try:
        header = json.loads(metadata.get("lorakit", "{}"))
    except ValueError as error:
        raise AdapterFileError(f"The lorakit entry in the header of {path} is not JSON: {error}.") from error
    return tensors, header


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    faults = []
    for key, value in config.items():
        if key in DEFAULTS and value not in (None, False, {}, []):
            faults.append(f"{CONFIG}: {key} = {value!r} is not supported")
        elif key not in SILENT | READ | DEFAULTS.keys() and value not in (None, False, {}, [], "", 0):
            faults.append(f"{CONFIG}: unknown key {key!r} = {value!r} may change what the tensors mean "
                          f"{near(key, SILENT | READ | DEFAULTS.keys(), 1)}".rstrip())  # fmt: skip
    if config.get("init_lora_weights", True) not in PLAIN_INITS:
        faults.append(f"{CONFIG}: init_lora_weights = {config['init_lora_weights']!r} stores the factors relative to a base that "
                      "it changed; save with PEFT's path_initial_model_for_weight_conversion")  # fmt: skip
    if config.get("bias", "none") not in BIAS.values():
        faults.append(f"{CONFIG}: bias = {config['bias']!r} is none of {', '.join(BIAS.values())}")
    return faults


def _belongs(path: str, saved: list[str], bias: str, pairs: Mapping[str, Any]) -> bool:
    layer, _, key = path.rpartition(".")
    if any(f".{name}." in f".{layer}." for name in saved):
        return True
    return key == "bias" and (bias == "all" or (bias == "lora_only" and layer in pairs))


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    return next((v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", name)), default)


def _settings(config: Mapping[str, Any], name: str, kind: str) -> Settings:
    return Settings(
        rank=_pattern(config.get("rank_pattern"), name, config.get("r", 8)),
        alpha=_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", 8)),
        scale_rule="alpha/sqrt(rank)" if config.get("use_rslora") else "alpha/rank",
        # PEFT has no dropout in front of an embedding either.
        dropout=0.0 if kind == "embedding" else config.get("lora_dropout", 0.0),
        init="gaussian" if config.get("init_lora_weights") == "gaussian" else "kaiming",
        init_std=None,
    )


def _spec(config: Mapping[str, Any], settings: Mapping[str, Settings], tensors: Mapping[str, Tensor]) -> Spec:
    """Return the Spec that a file of PEFT's means; settings that differ are written as overrides by full name."""
    base = _settings({**config, "rank_pattern": {}, "alpha_pattern": {}}, "", "linear")
    overrides = {n: {k: v for k, v in asdict(s).items() if v != getattr(base, k)} for n, s in settings.items() if s != base}
    targets, exclude = config.get("target_modules"), config.get("exclude_modules") or ()
    if isinstance(targets, str) or isinstance(exclude, str) or not targets or config.get("layers_to_transform") is not None:
        targets, exclude = tuple(settings) or "none", ()
    return Spec(
        **asdict(base), overrides=overrides, targets=targets, exclude=exclude,
        bias={v: k for k, v in BIAS.items()}[config.get("bias", "none")],
        whole_modules=config.get("modules_to_save") or (),
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    )  # fmt: skip
