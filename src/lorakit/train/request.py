"""Checks that the settings, the spec, the task and the machine of a run go together."""

from collections.abc import Iterator

import torch

from lorakit.errors import NOT_STARTED, SpecError
from lorakit.spec import Fault, Spec
from lorakit.text import plural
from lorakit.train.config import TrainSpec


def check_request(settings: TrainSpec, spec: Spec, task: str) -> None:
    """Check that settings, spec, task and machine go together, before a model is read.

    Raises:
        SpecError: a setting that the spec, the task or the machine cannot use; all are named.
    """
    faults = [*_machine_faults(settings), *_spec_faults(settings, spec)]
    faults += _task_faults(settings, task)
    if faults:
        count = plural(len(faults), "setting")
        lines = [f"{name}: {fault}" for name, fault in faults]
        raise SpecError(f"{count} cannot be used in this run.", lines, NOT_STARTED)


def _machine_faults(settings: TrainSpec) -> Iterator[Fault]:
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        yield "mixed_precision", "fp16 needs a GPU; on a CPU use bf16 or no"


def _spec_faults(settings: TrainSpec, spec: Spec) -> Iterator[Fault]:
    if settings.target_rank is not None and spec.delta != "adalora":
        fault = f"only delta='adalora' has a budget of ranks, the spec has {spec.delta!r}"
        yield "target_rank", fault
    if spec.dtype == "float16":
        yield "dtype", "Adam's steps are not finite in float16; train in float32 or bfloat16"


def _task_faults(settings: TrainSpec, task: str) -> Iterator[Fault]:
    if task != "regress":
        return
    if settings.label_smoothing:
        yield "label_smoothing", "spreads a target over classes, and a regression has none"
