"""Deltas from the tensors and the settings of the modules in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lorakit.deltas.base import Delta, options_of
from lorakit.deltas.kinds import DELTAS
from lorakit.deltas.vera import SharedPair
from lorakit.errors import AdapterFileError
from lorakit.formats.peft.config import PeftConfig
from lorakit.formats.peft.header import Header, MatrixShape
from lorakit.formats.peft.methods import LOKR, VERA
from lorakit.formats.peft.module_tensors import ModuleTensors
from lorakit.formats.peft.packed import count_additions, unpack
from lorakit.spec import Settings, Spec


@dataclass(frozen=True)
class Module:
    """One module of a file, ready to become a delta."""

    tensors: ModuleTensors
    settings: Settings


def build_deltas(
    modules: Mapping[str, Module],
    spec: Spec,
    config: PeftConfig,
    header: Header,
    shared_factors: Mapping[str, Tensor],
) -> dict[str, Delta]:
    """Return the deltas of a file by name, in the order of the header if it lists the modules.

    Args:
        modules: by the name in the file.
        spec: of the adapter.
        config: of the file.
        header: of the file.
        shared_factors: VeRA's A and B; empty for other types.

    Raises:
        AdapterFileError: a packed delta has another scale in the header than in the config, or a
            delta of VeRA has more inputs than the shared factors.
    """
    pair = SharedPair(**shared_factors) if config.method is VERA else None
    deltas: dict[str, Delta] = {}
    for name in header.kinds or modules:
        module = modules[name]
        kind = _find_kind(name, module, config, header)
        if not config.method.is_lora:
            deltas[name] = _build_parameter_delta(name, module, kind, config, header, pair)
        elif name in header.packed:
            scale, parts = module.settings.scale, header.packed[name]
            # Format 1 did not halve out_proj.
            additions = 1 if header.version == 1 else count_additions(name)
            deltas |= unpack(name, module.tensors, scale * additions, parts, kind, spec)
        else:
            deltas[name] = _build_low_rank(module, kind, spec)
    return deltas


def _find_kind(name: str, module: Module, config: PeftConfig, header: Header) -> str:
    """Return the kind of site: the header's, that of the tensors, or that of the config."""
    if header.kinds:
        return header.kinds[name]
    if not config.method.is_lora:
        return module.tensors.kind
    usual_kind = "conv1d" if config.fan_in_fan_out else "linear"
    return usual_kind if name in header.packed else module.tensors.kind or usual_kind


def _build_low_rank(module: Module, kind: str, spec: Spec) -> Delta:
    tensors = cast(Mapping[str, Any], module.tensors.tensors)
    options = options_of(module.settings, kind, module.tensors.kernel)
    return DELTAS[spec.delta](**tensors, **options)


def _build_parameter_delta(
    name: str,
    module: Module,
    kind: str,
    config: PeftConfig,
    header: Header,
    pair: SharedPair | None,
) -> Delta:
    """Return a delta of VeRA, LoHa, LoKr or AdaLoRA."""
    method = config.method
    shape = (header.shapes or {}).get(name, MatrixShape())
    kernel = module.tensors.kernel if shape.kernel is None else shape.kernel
    options = options_of(module.settings, kind, kernel)
    arguments: dict[str, Any] = {**module.tensors.tensors, **options}
    if method is VERA and pair is not None:
        if not pair.covers((0, shape.inputs)):
            raise AdapterFileError(
                f"The header gives {name} {shape.inputs} inputs, which cannot be cut out of the "
                f"shared {pair}."
            )
        arguments["pair"] = pair
        arguments["inputs"] = shape.inputs
    elif method is LOKR:
        arguments["rank"] = module.settings.rank
    kept = config.kept(name)
    if kept is not None:
        arguments["kept"] = torch.tensor(kept, dtype=torch.bool)
    return DELTAS[method.delta](**arguments)
