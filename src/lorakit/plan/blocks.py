"""A step of a model whose blocks repeat, traced on a few blocks: each further one adds the same."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from lorakit.plan.trace import Step, Trace, own_tables, trace_step
from lorakit.sites.slot import Slot

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Blocks of a run that are traced: two at either end, so that each kind of neighbour that a block
# has in the whole model is there.
TRACED = 4
# The shortest run of blocks for which two short traces take less time than one of the whole model.
SHORTEST_RUN = 3 * TRACED
COUNTS = ("activations", "logits", "flops", "moved", "calls")


class TensorShape(NamedTuple):
    """A tensor of a block, as far as memory depends on it."""

    name: str
    shape: tuple[int, ...]
    dtype: object
    requires_grad: bool


class ModuleShape(NamedTuple):
    """A module of a block, as far as memory depends on it."""

    path: str
    kind: type[nn.Module]
    settings: dict[str, object]
    tensors: list[TensorShape]


def trace_by_blocks(model: "PreTrainedModel", step: Step) -> Trace:
    """Return the trace of a step; if blocks repeat, from two traces with 4 and 5 of them.

    A block takes and frees the same memory wherever it is, on top of an amount that grows by the
    same with every block (what is kept for the backward pass, gradients). So at any moment near the
    start or the end of a phase the bytes in use are linear in the number of blocks, and in between
    they lie between the two lines. This is checked: in each phase the two traces must differ by one
    constant from its start on, by one up to its end, and the two stretches must overlap by a block.

    Args:
        model: a model of transformers, as for `trace_step`.
        step: batch, length, task and dtypes of the pass.

    Raises:
        PlanError: as `trace_step`.
    """
    found = find_repeated_blocks(model)
    if found is None:
        return trace_step(model, step)
    blocks, run = found
    traces = []
    for count in (TRACED, TRACED + 1):
        with _shortened(blocks, run, count):
            traces.append(trace_step(model, step))
    grown = _extrapolate(traces[0], traces[1], len(run) - TRACED)
    return grown or trace_step(model, step)


def find_repeated_blocks(model: nn.Module) -> tuple[nn.ModuleList, range] | None:
    """Return a model's list of blocks and its longest run of equal ones; None if it has few."""
    config = getattr(model, "config", None)
    lists = _outermost_lists(model)
    if len(lists) != 1 or config is None:
        return None
    blocks = lists[0]
    settings = _settings_by_block(config, len(blocks))
    keys = [(settings[index], _shape_of(block)) for index, block in enumerate(blocks)]
    longest = range(0)
    start = 0
    for _, group in groupby(keys):
        stop = start + len(list(group))
        longest = max(longest, range(start, stop), key=len)
        start = stop
    return (blocks, longest) if len(longest) >= SHORTEST_RUN else None


def _outermost_lists(model: nn.Module) -> list[nn.ModuleList]:
    """Return the long lists of modules that are in no other such list."""
    lists = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) >= SHORTEST_RUN:
            lists[name] = module
    outermost = []
    for name, module in lists.items():
        is_inside = any(name.startswith(f"{other}.") for other in lists)
        if not is_inside:
            outermost.append(module)
    return outermost


def _settings_by_block(config: "PretrainedConfig", count: int) -> list[list[str]]:
    """Return the settings of each block: entries of lists that have a value for every block."""
    lists = []
    for value in config.get_text_config().to_dict().values():
        if isinstance(value, list | tuple) and len(value) == count:
            lists.append(value)
    return [[repr(values[index]) for values in lists] for index in range(count)]


def _shape_of(block: nn.Module) -> list[ModuleShape]:
    """Return all that a block's memory may depend on: classes, settings, tensors, and adapters."""
    shapes = []
    for path, module in block.named_modules():
        # A slot's own path differs between blocks; its deltas are modules of their own.
        if not isinstance(module, Slot):
            shape = ModuleShape(path, type(module), _plain_settings(module), _own_tensors(module))
            shapes.append(shape)
    return shapes


def _plain_settings(module: nn.Module) -> dict[str, object]:
    settings: dict[str, object] = {}
    for name, value in vars(module).items():
        if isinstance(value, bool | int | float | str) and name != "layer_idx":
            settings[name] = value
    return settings


def _own_tensors(module: nn.Module) -> list[TensorShape]:
    shapes = []
    for table in own_tables(module):
        for name, tensor in table.items():
            if tensor is not None:
                shape = tuple(tensor.shape)
                shapes.append(TensorShape(name, shape, tensor.dtype, tensor.requires_grad))
    return shapes


@contextmanager
def _shortened(blocks: nn.ModuleList, run: Sequence[int], count: int) -> Iterator[None]:
    """Keep only `count` blocks of a run while the context lasts."""
    every = blocks._modules
    dropped = set(run[count:])
    kept = [module for index, module in enumerate(blocks) if index not in dropped]
    blocks._modules = type(every)((str(index), module) for index, module in enumerate(kept))
    try:
        yield
    finally:
        blocks._modules = every


def _extrapolate(few: Trace, more: Trace, by: int) -> Trace | None:
    """Return the trace of `by` blocks more than `few`, if each adds what `more` adds to `few`."""
    if len(few.phases) != len(more.phases):
        return None
    timeline: list[int] = []
    phases_of_few = pairwise([0, *few.phases])
    phases_of_more = pairwise([0, *more.phases])
    for (start, end), (other, stop) in zip(phases_of_few, phases_of_more, strict=True):
        phase = _extrapolate_phase(few.timeline[start:end], more.timeline[other:stop], by)
        if phase is None:
            return None
        timeline += phase
    counts: dict[str, int] = {}
    for name in COUNTS:
        first, second = getattr(few, name), getattr(more, name)
        counts[name] = first + by * (second - first)
    return Trace(timeline=timeline, phases=[], **counts)


def _extrapolate_phase(few: list[int], more: list[int], by: int) -> list[int] | None:
    """Return the bytes in use of one phase with `by` blocks more, or None if it is not linear."""
    block = len(more) - len(few)
    if block < 0 or not few:
        return None
    near = _equal_stretch(few, more)
    far = _equal_stretch(few[::-1], more[::-1])
    if near + far < len(few) + block:
        return None
    split = (len(few) - far + near) // 2
    pairs = [
        *zip(few[:split], more, strict=False),
        *zip(few[split:], more[split + block :], strict=True),
    ]
    return [first + by * (second - first) for first, second in pairs]


def _equal_stretch(few: Sequence[int], more: Sequence[int]) -> int:
    """Return the number of entries at the start that differ by one constant.

    >>> _equal_stretch([1, 2, 9], [4, 5, 9, 9])
    2
    """
    for index, (first, second) in enumerate(zip(few, more, strict=False)):
        if second - first != more[0] - few[0]:
            return index
    return min(len(few), len(more))
