"""Rows of one batch go to different adapters: `route`. Each row gets what it would get alone
(`shares` computes it).
"""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.errors import AdapterMismatch, AdapterNameError, MergeError, RowsError
from lorakit.inject.mixed_batch import AdapterWeights, PlaceRouting, RoutingTable
from lorakit.inject.state import get_state
from lorakit.sites.base import Site
from lorakit.sites.slot import Slot, State, base_modules, get_slot, set_enabled
from lorakit.spec import full_name
from lorakit.text import near_misses, plural


@contextmanager
def route(
    model: nn.Module,
    rows: Sequence[str | Iterable[str] | Mapping[str, float] | None],
    *,
    batch_first: bool = False,
) -> Iterator[None]:
    """Send each row of the batches in this block to adapters of its own; what `enable` switched on
    does not count there.

    A row gives what it gives alone, gradients too, so that several adapters train in one batch.
    Blocks may be nested: the inner one counts. Nothing is left afterwards. The model stays as it is
        until the block ends: no attach, enable, detach
    or merge. Where gradient checkpointing computes layers again, `backward` belongs into the block.
    Beam search repeats rows, so each is named as often as there are beams.

    Args:
        model: what attach was given.
        rows: an entry a row of the batch: a name, several names, {name: weight}, or None for the
            base alone.
        batch_first: that rows are the first axis of the input of every adapted layer; needed only
            where sizes cannot tell, because sequences are as long as there are rows. Otherwise it
            is found out, and refused where it is not so.

    Raises:
        AdapterNameError: an unknown name, a weight that is no finite number, or nothing is
            attached; all are named.
        AdapterMismatch: an adapter that trains biases or modules whole, or weights that a module
            reads itself.
        MergeError: the model is merged.
        RowsError: a layer sees another number of rows, or its rows on another axis; or another
            thread routes this model.

    Cost: the factors of all adapters that are named, once more, while the block lasts; joined when
        they are first needed
    and again only where they train.

    Source: Chen et al., Punica, arXiv 2310.18547 (several adapters in one batch), here as products
        that torch has.

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
    named = _named(state, rows)
    if state.merged:
        raise MergeError(
            "The model is merged: its weights hold adapters that every row would get.",
            advice="Call unmerge first.",
        )
    outer: Route | None = state.route
    if outer is not None and outer.thread != threading.get_ident():
        raise RowsError(
            "Another thread routes the rows of this model.",
            advice="One at a time: hold a lock around the block, or give each thread a copy of the model.",
        )
    inner = Route(model, named, batch_first)
    on = (
        dict(state.enabled)
        if any(state.adapters[n].full_parameters for n in state.enabled)
        else None
    )
    if on is not None:
        set_enabled(model, state, {})  # what they train whole would reach every row
    handle = model.register_forward_pre_hook(inner.look, with_kwargs=True)
    state.route = inner
    try:
        yield
    finally:
        state.route = outer
        handle.remove()
        if on is not None:
            set_enabled(model, state, on)


def _named(state: State, rows: Any) -> list[AdapterWeights]:
    """Return names and weights of each row, or raise with every fault."""
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise AdapterNameError(
            f"An entry a row is needed, got {rows!r}.",
            advice="enable(model, ...) is for all rows alike.",
        )
    found: list[AdapterWeights] = []
    faults: dict[str, list[int]] = {}
    for at, row in enumerate(cast(Iterable[Any], rows)):
        if isinstance(row, Mapping):
            given = dict(cast(Mapping[Any, Any], row))
        else:
            several = isinstance(row, Iterable) and not isinstance(row, str)
            given: dict[Any, Any] = dict.fromkeys(
                cast(Any, row) if several else [] if row is None else [row], 1.0
            )
        for n, w in given.items():
            if n not in state.adapters:
                faults.setdefault(
                    f"{n!r} is not attached   {near_misses(str(n), state.adapters)}".rstrip(), []
                ).append(at)
            elif isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w):
                faults.setdefault(f"{n!r} has weight {w!r}, which is no finite number", []).append(
                    at
                )
        found.append({n: w for n, w in given.items() if w})
    advice = f"Attached: {', '.join(map(repr, state.adapters))}. Nothing was routed."
    if faults:
        lines = [
            f"row{'s'[: len(at) > 1]} {', '.join(map(str, at))}   {fault}"
            for fault, at in faults.items()
        ]
        raise AdapterNameError("Rows cannot be routed as asked.", lines, advice)
    if not found:
        raise AdapterNameError("There is no row to route.", advice=advice)
    whole = [
        f"{n!r}   trains {plural(len(state.adapters[n].full_parameters), 'parameter')} whole: {next(iter(state.adapters[n].full_parameters))}"
        for n in state.adapters
        if state.adapters[n].full_parameters and any(n in row for row in found)
    ]
    if whole:
        raise AdapterMismatch(
            "Biases and modules that are trained whole are those of all rows.",
            whole,
            "Route adapters without them, or run these rows alone. Nothing was routed.",
        )
    return found


class Route:
    """Who gets what in one block: at each adapted layer the shares of the rows.

    Args:
        model: the model.
        rows: names and weights of each row.
        batch_first: that rows come first is known.
    """

    def __init__(self, model: nn.Module, rows: list[AdapterWeights], batch_first: bool):
        self.count, self.thread = len(rows), threading.get_ident()
        self.known = batch_first or all(
            row == rows[0] for row in rows
        )  # alike: it does not matter which is which
        self.lengths: set[int] = set()  # of sequences that the model was given
        self.shares: dict[str, list[PlaceRouting]] = {}
        tables: dict[Any, RoutingTable] = {}  # most layers have the same adapters of the same ranks
        faults = []
        names = {n for row in rows for n in row}
        for path, layer in base_modules(model):
            slot = get_slot(layer)
            for end, site in slot.sites.items() if slot else ():
                deltas = {
                    n: d for n in names if (d := cast(Any, slot)._modules.get(n + end)) is not None
                }
                if deltas and site.swaps_weight:
                    faults.append(
                        f"{full_name(path, end[1:])}   {type(layer).__name__} reads this weight itself, for all rows"
                    )
                elif deltas:
                    share = PlaceRouting(site, deltas)
                    device = site.read(layer).device
                    key = (
                        device,
                        *((n, d.rank if share.plain else 0) for n, d in share.deltas.items()),
                    )
                    share.table = tables[key] = tables.get(key) or RoutingTable(
                        dict(key[1:]), rows, device
                    )
                    self.shares.setdefault(cast(Slot, slot).path, []).append(share)
        if faults:
            raise AdapterMismatch(
                "Some weights cannot be changed for some rows only.",
                faults,
                "Route adapters without them, or run these rows alone. Nothing was routed.",
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RowsError(
            "A model whose rows are routed cannot be copied or pickled.",
            advice="Do it before or after the block.",
        )

    def look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note how long the sequences are that the model is given: the hook before it."""
        if not torch.compiler.is_compiling():
            given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            self.lengths = {
                t.shape[1]
                for t in given
                if t.ndim == 3 or (t.ndim == 2 and not t.is_floating_point())
            }

    def add(self, slot: Slot, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return y plus what each row gets at this layer."""
        shares = self.shares.get(slot.path)
        if shares is None:
            return y
        self.check(slot, layer, shares[0].site, x, y)
        out = y
        for share in shares:
            out = share.add(layer, x, y, out)
        return out

    def check(self, slot: Slot, layer: nn.Module, site: Site, x: Tensor, y: Tensor) -> None:
        """Refuse what would give a row what is another's.

        Raises:
            RowsError: the rows are not the first axis, are not as many, or it cannot be told.
        """
        free = x.ndim - site.input_axes
        if free < 1 or x.shape[0] != self.count or y.shape[0] != self.count:
            raise RowsError(
                f"{plural(self.count, 'row')} routed, but {self.saw(slot, layer, x)}.",
                advice=self.hint(tuple(x.shape[:free])),
            )
        if torch.compiler.is_compiling():
            return
        # Where backward computes a layer again, it may do so in a thread of its own.
        if threading.get_ident() != self.thread and torch._C._current_graph_task_id() == -1:
            raise RowsError(
                f"{slot.path or 'The model'} was called by another thread than the one that routes its rows.",
                advice="One at a time: hold a lock around the block, or give each thread a copy of the model.",
            )
        if self.known or slot.rows_first or site.input_axes > 1:
            return
        if self.count in x.shape[1:free] or (free == 1 and self.count in self.lengths):
            raise RowsError(
                f"{plural(self.count, 'row')} routed, and sequences are as long: {self.saw(slot, layer, x)}, and it "
                "cannot be told which axis the rows are.",
                advice="Pad to another length, or say batch_first=True if rows come first in every adapted layer.",
            )
        slot.rows_first = free > 1 or bool(self.lengths)

    def saw(self, slot: Slot, layer: nn.Module, x: Tensor) -> str:
        return f"{slot.path or 'the model'} ({type(layer).__name__}) saw an input of shape {tuple(x.shape)}"

    def hint(self, free: tuple[int, ...]) -> str:
        """Return what may be the reason for another number of rows."""
        if not free:
            return "That is no batch."
        if self.count in free[1:]:
            return f"Its rows seem to be axis {free[1:].index(self.count) + 1}; only layers with rows first can be routed."
        if free[0] and free[0] % self.count == 0:
            times = free[0] // self.count
            return (
                f"That is {times} times as many: beam search repeats each row (name each {times} times, one after the "
                "other), and some layers see all tokens of all rows in one axis (these cannot be routed)."
            )
        return "Give an entry for each row. A layer that sees no rows (positions, chosen tokens) cannot be routed."
