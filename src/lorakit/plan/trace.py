"""One training step on tensors that have a shape and no values: what it holds in memory at each
moment, and what it computes.

Nothing is guessed from an architecture: the model's own forward and autograd's own backward run, on
    fake tensors, and every
storage is counted from its first use to its end. So dropout, casts, checkpointing and adapters
count as they are.
"""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lorakit.data.batches import concatenate_rows
from lorakit.errors import PlanError
from lorakit.evaluate.score import batch_loss
from lorakit.models.checkpointing import checkpoint_blocks
from lorakit.models.packing import packed_attention
from lorakit.sites.slot import SLOT

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward and backward pass, by its shape.

    Attributes:
        batch: sequences.
        length: tokens of each, padding included.
        task: causal-lm, classify or regress.
        dtype: of the base's weights.
        mixed: no, bf16 or fp16.
        padded: sequences differ in length, so that attention gets a mask.
        packed: tokens of each sequence, where they lie one after the other; batch and length do not
            count then.
        checkpointing: what is computed again in the backward pass, as `checkpoint_blocks` takes it.
        fused: attention's own dropout costs no memory, as in the kernels of GPUs.
        again: gradients of an earlier pass are there already (accumulation).
    """

    batch: int
    length: int
    task: str = "causal-lm"
    dtype: torch.dtype = torch.float32
    mixed: str = "no"
    padded: bool = True
    packed: tuple[int, ...] = ()
    checkpointing: str = ""
    fused: bool = False
    again: bool = False


@dataclass(frozen=True)
class Trace:
    """What one step holds and does; bytes beside the weights, adapters and optimizer state.

    Attributes:
        timeline: bytes in use after each allocation, in order; gradients count from when they are
            made.
        activations: bytes kept for the backward pass at the end of the forward, logits left out.
        logits: most bytes that logits and what is made of them (float32 copy, log-probabilities,
            gradient) take at once.
        flops: of all matrix products, a multiply-add being two.
        moved: bytes that everything else reads and writes.
        calls: operations of any kind.
        phases: where in the timeline each forward pass, and each backward pass, ends.
    """

    timeline: list[int]
    activations: int
    logits: int
    flops: int
    moved: int
    calls: int
    phases: list[int]

    @property
    def peak(self) -> int:
        """Most bytes in use at once."""
        return max(self.timeline, default=0)


def trace_step(model: nn.Module, step: Step) -> Trace:
    """Run one step of a model on fake tensors; the model's own tensors are back in place when it
    returns.

    Args:
        model: of transformers, on any device, mostly meta; with adapters where some train.
        step: its shape.

    Raises:
        PlanError: the model computes on what tensors hold in a way that shapes cannot answer.

    Returns:
        The trace. Kernels' own scratch space (oneDNN, cuBLAS) is not in it.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    fake, was_training = FakeTensorMode(), model.training
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what fails is told by PlanError
    with (
        _substituted(model, step.dtype, fake) as known,
        _checkpointed(model, step.checkpointing),
        fake,
    ):
        model.train()
        # Models leave the mask out where nothing is padded; of a fake mask they cannot tell, so
        # they are not given one.
        names = ("input_ids", "attention_mask") if step.padded else ("input_ids",)
        batch: dict[str, Any] = {
            name: torch.ones(step.batch, step.length, dtype=torch.long) for name in names
        }
        if step.packed:
            batch = concatenate_rows([[1] * length for length in step.packed])
        batch["labels"] = (
            batch["input_ids"]
            if step.task == "causal-lm"
            else torch.ones(step.batch, dtype=torch.long)
        )
        window = getattr(config, "sliding_window", None)
        masked = not step.packed and (step.padded or (window is not None and window < step.length))
        meter = _Meter(known, config.vocab_size)
        phases: list[int] = []
        kept, cast = (
            0,
            torch.autocast("cpu", AUTOCAST[step.mixed]) if step.mixed != "no" else nullcontext(),
        )
        try:
            with (
                meter,
                _Attention(step.fused, masked),
                packed_attention(model) if step.packed else nullcontext(),
            ):
                for _ in range(1 + step.again):
                    with cast:
                        loss, out = batch_loss(model, batch, step.task)
                        loss = loss / step.batch
                    kept = meter.now - meter.logits
                    phases.append(len(meter.timeline))
                    del out
                    loss.backward()
                    del loss
                    phases.append(len(meter.timeline))
        except (
            RuntimeError,
            NotImplementedError,
            TypeError,
            AttributeError,
            ValueError,
            IndexError,
        ) as error:
            line = next((text for text in str(error).splitlines() if text.strip()), "")
            name, kind = type(model).__name__, type(error).__name__
            raise PlanError(
                f"A step of {name} cannot be run on shapes alone: {kind}: {line}",
                advice="A short run measures what it holds.",
            ) from error
        finally:
            model.train(was_training)
            logger.setLevel(level)
    return Trace(
        meter.timeline, kept, meter.most_logits, meter.flops, meter.moved, meter.calls, phases
    )


