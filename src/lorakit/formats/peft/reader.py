"""Reading of an adapter in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

A file of lorakit also has a `lorakit` entry in its safetensors header: the spec, the list of
modules, and the provenance. All faults of a file are found before it is refused.

Source: huggingface/peft 0.21, `tuners/lora/config.py` and `utils/save_and_load.py`.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard, cast

from torch import Tensor, nn

from lorakit.deltas.base import Delta
from lorakit.deltas.tied import TiedLowRank, retie
from lorakit.deltas.token_rows import TokenRows
from lorakit.errors import AdapterFileError, SpecError
from lorakit.files import list_parts
from lorakit.formats.checked_json import format_value
from lorakit.formats.parts import AdapterParts
from lorakit.formats.peft.config import (
    CONFIG,
    PeftConfig,
    build_spec,
    find_config_faults,
    find_method,
    find_target_names,
    is_part_of_adapter,
    parse_config,
    parse_config_file,
    read_config,
    tell_ignored_keys,
)
from lorakit.formats.peft.deltas import Module, build_deltas
from lorakit.formats.peft.header import Header, parse_header
from lorakit.formats.peft.lora_tensors import sort_lora_tensors
from lorakit.formats.peft.methods import METHODS_BY_DELTA, PREFIX
from lorakit.formats.peft.module_tensors import ModuleTensors, SortedTensors
from lorakit.formats.peft.origin import find_origin_faults, is_same_json
from lorakit.formats.peft.packed import attention_name, find_attention_paths
from lorakit.formats.peft.parameter_tensors import sort_parameters
from lorakit.formats.peft.spec_header import spec_from_header
from lorakit.formats.peft.target_parameters import restore_parameters
from lorakit.formats.peft.token_rows import IDS_KEY, split_token_rows
from lorakit.formats.peft.weights import PICKLE, WEIGHTS, read_weights
from lorakit.formats.tensor_files import find_value_faults
from lorakit.spec import Settings, Spec, full_name, setting_faults
from lorakit.text import plural

SAVE_AGAIN = (
    "If the files are meant to be as they are, lorakit.Adapter.load({folder!r}, unchecked=True)"
    ".save(folder) writes them again."
)


@dataclass(frozen=True)
class Contents:
    """The contents of an adapter folder.

    Attributes:
        folder: the folder.
        config: the typed config.
        header: lorakit's entry; empty if there is none.
        tensors: all tensors by key.
        by_module: the tensors by module, and fully trained parameters by name.
        token_rows: trained token rows by layer name.
        faults: faults of the tensors.
    """

    folder: Path
    config: PeftConfig
    header: Header
    tensors: Mapping[str, Tensor]
    by_module: SortedTensors
    token_rows: Mapping[str, TokenRows]
    faults: tuple[str, ...]


def read(folder: str | Path, *, unchecked: bool = False) -> AdapterParts:
    """Read an adapter folder that lorakit or PEFT wrote.

    If another process saves an adapter there meanwhile, the files are read again: they are those of
    one adapter, the old or the new one.

    Args:
        folder: the folder.
        unchecked: True to read files of lorakit that were changed after they were written.

    Raises:
        AdapterFileError: no such folder or file, a file cut off, a wrong shape, a missing or an
            extra key, a value that is not finite, a config key that changes the meaning and is not
            understood, a file of lorakit that differs from what was written; all faults are named.
    """
    folder = check_path(folder)
    while True:
        versions = _list_versions(folder)
        try:
            parts = _read(folder, unchecked=unchecked)
        except AdapterFileError:
            if _list_versions(folder) == versions:
                raise
            continue
        if _list_versions(folder) == versions:
            return parts


def check_path(folder: object) -> Path:
    """Return a path as an object.

    Raises:
        AdapterFileError: it is no path, or one that this system refuses to look up.
    """
    if not isinstance(folder, str | Path):
        raise AdapterFileError(
            f"A folder is needed, got {format_value(folder)}.", advice="Nothing was loaded."
        )
    try:
        os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise AdapterFileError(
            f"{format_value(str(folder))} cannot be looked up: {error}.",
            advice="Nothing was loaded.",
        ) from error
    return Path(folder)


def _list_versions(folder: Path) -> list[tuple[int, int, int] | None]:
    """Return numbers that change with every replacement of a file."""
    versions: list[tuple[int, int, int] | None] = []
    for name in (CONFIG, WEIGHTS, PICKLE):
        try:
            facts = (folder / name).stat()
        except OSError:
            versions.append(None)
        else:
            versions.append((facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return versions


def _read(folder: Path, *, unchecked: bool) -> AdapterParts:
    contents = _read_contents(folder, unchecked=unchecked)
    modules = _resolve_modules(contents)
    spec, modules = _resolve_spec(contents, modules)
    config, header = contents.config, contents.header
    deltas = build_deltas(modules, spec, config, header, contents.by_module.shared_factors)
    spec, deltas = _retie_deltas(contents, spec, deltas)
    full_parameters = contents.by_module.rest
    return AdapterParts(
        spec=spec,
        deltas={**deltas, **contents.token_rows},
        full_parameters={name: nn.Parameter(tensor) for name, tensor in full_parameters.items()},
        provenance=_collect_provenance(config, header),
        target_names=find_target_names(config, _list_layers(header, modules)),
    )


def _list_layers(header: Header, modules: Mapping[str, Module]) -> list[str]:
    """Return the modules of a file that are not adapted by the names of their parameters."""
    kinds = header.kinds or {name: module.tensors.kind for name, module in modules.items()}
    return [name for name, kind in kinds.items() if kind != "parameter"]


def _refusal(folder: Path, faults: Iterable[str], advice: str = "") -> AdapterFileError:
    found = list(faults)
    return AdapterFileError(
        f"The adapter in {folder} cannot be trusted: {plural(len(found), 'fault')}.",
        found,
        f"Nothing was loaded. {advice}".rstrip(),
    )


def _read_contents(folder: Path, *, unchecked: bool) -> Contents:
    """Step 1: read both files, and refuse a config or header that is not understood."""
    values = {} if _is_half_moved(folder) else read_config(folder)
    weights = read_weights(folder)
    header, header_faults = parse_header(weights.entry)
    values = _find_own_config(folder, values, header)
    method = find_method(folder / CONFIG, values)
    is_checked = not unchecked and not header_faults
    origin_faults = find_origin_faults(values, header, weights) if is_checked else []
    present = {key: value for key, value in values.items() if value is not None}
    tensors = {key: _widen(tensor) for key, tensor in weights.tensors.items()}
    split = split_token_rows(tensors, present.get(IDS_KEY), header.token_layers)
    if method.is_lora:
        by_module = sort_lora_tensors(split.rest)
    else:
        by_module = sort_parameters(method, split.rest)
    faults = list(find_value_faults(tensors))
    if not tensors:
        faults.append("the file holds no tensor")
    faults += [*split.faults, *by_module.faults]
    description_faults = [*origin_faults, *find_config_faults(present, method), *header_faults]
    if description_faults:
        advice = SAVE_AGAIN.format(folder=str(folder)) if origin_faults else ""
        raise _refusal(folder, [*description_faults, *faults], advice)
    tell_ignored_keys(folder, present)
    config = parse_config(present, method)
    return Contents(folder, config, header, tensors, by_module, split.deltas, tuple(faults))


def _find_own_config(folder: Path, values: dict[str, Any], header: Header) -> dict[str, Any]:
    """Return the config that belongs to the weights.

    After a save that was interrupted between the two files, the new config is complete under its
    temporary name.

    Args:
        folder: of the adapter.
        values: of the config.
        header: of the weights.
    """
    if header.config and not is_same_json(values, header.config):
        for part in list_parts(folder / CONFIG):
            with suppress(AdapterFileError):
                newer = parse_config_file(part)
                if is_same_json(newer, header.config):
                    return newer
    return values or read_config(folder)


def _is_half_moved(folder: Path) -> bool:
    """Return True after a first save that was interrupted between the two files."""
    has_config, has_weights = ((folder / name).is_file() for name in (CONFIG, WEIGHTS))
    return has_weights and not has_config and list_parts(folder / CONFIG) != []


def _widen(tensor: Tensor) -> Tensor:
    """Return a tensor of 8-bit floating values in float32, as PEFT does; others as they are."""
    is_narrow = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.float() if is_narrow else tensor


def _resolve_modules(contents: Contents) -> dict[str, Module]:
    """Step 2: give every module its name in lorakit and its settings; refuse all faults so far."""
    config, header = contents.config, contents.header
    faults = list(contents.faults)
    modules, parameter_faults = restore_parameters(contents.by_module.modules, config)
    faults += parameter_faults
    # Without notes on packed deltas PEFT wrote the file: an attention has both weights, and both
    # have one rank.
    paths = {} if header.packed else find_attention_paths(modules)
    modules = _rename_attention(modules, paths)
    faults += _find_foreign_parameters(contents.by_module.rest, config, header, modules)
    faults += _find_listing_faults(modules, header)
    if header.version == 1:
        faults += _find_old_products(modules)
    settings = _resolve_settings(modules, paths, config)
    faults += _find_setting_faults(settings.values())
    for name, module in modules.items():
        faults += _find_rank_faults(name, module, settings[name].rank, config)
    if faults:
        raise _refusal(contents.folder, faults)
    return {name: Module(module, settings[name]) for name, module in modules.items()}


def _resolve_settings(
    modules: Mapping[str, ModuleTensors], paths: Mapping[str, str], config: PeftConfig
) -> dict[str, Settings]:
    """Return the config's settings by module name.

    Args:
        modules: by lorakit's names.
        paths: the file's names of the weights of attentions, by lorakit's names.
        config: of the file.
    """
    settings: dict[str, Settings] = {}
    for name, module in modules.items():
        config_name = attention_name(paths.get(name, name))
        if module.kind == "parameter":
            config_name = full_name(name, "weight")
        own = config.settings(config_name, module.kind)
        if config.doubles_out_proj and name in paths and name.endswith("out_proj"):
            own = replace(own, alpha=2 * own.alpha)
        settings[name] = own
    return settings


def _rename_attention(
    modules: Mapping[str, ModuleTensors], paths: Mapping[str, str]
) -> dict[str, ModuleTensors]:
    """Return the modules with the weights of attentions under lorakit's names."""
    renamed = dict(modules)
    for name, path in paths.items():
        if path in renamed:
            kind = name.rpartition(".")[2]
            renamed[name] = replace(renamed.pop(path), kind=kind)
    return renamed


