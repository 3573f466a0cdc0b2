"""Learning rates follow the published curves."""

import pytest
import torch
from torch import nn
from transformers import get_inverse_sqrt_schedule

from lorakit.errors import SpecError
from lorakit.train.config import TrainSpec
from lorakit.train.optim import lr_factor

STEPS = 40


def rates(
    scheduler: torch.optim.lr_scheduler.LRScheduler, optimizer: torch.optim.Optimizer, steps: int
) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def sgd(lr: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("warmup", [0, 8])
def test_inverse_sqrt_is_the_schedule_of_transformers(warmup: int) -> None:
    optimizer = sgd(1.0)
    theirs = rates(get_inverse_sqrt_schedule(optimizer, warmup), optimizer, STEPS)
    ours = [lr_factor(step, STEPS, warmup, "inverse-sqrt") for step in range(STEPS)]
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-12)
    # The warm-up begins one step later there, with a rate of 0.
    assert ours[:warmup] == pytest.approx(theirs[1 : warmup + 1], rel=1e-12)


@pytest.mark.parametrize(("warmup", "cycles", "fall"), [(0, 1, 40), (0, 2, 10), (4, 1, 36)])
def test_cyclic_is_the_triangular_policy_of_torch_begun_at_its_peak(
    warmup: int, cycles: int, fall: int
) -> None:
    steps = warmup + fall * (2 * cycles - 1)
    optimizer = sgd(1.0)
    scheduler = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.25, max_lr=1.0, step_size_up=fall, cycle_momentum=False
    )
    theirs = rates(scheduler, optimizer, fall + steps - warmup)
    ours = [lr_factor(step, steps, warmup, "cyclic", cycles) for step in range(steps)]
    assert ours[warmup:] == pytest.approx(theirs[fall:], rel=1e-12)
    assert ours[:warmup] == [(step + 1) / warmup for step in range(warmup)]


def test_a_cyclic_run_has_three_falls_by_default_and_ends_low() -> None:
    factors = [lr_factor(step, 100, 0, "cyclic") for step in range(100)]
    peaks = [step for step, factor in enumerate(factors) if factor == max(factors)]
    assert peaks == [0, 40, 80]
    assert factors[20] == pytest.approx(0.25) and factors[-1] == pytest.approx(0.2875)
    assert min(factors) >= 0.25


def test_cycles_of_another_schedule_are_refused() -> None:
    with pytest.raises(SpecError) as caught:
        TrainSpec(model="m", data="d", output="o", cycles=2)
    assert caught.value.faults == [
        "cycles: the cosine schedule has none; give schedule cyclic",
    ]
