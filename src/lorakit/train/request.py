"""Checks that the settings, the spec, the task and the machine of a run go together."""

from collections.abc import Collection, Iterator

import torch
from torch import nn

from lorakit.errors import NOT_STARTED, SpecError, install_line
from lorakit.models.load import device_of
from lorakit.models.tasks import TASKS
from lorakit.plan.optimizers import LEAST_VALUES, OPTIMIZERS
from lorakit.plan.report import trains_base
from lorakit.spec import Fault, Spec
from lorakit.tasks.preference import Preference
from lorakit.tasks.trl_losses import check_trl
from lorakit.text import dtype_name, first_line, plural
from lorakit.train.config import TrainSpec
from lorakit.train.optim import find_class

# Tasks whose loss is a cross-entropy: classes that exclude each other.
WITH_CLASSES = ("causal-lm", "seq2seq", "classify", "tokens")
WITH_A_AND_B = ("lora", "dora")  # deltas whose B starts at zero beside A


def check_request(settings: TrainSpec, spec: Spec, task: str, kinds: Collection[str] = ()) -> None:
    """Check that settings, spec, task and machine go together, before a model is read.

    Args:
        settings: of the run.
        spec: of the adapter.
        task: its name.
        kinds: of the rows to train on and to evaluate on.

    Raises:
        SpecError: a setting that the spec, the task or the machine cannot use; all are named.
        MissingExtra: the task needs TRL, which is not installed.
    """
    faults = [*_machine_faults(settings, spec), *_spec_faults(settings, spec)]
    faults += _task_faults(settings, spec, task)
    faults += _preference_faults(settings, task, kinds)
    if faults:
        count = plural(len(faults), "setting")
        lines = [f"{name}: {fault}" for name, fault in faults]
        raise SpecError(f"{count} cannot be used in this run.", lines, NOT_STARTED)
    if task == Preference.name:
        check_trl()


def _machine_faults(settings: TrainSpec, spec: Spec) -> Iterator[Fault]:
    device = device_of(settings.device)
    if settings.mixed_precision == "fp16" and device.type == "cpu":
        yield "mixed_precision", "fp16 needs a GPU; on a CPU use bf16 or no"
    optimizer = OPTIMIZERS[settings.optimizer]
    if optimizer.package != "bitsandbytes":
        return
    if optimizer.is_paged and device.type == "cpu":
        fault = f"{settings.optimizer!r} moves its state from a GPU to main memory; this run is on"
        yield "optimizer", f"{fault} the CPU: use {settings.optimizer.removeprefix('paged-')!r}"
        return
    obstacle = _try_optimizer(settings.optimizer, device, getattr(torch, spec.dtype))
    if obstacle:
        yield "optimizer", obstacle


def _try_optimizer(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the reason why an optimizer of bitsandbytes takes no step on a device, or None."""
    parameter = nn.Parameter(torch.ones(LEAST_VALUES, device=device, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    try:
        find_class(name)([parameter], lr=1.0).step()
    except ImportError as error:
        advice = install_line("quantised")
        return f"{name!r} needs bitsandbytes: {first_line(error)}; {advice}"
    except Exception as error:  # A kernel that is missing can raise any exception.
        advice = "pip install --upgrade bitsandbytes"
        where = f"{device.type} in {dtype_name(dtype)}"
        return f"{name!r} takes no step on {where}: {first_line(error)}; {advice}"
    return None


def _spec_faults(settings: TrainSpec, spec: Spec) -> Iterator[Fault]:
    if settings.target_rank is not None and spec.delta != "adalora":
        fault = f"only delta='adalora' has a budget of ranks, the spec has {spec.delta!r}"
        yield "target_rank", fault
    if settings.lr_ratio != 1 and spec.delta not in WITH_A_AND_B:
        fault = f"LoRA+ is about A and B, those of {' and '.join(WITH_A_AND_B)}"
        yield "lr_ratio", f"{fault}; the spec has delta={spec.delta!r}"
    elif settings.lr_ratio != 1 and spec.targets == "none":
        yield "lr_ratio", "targets='none' adapts no layer, so there is no B"
    if spec.dtype == "float16":
        yield "dtype", "Adam's steps are not finite in float16; train in float32 or bfloat16"


def _task_faults(settings: TrainSpec, spec: Spec, task: str) -> Iterator[Fault]:
    if settings.base_dtype == "float16" and (trains_base(spec) or TASKS[task].has_head):
        fault = "biases, modules and heads that are trained in full would be in float16 too"
        yield "base_dtype", f"{fault}, whose steps are not finite; use float32"
    if settings.cutoff and task in ("seq2seq", "preference"):
        yield "cutoff", f"hides tokens of one text, and {task} reads two"
    if task in WITH_CLASSES:
        return
    needed = "of classes that exclude each other"
    if settings.label_smoothing:
        yield "label_smoothing", f"spreads the probability {needed}, and {task} has none"
    if settings.r_drop:
        yield "r_drop", f"compares probabilities {needed}, and {task} has none"


def _preference_faults(settings: TrainSpec, task: str, kinds: Collection[str]) -> Iterator[Fault]:
    if task != Preference.name:
        for name in ("loss", "beta"):
            if getattr(settings, name) is not None:
                yield name, f"is of preferences, and the task is {task}"
        return
    if settings.loss_on == "all":
        yield "loss_on", "preferences are about answers, not about prompts"
    if "rated" not in kinds:
        if settings.loss != "kto":
            return
    elif settings.loss in ("dpo", "orpo"):
        yield "loss", f"{settings.loss} compares two answers, and the rows have one, rated; use kto"
        return
    if settings.batch_size == 1:
        yield (
            "batch_size",
            "kto compares the rows of a batch; give 2 or more, and --accumulate less",
        )
