"""The plan of a run: parameters, memory by part, and time, from shapes alone."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypedDict

import torch

from lorakit.adapter import Adapter
from lorakit.errors import ModelError, TargetError
from lorakit.evaluate.regularisation import NONE, Regularisation
from lorakit.formats.peft.writer import layout_tensors
from lorakit.inits.start import STARTS
from lorakit.inject.attach import attach, detach
from lorakit.inject.coverage import coverage
from lorakit.inject.targets import select
from lorakit.models.precision import gpu_autocast, gpu_dtype
from lorakit.plan.blocks import trace_by_blocks
from lorakit.plan.devices import Rate
from lorakit.plan.meta_adapter import attach_on_meta
from lorakit.plan.meta_model import MetaModel
from lorakit.plan.optimizers import DEFAULT, OPTIMIZERS, Optimizer
from lorakit.plan.published import count_other_methods
from lorakit.plan.trace import Step, Trace
from lorakit.sites.slot import base_parameters
from lorakit.spec import Spec

# Bytes a value as bitsandbytes stores a matrix, with a float32 scale for each row in 8 bits, and
# for each 64 values in 4 bits.
EIGHT_BIT, FOUR_BIT = 1.0, 0.5 + 4 / 64
SCALE_BYTES = 4
VALUE_BYTES = 4  # of full fine-tuning, in float32
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The largest pass of a run, and the settings that its memory depends on.

    Attributes:
        batch: sequences of the largest batch.
        length: tokens of its longest sequence.
        answer: most tokens that a decoder writes; 0 without one.
        padded: True if its sequences differ in length.
        packed: tokens of each sequence if they are concatenated in one row instead.
        accumulate: passes of one step.
        base_dtype: auto, float32, bfloat16 or float16.
        auto: the dtype that "auto" means on a CPU; see `gpu_dtype` for GPUs.
        trains_base: True if parameters of the base train in full.
        mixed: auto, no, bf16 or fp16.
        checkpointing: what is computed again, as `checkpoint_blocks` takes it.
        optimizer: a name from OPTIMIZERS.
        regularisation: changes of the loss.
    """

    batch: int = 16
    length: int = 512
    answer: int = 0
    padded: bool = True
    packed: tuple[int, ...] = ()
    accumulate: int = 1
    base_dtype: str = "auto"
    auto: torch.dtype = torch.float32
    trains_base: bool = False
    mixed: str = "auto"
    checkpointing: str = ""
    optimizer: str = DEFAULT
    regularisation: Regularisation = NONE

    def dtype(self, gpu: bool, bfloat16: bool = True) -> torch.dtype:
        """Return the dtype of the base on a CPU or GPU, as training chooses it."""
        if self.base_dtype != "auto":
            return getattr(torch, self.base_dtype)
        if not gpu:
            return self.auto
        return gpu_dtype(bfloat16=bfloat16, trains_base=self.trains_base)

    def autocast(self, gpu: bool, bfloat16: bool = True) -> str:
        """Return the mixed precision on a CPU or GPU, as training chooses it."""
        if self.mixed != "auto":
            return self.mixed
        if not gpu:
            return "no"
        dtype, is_chosen = self.dtype(gpu, bfloat16), self.base_dtype != "auto"
        return gpu_autocast(dtype, bfloat16=bfloat16, is_chosen=is_chosen)

    def step(self, task: str, gpu: bool, bfloat16: bool = True) -> Step:
        """Return the shape of one pass on a CPU or GPU."""
        return Step(
            batch=self.batch,
            length=self.length,
            task=task,
            answer=self.answer,
            dtype=self.dtype(gpu, bfloat16),
            mixed=self.autocast(gpu, bfloat16),
            padded=self.padded,
            packed=self.packed,
            checkpointing=self.checkpointing,
            fused=gpu,
            again=self.accumulate > 1,
            regularisation=self.regularisation,
        )


