"""The optimizer and the learning rate of each step."""

import math
from collections.abc import Iterable

import torch

from lorakit.adapter import Adapter

REFERENCE_LR, REFERENCE_WIDTH = 5e-4, 2000
TIMESCALE = 10_000  # steps of the inverse-sqrt schedule without a warm-up, as in transformers
CYCLES, LOWEST = 3, 0.25  # of the cyclic schedule: falls, and the lowest factor


def default_lr(width: int) -> float:
    """Return a peak learning rate for a model of this hidden width.

    It is 5e-4 at width 2000 and falls with the square root of the width: about ten times the rate
    of full fine-tuning.

    >>> default_lr(2000), round(default_lr(384), 6)
    (0.0005, 0.001141)
    """
    return REFERENCE_LR * math.sqrt(REFERENCE_WIDTH / width)


def lr_factor(
    step: int, steps: int, warmup: float, schedule: str, cycles: int | None = None
) -> float:
    """Return the factor of the peak learning rate at a step; never 0, so that every step learns.

    After the warm-up, "linear" and "cosine" fall to 0 at the end of the run. "inverse-sqrt" is the
    square root of w / step for a warm-up of w steps, whatever the length of the run. "cyclic" falls
    linearly to a quarter and rises again, and ends with a fall.

    Args:
        step: from 0.
        steps: steps of the whole run.
        warmup: below 1 a share of the steps, from 1 a number of steps.
        schedule: constant, linear, cosine, inverse-sqrt or cyclic.
        cycles: falls of the cyclic schedule; CYCLES where None.

    Source: inverse-sqrt: Vaswani et al., arXiv 1706.03762, section 5.3; without a warm-up its w is
        10,000, as in transformers. cyclic: Smith, arXiv 1506.01186, section 3, the triangular
        policy, begun at its peak; the lowest rate is from section 3.3.

    >>> [lr_factor(step, 10, 2, "linear") for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    >>> [lr_factor(step, 64, 4, "inverse-sqrt") for step in (0, 4, 16, 63)]
    [0.25, 1.0, 0.5, 0.251976...]
    >>> [lr_factor(step, 12, 0, "cyclic", cycles=2) for step in (0, 4, 8, 11)]
    [1.0, 0.25, 1.0, 0.4375]
    """
    rise = warmup * steps if warmup < 1 else warmup
    if step < rise:
        return min(1.0, (step + 1) / rise)
    left = (steps - step) / max(steps - rise, 1)
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if schedule == "inverse-sqrt":
        timescale = rise or TIMESCALE
        return math.sqrt(timescale / (step - rise + timescale))
    if schedule == "cyclic":
        return _triangle_wave(1 - left, cycles or CYCLES)
    return 1.0


def _triangle_wave(share: float, cycles: int) -> float:
    """Return the height of a wave that falls `cycles` times, after a share of its length."""
    position = share * (2 * cycles - 1)  # in falls and rises
    depth = 1 - abs(1 - position % 2)
    return 1 - (1 - LOWEST) * depth


def make_optimizer(adapter: Adapter, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over the adapter's parameters; biases and other vectors are never decayed."""
    matrices = [parameter for parameter in adapter.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in adapter.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Iterable[torch.Tensor]) -> float:
    """Return the norm of all gradients together; 0.0 where there is none."""
    gradients = [parameter.grad for parameter in parameters]
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    if not norms:
        return 0.0
    return float(torch.stack(norms).norm())
