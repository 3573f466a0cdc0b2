"""Route the rows of one batch to different adapters, so that each row gets what it would get alone.

`mixed_batch` computes the changes of the rows.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lorakit.deltas.base import Delta
from lorakit.errors import AdapterMismatch, AdapterNameError, MergeError, RowsError
from lorakit.inject.mixed_batch import AdapterWeights, PlaceRouting, RoutingTable, build_table
from lorakit.inject.state import (
    AdapterRequest,
    get_state,
    list_attached,
    read_request,
    suggest_adapter,
)
from lorakit.sites.base import Site
from lorakit.sites.slot import Slot, State, base_modules, get_slot, set_enabled
from lorakit.spec import full_name, is_number
from lorakit.text import plural

ONE_THREAD = "One at a time: hold a lock around the block, or give each thread a copy of the model."


@contextmanager
def route(
    model: nn.Module, rows: Sequence[AdapterRequest], *, batch_first: bool = False
) -> Iterator[None]:
    """Route each row of the batches in this block to its own adapters.

    A row's output and gradients are those that it gets alone, so several adapters can train in one
    batch. Adapters enabled by `enable` have no effect inside the block. Blocks can be nested; the
    innermost one counts. Attaching, enabling, detaching and merging are refused until the block
    ends, and the block leaves nothing behind. With activation checkpointing, call `backward` inside
    the block. Beam search repeats rows, so name each row as often as there are beams.

    Args:
        model: the model that attach was given.
        rows: one entry for each row of the batch: a name, several names, {name: weight}, or None
            for the base alone.
        batch_first: the rows are the first axis of the input of every adapted layer. Needed only
            if sequences are as long as there are rows, because then sizes cannot show it; in all
            other cases the axis is detected, and another one is refused.

    Raises:
        AdapterNameError: an unknown name, a weight that is no finite number, or nothing is
            attached; all are named.
        AdapterMismatch: an adapter with full parameters (biases, modules), or with weights that a
            module reads itself.
        MergeError: the model is merged.
        RowsError: a layer gets another number of rows, or its rows on another axis; or another
            thread routes this model.

    Cost: a joined copy of the factors of all named adapters while the block lasts. It is built at
        the first forward, and again after a step of an optimizer.

    Source: Chen et al., Punica, arXiv 2310.18547 (several adapters in one batch), here with
        products that torch has.

    >>> import lorakit
    >>> model = nn.Linear(2, 2)
    >>> adapter = lorakit.attach(model, lorakit.Spec(rank=1, targets=["*"]), name="a")
    >>> _ = nn.init.ones_(adapter.deltas[""].B)
    >>> x = torch.ones(3, 2)
    >>> with lorakit.route(model, ["a", None, {"a": 0.5}]), torch.no_grad():
    ...     y = model(x)
    >>> lorakit.enable(model, None)
    >>> ((y - model(x))[0] / (y - model(x))[2]).tolist(), (y - model(x))[1].tolist()
    ([2.0, 2.0], [0.0, 0.0])
    """
    state = get_state(model)
    weights = _parse_rows(state, rows)
    if state.merged:
        raise MergeError(
            "The model is merged: its weights hold adapters that every row would get.",
            advice="Call unmerge first.",
        )
    outer = cast(Route | None, state.route)
    if outer is not None and outer.thread != threading.get_ident():
        raise RowsError("Another thread routes the rows of this model.", advice=ONE_THREAD)
    inner = Route(model, weights, batch_first)
    enabled = dict(state.enabled)
    has_full_parameters = any(state.adapters[name].full_parameters for name in enabled)
    handles: list[RemovableHandle] = []
    try:
        if has_full_parameters:
            set_enabled(model, state, {})  # full parameters would change every row
        hook = inner.note_lengths
        handles.append(model.register_forward_pre_hook(hook, with_kwargs=True))
        state.route = inner
        yield
    finally:
        state.route = outer
        for handle in handles:
            handle.remove()
        if has_full_parameters:
            set_enabled(model, state, enabled)


def _parse_rows(state: State, rows: object) -> list[AdapterWeights]:
    """Return the weights of each row's adapters, or raise with every fault."""
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise AdapterNameError(
            f"rows must hold one entry for each row of the batch, got {rows!r}.",
            advice="enable(model, ...) switches adapters for all rows.",
        )
    given = cast(Iterable[AdapterRequest], rows)
    entries = [read_request(row) for row in given]
    advice = f"{list_attached(state)} Nothing was routed."
    faults: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        for name, weight in entry.items():
            if fault := _entry_fault(state, name, weight):
                faults.setdefault(fault, []).append(number)
    if faults:
        lines = [f"{_name_rows(numbers)}   {fault}" for fault, numbers in faults.items()]
        raise AdapterNameError("These rows cannot be routed.", lines, advice)
    if not entries:
        raise AdapterNameError("There is no row to route.", advice=advice)
    weights = [_drop_zeros(entry) for entry in entries]
    _check_full_parameters(state, weights)
    return weights