class _Meter(TorchDispatchMode):
    """Counts storages from their first use to their end."""

    def __init__(self, known: set[int], vocabulary: int):
        super().__init__()
        self.vocabulary, self.known, self.alive = (
            vocabulary,
            known,
            dict[int, tuple[Any, int, bool]](),
        )
        self.now = self.logits = self.most_logits = self.flops = self.moved = self.calls = 0
        self.timeline: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE:  # asked for at every turn: two of three calls
            return args[0].fake_device
        if (
            func is GROUPED and args[0].dtype != torch.bfloat16
        ):  # on fakes it knows bfloat16 alone; on a CPU it takes any
            narrow = (
                t.bfloat16() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args
            )
            out = func(*narrow, **(kwargs or {})).to(args[0].dtype)
        else:
            out = func(*args, **(kwargs or {}))
        if func.namespace != "aten":
            return out
        fresh, self.calls = 0, self.calls + 1
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                fresh += self._see(t)
        count = FLOPS.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        elif fresh or func._schema.is_mutable:
            self.moved += fresh + sum(t.nbytes for t in tree_leaves(args) if isinstance(t, Tensor))
        return out

    def _see(self, t: Tensor) -> int:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self.alive or key in self.known:
            return 0
        size, wide = (
            storage.nbytes(),
            t.ndim > 1 and t.shape[-1] == self.vocabulary and t.shape[0] != self.vocabulary,
        )
        # The reference must live as long as the storage: its callback is what counts the end.
        self.alive[key] = (weakref.ref(storage, lambda _: self._gone(key)), size, wide)
        self.now += size
        self.logits += size if wide else 0
        self.most_logits = max(self.most_logits, self.logits)
        self.timeline.append(self.now)
        return size

    def _gone(self, key: int) -> None:
        _, size, wide = self.alive.pop(key)
        self.now -= size
        self.logits -= size if wide else 0


class _Attention(TorchFunctionMode):
    """Attention as the real step calls it, in the two things that fake tensors cannot tell."""

    def __init__(self, fused: bool, masked: bool):
        super().__init__()
        self.fused, self.masked = fused, masked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            if (
                self.fused
            ):  # the mask of the dropout is drawn again in the backward pass instead of being kept
                kwargs["dropout_p"] = 0.0
            if not self.masked:
                kwargs["attn_mask"] = None
        return func(*args, **kwargs)


@contextmanager
def _substituted(model: nn.Module, dtype: torch.dtype, fake: FakeTensorMode) -> Iterator[set[int]]:
    """Put fake tensors on the CPU in the place of all parameters and buffers; yields the keys of
    their storages.
    """
    before, made = [], dict[int, Any]()
    for path, module in model.named_modules():
        ours = SLOT in path.split(".")
        for table in (module._parameters, module._buffers):
            before.append((table, dict(table)))
            for key, t in table.items():
                if t is not None and id(t) not in made:
                    kept = ours or not t.is_floating_point() or table is module._buffers
                    with fake:
                        blank = torch.empty_strided(
                            t.size(), t.stride(), dtype=t.dtype if kept else dtype
                        )
                    made[id(t)] = (
                        nn.Parameter(blank, t.requires_grad)
                        if table is module._parameters
                        else blank
                    )
                table[key] = None if t is None else made[id(t)]
    try:
        yield {t.untyped_storage()._cdata for t in made.values()}
    finally:
        for table, values in before:
            table.update(values)


@contextmanager
def _checkpointed(model: Any, what: str) -> Iterator[None]:
    if what:
        checkpoint_blocks(model, what)
    try:
        yield
    finally:
        if what:
            checkpoint_blocks(model, "")


def _attention(
    query: Any, key: Any, value: Any, *rest: Any, out_val: Any = None, **more: Any
) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_val: Any = None, **more: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


aten, DEVICE, GROUPED = (
    torch.ops.aten,
    torch.ops.prim.device.default,
    torch.ops.aten._grouped_mm.default,
)
FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
