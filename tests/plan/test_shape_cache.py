"""Operations that a trace repeats from memory, beside fake tensors that are asked each time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lorakit import Spec
from lorakit.plan.meta_adapter import attach_on_meta
from lorakit.plan.shape_cache import ShapeCache
from lorakit.plan.trace import Step, trace_step

from .models import CONFIGS, build

STEP = Step(batch=3, length=24)
CASES = {
    "llama": ("llama", Spec(rank=4, dropout=0.1), STEP),
    "a loss in pieces": ("large vocabulary", Spec(rank=4), Step(batch=8, length=512)),
    "checkpointing, accumulated": (
        "deep and narrow",
        Spec(rank=4),
        replace(STEP, checkpointing="full", again=True),
    ),
    "light checkpointing": ("llama", Spec(rank=4), replace(STEP, checkpointing="light")),
    "packed": ("llama", Spec(rank=4), replace(STEP, packed=(9, 4, 17))),
    "autocast, as on a GPU": ("opt", Spec(rank=4), replace(STEP, mixed="bf16", fused=True)),
    "bfloat16, dora": ("opt", Spec(rank=4, delta="dora"), replace(STEP, dtype=torch.bfloat16)),
    "every parameter": ("llama", None, STEP),
    "an encoder": ("encoder", Spec(rank=4), replace(STEP, task="classify")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_trace_is_that_of_tensors_that_are_asked_each_time(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, spec, step = CASES[case]
    with torch.device("meta"):
        model: Any = build(CONFIGS[name](), step.task)
    if spec is not None:
        attach_on_meta(model, spec)
    repeats = count_repeats(monkeypatch)
    fast = trace_step(model, step)
    assert len(repeats) > 0.3 * fast.calls
    monkeypatch.setattr(ShapeCache, "run", ask_each_time)
    assert trace_step(model, step) == fast


def count_repeats(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows with every operation that is repeated from memory."""
    repeats: list[None] = []
    repeat = ShapeCache._repeat

    def note(self: ShapeCache, *args: Any) -> object:
        repeats.append(None)
        return repeat(self, *args)

    monkeypatch.setattr(ShapeCache, "_repeat", note)
    return repeats


def ask_each_time(
    self: ShapeCache, func: torch._ops.OpOverload, args: tuple[Any, ...], keywords: dict[str, Any]
) -> object:
    with self.fake:
        return func(*args, **keywords)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a new tensor": lambda x, y: x + y,
    "another dtype": lambda x, y: x.to(torch.float16) + (y > 0),
    "several tensors": lambda x, y: torch.stack(x.split(1)) + y.max(0).values,
    "a view": lambda x, y: x.t()[1:].add_(1),
    "the first argument": lambda x, y: x.add_(y),
    "the same argument twice": lambda x, y: x.add_(x),
    "a number that is whole or not": lambda x, y: (x.long() * 2, x.long() * 2.0, x.long() * True),
    "views from other places on": lambda x, y: (x[1] * 2, x[2] * 2, x[1:].t(), x[2:].t(), y[3:]),
    "a view from the beginning on": lambda x, y: (
        x[1:].as_strided((2, 2), (1, 1), 3),
        x[2:].as_strided((2, 2), (1, 1), 3),
    ),
    "a shape that changes": lambda x, y: (x.t_(), x.squeeze_()),
    "an argument that is written to": lambda x, y: torch.add(x, y, out=torch.empty(0)),
    "complex numbers": lambda x, y: torch.view_as_real(torch.complex(x, y).conj().resolve_conj()),
    "a constant": lambda x, y: x * torch.tensor(2.0),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_have_the_shape_and_the_storage_of_fake_tensors(name: str) -> None:
    fake = FakeTensorMode()
    cache = ShapeCache(fake)
    operation = OPERATIONS[name]
    with fake:
        expected = [describe(operation, *fresh()) for _ in range(3)]
    with cache:
        assert [describe(operation, *fresh()) for _ in range(3)] == expected


def fresh() -> tuple[Tensor, Tensor]:
    return torch.ones(4, 3), torch.ones(4, 3)


def describe(
    operation: Callable[[Tensor, Tensor], Any], x: Tensor, y: Tensor
) -> list[tuple[object, ...]]:
    results = operation(x, y)
    results = results if isinstance(results, tuple) else (results,)
    described = []
    for result in results:
        storage = result.untyped_storage()
        sources = [storage._cdata == one.untyped_storage()._cdata for one in (x, y)]
        described.append(
            (
                type(result) is FakeTensor,
                result.dtype,
                result.device,
                result.shape,
                result.stride(),
                result.storage_offset(),
                storage.nbytes(),
                sources,
                [result is one for one in (x, y)],
                result._version,
            )
        )
    return described


def test_an_argument_is_not_taken_for_another_that_was_the_same() -> None:
    with ShapeCache(FakeTensorMode()):
        x, y = fresh()
        assert x.add_(x) is x
        assert x.add_(y) is x


def test_what_is_done_with_each_token_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    repeats = count_repeats(monkeypatch)
    with ShapeCache(FakeTensorMode()):
        x = torch.ones(9, 3)
        for row in x.split(1):
            torch.exp(row.t())
    assert len(repeats) == 2 * 8  # the transposed row and its function, of all rows but one