@dataclass(frozen=True)
class AdapterBytes:
    """Bytes of an adapter.

    Attributes:
        trained: parameters that get gradients.
        frozen: tensors that it needs beside those: the start of factors that B does not start at
            zero, or the pair that VeRA's layers share.
        file: its tensors on disk; the header with names and settings comes on top.
        states: the optimizer's state of the parameters.
    """

    trained: int
    frozen: int
    file: int
    states: int


class RankCost(NamedTuple):
    """Trained values and bytes of an adapter of one rank."""

    parameters: int
    trained: int
    frozen: int
    file: int
    states: int


class Memory(TypedDict):
    """Bytes of each part of a step, as JSON holds them; None if the forward is not known."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int | None
    logits: int | None
    peak: int | None


class RankRow(TypedDict):
    """The cost of one rank, as JSON holds it."""

    rank: int
    trainable_parameters: int
    adapter_bytes: int
    training_bytes: int
    share: float
    past_break_even: int


class Plan:
    """An adapter on a model, by shapes alone; each number is computed when it is asked for.

    Args:
        base: the model; nothing may be attached to it.
        spec: spec of the adapter; a new head trains in full beside it.
        work: the largest pass of the run.
        left_out: the reason for each module that the spec leaves out, for the coverage.

    Raises:
        TargetError: a target matches nothing.
        SpecError: a rank that a layer cannot have; all are named.
    """

    def __init__(
        self,
        base: MetaModel,
        spec: Spec,
        work: Work,
        left_out: Mapping[str, str] | None = None,
    ):
        self.base = base
        self.work = work
        heads = [name for name in base.new_modules if name not in spec.full_modules]
        self.spec = replace(spec, full_modules=(*spec.full_modules, *heads))
        self._traces: dict[tuple[Step, int | None], Trace] = {}
        self._adapters: dict[int, Adapter] = {}
        self._adapter_bytes: dict[torch.dtype, AdapterBytes] = {}
        self.adapter = attach_on_meta(base.model, self.spec)
        self.adapter.left_out |= left_out or {}
        self.coverage = coverage(base.model)
        # A parameter that two layers share counts once.
        own = {id(parameter): parameter for _, parameter in base_parameters(base.model)}
        self.base_shapes = [tuple(parameter.shape) for parameter in own.values()]
        self.base_parameters = sum(parameter.numel() for parameter in own.values())
        self.buffer_bytes = sum(buffer.nbytes for buffer in base.model.buffers())
        detach(base.model)

    def trace(self, step: Step, *, rank: int | None = None, full: bool = False) -> Trace:
        """Return the trace of a step, with the adapter or with every parameter trained.

        Args:
            step: batch, length, task and dtypes of the pass.
            rank: rank of the adapter; that of the spec where None.
            full: train every parameter instead, without an adapter.
        """
        if rank == self.spec.rank:
            rank = None
        key = (step, 0 if full else rank)
        if key not in self._traces:
            self._traces[key] = self._trace_full(step) if full else self._trace_adapter(step, rank)
        return self._traces[key]

    def _trace_full(self, step: Step) -> Trace:
        self.base.model.requires_grad_(True)
        return trace_by_blocks(self.base.transformer, step)

    def _trace_adapter(self, step: Step, rank: int | None) -> Trace:
        attach(self.base.model, self.adapter if rank is None else self.adapter_at(rank))
        try:
            return trace_by_blocks(self.base.transformer, step)
        finally:
            detach(self.base.model)

    def adapter_at(self, rank: int) -> Adapter:
        """Return an adapter of this rank, of tensors without values."""
        if rank not in self._adapters:
            self._adapters[rank] = attach_on_meta(self.base.model, replace(self.spec, rank=rank))
            detach(self.base.model)
        return self._adapters[rank]

    # --- memory ----------------------------------------------------------------------------------

    def weights(self, dtype: torch.dtype, method: str = "lora") -> int:
        """Return the bytes of the base.

        Args:
            dtype: dtype of its weights.
            method: "lora" or "full"; with "lora-8bit" and "lora-4bit" its linear layers but the
                head are stored in 8 or 4 bits.
        """
        size = self.base_parameters * dtype.itemsize + self.buffer_bytes
        if method in ("lora", "full"):
            return size
        values = sum(out * inputs for out, inputs in self._linear_shapes)
        scales = 0
        bytes_of_value = FOUR_BIT
        if method == "lora-8bit":
            bytes_of_value = EIGHT_BIT
            scales = SCALE_BYTES * sum(out for out, _ in self._linear_shapes)
        stored = int(size + values * (bytes_of_value - dtype.itemsize) + scales)
        # One matrix at a time is dequantised, to be multiplied with.
        largest = max((out * inputs for out, inputs in self._linear_shapes), default=0)
        return stored + largest * dtype.itemsize

    @cached_property
    def _linear_shapes(self) -> list[tuple[int, int]]:
        try:
            places = select(self.base.model, "all-linear")
        except TargetError:
            # No linear layer: nothing is stored in fewer bits.
            return []
        return [place.shape for place in places.values()]

    def adapter_bytes(self, dtype: torch.dtype, adapter: Adapter | None = None) -> AdapterBytes:
        """Return the bytes of the plan's adapter, or of another, on a base of this dtype."""
        if adapter is not None:
            return measure_adapter(adapter, dtype, self.optimizer)
        if dtype not in self._adapter_bytes:
            self._adapter_bytes[dtype] = measure_adapter(self.adapter, dtype, self.optimizer)
        return self._adapter_bytes[dtype]

    def fixed_bytes(
        self, dtype: torch.dtype, method: str = "lora", adapter: AdapterBytes | None = None
    ) -> int:
        """Return the bytes in use all the time: weights, adapter, and the optimizer's state."""
        if method == "full":
            # Gradients are in the trace.
            states = [self.optimizer.state_bytes(shape, VALUE_BYTES) for shape in self.base_shapes]
            return VALUE_BYTES * self.base_parameters + sum(states) + self.buffer_bytes
        size = adapter or self.adapter_bytes(dtype)
        return self.weights(dtype, method) + size.frozen + size.trained + size.states

    def memory(self, *, gpu: bool, bfloat16: bool = True) -> Memory:
        """Return the bytes of each part, and of all at the moment of the peak.

        The peak is not their sum: activations go while gradients come. Without a forward (headers
        alone) the memory of a step is not known, and is None.
        """
        step = self.work.step(self.base.task, gpu, bfloat16)
        size = self.adapter_bytes(step.dtype)
        memory = Memory(
            weights=self.weights(step.dtype),
            adapters=size.trained + size.frozen,
            gradients=size.trained,
            optimizer=size.states,
            activations=None,
            logits=None,
            peak=None,
        )
        if self.base.runs:
            found = self.trace(step)
            memory["activations"] = found.activations
            memory["logits"] = found.logits
            # The optimizer's step holds gradients and a temporary of their size.
            memory["peak"] = self.fixed_bytes(step.dtype) + max(found.peak, 2 * size.trained)
        return memory

    # --- time and ranks --------------------------------------------------------------------------

    def seconds(
        self,
        rate: Rate,
        *,
        gpu: bool,
        bfloat16: bool = True,
        batch: int | None = None,
        length: int | None = None,
    ) -> float:
        """Return the seconds of one optimizer step at this rate.

        Args:
            rate: speed of the machine.
            gpu: True for the dtype and the kernels of a GPU.
            bfloat16: True if the GPU computes in bfloat16.
            batch: sequences of a pass; those of the largest batch where None.
            length: tokens of a sequence; those of the largest batch where None.
        """
        step = replace(self.work.step(self.base.task, gpu, bfloat16), again=False)
        if batch:
            step = replace(step, batch=batch, packed=())
        if length:
            step = replace(step, length=length)
        found = self.trace(step)
        return self.work.accumulate * rate.seconds(found.flops, found.moved, found.calls)

    def ranks(self, dtype: torch.dtype = torch.float32) -> list[RankRow]:
        """Return the cost of each rank: parameters, bytes of the file, bytes while training."""
        shapes = [module["shape"] for module in self.coverage.modules]
        if self.spec.overrides or not shapes:
            return []
        rows = []
        for rank, cost in self._rank_costs(dtype).items():
            past = sum(rank * (out + inputs) >= out * inputs for out, inputs in shapes)
            row = RankRow(
                rank=rank,
                trainable_parameters=cost.parameters,
                adapter_bytes=cost.file,
                # A value, its gradient, a temporary of its size, and the optimizer's state.
                training_bytes=cost.frozen + 2 * cost.trained + cost.states,
                share=cost.parameters / self.base_parameters,
                past_break_even=past,
            )
            rows.append(row)
        return rows

    def _rank_costs(self, dtype: torch.dtype) -> dict[int, RankCost]:
        costs: dict[int, RankCost] = {}
        for rank in RANKS:
            if rank > self.highest_rank():
                break
            # Of all but LoKr, and of states in 8 bits, each rank adds the same.
            is_uneven = self.spec.delta == "lokr" or self.optimizer.bits == 8
            if len(costs) < 2 or is_uneven:
                adapter = self.adapter_at(rank)
                size = self.adapter_bytes(dtype, adapter)
                costs[rank] = RankCost(adapter.parameters_count, *astuple(size))
            else:
                costs[rank] = _extrapolate(costs[1], costs[2], rank)
        return costs

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the run."""
        return OPTIMIZERS[self.work.optimizer]

    def highest_rank(self) -> int:
        """Return the highest rank that all adapted layers can have."""
        most = min((min(module["shape"]) for module in self.coverage.modules), default=0)
        return most // STARTS[self.spec.init].vectors_per_rank

    def other_methods(self) -> dict[str, int]:
        """Return the values that other methods would train, by name; empty without a config."""
        config = self.base.text_config
        width = getattr(config, "hidden_size", None)
        layers = getattr(config, "num_hidden_layers", None)
        if not width or not layers:
            return {}
        return count_other_methods(width, layers, self.spec.rank)


def make_plan(
    base: MetaModel, spec: Spec, work: Work, left_out: Mapping[str, str] | None = None
) -> Plan:
    """Return a plan, or refuse a length that the model cannot read.

    Raises:
        ModelError: more tokens than the model has positions.
    """
    if base.max_length and work.length > base.max_length:
        raise ModelError(
            f"{work.length:,} tokens asked, {base.name} takes at most {base.max_length:,}.",
            advice="Lower --max-length.",
        )
    return Plan(base, spec, work, left_out)


def measure_adapter(adapter: Adapter, dtype: torch.dtype, optimizer: Optimizer) -> AdapterBytes:
    """Return the bytes of an adapter on a base of this dtype, that of its full parameters."""
    full = 0
    states = 0
    for parameter in adapter.full_parameters.values():
        full += parameter.numel() * dtype.itemsize
        states += optimizer.state_bytes(parameter.shape, dtype.itemsize)
    factors = 0
    # Buffers that several deltas share count once.
    frozen: dict[int, int] = {}
    for delta in adapter.deltas.values():
        for parameter in delta.parameters():
            factors += parameter.nbytes
            states += optimizer.state_bytes(parameter.shape, parameter.itemsize)
        for buffer in delta.buffers():
            frozen[id(buffer)] = buffer.nbytes
    written = layout_tensors(adapter.spec, adapter.deltas, {}).tensors
    file = sum(tensor.nbytes for tensor in written.values())
    return AdapterBytes(factors + full, sum(frozen.values()), file + full, states)


def _extrapolate(one: RankCost, two: RankCost, rank: int) -> RankCost:
    """Return the cost of a rank on the line through those of ranks 1 and 2."""
    values = []
    for first, second in zip(one, two, strict=True):
        values.append(first + (rank - 1) * (second - first))
    return RankCost(*values)
