"""One training step on tensors that have shapes and no values: its memory over time, and its work.

Nothing is guessed from an architecture: the model's own forward and autograd's own backward run, on
fake tensors, and every storage is counted from its first use to its end. So dropout, casts,
checkpointing and adapters count as they do in the real step.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lorakit.data.batches import concatenate_rows
from lorakit.errors import PlanError
from lorakit.evaluate.regularisation import NONE, Regularisation, training_loss
from lorakit.models.checkpointing import checkpoint_blocks
from lorakit.models.packing import packed_attention
from lorakit.plan.meter import Meter, real_attention
from lorakit.sites.slot import SLOT
from lorakit.tasks.base import Shape
from lorakit.tasks.find import find_task
from lorakit.text import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Table = dict[str, Tensor | None]  # parameters or buffers of a module
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Errors of a model whose forward reads values of its tensors.
NEEDS_VALUES = (
    RuntimeError,
    NotImplementedError,
    TypeError,
    AttributeError,
    ValueError,
    IndexError,
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward and backward pass, by its shape.

    Attributes:
        batch: sequences.
        length: tokens of each, padding included.
        task: its name.
        answer: tokens of each answer that a decoder writes; 0 without one.
        dtype: dtype of the base's weights.
        mixed: no, bf16 or fp16.
        padded: True if sequences differ in length, so that attention gets a mask.
        packed: tokens of each sequence if they are concatenated in one row; batch and length do
            not count then.
        checkpointing: what is computed again in the backward pass, as `checkpoint_blocks` takes it.
        fused: True if attention's own dropout takes no memory, as in the kernels of GPUs.
        again: True if gradients of an earlier pass are in memory already (accumulation).
        regularisation: changes of the loss; with R-Drop or cutoff a pass is two.
    """

    batch: int
    length: int
    task: str = "causal-lm"
    answer: int = 0
    dtype: torch.dtype = torch.float32
    mixed: str = "no"
    padded: bool = True
    packed: tuple[int, ...] = ()
    checkpointing: str = ""
    fused: bool = False
    again: bool = False
    regularisation: Regularisation = NONE


@dataclass(frozen=True)
class Trace:
    """Memory and work of one step; bytes beside the weights, adapters and optimizer state.

    Attributes:
        timeline: bytes in use after each allocation, in order; gradients count from when they are
            made.
        activations: bytes kept for the backward pass at the end of the forward, without logits.
        logits: most bytes that logits and what is made of them (float32 copy, log-probabilities,
            gradient) take at once.
        flops: operations of all matrix products; a multiply-add counts as two.
        moved: bytes that everything else reads and writes.
        calls: operations of any kind.
        phases: index in the timeline at which each forward pass, and each backward pass, ends.
    """

    timeline: list[int]
    activations: int
    logits: int
    flops: int
    moved: int
    calls: int
    phases: list[int]

    @property
    def peak(self) -> int:
        """Most bytes in use at once."""
        return max(self.timeline, default=0)


def trace_step(model: "PreTrainedModel", step: Step) -> Trace:
    """Run one step of a model on fake tensors, and put the model's own tensors back.

    Args:
        model: a model of transformers on any device, mostly meta; with adapters if some train.
        step: batch, length, task and dtypes of the pass.

    Returns:
        The trace. Scratch space of kernels (oneDNN, cuBLAS) is not in it.

    Raises:
        PlanError: the model computes on values of tensors in a way that shapes cannot answer, or
            in too many operations, or for longer than `time_limit` allows.
    """
    fake = FakeTensorMode()
    was_training = model.training
    with (
        quiet_fake_tensors(),
        substituted(model, step.dtype, fake) as known,
        _checkpointed(model, step.checkpointing),
    ):
        model.train()
        try:
            with fake:
                batch = _fake_batch(step, getattr(model.config, "num_labels", 0))
            vocabulary = model.config.get_text_config().vocab_size
            return _run(model, step, batch, Meter(fake, known, vocabulary))
        except PlanError as error:
            raise PlanError(
                f"A step of {type(model).__name__} is not planned: {error.message}.",
                advice="A short run measures what it holds.",
            ) from error
        except NEEDS_VALUES as error:
            raise PlanError(
                f"A step of {type(model).__name__} cannot be run on shapes alone: "
                f"{type(error).__name__}: {first_line(error)}",
                advice="A short run measures what it holds.",
            ) from error
        finally:
            model.train(was_training)


