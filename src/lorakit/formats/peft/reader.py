"""Reading of an adapter in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank); an
embedding has the bare `.lora_embedding_A` (rank, V) and `.lora_embedding_B` (d, rank). Fully
trained parameters have their own names. A file of lorakit also has a `lorakit` entry in its
safetensors header: the spec, the list of modules, and the provenance.

Source: huggingface/peft 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lorakit.deltas.base import Delta
from lorakit.deltas.kinds import DELTAS
from lorakit.deltas.tied import TiedLowRank, retie
from lorakit.errors import AdapterFileError, SpecError
from lorakit.formats.parts import AdapterParts
from lorakit.formats.peft.config import (
    CONFIG,
    belongs,
    config_faults,
    counts_twice,
    settings_of,
    spec_of,
    target_names_of,
)
from lorakit.formats.peft.expert_stacks import stacked
from lorakit.formats.peft.methods import (
    BY_TYPE,
    PREFIX,
    beside,
    made,
    rank_faults,
    sort,
)
from lorakit.formats.peft.packed import attention_of, attentions, unpack
from lorakit.formats.peft.spec_header import spec_from_header
from lorakit.formats.peft.token_rows import take
from lorakit.formats.peft.writer import WEIGHTS
from lorakit.formats.values import value_fault
from lorakit.spec import full_name, setting_faults
from lorakit.text import plural

PICKLE = "adapter_model.bin"
SUFFIXES = {  # how a key ends -> (factor, whether of an embedding)
    ".lora_A.weight": ("A", False),
    ".lora_B.weight": ("B", False),
    ".lora_embedding_A": ("A", True),
    ".lora_embedding_B": ("B", True),
    ".lora_magnitude_vector": ("magnitude", False),
}
GROUPS = "; PEFT's do for a convolution with groups, where its A mixes the channels of all: no change of the weight does that"


def read(
    folder: str | Path,
) -> AdapterParts:
    """Read an adapter folder, written by lorakit or by PEFT.

    Raises:
        AdapterFileError: no such folder or file, a file cut off, a wrong shape, a missing or an
            extra key, a value that is not finite, a config key that changes the meaning and is not
            understood; all faults are named.
    """
    folder = Path(folder)
    config, (tensors, header) = _read_config(folder), _read_tensors(folder)
    faults = [*config_faults(config), *_header_faults(header)]
    faults += [f"{key}   {fault}" for key, t in tensors.items() if (fault := value_fault(t))]
    if not tensors:
        faults.append("the file holds no tensor")
    method, dtype = (
        BY_TYPE[config["peft_type"]],
        next(iter(tensors.values())).dtype if tensors else torch.float32,
    )
    rows, more = take(tensors, config, header if isinstance(header, dict) else {})
    faults += more
    pairs, rest, more = sort(method, tensors) if method.ends else _sort(tensors)
    faults += more
    if any(fault.startswith((CONFIG, "header")) for fault in faults):
        raise _refusal(folder, faults)  # what the config says cannot be compared with the tensors
    pairs, more = stacked(pairs, config, lambda name: settings_of(config, name, False).rank)
    faults += more
    saved, mode, modules = (
        config.get("modules_to_save", []),
        config.get("bias", "none"),
        header.get("modules"),
    )
    packed = header.get("packed", {})
    # Where no note tells what a MultiheadAttention's tensors are, PEFT wrote them: both, of one
    # rank.
    called = {} if packed else attentions(pairs)
    for n in [n for n in called if called[n] in pairs]:
        pairs[n] = {**pairs.pop(called[n]), "kind": n.rpartition(".")[2]}
    faults += [
        f"{PREFIX}{path}   is no part of the adapter that {CONFIG} describes"
        for path in rest
        if not belongs(
            path, saved, mode, {*pairs, *(part for parts in packed.values() for part in parts)}
        )
    ]
    if modules is not None:
        faults += [
            f"{PREFIX}{n}   is missing: the header lists it" for n in modules if n not in pairs
        ]
        faults += [
            f"{PREFIX}{n}   is extra: the header does not list it"
            for n in pairs
            if n not in modules
        ]
    settings = {
        n: settings_of(config, attention_of(called.get(n, n)), f["kind"] == "embedding")
        for n, f in pairs.items()
    }
    if counts_twice(config):
        settings |= {
            n: replace(settings[n], alpha=2 * settings[n].alpha)
            for n in called
            if n.endswith("out_proj")
        }
    wrong = (
        f"{CONFIG}: {key}: {fault}"
        for s in settings.values()
        for key, fault in setting_faults(asdict(s))
    )
    faults += dict.fromkeys(wrong)
    if method.ends:
        faults += [
            fault
            for n, f in pairs.items()
            for fault in rank_faults(method, config, n, f, settings[n].rank)
        ]
    else:
        faults += [
            f"{PREFIX}{n}   A has rank {f['A'].shape[-2]}, {CONFIG} says {settings[n].rank}"
            for n, f in pairs.items()
            if f["A"].shape[-2] != settings[n].rank
        ]
        dora = config.get("use_dora", False)
        faults += [
            f"{PREFIX}{n}   magnitude is {'missing: use_dora is on' if dora else 'extra: use_dora is off'}"
            for n, f in pairs.items()
            if ("magnitude" in f) != dora
        ]
    if faults:
        raise _refusal(folder, faults)
    try:
        spec = (
            spec_from_header(header["spec"])
            if "spec" in header
            else spec_of(config, settings, dtype, rows)
        )
    except SpecError as error:
        raise _refusal(folder, error.faults) from error
    if "spec" in header:
        told = {n: said if n in packed else spec.settings(n) for n, said in settings.items()}
        faults = [
            f"{PREFIX}{n}   scale is {told[n].scale:g} in the header, {said.scale:g} by {CONFIG}: one of them was edited"
            for n, said in settings.items()
            if "alpha" in method.roles and abs(told[n].scale - said.scale) > 1e-9 * abs(said.scale)
        ]
        settings = told
    if faults:
        raise _refusal(folder, faults)
    plain = "conv1d" if config.get("fan_in_fan_out") else "linear"
    deltas: dict[str, Delta] = {}
    shared: dict[str, Any] = {}
    for n in modules or pairs:
        if method.ends:
            beside = header.get("told", {}).get(n, {}) | ({"kind": modules[n]} if modules else {})
            deltas[n] = made(method, n, pairs[n], settings[n], config, beside, shared)
            continue
        if n in packed:
            kind = modules[n] if modules else plain
            deltas |= unpack(
                n,
                pairs[n]["A"],
                pairs[n]["B"],
                settings[n].scale,
                packed[n],
                kind,
                pairs[n]["kernel"],
                spec,
            )
            continue
        tensors_of = {key: pairs[n][key] for key in ("A", "B", "magnitude") if key in pairs[n]}
        deltas[n] = DELTAS[spec.delta](
            **tensors_of,
            alpha=settings[n].alpha,
            scale_rule=settings[n].scale_rule,
            dropout=settings[n].dropout,
            kind=modules[n] if modules else pairs[n]["kind"] or plain,
            kernel=pairs[n]["kernel"],
        )
    origin = {
        "base_model": config.get("base_model_name_or_path"),
        "task_type": config.get("task_type"),
    }
    origin = {k: v for k, v in origin.items() if v} | header.get("provenance", {})
    deltas = retie(deltas) if spec.tie else deltas
    if spec.tie and not any(isinstance(delta, TiedLowRank) for delta in deltas.values()):
        if "spec" in header:
            raise _refusal(
                folder,
                [
                    "header: tie is on, but no layer has the factors of an embedding: one of them was edited"
                ],
            )
        spec = replace(spec, tie=False)  # PEFT says so too where it found nothing to tie
    deltas |= rows
    return AdapterParts(
        spec,
        deltas,
        {n: nn.Parameter(t) for n, t in rest.items()},
        origin,
        target_names_of(config, modules or pairs),
    )


def _sort(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor], list[str]]:
    """Sort the tensors of a file: factors, kind (if the keys tell it) and kernel by module, the
    rest by name, what is wrong.
    """
    factors: dict[str, dict[str, Any]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path = "." + key.removeprefix(PREFIX)
        end = next((end for end in SUFFIXES if path.endswith(end)), None)
        if end is None:
            if (name := beside(path)) is not None:
                rest[name] = tensor
        else:
            factor, embedded = SUFFIXES[end]
            found = factors.setdefault(path.removesuffix(end)[1:], {"kind": "", "kernel": ()})
            found |= {factor: tensor, "kind": "embedding" if embedded else found["kind"]}
    faults = []
    for name, found in factors.items():
        kernel = (
            found["A"].shape[2:]
            if {"A", "B"} <= found.keys() and found["A"].ndim in (3, 4, 5)
            else ()
        )
        if (
            kernel
            and found["B"].ndim == found["A"].ndim
            and not any(n > 1 for n in found["B"].shape[2:])
        ):
            found |= {
                "A": found["A"].flatten(1),
                "B": found["B"].flatten(1),
                "kind": f"convolution{len(kernel)}d",
                "kernel": kernel,
            }
        faults += [
            f"{PREFIX}{name}   {factor} is missing" for factor in "AB" if factor not in found
        ]
        faults += [
            f"{PREFIX}{name}   {factor} is {tuple(t.shape)}, a matrix is needed"
            for factor in "AB"
            if (t := found.get(factor)) is not None and t.ndim != 2
        ]
        if (magnitude := found.get("magnitude")) is not None:
            found["magnitude"] = magnitude.flatten()
            if "B" in found and magnitude.numel() != found["B"].shape[0]:
                faults.append(
                    f"{PREFIX}{name}   magnitude has {magnitude.numel()} values, B has {found['B'].shape[0]} rows"
                )
    pairs = {n: f for n, f in factors.items() if all(x in f and f[x].ndim == 2 for x in "AB")}
    faults += [
        f"{PREFIX}{n}   A is {tuple(f['A'].shape)} and B is {tuple(f['B'].shape)}: the ranks differ"
        f"{GROUPS if f['kernel'] else ''}"
        for n, f in pairs.items()
        if f["A"].shape[0] != f["B"].shape[1]
    ]
    # PEFT also writes the weight of an embedding or lm_head that it adapts, which it has not
    # trained.
    frozen = {
        full_name(n, "weight")
        for n, f in pairs.items()
        if f["kind"] == "embedding" or f".{n}".endswith(".lm_head")
    }
    return pairs, {path: tensor for path, tensor in rest.items() if path not in frozen}, faults


def _refusal(folder: Path, faults: list[str]) -> AdapterFileError:
    what = f"The adapter in {folder} cannot be trusted: {plural(len(faults), 'fault')}."
    return AdapterFileError(what, faults, "Nothing was loaded.")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        hint = f" Name its folder: {folder.parent}" if folder.is_file() else ""
        beside = (
            sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
        )
        hint = hint or (f" There are adapters in it: {', '.join(beside[:5])}." if beside else "")
        raise AdapterFileError(
            f"{folder} is no adapter: there is no {path}.", advice=f"Nothing was loaded.{hint}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterFileError(
            f"{path} is not JSON: {error}.", advice="Nothing was loaded."
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") not in BY_TYPE:
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise AdapterFileError(
            f"{path} describes {found!r}; peft_type is one of {', '.join(BY_TYPE)} where it is read.",
            advice="Nothing was loaded.",
        )
    return {key: value for key, value in config.items() if value is not None}


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / PICKLE
    if not path.is_file():
        raise AdapterFileError(
            f"{folder} holds {CONFIG}, but neither {WEIGHTS} nor {PICKLE}.",
            advice="Nothing was loaded.",
        )
    size, metadata = path.stat().st_size, {}
    try:
        if path.name == PICKLE:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with safe_open(path, "pt") as file:
                # In memory of their own: as parts of the file they lie where kernels may round
                # otherwise.
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (a file, no dict)
                metadata = file.metadata() or {}
    except Exception as error:  # a file from elsewhere can make its reader raise anything
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise AdapterFileError(
            f"{path} ({size:,} bytes) is cut off, or holds something else than tensors: {reason}.",
            advice="Nothing was loaded.",
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()
    ):
        raise AdapterFileError(
            f"{path} does not hold tensors by name.", advice="Nothing was loaded."
        )
    try:
        header = json.loads(metadata.get("lorakit", "{}"))
    except ValueError as error:
        raise AdapterFileError(
            f"The lorakit entry in the header of {path} is not JSON: {error}.",
            advice="Nothing was loaded.",
        ) from error
    return tensors, header


def _header_faults(header: Any) -> Iterator[str]:
    if not isinstance(header, dict):
        yield f"header: an object is needed, got {header!r}"
        return
    for key in ("spec", "modules", "packed", "told", "token_rows", "provenance"):
        if key in header and not isinstance(header[key], dict):
            yield f"header: {key} = {header[key]!r} is no object"
