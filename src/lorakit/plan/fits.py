"""The largest batch, length and rank that fit on a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from lorakit.models.chunked_loss import chunk_rows
from lorakit.plan.config import METHODS
from lorakit.plan.curve import Curve, Sample, find_largest
from lorakit.plan.devices import Device
from lorakit.plan.estimate import Plan
from lorakit.plan.trace import Step

MOST_BATCH, MOST_LENGTH = 1 << 16, 1 << 20
Bytes = Callable[[int], int]


@dataclass(frozen=True)
class Size:
    """A size of a step that is varied.

    Attributes:
        field: "batch" or "length", a field of Step.
        samples: sizes that are traced.
        most: the largest size.
    """

    field: str
    samples: Sequence[int]
    most: int


def find_fits(plan: Plan, device: Device) -> dict[str, dict[str, int]]:
    """Return the largest batch for each method, and for LoRA the longest length and highest rank.

    Full fine-tuning holds weights, gradients and moments in float32, and computes in 16 bits on a
    GPU.

    Args:
        plan: plan of the run; the batch is for its length, length and rank are for its batch.
        device: device that it would run on.

    Returns:
        By method "bytes" in use all the time and "batch"; for "lora" also "length" and "rank".
        0 means that none fits.
    """
    # Rows of one length have nothing to pack.
    step = plan.work.step(plan.base.task, device.gpu, device.bfloat16)
    step = replace(step, packed=())
    fits: dict[str, dict[str, int]] = {}
    for method in METHODS:
        fixed = plan.fixed_bytes(step.dtype, method)
        room = device.usable - fixed
        batch = 0
        if room > 0:
            batch = _largest_batch(plan, step, method, device, room)
        fits[method] = {"bytes": fixed, "batch": batch}

    room = device.usable - plan.fixed_bytes(step.dtype)
    if room > 0:
        fits["lora"]["length"] = _longest(plan, step, room)
        fits["lora"]["rank"] = _highest_rank(plan, step, device.usable)
    return fits


def _largest_batch(plan: Plan, step: Step, method: str, device: Device, room: int) -> int:
    full = method == "full"
    if full:
        step = replace(step, dtype=torch.float32)
        if device.gpu and step.mixed == "no":
            step = replace(step, mixed="bf16" if device.bfloat16 else "fp16")
    size = Size("batch", samples=(2, 4), most=MOST_BATCH)
    peak = _peak_by(plan, step, size, full=full)
    return find_largest(lambda batch: peak(batch) <= room, size.most)


def _longest(plan: Plan, step: Step, room: int) -> int:
    most = plan.base.max_length or MOST_LENGTH
    length = plan.work.length
    if _fits_grown(plan, step, most / length, room):
        return most
    parts = {max(2, length // part) for part in (1, 2, 4)}
    samples = sorted(parts | {8, 16})[-3:]
    peak = _peak_by(plan, step, Size("length", samples, most))
    return find_largest(lambda length: peak(length) <= room, most)


def _fits_grown(plan: Plan, step: Step, factor: float, room: int) -> bool:
    """Return True if a step fits with its length or rank multiplied by a factor, as is plain.

    Each tensor grows at most with the square of these sizes, so for small models the trace of the
    step itself is enough.
    """
    return plan.trace(step).peak * max(1.0, factor) ** 2 <= room


def _peak_by(plan: Plan, step: Step, size: Size, *, full: bool = False) -> Bytes:
    """Return the peak of a step as a function of one of its sizes."""

    def curve_through(values: Sequence[int]) -> Curve:
        samples = []
        for value in values:
            shaped = replace(step, **{size.field: value})
            trace = plan.trace(shaped, full=full)
            samples.append(Sample(value, trace.timeline))
        return Curve(samples)

    # A loss of more than one chunk holds no more logits, whatever the size: from there on another
    # curve holds.
    vocabulary = plan.base.transformer.config.get_text_config().vocab_size
    per_unit = step.length if size.field == "batch" else step.batch
    chunk = chunk_rows(vocabulary, step.dtype)
    edge = max(1, chunk // per_unit)
    low = 2 * edge
    high = min(8 * edge, size.most)
    count = len(size.samples)
    if step.task != "causal-lm" or high - low < count:
        return curve_through(size.samples)
    beyond = curve_through(_spaced(low, high, count))
    if edge < size.samples[-1]:
        return beyond
    return _joined(lambda: curve_through(size.samples), beyond, edge, low)


def _spaced(low: int, high: int, count: int) -> list[int]:
    """Return so many whole numbers from low to high, evenly spaced."""
    steps = count - 1
    return [low + (high - low) * index // steps for index in range(count)]


def _joined(make_below: Callable[[], Bytes], beyond: Bytes, edge: int, low: int) -> Bytes:
    """Return a function that is `below` up to `edge`, `beyond` from `low` on, and a line between.

    Between the two the peak, as the highest of several lines, is below the line that joins them.

    Args:
        make_below: traces the curve of small sizes; called if one of them is asked for.
        beyond: curve of large sizes.
        edge: the largest size of `below`.
        low: the smallest size of `beyond`.
    """
    find_below = cache(make_below)

    def peak(size: int) -> int:
        if size >= low:
            return beyond(size)
        below = find_below()
        if size <= edge:
            return below(size)
        start = below(edge)
        slope = (beyond(low) - start) / (low - edge)
        return round(start + slope * (size - edge))

    return peak


def _highest_rank(plan: Plan, step: Step, usable: int) -> int:
    most = plan.highest_rank()
    low = plan.spec.rank
    high = min(2 * low, most)
    if high <= low:
        low = max(1, high // 2)
    if plan.spec.overrides or low >= high:
        return 0

    def fixed_bytes(rank: int) -> int:
        adapter = plan.adapter_bytes(step.dtype, plan.adapter_at(rank))
        return plan.fixed_bytes(step.dtype, adapter=adapter)

    def sample(rank: int) -> Sample:
        return Sample(rank, plan.trace(step, rank=rank).timeline)

    if _fits_grown(plan, step, most / plan.spec.rank, usable - fixed_bytes(most)):
        return most
    start = fixed_bytes(low)
    slope = (fixed_bytes(high) - start) / (high - low)
    peak = Curve([sample(low), sample(high)])

    def fits(rank: int) -> bool:
        fixed = int(start + slope * (rank - low))
        return fixed + peak(rank) <= usable

    return find_largest(fits, most)
