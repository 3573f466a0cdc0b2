"""The plan of a run: parameters, memory by part, time, and what fits where; from shapes alone."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from lorakit.adapter import Adapter
from lorakit.errors import ModelError, TargetError
from lorakit.formats.peft.writer import layout_tensors
from lorakit.inits.start import STARTS
from lorakit.inject.attach import detach
from lorakit.inject.coverage import coverage
from lorakit.inject.targets import select
from lorakit.models.chunked_loss import chunk_rows
from lorakit.plan.blocks import trace_by_blocks
from lorakit.plan.curve import Curve, find_largest
from lorakit.plan.devices import Device, Rate
from lorakit.plan.meta_model import MetaModel, attach_on_meta
from lorakit.plan.published import count_other_methods
from lorakit.plan.trace import Step, Trace
from lorakit.sites.slot import base_parameters
from lorakit.spec import Spec

METHODS = ("full", "lora", "lora-8bit", "lora-4bit")
# As bitsandbytes stores a matrix: bytes a value, and float32 scales, one a row or one for 64
# values.
EIGHT_BIT, FOUR_BIT = 1.0, 0.5 + 4 / 64
MOST_BATCH, MOST_LENGTH = 1 << 16, 1 << 20
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run does at once.

    Attributes:
        batch: sequences of the largest batch.
        length: tokens of its longest sequence.
        padded: whether its sequences differ in length.
        packed: tokens of each sequence, where they lie one after the other instead.
        accumulate: passes of one step.
        base_dtype: auto, float32, bfloat16 or float16.
        auto: what "auto" is on a CPU; on a GPU it is bfloat16.
        mixed: no, bf16 or fp16.
        checkpointing: what is computed again, as `checkpoint_blocks` takes it.
    """

    batch: int = 16
    length: int = 512
    padded: bool = True
    packed: tuple[int, ...] = ()
    accumulate: int = 1
    base_dtype: str = "auto"
    auto: torch.dtype = torch.float32
    mixed: str = "no"
    checkpointing: str = ""

    def dtype(self, gpu: bool) -> torch.dtype:
        """Return the dtype of the base on such a device, as training chooses it."""
        if self.base_dtype == "auto":
            return torch.bfloat16 if gpu else self.auto
        return getattr(torch, self.base_dtype)

    def step(self, task: str, gpu: bool) -> Step:
        """Return the shape of one pass on such a device."""
        return Step(
            batch=self.batch,
            length=self.length,
            task=task,
            dtype=self.dtype(gpu),
            mixed=self.mixed,
            padded=self.padded,
            packed=self.packed,
            checkpointing=self.checkpointing,
            fused=gpu,
            again=self.accumulate > 1,
        )


@dataclass(frozen=True)
class AdapterBytes:
    """Bytes of an adapter.

    Attributes:
        trained: what gets gradients.
        frozen: what it needs beside that: where a start that moves B began, or the pair that VeRA's
            layers share.
        file: its tensors on disk; the header with names and settings comes on top.
    """

    trained: int
    frozen: int
    file: int


