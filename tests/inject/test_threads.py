"""Threads that enable different adapters: each gets its own or is refused, never another's."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.errors import RowsError, SpecError

from ..laws.table import fill

X = torch.linspace(-1, 1, 12).view(3, 4)
NAMES = ("one", "two", "three")
Result = TypeVar("Result")


@pytest.fixture
def model() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    for seed, name in enumerate(NAMES):
        fill(lorakit.attach(model, lorakit.Spec(rank=2, targets=["*"]), name=name), seed=seed)
    return model


def run(model: nn.Module, which: str) -> Tensor:
    lorakit.enable(model, which)
    return model(X)


def in_thread(work: Callable[[], Result]) -> Result:
    """Return what another thread returns."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_a_thread_never_gets_what_another_enabled(model: nn.Module) -> None:
    expected = run(model, "one")
    in_thread(lambda: lorakit.enable(model, ["two", "three"]))
    with pytest.raises(RowsError) as caught:
        model(X)
    assert str(caught.value) == (
        "This thread enabled 'one', and then another thread 'two', 'three'.\n"
        "Hold a lock around enable and the forwards that follow it, or give each thread a copy of "
        "the model."
    )
    assert torch.equal(run(model, "one"), expected)


def test_a_switch_in_the_middle_of_a_forward_stops_it(model: nn.Sequential) -> None:
    lorakit.enable(model, "one")
    model[1].register_forward_hook(
        lambda *_: in_thread(lambda: lorakit.enable(model, None)) and None
    )
    with pytest.raises(RowsError, match="This thread enabled 'one', and then another thread none"):
        model(X)


def test_a_thread_that_enables_nothing_uses_what_is_on(model: nn.Module) -> None:
    for name in NAMES:
        expected = run(model, name)
        assert torch.equal(in_thread(lambda: model(X)), expected)


def test_threads_that_enable_the_same_may_run(model: nn.Module) -> None:
    lorakit.enable(model, {"one": 0.5, "two": 1})
    expected = model(X)
    in_thread(lambda: lorakit.enable(model, {"one": 0.5, "two": 1.0}))
    assert torch.equal(model(X), expected)


def test_each_thread_may_have_a_copy(model: nn.Module) -> None:
    expected = run(model, "one")
    twin = copy.deepcopy(model)
    in_thread(lambda: lorakit.enable(twin, "two"))
    assert torch.equal(model(X), expected)
    assert torch.equal(twin(X), run(model, "two"))


def test_a_request_that_was_refused_does_not_count(model: nn.Module) -> None:
    expected = run(model, "one")
    with pytest.raises(SpecError):
        lorakit.attach(model, lorakit.Spec(rank=9, targets=["*"]), name="four")
    in_thread(lambda: lorakit.detach(model, "two"))
    assert torch.equal(model(X), expected)


def run_many(
    model: nn.Module, name: str, start: threading.Barrier, lock: "threading.Lock | None"
) -> list[Tensor | None]:
    """Return outputs with an adapter; None for those that were refused."""
    outputs: list[Tensor | None] = []
    start.wait()
    for _ in range(300):
        try:
            if lock:
                with lock:
                    outputs.append(run(model, name))
            else:
                outputs.append(run(model, name))
        except RowsError:
            outputs.append(None)
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("locked", [False, True], ids=["no lock", "lock"])
def test_no_forward_of_three_threads_is_wrong(model: nn.Module, locked: bool) -> None:
    expected = {name: run(model, name).detach() for name in NAMES}
    start, lock = threading.Barrier(len(NAMES)), threading.Lock() if locked else None
    with ThreadPoolExecutor(len(NAMES)) as pool:
        futures: dict[str, Future[list[Tensor | None]]] = {}
        for name in NAMES:
            futures[name] = pool.submit(run_many, model, name, start, lock)
    for name, future in futures.items():
        for output in future.result():
            assert torch.equal(output, expected[name]) if output is not None else not locked
