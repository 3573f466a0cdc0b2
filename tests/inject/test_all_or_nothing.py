"""All or nothing: an operation that fails anywhere leaves model and adapters bit for bit as before.

The injector raises at the n-th call of torch, or at the n-th line of the package, for every n.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import lorakit

from ..laws.table import bits, fill

PACKAGE = str(Path(lorakit.__file__).parent)
X = torch.linspace(-1, 1, 12).view(3, 4)


class Model(nn.Module):
    """Shared weights, a norm, an LSTM and an attention, which read weights themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.third.weight = nn.Parameter(self.first.weight)
        self.norm = nn.LayerNorm(4)
        self.lstm = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 1)
        self.third.bias.requires_grad_(False)
        self.lstm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.third(self.second(self.first(x))))
        x, _ = self.lstm(x)
        return self.attention(x, x, x)[0]


LAYERS = ["first", "third", "lstm.weight_hh_l0", "attention.out_proj"]
SPEC = lorakit.Spec(rank=2, targets=LAYERS, bias="all")


def make_model() -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model()


def filled(model: nn.Module, spec: lorakit.Spec = SPEC, name: str = "default") -> lorakit.Adapter:
    return fill(lorakit.attach(model, spec, name=name), seed=len(name))


def describe_attributes(owner: object) -> list[Any]:
    """Return the attributes of an object, with the contents of those that hold several things."""
    described: list[Any] = []
    for key, value in vars(owner).items():
        if isinstance(value, dict):
            contents = [(name, id(item)) for name, item in value.items()]
            described.append((key, id(value), type(value), contents))
        elif isinstance(value, list | set):
            described.append((key, id(value), [id(item) for item in value]))
        else:
            described.append((key, id(value)))
    return described


def describe(model: nn.Module, *adapters: lorakit.Adapter) -> list[Any]:
    """Return everything that an operation may change."""
    parameters = [*model.parameters()]
    described: list[Any] = []
    for module in model.modules():
        described.append((id(module), describe_attributes(module)))
    for adapter in (*adapters, *lorakit.attached(model).values()):
        for owner in (adapter, *adapter.deltas.values()):
            described.append((id(owner), describe_attributes(owner)))
        parameters += adapter.parameters()
    described.append(lorakit.enabled(model))
    for parameter in parameters:
        values = bits(parameter).tolist()
        described.append((id(parameter), parameter.data_ptr(), parameter.requires_grad, values))
    return described


class Injector(TorchFunctionMode):
    """Raise an error at the n-th call of torch."""

    def __init__(self, at: int, error: BaseException):
        super().__init__()
        self.left, self.error = at, error

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return function(*args, **(kwargs or {}))


@contextmanager
def interrupted_at_line(at: int) -> Iterator[None]:
    """Raise KeyboardInterrupt at the n-th line of the package that runs in the block."""
    left = at

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


# The operation, and adapters that are not on the model before it.
Start = tuple[Callable[[], object], tuple[lorakit.Adapter, ...]]


def start_attach(model: Model) -> Start:
    return lambda: lorakit.attach(model, SPEC), ()


def start_second(model: Model) -> Start:
    filled(model, lorakit.Spec(rank=1, targets=["second"]), "other")
    return lambda: lorakit.attach(model, SPEC), ()


def start_loaded(model: Model) -> Start:
    adapter = filled(make_model())
    adapter.deltas = dict(reversed(adapter.deltas.items()))
    return lambda: lorakit.attach(model, adapter, trainable=False), (adapter,)


def start_from_data(model: Model) -> Start:
    spec = lorakit.Spec(rank=1, targets=["first"], init="lora-ga", alpha=1)
    batches = [lambda model: model(X).square().sum()] * 2
    return lambda: lorakit.attach(model, spec, batches=batches), ()


def start_detach(model: Model) -> Start:
    filled(model)
    filled(model, lorakit.Spec(rank=1, targets=["second"]), "other")
    return lambda: lorakit.detach(model), ()


def start_enable(model: Model) -> Start:
    filled(model)
    return lambda: lorakit.enable(model, None), ()


def start_merge(model: Model) -> Start:
    filled(model)
    return lambda: lorakit.merge(model), ()


def start_unmerge(model: Model) -> Start:
    filled(model)
    undo = lorakit.merge(model)
    return lambda: lorakit.unmerge(model, undo), ()


STARTS = [
    start_attach,
    start_second,
    start_loaded,
    start_from_data,
    start_detach,
    start_enable,
    start_merge,
    start_unmerge,
]
operations = pytest.mark.parametrize("start", STARTS, ids=lambda start: start.__name__[6:])


def run_with_faults(
    start: Callable[[Model], Start],
    fault: Callable[[int], Any],
    step: int = 1,
) -> int:
    """Run an operation with a fault at its first call, its second and so on; return their number.

    Args:
        start: function of a model; it prepares the model and returns the operation.
        fault: function of a number; it returns a context that raises an error there.
        step: distance of the numbers.
    """
    model = make_model()
    operation, adapters = start(model)
    before = describe(model, *adapters)
    at = 1
    while True:
        try:
            with fault(at):
                operation()
        except (KeyboardInterrupt, torch.OutOfMemoryError):
            assert describe(model, *adapters) == before, f"changed by a fault at {at}"
            at += step
            continue
        assert describe(model) != before, "nothing was done"
        return at


@operations
@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("no memory")])
@pytest.mark.slow
def test_a_fault_at_any_call_of_torch_changes_nothing(
    start: Callable[[Model], Start], error: BaseException
) -> None:
    count = run_with_faults(start, lambda at: Injector(at, error))
    assert count > 1 or start is start_enable


@operations
@pytest.mark.slow
def test_an_interrupt_at_any_line_changes_nothing(
    start: Callable[[Model], Start],
) -> None:
    assert run_with_faults(start, interrupted_at_line, step=7) > 20


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def interrupt_forward(name: str) -> tuple[Model, torch.Tensor]:
    """Return a model after a forward that was interrupted in a layer, and its output before."""
    model = make_model()
    base = model(X)
    hook = model.get_submodule(name).register_forward_hook(interrupt)
    filled(model)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    hook.remove()
    return model, base


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_a_forward_that_is_interrupted_leaves_no_changed_weight(name: str) -> None:
    model, base = interrupt_forward(name)
    assert not torch.equal(model(X), base)
    lorakit.enable(model, None)
    assert torch.equal(model(X), base)


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_detach_after_an_interrupted_forward_leaves_the_base(name: str) -> None:
    model, base = interrupt_forward(name)
    lorakit.detach(model)
    assert torch.equal(model(X), base)
