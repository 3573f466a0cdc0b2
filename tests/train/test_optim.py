"""Learning rates follow the published curves; optimizers by name, with their states and rates."""

import json
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_inverse_sqrt_schedule

import lorakit
from lorakit.errors import OutputError, SpecError, install_line
from lorakit.plan.estimate import measure_adapter
from lorakit.plan.optimizers import OPTIMIZERS
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.optim import find_class, lr_factor, make_optimizer, set_lr
from lorakit.train.request import check_request
from lorakit.train.run import train_adapter

from .test_run import equal, stop_after

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


# --- optimizers ----------------------------------------------------------------------------------

ON_CPU = [name for name, one in OPTIMIZERS.items() if not one.is_paged]


def adapter(**more: Any) -> lorakit.Adapter:
    model = nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 7))
    return lorakit.attach(model, Spec(**{"rank": 7, **more}))


def fill_gradients(parameters: Iterable[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", ON_CPU)
def test_the_plan_counts_the_state_that_an_optimizer_has(name: str) -> None:
    trained = adapter(delta="dora")
    optimizer = make_optimizer(trained, 1e-2, 0.0, name)
    before = [parameter.detach().clone() for parameter in trained.parameters()]
    for _ in range(2):
        fill_gradients(trained.parameters())
        optimizer.step()
    pairs = zip(before, trained.parameters(), strict=True)
    assert not any(torch.equal(start, parameter) for start, parameter in pairs)
    held = 0
    for parameter, state in optimizer.state.items():
        tensors = [value for key, value in state.items() if isinstance(value, torch.Tensor)]
        # The table of 8-bit values is shared, and a count of steps is one number.
        counted = [one for one in tensors if one.numel() > 1 and one.shape != (256,)]
        size = sum(one.nbytes for one in counted)
        assert OPTIMIZERS[name].state_bytes(parameter.shape, 4) == size, parameter.shape
        held += size
    assert held == measure_adapter(trained, torch.float32, OPTIMIZERS[name]).states > 0


def test_adamw_without_correction_is_its_formula() -> None:
    trained = adapter()
    optimizer = make_optimizer(trained, 1e-2, 0.1, "adamw-uncorrected")
    wanted = [parameter.detach().double() for parameter in trained.parameters()]
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in wanted]
    for _ in range(3):
        fill_gradients(trained.parameters())
        gradients = [parameter.grad.double() for parameter in trained.parameters()]
        optimizer.step()
        for i, g in enumerate(gradients):
            m = 0.9 * moments[i][0] + 0.1 * g
            v = 0.999 * moments[i][1] + 0.001 * g * g
            moments[i] = m, v
            wanted[i] = wanted[i] - 1e-2 * (m / (v.sqrt() + 1e-8) + 0.1 * wanted[i])
    for parameter, want in zip(trained.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.double(), want, rtol=1e-5, atol=1e-6)


def test_the_first_step_without_correction_is_three_times_as_large() -> None:
    sizes = []
    for name in ("adamw", "adamw-uncorrected"):
        trained = adapter()
        fill_gradients(trained.parameters())
        make_optimizer(trained, 1e-2, 0.0, name).step()
        sizes.append(float(trained.deltas["0"].B.detach().abs().mean()))
    assert sizes[1] / sizes[0] == pytest.approx(0.1 / 0.001**0.5, rel=1e-3)


def test_adafactor_moves_b_from_zero_as_fast_as_its_rate_says() -> None:
    trained = adapter()
    fill_gradients(trained.parameters())
    make_optimizer(trained, 1e-2, 0.0, "adafactor").step()
    assert float(trained.deltas["0"].B.detach().square().mean().sqrt()) == pytest.approx(
        1e-2, rel=0.05
    )


@pytest.mark.parametrize("delta", ["lora", "dora"])
def test_lora_plus_gives_b_its_own_rate(delta: str) -> None:
    trained = adapter(delta=delta, bias="all")
    optimizer = make_optimizer(trained, 1e-2, 0.1, lr_ratio=16)
    set_lr(optimizer, 1e-3)
    rates_by_id = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates_by_id[id(parameter)] = group["lr"], group["weight_decay"]
    for name, parameter in trained.named_parameters():
        wanted = (16e-3 if name.endswith(".B") else 1e-3, 0.1 if parameter.ndim > 1 else 0.0)
        assert rates_by_id.pop(id(parameter)) == pytest.approx(wanted), name
    assert not rates_by_id


def check(values: dict[str, Any], spec: Spec | None = None) -> list[str]:
    settings = TrainSpec(model="m", data="d", output="o", **values)
    with pytest.raises(SpecError) as caught:
        check_request(settings, spec or Spec(), "causal-lm")
    return caught.value.faults


@pytest.mark.parametrize("delta", ["vera", "loha", "lokr", "adalora"])
def test_lora_plus_is_refused_where_there_is_no_b_that_starts_at_zero(delta: str) -> None:
    assert check({"lr_ratio": 4.0}, Spec(delta=delta)) == [
        f"lr_ratio: LoRA+ is about A and B, those of lora and dora; the spec has delta={delta!r}"
    ]


def test_lora_plus_without_adapted_layers_is_refused() -> None:
    assert check({"lr_ratio": 4.0}, Spec(targets="none", bias="all")) == [
        "lr_ratio: targets='none' adapts no layer, so there is no B"
    ]


def test_a_paged_optimizer_is_refused_on_a_cpu() -> None:
    assert check({"optimizer": "paged-adamw8bit", "device": "cpu"}) == [
        "optimizer: 'paged-adamw8bit' moves its state from a GPU to main memory; this run is on "
        "the CPU: use 'adamw8bit'"
    ]


def test_a_missing_package_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    [fault] = check({"optimizer": "lion8bit", "device": "cpu"})
    assert fault.startswith("optimizer: 'lion8bit' needs bitsandbytes: ")
    assert fault.endswith(f"; {install_line('quantised')}")


def test_a_package_without_a_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(self: object) -> None:
        raise NotImplementedError("no kernel for cpu\nand more")

    monkeypatch.setattr(find_class("adamw8bit"), "step", no_kernel)
    assert check({"optimizer": "adamw8bit", "device": "cpu"}) == [
        "optimizer: 'adamw8bit' takes no step on cpu in float32: no kernel for cpu; "
        "pip install --upgrade bitsandbytes"
    ]


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def settings(short_run: dict[str, Any]) -> dict[str, Any]:
    return {
        **short_run,
        "batch_size": 4,
        "eval_fraction": 0.0,
        "checkpoint_every": 5,
        "device": "cpu",
    }


@pytest.mark.parametrize("name", ON_CPU)
def test_an_optimizer_goes_on_from_its_saved_state(name: str, tmp_path: Path) -> None:
    """The weights are saved with it, as in a checkpoint; its state may be in 8 bits."""

    def train(trained: lorakit.Adapter, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            fill_gradients(trained.parameters())
            set_lr(optimizer, 1e-2)
            optimizer.step()

    straight = adapter()
    optimizer = make_optimizer(straight, 1e-2, 0.1, name, lr_ratio=4.0)
    train(straight, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    weights = [parameter.detach().clone() for parameter in straight.parameters()]
    train(straight, optimizer)

    resumed = adapter()
    for parameter, value in zip(resumed.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    again = make_optimizer(resumed, 1e-2, 0.1, name, lr_ratio=4.0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(resumed, again)
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw-uncorrected", "adamw8bit"])
def test_stopped_and_resumed_equals_straight(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The head is adapted with a rank at which bitsandbytes holds its states in 8 bits."""
    settings |= {"steps": 20, "optimizer": name, "lr_ratio": 4.0, "schedule": "cyclic"}
    spec = Spec(rank=14, targets=("q_proj", "lm_head"), dropout=0.1)
    straight = train_adapter(TrainSpec(**{**settings, "output": str(tmp_path / "two")}), spec)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 10, RuntimeError("the power went out"))
        with pytest.raises(RuntimeError, match="power"):
            train_adapter(TrainSpec(**settings), spec)
    resumed = train_adapter(TrainSpec(**settings, resume=True), spec)
    assert equal(tmp_path / "out", tmp_path / "two")
    assert resumed["loss_last"] == straight["loss_last"] != straight["loss_first"]


@pytest.mark.slow
def test_each_setting_changes_the_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "optimizer": {"optimizer": "sgd"},
        "ratio": {"lr_ratio": 8.0},
        "schedule": {"schedule": "cyclic"},
        "cycles": {"schedule": "cyclic", "cycles": 2},
    }
    for name, change in changes.items():
        values = {**settings, "steps": 4, "output": str(tmp_path / name), **change}
        train_adapter(TrainSpec(**values), Spec(rank=2, targets="qv"))
    for one, other in combinations(changes, 2):
        assert not equal(tmp_path / one, tmp_path / other), (one, other)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_resumed(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its settings lack those that came later; they had the values that are the defaults now."""
    settings |= {"steps": 3}
    train_adapter(TrainSpec(**settings), Spec(rank=2))
    with pytest.raises(OutputError, match=r"lr_ratio: was 1.0, now 2.0"):
        train_adapter(TrainSpec(**settings, lr_ratio=2.0, resume=True), Spec(rank=2))
    path = tmp_path / "out" / "run.json"
    run = json.loads(path.read_text())
    for name in ("optimizer", "lr_ratio", "label_smoothing", "cycles"):
        del run["settings"][name]
    del run["mixed_precision"]
    run["settings"]["mixed_precision"] = "no"
    path.write_text(json.dumps(run))
    assert train_adapter(TrainSpec(**settings, resume=True), Spec(rank=2))["steps"] == 3