def _find_foreign_parameters(
    parameters: Iterable[str],
    config: PeftConfig,
    header: Header,
    modules: Mapping[str, ModuleTensors],
) -> Iterator[str]:
    """Yield the parameters that neither the modules nor the config account for."""
    adapted = set(modules)
    embeddings = {name for name, module in modules.items() if module.kind == "embedding"}
    for parts in header.packed.values():
        adapted.update(parts)
    for name in parameters:
        # PEFT writes the weight of an adapted embedding along.
        is_known = name.removesuffix(".weight") in embeddings
        if not is_known and not is_part_of_adapter(name, config, adapted):
            yield f"{PREFIX}{name}   is not part of the adapter that {CONFIG} describes"


def _find_listing_faults(modules: Mapping[str, ModuleTensors], header: Header) -> Iterator[str]:
    """Yield the differences between the modules and the header's list."""
    if header.kinds is None:
        return
    for name in header.kinds:
        if name not in modules:
            yield f"{PREFIX}{name}   is missing: the header lists it"
    for name in modules:
        if name not in header.kinds:
            yield f"{PREFIX}{name}   is extra: the header does not list it"


def _find_old_products(modules: Mapping[str, ModuleTensors]) -> Iterator[str]:
    """Yield the modules of LoKr whose factors lorakit 0.1.0 multiplied in another order."""
    for name, module in modules.items():
        if "w2" in module.tensors and len(module.kernel) == 1:
            yield (
                f"{PREFIX}{name}   w1 and w2 of a one-dimensional convolution are multiplied in "
                "PEFT's order, and the file is of lorakit 0.1.0, which used another: train it again"
            )


