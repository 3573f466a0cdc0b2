"""The optimizer and the learning rate of each step."""

import math
from collections.abc import Iterable

import torch

from lorakit.adapter import Adapter


def default_lr(width: int) -> float:
    """Return a peak learning rate for a model of this hidden width.

    5e-4 at width 2000, with the square root of the width: about ten times what full fine-tuning
    takes.

    >>> default_lr(2000), round(default_lr(384), 6)
    (0.0005, 0.001141)
    """
    return 5e-4 * math.sqrt(2000 / width)


def lr_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Return what the peak learning rate is multiplied by at a step (from 0); never 0, so that
    every step learns.

    >>> [lr_factor(s, 10, 2, "linear") for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    rise = warmup * steps if warmup < 1 else warmup
    if step < rise:
        return min(1.0, (step + 1) / rise)
    left = (steps - step) / max(steps - rise, 1)
    if schedule == "linear":
        return left
    return 0.5 * (1 - math.cos(math.pi * left)) if schedule == "cosine" else 1.0


def make_optimizer(adapter: Adapter, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over what the adapter trains; biases and other vectors are never decayed."""
    matrices = [p for p in adapter.parameters() if p.ndim > 1]
    vectors = [p for p in adapter.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Iterable[torch.Tensor]) -> float:
    """Return the norm of all gradients together; 0.0 where there is none."""
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0
