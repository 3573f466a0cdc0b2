"""A step of a model whose blocks repeat, traced on a few of them: what each further block adds is
the same, to the byte.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from torch import nn

from lorakit.plan.trace import Step, Trace, trace_step
from lorakit.sites.slot import Slot

# blocks: two at either end of a run, whose neighbours are other layers or the same ones as in the
# whole model
FEW = 4
WORTH = 3 * FEW  # blocks of a run from which on two short traces are quicker than the whole


def trace_by_blocks(model: nn.Module, step: Step) -> Trace:
    """Return what `trace` does; where blocks repeat, from two traces with 4 and 5 of them.

    A block takes and frees the same memory wherever it stands, on top of what grows by the same
    amount with every block (what is kept for the backward pass, gradients). So at any moment near
    the start or the end of a phase the bytes in use are a line in the number of blocks, and in
    between they lie between the two. Whether it is so is seen: in each phase the two traces must
    differ by one constant from its start on, by one up to its end, and the stretches must overlap
    by a block.

    Args:
        model: as `trace` takes it.
        step: its shape.

    Raises:
        PlanError: as `trace`.
    """
    found = find_repeated_blocks(model)
    if found is None:
        return trace_step(model, step)
    blocks, run = found
    traces = []
    for count in (FEW, FEW + 1):
        with _cut(blocks, run, count):
            traces.append(trace_step(model, step))
    return _grown(traces[0], traces[1], len(run) - FEW) or trace_step(model, step)


def find_repeated_blocks(model: Any) -> tuple[nn.ModuleList, range] | None:
    """Return the list of a model's blocks, and which of them are alike and one after the other;
    None where few are.
    """
    lists = [
        (n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) >= WORTH
    ]
    lists = [(n, m) for n, m in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    config = getattr(model, "config", None)
    if len(lists) != 1 or config is None:
        return None
    blocks, told = lists[0][1], _by_block(config, len(lists[0][1]))
    at, best = 0, range(0)
    for _, group in groupby(range(len(blocks)), key=lambda i: (told[i], _shape(blocks[i]))):
        run = range(at, at := at + len(list(group)))
        best = max(best, run, key=len)
    return (blocks, best) if len(best) >= WORTH else None


def _by_block(config: Any, count: int) -> list[Any]:
    """Return what the config says of each block: settings that are lists of as many values (kinds
    of attention, say).
    """
    lists = [
        v
        for v in config.get_text_config().to_dict().values()
        if isinstance(v, list | tuple) and len(v) == count
    ]
    return [[repr(values[i]) for values in lists] for i in range(count)]


def _shape(block: nn.Module) -> list[Any]:
    """Return all that a block's memory may depend on: classes, plain settings, tensors, and what is
    adapted in which way.
    """
    out: list[Any] = []
    for path, module in block.named_modules():
        if isinstance(module, Slot):
            continue  # its path tells blocks apart; the deltas in it are modules of their own
        settings = {
            k: v
            for k, v in vars(module).items()
            if isinstance(v, bool | int | float | str) and k != "layer_idx"
        }
        tensors = [
            (k, t.shape, t.dtype, t.requires_grad)
            for table in (module._parameters, module._buffers)
            for k, t in table.items()
            if t is not None
        ]
        out.append((path, type(module), settings, tensors))
    return out


@contextmanager
def _cut(blocks: nn.ModuleList, run: Sequence[int], count: int) -> Iterator[None]:
    """Leave so many blocks of a run, for a while."""
    whole = blocks._modules
    kept = [module for i, module in enumerate(blocks) if i not in run or i - run[0] < count]
    blocks._modules = type(whole)((str(i), module) for i, module in enumerate(kept))
    try:
        yield
    finally:
        blocks._modules = whole


def _grown(few: Trace, more: Trace, by: int) -> Trace | None:
    """Return the trace of `by` blocks more than `few` has, where each adds as much as from `few` to
    `more`; else None.
    """
    if len(few.phases) != len(more.phases):
        return None
    timeline: list[int] = []
    start, other = 0, 0
    for end, stop in zip(few.phases, more.phases, strict=True):
        a, b = few.timeline[start:end], more.timeline[other:stop]
        block = len(b) - len(a)
        if block < 0 or not a:
            return None
        near, far = _alike(a, b), _alike(a[::-1], b[::-1])
        if near + far < len(a) + block:
            return None
        split = (len(a) - far + near) // 2
        timeline += [
            x + by * (y - x)
            for x, y in [
                *zip(a[:split], b, strict=False),
                *zip(a[split:], b[split + block :], strict=True),
            ]
        ]
        start, other = end, stop
    grown = {
        k: getattr(few, k) + by * (getattr(more, k) - getattr(few, k))
        for k in ("activations", "logits", "flops", "moved", "calls")
    }
    return Trace(timeline=timeline, phases=[], **grown)


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how far two sequences differ by one constant.

    >>> _alike([1, 2, 9], [4, 5, 9, 9])
    2
    """
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if y - x != b[0] - a[0]),
        min(len(a), len(b)),
    )