class Plan:
    """An adapter on a model, by shapes alone; each number is made when it is asked for.

    Args:
        base: the model; nothing may be attached to it.
        spec: of the adapter; a new head is trained whole beside it.
        work: what a run does at once.

    Raises:
        TargetError: a target matches nothing.
        SpecError: a rank that a layer cannot have; all are named.
    """

    def __init__(self, base: MetaModel, spec: Spec, work: Work):
        self.base, self.work = base, work
        new = tuple(m for m in base.new_modules if m not in spec.full_modules)
        self.spec = replace(spec, full_modules=(*spec.full_modules, *new))
        self._traces: dict[tuple[Step, int | None], Trace] = {}
        self._held: dict[torch.dtype, AdapterBytes] = {}
        adapter = attach_on_meta(base.model, self.spec)
        self.coverage, self.adapter = coverage(base.model), adapter
        own = list({id(p): p for _, p in base_parameters(base.model)}.values())
        self.base_parameters, self._buffers = (
            sum(p.numel() for p in own),
            sum(b.nbytes for b in base.model.buffers()),
        )
        detach(base.model)

    # --- memory ----------------------------------------------------------------------------------

    def trace(self, step: Step, *, rank: int | None = None, full: bool = False) -> Trace:
        """Return the trace of a step, with the adapter at its own or another rank, or with every
        parameter trained.
        """
        key = (step, 0 if full else rank)
        if key not in self._traces:
            model = self.base.model
            if full:
                model.requires_grad_(True)
            else:
                attach_on_meta(model, self.spec if rank is None else _at_rank(self.spec, rank))
            try:
                self._traces[key] = trace_by_blocks(model, step)
            finally:
                if not full:
                    detach(model)
        return self._traces[key]

    def weights(self, dtype: torch.dtype, method: str = "lora") -> int:
        """Return the bytes of the base: as it is, or with its linear layers but the head in 8 or 4
        bits.
        """
        size = self.base_parameters * dtype.itemsize + self._buffers
        if method in ("lora", "full"):
            return size
        per = EIGHT_BIT if method == "lora-8bit" else FOUR_BIT
        scales = 4 * sum(out for out, _ in self._linear) if method == "lora-8bit" else 0
        # One matrix at a time is back in full, to be multiplied with.
        return (
            int(size + sum(o * i for o, i in self._linear) * (per - dtype.itemsize) + scales)
            + self._widest * dtype.itemsize
        )

    @cached_property
    def _linear(self) -> list[tuple[int, int]]:
        try:
            return [place.shape for place in select(self.base.model, "all-linear").values()]
        except TargetError:  # no linear layer: nothing that is stored in fewer bits
            return []

    @property
    def _vocabulary(self) -> int:
        return self.base.model.config.get_text_config().vocab_size

    @cached_property
    def _widest(self) -> int:
        return max((out * inputs for out, inputs in self._linear), default=0)

    def adapter_bytes(self, dtype: torch.dtype, adapter: Adapter | None = None) -> AdapterBytes:
        """Return the bytes of the plan's adapter, or of another, on a base of this dtype."""
        if adapter is not None:
            return measure_adapter(adapter, dtype)
        if dtype not in self._held:
            self._held[dtype] = measure_adapter(self.adapter, dtype)
        return self._held[dtype]

    def fixed_bytes(
        self, dtype: torch.dtype, method: str = "lora", adapter: AdapterBytes | None = None
    ) -> int:
        """Return what is there all the time: weights, adapters, and the two moments of AdamW."""
        if method == "full":
            return 3 * 4 * self.base_parameters + self._buffers
        size = adapter or self.adapter_bytes(dtype)
        return self.weights(dtype, method) + size.frozen + 3 * size.trained

    def memory(self, *, gpu: bool) -> dict[str, int | None]:
        """Return the bytes of each part, and of all at the moment when they are most.

        The peak is not their sum: activations go while gradients come. Without a forward (headers
            alone) what a step holds is
        not known, and is None.
        """
        step = self.work.step(self.base.task, gpu)
        size, found = self.adapter_bytes(step.dtype), self.trace(step) if self.base.runs else None
        step_peak = None if found is None else max(found.peak, 2 * size.trained)
        return {
            "weights": self.weights(step.dtype),
            "adapters": size.trained + size.frozen,
            "gradients": size.trained,
            "optimizer": 2 * size.trained,
            "activations": found.activations if found else None,
            "logits": found.logits if found else None,
            "peak": None if step_peak is None else self.fixed_bytes(step.dtype) + step_peak,
        }

    # --- what fits -------------------------------------------------------------------------------

    def fits(self, device: Device) -> dict[str, dict[str, int]]:
        """Return for each method the largest batch at the length asked, and for LoRA the longest
        length and highest rank.

        Full fine-tuning holds weights, gradients and moments in float32 and computes in 16 bits on
        a GPU. 0: none fits.
        """
        step = replace(
            self.work.step(self.base.task, device.gpu), packed=()
        )  # for all of one length there is no difference
        whole = replace(
            step,
            dtype=torch.float32,
            mixed="bf16" if device.gpu and step.mixed == "no" else step.mixed,
        )
        out: dict[str, dict[str, int]] = {}
        for method in METHODS:
            room, full = device.usable - self.fixed_bytes(step.dtype, method), method == "full"
            out[method] = {"bytes": self.fixed_bytes(step.dtype, method), "batch": 0}
            if room <= 0:
                continue
            batches = self._curve("batch", whole if full else step, (2, 4), MOST_BATCH, full=full)
            out[method]["batch"] = find_largest(lambda b, c=batches, r=room: c(b) <= r, MOST_BATCH)
        room = device.usable - self.fixed_bytes(step.dtype)
        if room > 0:
            limit = self.base.max_length or MOST_LENGTH
            points = sorted({max(2, self.work.length // k) for k in (1, 2, 4)} | {8, 16})[-3:]
            lengths = self._curve("length", step, points, limit)
            out["lora"]["length"] = find_largest(lambda n: lengths(n) <= room, limit)
            out["lora"]["rank"] = self._highest_rank(step, device.usable)
        return out

    def _curve(
        self, what: str, step: Step, sizes: Sequence[int], most: int, *, full: bool = False
    ) -> Callable[[int], int]:
        def through(sizes: Sequence[int]) -> Curve:
            return Curve(
                [(n, self.trace(replace(step, **{what: n}), full=full).timeline) for n in sizes]
            )

        # A loss of more than one chunk holds no more logits, whatever the size, so from there on
        # another curve holds.
        edge = max(
            1,
            chunk_rows(self._vocabulary, step.dtype)
            // (step.length if what == "batch" else step.batch),
        )
        low, high = 2 * edge, min(8 * edge, most)
        if step.task != "causal-lm" or high - low < len(sizes):
            return through(sizes)
        beyond = through([low + (high - low) * k // (len(sizes) - 1) for k in range(len(sizes))])
        if edge < sizes[-1]:
            return beyond
        below = through(sizes)
        start, rise = below(edge), (beyond(low) - below(edge)) / (low - edge)
        # Between the two the peak is below the line that joins them: it is the highest of several
        # lines.
        return lambda n: (
            below(n) if n <= edge else beyond(n) if n >= low else round(start + rise * (n - edge))
        )

    def _highest_rank(self, step: Step, usable: int) -> int:
        most = self._highest()
        low, high = self.spec.rank, min(2 * self.spec.rank, most)
        low = low if high > low else max(1, high // 2)
        if self.spec.overrides or low >= high:
            return 0
        sizes = {
            r: self.fixed_bytes(step.dtype, adapter=self.adapter_bytes(step.dtype, self._fresh(r)))
            for r in (low, high)
        }
        slope = (sizes[high] - sizes[low]) / (high - low)
        curve = Curve([(r, self.trace(step, rank=r).timeline) for r in (low, high)])

        def fits(rank: int) -> bool:
            return int(sizes[low] + slope * (rank - low)) + curve(rank) <= usable

        return find_largest(fits, most)

    def _highest(self) -> int:
        """Return the highest rank that all adapted layers can have."""
        most = min((min(m["shape"]) for m in self.coverage.modules), default=0)
        start = STARTS[self.spec.init]
        return most // start.vectors_per_rank if start else most

    def _fresh(self, rank: int) -> Adapter:
        adapter = attach_on_meta(self.base.model, _at_rank(self.spec, rank))
        detach(self.base.model)
        return adapter

    # --- time and ranks --------------------------------------------------------------------------

    def seconds(
        self, rate: Rate, *, gpu: bool, batch: int | None = None, length: int | None = None
    ) -> float:
        """Return how long one optimizer step takes at this rate, of the largest batch or of another
        shape.
        """
        step = self.work.step(self.base.task, gpu)
        step = replace(
            step,
            batch=batch or step.batch,
            length=length or step.length,
            again=False,
            packed=() if batch else step.packed,
        )
        found = self.trace(step)
        return self.work.accumulate * rate.seconds(found.flops, found.moved, found.calls)

    def ranks(self, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
        """Return what each rank costs: parameters, bytes of the file, bytes while training, layers
        past break-even.
        """
        if self.spec.overrides or not self.coverage.modules:
            return []
        shapes = [m["shape"] for m in self.coverage.modules]
        out: list[dict[str, Any]] = []
        most, told = self._highest(), dict[int, tuple[int, ...]]()
        for r in (r for r in RANKS if r <= most):
            if len(told) < 2 or self.spec.delta == "lokr":  # of all others each rank adds the same
                adapter = self._fresh(r)
                told[r] = (adapter.parameters_count, *astuple(self.adapter_bytes(dtype, adapter)))
            else:
                told[r] = tuple(
                    first + (r - 1) * (second - first)
                    for first, second in zip(told[1], told[2], strict=True)
                )
            count, size = told[r][0], AdapterBytes(*told[r][1:])
            past = sum(r * (rows + columns) >= rows * columns for rows, columns in shapes)
            out.append(
                {
                    "rank": r,
                    "trainable_parameters": count,
                    "adapter_bytes": size.file,
                    "training_bytes": size.frozen + 4 * size.trained,
                    "share": count / self.base_parameters,
                    "past_break_even": past,
                }
            )
        return out

    def other_methods(self) -> dict[str, int]:
        """Return what other methods would train on this model; empty where its config does not tell
        its shape.
        """
        config = getattr(self.base.model, "config", None)
        text = config.get_text_config() if config is not None else None
        width, layers = getattr(text, "hidden_size", None), getattr(text, "num_hidden_layers", None)
        return count_other_methods(width, layers, self.spec.rank) if width and layers else {}


def make_plan(base: MetaModel, spec: Spec, work: Work) -> Plan:
    """Return a plan, or refuse a length that the model cannot read."""
    if base.max_length and work.length > base.max_length:
        raise ModelError(
            f"{work.length:,} tokens asked, {base.name} takes at most {base.max_length:,}.",
            advice="Lower --max-length.",
        )
    return Plan(base, spec, work)


def _at_rank(spec: Spec, rank: int) -> Spec:
    return replace(spec, rank=rank)


def measure_adapter(adapter: Adapter, dtype: torch.dtype) -> AdapterBytes:
    """Return the bytes of an adapter on a base of this dtype, which what is trained whole has too."""
    whole = sum(p.numel() for p in adapter.full_parameters.values())
    frozen = {id(b): b.nbytes for delta in adapter.deltas.values() for b in delta.buffers()}
    factors = sum(p.nbytes for delta in adapter.deltas.values() for p in delta.parameters())
    written = layout_tensors(adapter.spec, adapter.deltas, {}).tensors
    size = whole * dtype.itemsize
    return AdapterBytes(
        factors + size, sum(frozen.values()), sum(t.nbytes for t in written.values()) + size
    )
