"""PEFT's layout: `adapter_config.json` beside `adapter_model.safetensors`. It is lorakit's own layout too.

Keys are `base_model.model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank); an embedding has the bare
`.lora_embedding_A` (rank, V) and `.lora_embedding_B` (d, rank). What is trained whole stands under its own name.
The safetensors header also carries a `lorakit` entry: the spec, the list of modules, and where the adapter came from.

Source: huggingface/peft 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import glob
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.delta import LowRank
from lorakit.errors import AdapterFileError, SpecError, near
from lorakit.spec import Settings, Spec, full_name, matches, setting_faults

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SUFFIXES = {  # how a key ends -> (factor, whether of an embedding)
    ".lora_A.weight": ("A", False), ".lora_B.weight": ("B", False),
    ".lora_embedding_A": ("A", True), ".lora_embedding_B": ("B", True),
}  # fmt: skip
BIAS = {"none": "none", "adapted": "lora_only", "all": "all"}
# Keys of LoraConfig that say nothing about what the tensors mean.
SILENT = {
    "peft_type", "peft_version", "auto_mapping", "inference_mode", "revision", "base_model_name_or_path", "task_type",
    "runtime_config", "megatron_core", "qalora_group_size", "layers_pattern", "layers_to_transform", "eva_config",
}  # fmt: skip
READ = {  # key -> types
    "r": int, "lora_alpha": (int, float), "use_rslora": bool, "lora_dropout": (int, float), "bias": str,
    "fan_in_fan_out": bool, "target_modules": (str, list), "exclude_modules": (str, list), "modules_to_save": list,
    "rank_pattern": dict, "alpha_pattern": dict, "init_lora_weights": (bool, str),
}  # fmt: skip
# Keys that change what the tensors mean, and that this reader does not carry: any value but the default is refused.
REFUSED = {
    "alora_invocation_tokens", "arrow_config", "corda_config", "kasa_config", "layer_replication", "lora_ga_config",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "loftq_config",
    "velora_config", "lora_bias", "use_dora", "use_qalora", "ensure_weight_tying",
}  # fmt: skip
KNOWN = SILENT | READ.keys() | REFUSED
PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva", "kaiming")


def write(
    folder: str | Path,
    spec: Spec,
    deltas: Mapping[str, LowRank],
    whole: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    target_names: tuple[str, ...] | str,
) -> Path:
    """Write an adapter; both files are complete before either takes its place.

    Returns:
        The folder.

    Raises:
        AdapterFileError: a tensor is not finite or has no values, or the folder is a file; all are named and nothing is
            written.
    """
    spec, folder = spelled_out(spec, {name: _asked(delta) for name, delta in deltas.items()}), Path(folder)
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        ends = ("lora_embedding_A", "lora_embedding_B") if delta.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
        ones = [1] * len(delta.kernel)
        factors = (
            (delta.A.view(delta.rank, -1, *delta.kernel), delta.B.view(*delta.B.shape, *ones)) if ones else (delta.A, delta.B)
        )
        for end, factor in zip(ends, factors, strict=True):
            tensors[PREFIX + full_name(name, end)] = factor
    for path, tensor in whole.items():
        layer, _, key = path.rpartition(".")
        tensors[PREFIX + (full_name(layer, f"base_layer.{key}") if layer in deltas else path)] = tensor
    faults = [f"{key}   {fault}" for key, t in tensors.items() if (fault := _unusable(t))]
    if faults:
        raise AdapterFileError(f"{len(faults)} tensors cannot be saved.", faults, f"Nothing was written to {folder}.")
    if folder.exists() and not folder.is_dir():
        raise AdapterFileError(f"{folder} is a file; an adapter is a folder.", advice="Nothing was written.")
    header = {"spec": spec.to_dict(), "modules": {n: d.kind for n, d in deltas.items()}, "provenance": dict(provenance)}
    metadata = {"format": "pt", "lorakit": json.dumps(header)}
    config = json.dumps(_config(spec, deltas, whole, provenance, target_names), indent=2, sort_keys=True) + "\n"
    on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    replace_files(folder, {
        CONFIG: lambda part: part.write_text(config, encoding="utf-8"),
        WEIGHTS: lambda part: save_file(on_cpu, part, metadata),
    })  # fmt: skip
    return folder


def replace_files(folder: Path, makers: Mapping[str, Callable[[Path], Any]]) -> None:
    """Make every file beside its place, then put all in place: a reader sees the old ones or the new ones."""
    parts = {name: folder / f".{name}.{os.getpid()}.part" for name in makers}
    try:
        for name, make in makers.items():
            make(parts[name])
            with parts[name].open("rb") as file:
                os.fsync(file.fileno())
        for name, part in parts.items():
            part.replace(folder / name)
    except SafetensorError as error:  # its writer's own kind: the disk is full, mostly
        raise OSError(f"{folder} cannot be written: {error}") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _asked(layer: LowRank | Settings) -> dict[str, Any]:
    return {key: getattr(layer, key) for key in ("rank", "alpha", "scale_rule", "dropout")}


def spelled_out(spec: Spec, wanted: Mapping[str, Mapping[str, Any]]) -> Spec:
    """Return the spec, with overrides by full name where it does not give a layer what is wanted for it."""
    own: dict[str, Any] = {}
    full = spec
    while lacking := {n: w for n, w in wanted.items() if _asked(full.settings(n)) != w}:
        own |= {n: {**spec.change(n), **w} for n, w in lacking.items()}
        # The longest first: a full name also matches names that end in it.
        first = {glob.escape(name): own[name] for name in sorted(own, key=len, reverse=True)}
        full = replace(spec, overrides={**first, **{p: c for p, c in spec.overrides.items() if p not in first}})
    return full


def _config(spec: Spec, deltas: Mapping[str, LowRank], whole: Mapping[str, Tensor], provenance: Mapping[str, Any],
            target_names: Any) -> dict[str, Any]:  # fmt: skip
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
    return {
        "peft_type": "LORA", "task_type": provenance.get("task_type"), "inference_mode": True,
        "base_model_name_or_path": provenance.get("base_model"), "r": spec.rank, "lora_alpha": _whole_number(spec.alpha),
        "use_rslora": spec.scale_rule == "alpha/sqrt(rank)", "lora_dropout": spec.dropout, "bias": BIAS[spec.bias],
        "fan_in_fan_out": any(delta.kind == "conv1d" for delta in deltas.values()),
        "target_modules": target_names if isinstance(target_names, str) else list(target_names),
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


def _unusable(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "has no values: it is on the meta device"
    if not tensor.is_floating_point():
        return f"is {str(tensor.dtype).removeprefix('torch.')}: numbers with a fraction are needed"
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
    faults = [*_config_faults(config), *_header_faults(header)]
    faults += [f"{key}   {fault}" for key, t in tensors.items() if (fault := _unusable(t))]
    if not tensors:
        faults.append("the file holds no tensor")
    pairs, rest, more = _sort(tensors)
    faults += more
    if any(fault.startswith((CONFIG, "header")) for fault in faults):
        raise _refusal(folder, faults)  # what the config says cannot be compared with the tensors
    saved, mode, modules = config.get("modules_to_save", []), config.get("bias", "none"), header.get("modules")
    faults += [f"{PREFIX}{path}   is no part of the adapter that {CONFIG} describes" for path in rest
               if not _belongs(path, saved, mode, pairs)]  # fmt: skip
    if modules is not None:
        faults += [f"{PREFIX}{n}   is missing: the header lists it" for n in modules if n not in pairs]
        faults += [f"{PREFIX}{n}   is extra: the header does not list it" for n in pairs if n not in modules]
    settings = {n: _settings(config, n, kind == "embedding") for n, (_, _, kind, _) in pairs.items()}
    wrong = (f"{CONFIG}: {key}: {fault}" for s in settings.values() for key, fault in setting_faults(asdict(s)))
    faults += dict.fromkeys(wrong)
    faults += [f"{PREFIX}{n}   A has rank {A.shape[0]}, {CONFIG} says {settings[n].rank}"
               for n, (A, *_) in pairs.items() if A.shape[0] != settings[n].rank]  # fmt: skip
    if faults:
        raise _refusal(folder, faults)
    try:
        spec = Spec.from_dict(header["spec"]) if "spec" in header else _spec(config, settings, tensors)
    except SpecError as error:
        raise _refusal(folder, error.faults) from error
    if "spec" in header:
        told = {n: spec.settings(n) for n in pairs}
        faults = [f"{PREFIX}{n}   scale is {told[n].scale:g} in the header, {said.scale:g} by {CONFIG}: one of them was edited"
                  for n, said in settings.items() if abs(told[n].scale - said.scale) > 1e-9 * abs(said.scale)]  # fmt: skip
        settings = told
    if faults:
        raise _refusal(folder, faults)
    plain = "conv1d" if config.get("fan_in_fan_out") else "linear"
    deltas = {n: LowRank(A, B, alpha=settings[n].alpha, scale_rule=settings[n].scale_rule, dropout=settings[n].dropout,
                         kind=modules[n] if modules else kind or plain, kernel=kernel)
              for n in modules or pairs for A, B, kind, kernel in [pairs[n]]}  # fmt: skip
    origin = {"base_model": config.get("base_model_name_or_path"), "task_type": config.get("task_type")}
    origin = {k: v for k, v in origin.items() if v} | header.get("provenance", {})
    return spec, deltas, {n: nn.Parameter(t) for n, t in rest.items()}, origin, _target_names(config, deltas)


def _sort(tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[Tensor, Tensor, str, Any]], dict[str, Tensor], list[str]]:
    """Sort the tensors of a file: (A, B, kind if the keys tell it, kernel) by module, the rest by name, what does not pair."""
    factors: dict[str, dict[str, Any]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path = "." + key.removeprefix(PREFIX)
        end = next((end for end in SUFFIXES if path.endswith(end)), None)
        if end is None:
            # With all biases PEFT also writes those of the wrapper around a module trained whole, and of the one it hides.
            if ".original_module." not in path:
                rest[path.replace(".base_layer.", ".").replace(".modules_to_save.", ".")[1:]] = tensor
        else:
            factor, embedded = SUFFIXES[end]
            new = {"kind": "embedding" if embedded else "", "kernel": ()}
            factors.setdefault(path.removesuffix(end)[1:], new)[factor] = tensor
    faults = []
    for name, found in factors.items():
        kernel = found["A"].shape[2:] if {"A", "B"} <= found.keys() and found["A"].ndim in (3, 4, 5) else ()
        if kernel and found["B"].ndim == found["A"].ndim and not any(n > 1 for n in found["B"].shape[2:]):
            found |= {
                "A": found["A"].flatten(1),
                "B": found["B"].flatten(1),
                "kind": f"convolution{len(kernel)}d",
                "kernel": kernel,
            }
        faults += [f"{PREFIX}{name}   {factor} is missing" for factor in "AB" if factor not in found]
        faults += [f"{PREFIX}{name}   {factor} is {tuple(t.shape)}, a matrix is needed"
                   for factor in "AB" if (t := found.get(factor)) is not None and t.ndim != 2]  # fmt: skip
    pairs = {n: (f["A"], f["B"], f["kind"], f["kernel"]) for n, f in factors.items()
             if all(x in f and f[x].ndim == 2 for x in "AB")}  # fmt: skip
    faults += [f"{PREFIX}{n}   A is {tuple(A.shape)} and B is {tuple(B.shape)}: the ranks differ"
               for n, (A, B, *_) in pairs.items() if A.shape[0] != B.shape[1]]  # fmt: skip
    # PEFT also writes the weight of an embedding that it adapts, which it has not trained.
    frozen = {full_name(n, "weight") for n, (_, _, kind, _) in pairs.items() if kind == "embedding"}
    return pairs, {path: tensor for path, tensor in rest.items() if path not in frozen}, faults


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
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterFileError(f"{path} is not JSON: {error}.", advice="Nothing was loaded.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise AdapterFileError(f"{path} describes {found!r}; only peft_type 'LORA' is read.", advice="Nothing was loaded.")
    return {key: value for key, value in config.items() if value is not None}


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / PICKLE
    if not path.is_file():
        raise AdapterFileError(f"{folder} holds {CONFIG}, but neither {WEIGHTS} nor {PICKLE}.", advice="Nothing was loaded.")
    size, metadata = path.stat().st_size, {}
    try:
        if path.name == PICKLE:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, no dict)
                metadata = file.metadata() or {}
    except Exception as error:  # a file from elsewhere can make its reader raise anything
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise AdapterFileError(f"{path} ({size:,} bytes) is cut off, or holds something else than tensors: {reason}.",
                               advice="Nothing was loaded.") from error  # fmt: skip
    if not isinstance(tensors, dict) or not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()):
        raise AdapterFileError(f"{path} does not hold tensors by name.", advice="Nothing was loaded.")
    try:
        header = json.loads(metadata.get("lorakit", "{}"))
    except ValueError as error:
        raise AdapterFileError(f"The lorakit entry in the header of {path} is not JSON: {error}.",
                               advice="Nothing was loaded.") from error  # fmt: skip
    return tensors, header


def _header_faults(header: Any) -> Iterator[str]:
    if not isinstance(header, dict):
        yield f"header: an object is needed, got {header!r}"
        return
    for key in ("spec", "modules", "provenance"):
        if key in header and not isinstance(header[key], dict):
            yield f"header: {key} = {header[key]!r} is no object"


def _config_faults(config: Mapping[str, Any]) -> Iterator[str]:
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


def _belongs(path: str, saved: list[str], bias: str, pairs: Mapping[str, Any]) -> bool:
    layer, _, key = path.rpartition(".")
    if any(f".{name}." in f".{layer}." for name in saved):
        return True
    # PEFT's "all" takes every name that holds the word, such as T5's relative_attention_bias.weight.
    return (bias == "all" and "bias" in path) or (bias == "lora_only" and key == "bias" and layer in pairs)


def _pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), default)


def _settings(config: Mapping[str, Any], name: str, embedded: bool) -> Settings:
    return Settings(
        rank=_pattern(config.get("rank_pattern", {}), name, config.get("r", 8)),
        alpha=_pattern(config.get("alpha_pattern", {}), name, config.get("lora_alpha", 8)),
        scale_rule="alpha/sqrt(rank)" if config.get("use_rslora") else "alpha/rank",
        # PEFT has no dropout in front of an embedding either.
        dropout=0.0 if embedded else config.get("lora_dropout", 0.0),
        init="gaussian" if config.get("init_lora_weights") == "gaussian" else "kaiming",
        init_std=None,
    )


def _spec(config: Mapping[str, Any], settings: Mapping[str, Settings], tensors: Mapping[str, Tensor]) -> Spec:
    """Return the Spec that a file of PEFT's means; settings that differ are written as overrides by full name."""
    targets, exclude = config.get("target_modules"), config.get("exclude_modules", ())
    if isinstance(_target_names(config, settings), str) or not targets:
        targets, exclude = tuple(settings) or "none", ()
    spec = Spec(
        **asdict(_settings({**config, "rank_pattern": {}, "alpha_pattern": {}}, "", False)),
        targets=targets, exclude=exclude, bias={v: k for k, v in BIAS.items()}[config.get("bias", "none")],
        whole_modules=config.get("modules_to_save", ()),
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    )  # fmt: skip
    return spelled_out(spec, {n: _asked(s) for n, s in settings.items()})


def _target_names(config: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Return what `target_modules` means once what the config takes out of it again is left out."""
    targets = config.get("target_modules") or list(names)
    if isinstance(targets, str) or config.get("exclude_modules") or config.get("layers_to_transform") is not None:
        return "|".join(re.escape(n) for n in names)
    return tuple(targets)
