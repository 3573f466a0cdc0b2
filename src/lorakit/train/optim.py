"""The optimizer and the learning rate of each step."""

import math
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import LowRank
from lorakit.plan.optimizers import DEFAULT, OPTIMIZERS

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


def make_optimizer(
    adapter: Adapter, lr: float, weight_decay: float, name: str = DEFAULT, lr_ratio: float = 1.0
) -> torch.optim.Optimizer:
    """Return an optimizer of the adapter's parameters; biases and other vectors are never decayed.

    Args:
        adapter: the adapter.
        lr: learning rate.
        weight_decay: of the matrices.
        name: a name from OPTIMIZERS.
        lr_ratio: the rate of B over that of all other parameters.

    Raises:
        ImportError: the package of the optimizer is missing.

    Source: lr_ratio is lambda in Hayou et al., LoRA+, arXiv 2402.12354.
    """
    faster: list[nn.Parameter] = []
    if lr_ratio != 1:
        lowrank = [delta for delta in adapter.deltas.values() if isinstance(delta, LowRank)]
        faster = [delta.B for delta in lowrank]
    known = {id(parameter) for parameter in faster}
    others = [parameter for parameter in adapter.parameters() if id(parameter) not in known]
    matrices = [parameter for parameter in others if parameter.ndim > 1]
    vectors = [parameter for parameter in others if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": faster, "weight_decay": weight_decay, "lr_ratio": lr_ratio},
        {"params": vectors, "weight_decay": 0.0},
    ]
    chosen = OPTIMIZERS[name]
    present = [group for group in groups if group["params"]]
    return find_class(name)(present, lr=lr, **chosen.options)


def find_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of an optimizer.

    Raises:
        ImportError: its package is missing or cannot be loaded.
    """
    module, _, class_name = OPTIMIZERS[name].path.rpartition(".")
    return getattr(import_module(module), class_name)


class UncorrectedAdamW(torch.optim.Optimizer):
    """AdamW without bias correction, as BERT was trained.

    The moments start at zero and are not corrected for it, so that the first steps are about three
    times as large as AdamW's: a warm-up makes up for that.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: term that is added to the denominator.
        weight_decay: decay of the parameters, times the learning rate.

    Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2 without the lines that correct m
        and v.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; a closure is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-group["lr"])


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group, times its ratio where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


def gradient_norm(parameters: Iterable[torch.Tensor]) -> float:
    """Return the norm of all gradients together; 0.0 where there is none."""
    gradients = [parameter.grad for parameter in parameters]
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    if not norms:
        return 0.0
    return float(torch.stack(norms).norm())
