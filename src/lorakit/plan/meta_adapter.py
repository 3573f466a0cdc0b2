"""An adapter on a model of the meta device: shapes and settings, no random number is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.offset import OffsetLowRank
from lorakit.deltas.tied import TiedLowRank
from lorakit.errors import SpecError
from lorakit.inits.start import STARTS, start_faults
from lorakit.inject.attach import attach, detach
from lorakit.inject.places import find_places
from lorakit.spec import Settings, Spec
from lorakit.text import plural

RANDOM = (torch.ops.aten.rand.generator, torch.ops.aten.randn.generator)
COPY = torch.ops.aten._to_copy.default


def attach_on_meta(model: nn.Module, spec: Spec) -> Adapter:
    """Attach a new adapter to a model of the meta device.

    No random number is drawn: that takes seconds for large models. A start that needs weights or
    data cannot be computed here; only whether B then starts at something else than zero counts.

    Raises:
        SpecError, TargetError: as `attach`.
    """
    with _NoRandomNumbers():
        adapter = attach(model, _with_random_starts(spec))
        settings = _settings_of(adapter, spec)
        if not all(STARTS[one.init].is_random for one in settings.values()):
            detach(model)
            _refuse_starts(model, adapter, spec, settings)
            for name, one in settings.items():
                adapter.deltas[name] = _as_started(adapter.deltas[name], one)
            attach(model, adapter)
    return adapter


def _with_random_starts(spec: Spec) -> Spec:
    """Return the spec with a random start in place of each that needs weights or data."""
    init = spec.init if STARTS[spec.init].is_random else "kaiming"
    overrides = {}
    for pattern, change in spec.overrides.items():
        is_random = STARTS[change.get("init", init)].is_random
        overrides[pattern] = change if is_random else {**change, "init": "kaiming"}
    return replace(spec, init=init, overrides=overrides)


def _settings_of(adapter: Adapter, spec: Spec) -> dict[str, Settings]:
    """Return the settings of each delta that has a start."""
    settings = {}
    for name, delta in adapter.deltas.items():
        if not delta.by_token:
            settings[name] = spec.settings(name)
    return settings


def _refuse_starts(
    model: nn.Module, adapter: Adapter, spec: Spec, settings: Mapping[str, Settings]
) -> None:
    known = find_places(model, spec.parts)
    faults: list[str] = []
    for name, one in settings.items():
        faults += [f"{name}   {fault}" for fault in start_faults(spec.delta, one, known[name])]
    for name, one in settings.items():
        is_tied = spec.tie and isinstance(adapter.deltas[name], TiedLowRank)
        if is_tied and not STARTS[one.init].is_random:
            faults.append(
                f"{name}   has the factors of an embedding: init {one.init!r} cannot start it"
            )
    if faults:
        raise SpecError(
            f"{plural(len(faults), 'layer')} cannot be adapted with these settings.",
            faults,
            "Nothing was planned.",
        )


def _as_started(delta: Delta, settings: Settings) -> Delta:
    """Return the delta as its start leaves it: with an offset if B does not start at zero."""
    if not STARTS[settings.init].moves_B or not isinstance(delta, LowRank):
        return delta
    return OffsetLowRank(delta.A.detach(), delta.B.detach(), **delta.options())


class _NoRandomNumbers(TorchDispatchMode):
    """A mode in which operations that draw random numbers give tensors without values."""

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        keywords = dict(kwargs or {})
        if func in RANDOM:
            return torch.empty(args[0], device="meta")  # type: ignore[call-overload]
        if func is COPY and args[0].is_meta:  # type: ignore[attr-defined]
            # A tensor without values stays one wherever it is moved.
            keywords["device"] = "meta"
        return func(*args, **keywords)