def _run(model: "PreTrainedModel", step: Step, batch: dict[str, Tensor], meter: Meter) -> Trace:
    precision = nullcontext()
    if step.mixed != "no":
        precision = torch.autocast("cpu", AUTOCAST[step.mixed])
    packed = packed_attention(model) if step.packed else nullcontext()
    attention = real_attention(fused=step.fused, masked=_is_masked(model, step))
    phases: list[int] = []
    kept = 0
    with meter, attention, packed:
        for _ in range(1 + step.again):
            with precision:
                task = find_task(step.task).traced
                loss = training_loss(model, batch, task, step.regularisation)
                loss = loss / step.batch
            kept = meter.now - meter.logits
            phases.append(len(meter.timeline))
            loss.backward()
            del loss
            phases.append(len(meter.timeline))
    return Trace(
        timeline=meter.timeline,
        activations=kept,
        logits=meter.most_logits,
        flops=meter.flops,
        moved=meter.moved,
        calls=meter.calls,
        phases=phases,
    )


def _fake_batch(step: Step, classes: int) -> dict[str, Tensor]:
    """Return the inputs of a step, of tensors without values."""
    task = find_task(step.task)
    if step.packed:
        batch = concatenate_rows([[1] * length for length in step.packed])
    else:
        # Models leave the mask out if nothing is padded. They cannot see that of a fake mask, so
        # they get none.
        names = ["input_ids", "attention_mask"] if step.padded else ["input_ids"]
        shape = (step.batch, step.length)
        batch = {name: torch.ones(shape, dtype=torch.long) for name in names}
    rows, length = batch["input_ids"].shape
    batch["labels"] = task.shape_labels(Shape(rows, length, step.answer), classes)
    return batch


def _is_masked(model: "PreTrainedModel", step: Step) -> bool:
    """Return True if attention gets a mask in this step."""
    if step.packed:
        return False
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    slides = window is not None and window < step.length
    return step.padded or slides


@contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """Keep fake tensors from logging what PlanError says."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def substituted(model: nn.Module, dtype: torch.dtype, fake: FakeTensorMode) -> Iterator[set[int]]:
    """Put fake CPU tensors in the place of all parameters and buffers; yield the storages' keys."""
    before: list[tuple[Table, Table]] = []
    substitutes: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        in_slot = SLOT in path.split(".")
        for table in own_tables(module):
            before.append((table, dict(table)))
            for key, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in substitutes:
                    is_weight = table is module._parameters and tensor.is_floating_point()
                    wanted = dtype if is_weight and not in_slot else tensor.dtype
                    substitutes[id(tensor)] = _substitute(tensor, wanted, fake)
                table[key] = substitutes[id(tensor)]
    try:
        yield {tensor.untyped_storage()._cdata for tensor in substitutes.values()}
    finally:
        for table, values in before:
            table.update(values)


def own_tables(module: nn.Module) -> list[Table]:
    """Return the tables of a module's own parameters and buffers, by name."""
    return [cast(Table, module._parameters), module._buffers]


def _substitute(tensor: Tensor, dtype: torch.dtype, fake: FakeTensorMode) -> Tensor:
    with fake:
        blank = torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(blank, tensor.requires_grad)
    return blank


@contextmanager
def _checkpointed(model: "PreTrainedModel", what: str) -> Iterator[None]:
    if not what:
        yield
        return
    checkpoint_blocks(model, what)
    try:
        yield
    finally:
        checkpoint_blocks(model, "")