def _find_setting_faults(settings: Iterable[Settings]) -> list[str]:
    """Return the faults of settings, each once."""
    faults: dict[str, None] = {}
    for own in settings:
        for key, fault in setting_faults(vars(own)):
            faults[f"{CONFIG}: {key}: {fault}"] = None
    return list(faults)


def _find_rank_faults(
    name: str, module: ModuleTensors, rank: int, config: PeftConfig
) -> Iterator[str]:
    """Yield the differences between the tensors of a module and the config's rank and method."""
    kept = config.kept(name)
    if kept is not None:
        if not _is_mask(kept, rank):
            yield f"{PREFIX}{name}   rank_pattern {kept!r} is not a list of {rank} truth values"
            return
        rank = sum(kept)
    if module.rank is not None and module.rank != rank:
        yield f"{PREFIX}{name}   has rank {module.rank}, {CONFIG} says {rank}"
    if not config.method.is_lora:
        return
    has_magnitude = "magnitude" in module.tensors
    if config.use_dora and not has_magnitude:
        yield f"{PREFIX}{name}   magnitude is missing: use_dora is on"
    if has_magnitude and not config.use_dora:
        yield f"{PREFIX}{name}   magnitude is extra: use_dora is off"


def _is_mask(kept: object, rank: int) -> TypeGuard[list[bool]]:
    """Return True for a list of `rank` truth values."""
    if not isinstance(kept, list):
        return False
    values = cast(list[object], kept)
    return len(values) == rank and all(value in (True, False) for value in values)