def _drop_zeros(entry: AdapterWeights) -> AdapterWeights:
    return {name: weight for name, weight in entry.items() if weight}


def _entry_fault(state: State, name: object, weight: object) -> str:
    """Return the reason why an adapter with this weight cannot be used; empty if it can."""
    if name not in state.adapters:
        return f"{name!r} is not attached   {suggest_adapter(state, name)}".rstrip()
    if not is_number(weight):
        return f"{name!r} has weight {weight!r}, which is no finite float32 number"
    return ""


def _name_rows(numbers: list[int]) -> str:
    return f"{'row' if len(numbers) == 1 else 'rows'} {', '.join(map(str, numbers))}"


def _check_full_parameters(state: State, rows: list[AdapterWeights]) -> None:
    """Raise AdapterMismatch if an adapter of these rows trains full parameters."""
    faults: list[str] = []
    for name, adapter in state.adapters.items():
        parameters = list(adapter.full_parameters)
        if parameters and any(name in row for row in rows):
            count = plural(len(parameters), "full parameter")
            faults.append(f"{name!r}   trains {count}: {parameters[0]}")
    if faults:
        raise AdapterMismatch(
            "Full parameters (biases, modules) change all rows alike.",
            faults,
            "Route adapters without them, or run these rows alone. Nothing was routed.",
        )


