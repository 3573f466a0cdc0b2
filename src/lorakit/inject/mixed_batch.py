"""Changes of one place for a batch whose rows go to different adapters, computed in one of four ways.

`stacked`: the factors of all adapters in one pair, with a mask between the two products.
`grouped`: rows sorted by their adapters, then grouped products.
`batched`: a copy of its factors for each row, then batched products.
`one_by_one`: each adapter on its own rows; for every delta that is not the plain product B A on a
linear layer or an embedding. The sizes decide which way is fastest; docs/rows.md has the figures.

Suffixes give the axes of a tensor:
    n: rows of the batch           t: inputs (tokens) of one row
    i: inputs of the layer         o: outputs of the layer
    r: rank of a group             s: ranks of all adapters, stacked
    a: adapters                    g: groups, the last one for rows of the base alone
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.deltas.base import Delta, LowRank
from lorakit.sites.base import Site

AdapterWeights = dict[str, float]
"""Weights of the adapters of one row, by name."""

# Multiplications that `stacked` may waste before another way is faster. Low precision multiplies
# faster, so it may waste more.
MAX_WASTE = {
    torch.float64: 1_000_000,
    torch.float32: 1_200_000,
    torch.bfloat16: 30_000_000,
    torch.float16: 30_000_000,
}
# From this number of inputs in each row, `batched` is faster than `grouped`.
MIN_BATCHED_INPUTS = 32
# torch's grouped product takes rows of 16 bytes (4 values in float32), backward too.
GROUPED_MULTIPLE = 4


class AdapterRows(NamedTuple):
    """The rows that go to one adapter.

    Attributes:
        index: (rows of this adapter,), their numbers; None for all rows.
        weight: the adapter's weight; (rows of this adapter,) where rows differ.
    """

    index: Tensor | None
    weight: float | Tensor


class JoinedFactors(NamedTuple):
    """Factors of several adapters in one pair, with the version of the parameters they are from."""

    version: int
    A: Tensor
    B: Tensor


class RoutingTable:
    """The adapters of each row of a batch, as index tensors for every way to compute them.

    A group is a set of adapters and weights that some rows share.

    Args:
        ranks: rank of each adapter by name; 0 where only `adapter_rows` is used.
        rows: weights of the adapters of each row.
        device: device of the layer.

    Attributes:
        adapter_rows: the rows of each adapter.
        groups: the distinct non-empty entries of `rows`.
        is_uniform: whether all rows belong to one group.
        masked_ns: True where a row does not use a stacked rank.
        weight_ns: weight of each stacked rank for each row; None if all weights are 0 or 1.
        group_rank: largest sum of ranks in a group.
        wasted_rank: ranks that `stacked` computes in vain for each input.
        group_n: number of each row's group; the count of groups for rows of the base alone.
        order_n: row numbers, sorted by group.
        end_g: for each group, the end of its rows in the sorted batch.
    """

    def __init__(
        self, ranks: Mapping[str, int], rows: Iterable[Mapping[str, float]], device: torch.device
    ):
        # Only the adapters of this place count, in one order.
        entries = [{name: float(row[name]) for name in ranks if name in row} for row in rows]
        self.adapter_rows = {name: _find_rows(name, entries, device) for name in ranks}
        self.groups = _distinct(entry for entry in entries if entry)
        self.is_uniform = len(self.groups) == 1 and all(entries)

        weight_na = torch.tensor([[row.get(name, 0.0) for name in ranks] for row in entries])
        weight_ns = weight_na.repeat_interleave(torch.tensor([*ranks.values()]), dim=1)
        self.masked_ns = (weight_ns == 0).to(device)
        is_switch = bool(((weight_na == 0) | (weight_na == 1)).all())
        self.weight_ns = None if is_switch else weight_ns.to(device)

        self.group_rank = max(sum(ranks[name] for name in group) for group in self.groups)
        self.wasted_rank = sum(ranks.values()) - self.group_rank

        base = len(self.groups)
        group_n = torch.tensor([self.groups.index(row) if row else base for row in entries])
        self.group_n = group_n.to(device)
        self.order_n = group_n.argsort(stable=True).to(device)
        size_g = group_n.bincount(minlength=base + 1)
        self.end_g = size_g.cumsum(0).to(device, torch.int32)


def _find_rows(name: str, rows: list[AdapterWeights], device: torch.device) -> AdapterRows:
    """Return the rows that go to this adapter."""
    numbers = [number for number, row in enumerate(rows) if name in row]
    weights = [rows[number][name] for number in numbers]
    index = None if len(numbers) == len(rows) else torch.tensor(numbers, device=device)
    if all(weight == weights[0] for weight in weights):
        return AdapterRows(index, weights[0])
    return AdapterRows(index, torch.tensor(weights, device=device))


def _distinct(rows: Iterable[AdapterWeights]) -> list[AdapterWeights]:
    """Return the rows without repetitions, in order of first occurrence."""
    return [dict(items) for items in dict.fromkeys(tuple(row.items()) for row in rows)]


class PlaceRouting:
    """The changes that the rows of a batch get at one place.

    Args:
        site: site of the place.
        deltas: delta of each adapter at this place, by the adapter's name.

    Attributes:
        table: the adapters of each row; whoever builds this sets it, one for all places with the
            same `ranks`.
        is_stackable: whether the factors of several adapters can be joined in one pair.
    """

    table: RoutingTable

    def __init__(self, site: Site, deltas: Mapping[str, Delta]):
        self.site = site
        self.deltas = dict(sorted(deltas.items()))
        self.is_dense = site.full_site.is_dense
        self.is_stackable = (self.is_dense or site.full_site.is_lookup) and all(
            delta.is_product and not delta.stack for delta in self.deltas.values()
        )
        # Valid only if stackable, and used only then.
        self.low_rank_deltas = cast(dict[str, LowRank], self.deltas)
        if self.is_stackable:
            # A factor that is not finite would reach other rows through the zeros of the mask.
            self.is_stackable = all(
                bool(delta.B.isfinite().all()) for delta in self.low_rank_deltas.values()
            )
        self.joined: dict[str, JoinedFactors] = {}

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapter here; 0 where the factors cannot be joined."""
        if not self.is_stackable:
            return dict.fromkeys(self.deltas, 0)
        return {name: delta.rank for name, delta in self.deltas.items()}

    def add(self, layer: nn.Module, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Return `out` plus the change of each row, for the layer's input x and own output y."""
        drops = any(delta.dropout and delta.training for delta in self.deltas.values())
        if not self.is_stackable or self.table.is_uniform or drops or not x.numel():
            return self.one_by_one(layer, x, y, out)
        outputs, inputs = next(iter(self.deltas.values())).shape
        rows = x.shape[0]
        vectors = x.numel() // inputs if self.is_dense else x.numel()
        waste = vectors * self.table.wasted_rank * (inputs + outputs)
        if waste <= MAX_WASTE.get(y.dtype, 0):
            return out + self.stacked(layer, x, y)
        if not self.is_dense:
            return self.one_by_one(layer, x, y, out)
        x_nti = x.reshape(rows, vectors // rows, inputs)
        way = self.grouped if _grouped_is_faster(x_nti, outputs, y.dtype) else self.batched
        change_nto = way(x_nti, y.dtype)
        return out + self.site.scatter_outputs(change_nto.view(*x.shape[:-1], outputs), 0.0)

    def one_by_one(self, layer: nn.Module, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Return `out` plus each adapter's change of its own rows, by the forward of its delta."""
        for name, (index, weight) in self.table.adapter_rows.items():
            delta = self.deltas[name]
            if index is None:
                change = delta(self.site, layer, x, y)
            else:
                own_x = x.index_select(0, index)
                own_y = y.index_select(0, index)
                change = delta(self.site, layer, own_x, own_y)
            if isinstance(weight, Tensor):
                ones = [1] * (change.ndim - 1)
                change = change * weight.to(change.dtype).view(-1, *ones)
            elif weight != 1.0:
                change = change * weight
            out = out + change if index is None else out.index_add(0, index, change)
        return out

    def stacked(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the change: all ranks of all adapters, those of other rows' adapters masked."""
        A_si, B_os = self.join_factors("stacked", y.dtype)
        h = self.site.project(layer, A_si, x)  # (n, ..., s)
        shape = (len(x), *[1] * (h.ndim - 2), -1)
        # Filled, not multiplied: another row's infinity times zero would be NaN.
        h = h.masked_fill(self.table.masked_ns.view(shape), 0.0)
        if self.table.weight_ns is not None:
            h = h * self.table.weight_ns.to(h.dtype).view(shape)
        return self.site.expand(layer, B_os, h, y)

    def grouped(self, x_nti: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the change (n, t, o): rows sorted by group, one product for each group."""
        A_gri, B_gor = self.join_factors("grouped", dtype)
        rows, per_row, inputs = x_nti.shape
        order_n = self.table.order_n
        ends = self.table.end_g * per_row
        sorted_x = x_nti.index_select(0, order_n).view(-1, inputs)
        h = F.grouped_mm(sorted_x, A_gri.mT, offs=ends)
        sorted_change = F.grouped_mm(h, B_gor.mT, offs=ends).view(rows, per_row, -1)
        return torch.zeros_like(sorted_change).index_copy(0, order_n, sorted_change)

    def batched(self, x_nti: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the change (n, t, o): each row with a copy of its group's factors."""
        A_gri, B_gor = self.join_factors("grouped", dtype)
        group_n = self.table.group_n
        h_ntr = torch.bmm(x_nti, A_gri.index_select(0, group_n).mT)
        return torch.bmm(h_ntr, B_gor.index_select(0, group_n).mT)

    def join_factors(self, form: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A and the scaled B of all adapters, cached while the parameters cannot change.

        Args:
            form: "stacked" or "grouped".
            dtype: dtype of the result.
        """
        join = self._stack_factors if form == "stacked" else self._group_factors
        parameters: list[Tensor] = []
        for delta in self.low_rank_deltas.values():
            parameters += [delta.A, delta.B]
        trains = any(parameter.requires_grad for parameter in parameters)
        if torch.compiler.is_compiling() or (trains and torch.is_grad_enabled()):
            A, B = join()
            return A.to(dtype), B.to(dtype)
        version = sum(parameter._version for parameter in parameters) if trains else 0
        joined = self.joined.get(form)
        if joined is None or joined.version != version or joined.A.dtype != dtype:
            with torch.no_grad():
                A, B = join()
                joined = JoinedFactors(version, A.to(dtype), B.to(dtype))
            self.joined[form] = joined
        return joined.A, joined.B

    def _stack_factors(self) -> tuple[Tensor, Tensor]:
        """Return A (s, i) and B (o, s) with the ranks of all adapters."""
        deltas = self.low_rank_deltas.values()
        A_si = torch.cat([delta.A for delta in deltas])
        B_os = torch.cat([delta.B * delta.scale for delta in deltas], dim=1)
        return A_si, B_os

    def _group_factors(self) -> tuple[Tensor, Tensor]:
        """Return A (g, r, i) and B (g, o, r) of each group, padded to one rank with zeros."""
        rank = -(-self.table.group_rank // GROUPED_MULTIPLE) * GROUPED_MULTIPLE
        scaled_B = {name: delta.B * delta.scale for name, delta in self.low_rank_deltas.items()}
        A_of_groups: list[Tensor] = []
        B_of_groups: list[Tensor] = []
        for group in self.table.groups:
            A_ri = torch.cat([self.low_rank_deltas[name].A for name in group])
            B_or = torch.cat([scaled_B[name] * weight for name, weight in group.items()], dim=1)
            A_of_groups.append(F.pad(A_ri, (0, 0, 0, rank - len(A_ri))))
            B_of_groups.append(F.pad(B_or, (0, rank - B_or.shape[1])))
        # Rows of the base alone get zeros.
        A_of_groups.append(torch.zeros_like(A_of_groups[0]))
        B_of_groups.append(torch.zeros_like(B_of_groups[0]))
        return torch.stack(A_of_groups), torch.stack(B_of_groups)


def _grouped_is_faster(x_nti: Tensor, outputs: int, dtype: torch.dtype) -> bool:
    """Return True if torch's grouped product takes these sizes and is faster than batched ones."""
    _, per_row, inputs = x_nti.shape
    is_float32 = x_nti.dtype == dtype == torch.float32
    is_aligned = inputs % GROUPED_MULTIPLE == outputs % GROUPED_MULTIPLE == 0
    is_short = per_row < MIN_BATCHED_INPUTS
    return is_short and is_float32 and x_nti.device.type == "cpu" and is_aligned
