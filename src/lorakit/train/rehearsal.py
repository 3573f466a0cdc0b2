"""The longest batch of a run, once forward and backward before its first step: if memory runs out,
it does so now.
"""

from typing import Any

import torch
from accelerate import Accelerator

from lorakit.data.batches import Batches
from lorakit.errors import TrainingError
from lorakit.evaluate.score import batch_loss
from lorakit.train import checkpoints


def rehearse(
    job: Any, accelerator: Accelerator, batches: Batches, first: int, last: int
) -> tuple[int, int]:
    """Run the longest batch, and leave no trace: neither gradients nor random numbers nor buffers
    are other than before.

    Args:
        job: what the loop works on.
        accelerator: of the run.
        batches: of the run.
        first: the batch that the run goes on with.
        last: the batch before which it ends.

    Returns:
        Its sequences, and the tokens of the longest; (0, 0) where there is no batch left.

    Raises:
        TrainingError: it does not fit into memory.
    """
    if first >= last:
        return 0, 0
    k = batches.longest(first, last)
    shape, model, parameters = batches.shape(k), job.model, list(job.adapter.parameters())
    state, buffers = checkpoints.random_state(), [(b, b.clone()) for b in model.buffers()]
    try:
        # AdamW's two moments come with the first step, and this batch may come after it; so room is
        # kept for them.
        room = [torch.empty_like(p) for p in parameters for _ in range(2)]
        with accelerator.autocast():
            loss = batch_loss(model, job.batch([job.examples[i] for i in batches[k]]), job.task)[0]
        accelerator.backward(loss)
        del room
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        rows, width = shape
        raise TrainingError(
            f"Memory ran out on the longest batch of the run: {rows} sequences of {width:,} tokens. "
            "No step was taken.",
            advice="Lower --batch-size (--accumulate makes up for it) or --max-length, or give "
            "--gradient-checkpointing; `lorakit plan` tells what fits.",
        ) from error
    finally:
        for p in parameters:
            p.grad = None
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        checkpoints.set_random_state(state)
    return shape