class Route:
    """The adapters of each row in one block, at every adapted layer.

    Args:
        model: the model that attach was given.
        rows: weights of the adapters of each row.
        batch_first: the rows are known to be the first axis everywhere.

    Attributes:
        count: number of rows.
        thread: identifier of the thread that may call the model.
        lengths: lengths of the sequences in the model's last input.
        places: the routings at each adapted layer, by the layer's name.
    """

    def __init__(self, model: nn.Module, rows: list[AdapterWeights], batch_first: bool):
        self.count = len(rows)
        self.thread = threading.get_ident()
        # Where all rows go to the same adapters, their axis does not matter.
        self.is_axis_known = batch_first or all(row == rows[0] for row in rows)
        self.lengths: set[int] = set()
        self.places: dict[str, list[PlaceRouting]] = {}
        self.tables: dict[tuple[object, ...], RoutingTable] = {}
        names = set[str]().union(*rows)
        faults: list[str] = []
        for path, layer in base_modules(model):
            slot = get_slot(layer)
            if slot is None:
                continue
            for suffix, site in slot.sites.items():
                deltas = _deltas_at(slot, suffix, names)
                if deltas and site.swaps_weight:
                    place = full_name(path, suffix[1:])
                    reader = type(layer).__name__
                    faults.append(f"{place}   {reader} reads this weight itself, for all rows")
                elif deltas:
                    self._add_place(slot.path, PlaceRouting(site, deltas), rows, layer)
        if faults:
            raise AdapterMismatch(
                "Some weights cannot be changed for single rows.",
                faults,
                "Route adapters without them, or run these rows alone. Nothing was routed.",
            )

    def _add_place(
        self, path: str, place: PlaceRouting, rows: list[AdapterWeights], layer: nn.Module
    ) -> None:
        """Add the routing of one place; places with the same adapters and ranks share a table."""
        device = place.site.read(layer).device
        key = (device, *place.ranks.items())
        if key not in self.tables:
            self.tables[key] = build_table(place.ranks, rows, device)
        place.table = self.tables[key]
        self.places.setdefault(path, []).append(place)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise RowsError(
            "A model whose rows are routed cannot be copied or pickled.",
            advice="Do it before or after the block.",
        )

    def note_lengths(
        self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Note the lengths of the sequences in the model's input: a forward pre-hook."""
        if torch.compiler.is_compiling():
            return
        self.lengths = set()
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and _is_sequence(value):
                self.lengths.add(value.shape[1])

    def add(self, slot: Slot, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus the change of each row at this layer."""
        places = self.places.get(slot.path)
        if places is None:
            return y
        self.check_rows(slot, layer, places[0].site, x, y)
        out = y
        for place in places:
            out = place.add(layer, x, y, out)
        return out

    def check_rows(self, slot: Slot, layer: nn.Module, site: Site, x: Tensor, y: Tensor) -> None:
        """Raise RowsError if a row could get the change of another.

        Raises:
            RowsError: the first axis has another size than there are rows, it may be another axis
                than the rows, or another thread calls the layer.
        """
        batch_axes = x.ndim - site.input_axes
        has_rows = batch_axes > 0 and x.shape[0] == y.shape[0] == self.count
        if not has_rows:
            raise RowsError(
                f"{plural(self.count, 'row')} routed, but {_describe_input(slot, layer, x)}.",
                advice=self.explain_shape(tuple(x.shape[:batch_axes])),
            )
        if torch.compiler.is_compiling():
            return
        # A backward that computes the layer again may do so in a thread of its own.
        is_backward = torch._C._current_graph_task_id() != -1
        if threading.get_ident() != self.thread and not is_backward:
            raise RowsError(
                f"{slot.path or 'The model'} was called by another thread than the one that routes "
                "its rows.",
                advice=ONE_THREAD,
            )
        if self.is_axis_known or slot.rows_first or site.input_axes > 1:
            return
        is_length = batch_axes == 1 and self.count in self.lengths
        if self.count in x.shape[1:batch_axes] or is_length:
            raise RowsError(
                f"{plural(self.count, 'row')} routed, and sequences are as long: "
                f"{_describe_input(slot, layer, x)}, and its shape does not show which axis the "
                "rows are.",
                advice="Pad to another length, or pass batch_first=True if rows come first in "
                "every adapted layer.",
            )
        slot.rows_first = batch_axes > 1 or bool(self.lengths)

    def explain_shape(self, batch_shape: tuple[int, ...]) -> str:
        """Return a likely reason why the first axis has another size than there are rows."""
        if not batch_shape:
            return "That is no batch."
        first, *others = batch_shape
        if self.count in others:
            axis = others.index(self.count) + 1
            return f"Its rows seem to be axis {axis}; only layers with rows first can be routed."
        if first and first % self.count == 0:
            times = first // self.count
            return (
                f"That is {times} times as many: beam search repeats each row (name each {times} "
                "times, one after the other), and some layers get all tokens of all rows in one "
                "axis (these cannot be routed)."
            )
        return (
            "Give an entry for each row. A layer that gets no rows (positions, chosen tokens) "
            "cannot be routed."
        )


def _deltas_at(slot: Slot, suffix: str, names: Iterable[str]) -> dict[str, Delta]:
    """Return the deltas of these adapters in a slot, by the adapter's name."""
    deltas: dict[str, Delta] = {}
    for name in names:
        delta = slot._modules.get(name + suffix)
        if delta is not None:
            deltas[name] = cast(Delta, delta)
    return deltas


def _is_sequence(value: Tensor) -> bool:
    """Return True for (rows, length, width), and for token ids (rows, length)."""
    return value.ndim == 3 or (value.ndim == 2 and not value.is_floating_point())


def _describe_input(slot: Slot, layer: nn.Module, x: Tensor) -> str:
    name = slot.path or "the model"
    return f"{name} ({type(layer).__name__}) got an input of shape {tuple(x.shape)}"
