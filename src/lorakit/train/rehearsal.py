"""A rehearsal: the longest batch of a run, forward and backward, before the first step.

If memory runs out, it does so now and not after hours.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorakit.errors import TrainingError
from lorakit.evaluate.regularisation import training_loss
from lorakit.plan.optimizers import OPTIMIZERS, Optimizer
from lorakit.train import checkpoints
from lorakit.train.checks import GradientCheck, check_loss
from lorakit.train.job import Job


def rehearse(
    job: Job,
    accelerator: Accelerator,
    first: int,
    last: int,
    check: GradientCheck | None = None,
) -> tuple[int, int]:
    """Run the longest batch; gradients, random numbers and buffers are afterwards as before.

    Args:
        job: the job of the loop.
        accelerator: the accelerator of the run.
        first: the batch that the run continues with.
        last: the batch before which it ends.
        check: sees the gradients of the batch.

    Returns:
        (sequences, tokens of the longest one); (0, 0) where no batch is left.

    Raises:
        TrainingError: the batch does not fit into memory, its loss depends on nothing trained, or
            `check` finds a module without a gradient.
    """
    if first >= last:
        return 0, 0
    index = job.batches.longest(first, last)
    rows, length = job.batches.shape(index)
    with unchanged(job.model, list(job.adapter.parameters())):
        try:
            _forward_and_backward(job, accelerator, index)
            if check:
                check.see(job.adapter)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise TrainingError(
                f"Memory ran out on the longest batch of the run: {rows} sequences of "
                f"{length:,} tokens. No step was taken.",
                advice="Lower --batch-size (--accumulate makes up for it) or --max-length, or give "
                "--gradient-checkpointing; `lorakit plan` shows what fits.",
            ) from error
    return rows, length


def _forward_and_backward(job: Job, accelerator: Accelerator, index: int) -> None:
    # From the second step on, the state of the optimizer is in memory beside the batch.
    optimizer = OPTIMIZERS[job.settings.optimizer]
    parameters = job.adapter.parameters()
    moments = [_state_of(parameter, optimizer) for parameter in parameters]
    for examples in job.passes(job.batch(index)):
        with accelerator.autocast():
            batch = job.collate(examples)
            loss = training_loss(job.model, batch, job.method, job.regularisation)
        check_loss(loss, job.adapter)
        accelerator.backward(loss)
    del moments


def _state_of(parameter: Tensor, optimizer: Optimizer) -> Tensor:
    """Return memory of the size of an optimizer's state."""
    size = optimizer.state_bytes(parameter.shape, parameter.itemsize)
    return torch.empty(size, dtype=torch.uint8, device=parameter.device)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


@contextmanager
def unchanged(model: nn.Module, parameters: list[Tensor]) -> Iterator[None]:
    """Put back random numbers and buffers at the end, and delete all gradients."""
    state = checkpoints.random_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.grad = None
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        checkpoints.set_random_state(state)
