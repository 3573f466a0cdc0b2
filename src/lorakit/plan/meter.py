"""Modes that watch one training step on fake tensors: memory and work, and attention as it is."""

import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lorakit.errors import PlanError
from lorakit.plan.shape_cache import ShapeCache

Arguments = Sequence[object]
Keywords = Mapping[str, object]
Operation = Callable[..., object]


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


ATEN = torch.ops.aten
GROUPED_PRODUCT = ATEN._grouped_mm.default
FLOPS = {
    **flop_registry,
    ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


# Operations of a step that is traced; a model of a hundred layers takes fewer. A loop over tokens,
# as in Jamba without its kernels, takes many more, for minutes.
MOST_CALLS = 20_000
# The CPU time of this process at which a trace is given up.
DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=math.inf)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Give up the traces in this block that take more CPU seconds than these, all together."""
    token = DEADLINE.set(time.process_time() + seconds)
    try:
        yield
    finally:
        DEADLINE.reset(token)


class Allocation(NamedTuple):
    """One storage that is in use: the reference that sees its end, its bytes, and its kind."""

    reference: weakref.ref
    bytes: int
    is_logits: bool


class Meter(ShapeCache):
    """Counts storages from their first use to their end, and the work of every operation.

    Args:
        fake: the mode of the tensors.
        known: keys of storages that are not counted: weights and adapters.
        vocabulary: width of the logits.

    Attributes:
        now: bytes in use.
        logits: bytes of logits, and of what is made of them, in use.
        most_logits: the largest value of `logits`.
        timeline: `now` after each allocation.
        flops: operations of matrix products; a multiply-add counts as two.
        moved: bytes that other operations read and write.
        calls: operations of any kind.
    """

    def __init__(self, fake: FakeTensorMode, known: set[int], vocabulary: int):
        super().__init__(fake)
        self.known = known
        self.vocabulary = vocabulary
        self.alive: dict[int, Allocation] = {}
        self.timeline: list[int] = []
        self.now = 0
        self.logits = 0
        self.most_logits = 0
        self.flops = 0
        self.moved = 0
        self.calls = 0

    def run(self, func: torch._ops.OpOverload, args: Arguments, keywords: Keywords) -> object:
        """Return the result of an operation, and count it."""
        if func is GROUPED_PRODUCT and args[0].dtype != torch.bfloat16:  # type: ignore[attr-defined]
            with self.fake:
                out = _grouped_product(args, keywords)
        else:
            out = super().run(func, args, keywords)
        if func.namespace == "aten":
            self._count(func, args, keywords, out)
        return out

    def _count(
        self, func: torch._ops.OpOverload, args: Arguments, keywords: Keywords, out: object
    ) -> None:
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise PlanError(
                f"one step takes more than {MOST_CALLS:,} operations: the model may compute token "
                "by token",
            )
        if time.process_time() > DEADLINE.get():
            raise PlanError("its plan takes longer than that of such a run may")
        fresh = sum(self._see(tensor) for tensor in _tensors(out))
        count = FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **keywords, out_val=out)
        elif fresh or func._schema.is_mutable:
            self.moved += fresh + sum(tensor.nbytes for tensor in _tensors(args))

    def _see(self, tensor: Tensor) -> int:
        """Count the storage of a tensor if it is new, and return its bytes; 0 if it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive or key in self.known:
            return 0
        # The reference must live as long as the storage: its callback counts the end.
        reference = weakref.ref(storage, lambda _: self._release(key))
        allocation = Allocation(reference, storage.nbytes(), self._is_logits(tensor))
        self.alive[key] = allocation
        self.now += allocation.bytes
        if allocation.is_logits:
            self.logits += allocation.bytes
            self.most_logits = max(self.most_logits, self.logits)
        self.timeline.append(self.now)
        return allocation.bytes

    def _release(self, key: int) -> None:
        allocation = self.alive.pop(key)
        self.now -= allocation.bytes
        if allocation.is_logits:
            self.logits -= allocation.bytes

    def _is_logits(self, tensor: Tensor) -> bool:
        if tensor.ndim < 2 or tensor.shape[-1] != self.vocabulary:
            return False
        return tensor.shape[0] != self.vocabulary


def _tensors(tree: object) -> list[Tensor]:
    """Return the tensors among arguments or results; `tree_leaves` takes ten times as long."""
    if isinstance(tree, Tensor):
        return [tree]
    found: list[Tensor] = []
    if isinstance(tree, list | tuple):
        for value in tree:
            found += _tensors(value)
    return found


def _grouped_product(args: Arguments, keywords: Keywords) -> Tensor:
    """Return a grouped product in another dtype than bfloat16, the only one fake tensors know.

    On a CPU the real operation takes any dtype.
    """
    narrow = []
    for value in args:
        if isinstance(value, Tensor) and value.is_floating_point():
            narrow.append(value.bfloat16())
        else:
            narrow.append(value)
    out = GROUPED_PRODUCT(*narrow, **keywords)
    return out.to(args[0].dtype)  # type: ignore[attr-defined]


@contextmanager
def real_attention(*, fused: bool, masked: bool) -> Iterator[None]:
    """Let attention be called as the real step calls it, where fake tensors cannot tell.

    It is replaced where it stands: a mode of torch is off while a backward pass computes again.

    Args:
        fused: True if the mask of attention's dropout is drawn again in the backward pass, and not
            kept.
        masked: True if attention gets a mask.
    """
    functions: Any = nn.functional
    attend: Callable[..., Tensor] = functions.scaled_dot_product_attention

    def call(*args: Tensor, **keywords: object) -> Tensor:
        changed: dict[str, object] = {"dropout_p": 0.0} if fused else {}
        if not masked:
            changed["attn_mask"] = None
        return attend(*args, **{**keywords, **changed})

    functions.scaled_dot_product_attention = call
    try:
        yield
    finally:
        functions.scaled_dot_product_attention = attend