def _resolve_spec(
    contents: Contents, modules: Mapping[str, Module]
) -> tuple[Spec, dict[str, Module]]:
    """Step 3: take the spec of the header, or make one from the config.

    Returns:
        The spec, and the modules with its settings.
    """
    header, config = contents.header, contents.config
    try:
        if header.spec is None:
            settings = {name: module.settings for name, module in modules.items()}
            dtype = next(iter(contents.tensors.values())).dtype
            full_parameters = contents.by_module.rest
            spec = build_spec(config, settings, dtype, contents.token_rows, full_parameters)
            return spec, dict(modules)
        spec = spec_from_header(header.spec)
    except SpecError as error:
        raise _refusal(contents.folder, error.faults) from error
    unpacked = [name for name in modules if name not in header.packed]
    resolved = dict(modules)
    faults = list(_find_delta_faults(spec, config)) if unpacked else []
    for name in unpacked:
        own, in_config = spec.settings(name), modules[name].settings
        faults += _find_scale_faults(name, own, in_config, config)
        resolved[name] = replace(modules[name], settings=own)
    if faults:
        raise _refusal(contents.folder, faults)
    return spec, resolved


def _find_delta_faults(spec: Spec, config: PeftConfig) -> Iterator[str]:
    """Yield a fault if the header has another delta than the config."""
    method = config.method
    is_dora = spec.delta == "dora"
    if METHODS_BY_DELTA[spec.delta] is method and is_dora == config.use_dora:
        return
    described = method.peft_type
    if method.is_lora:
        described += f" with use_dora = {config.use_dora}"
    yield (
        f"header: delta = {spec.delta!r}, {CONFIG} describes {described}: one of them was edited"
    )


def _find_scale_faults(
    name: str, own: Settings, in_config: Settings, config: PeftConfig
) -> Iterator[str]:
    """Yield a fault if a module has another scale in the header than in the config."""
    if config.alpha is not None and not math.isclose(own.scale, in_config.scale):
        yield (
            f"{PREFIX}{name}   scale is {own.scale:g} in the header, {in_config.scale:g} by "
            f"{CONFIG}: one of them was edited"
        )


def _retie_deltas(
    contents: Contents, spec: Spec, deltas: Mapping[str, Delta]
) -> tuple[Spec, dict[str, Delta]]:
    """Step 4: let tied layers share one pair of factors again."""
    if not spec.tie:
        return spec, dict(deltas)
    tied = retie(deltas)
    if any(isinstance(delta, TiedLowRank) for delta in tied.values()):
        return spec, tied
    if contents.header.spec is None:
        # PEFT, too, takes the option back if no layer shares a weight.
        return replace(spec, tie=False), tied
    fault = "header: tie is on, but no layer has the factors of an embedding"
    raise _refusal(contents.folder, [f"{fault}: one of them was edited"])


def _collect_provenance(config: PeftConfig, header: Header) -> dict[str, object]:
    """Return the facts about the training; the header's replace the config's."""
    provenance: dict[str, object] = {}
    if config.base_model:
        provenance["base_model"] = config.base_model
    if config.task_type:
        provenance["task_type"] = config.task_type
    provenance.update(header.provenance)
    return provenance
