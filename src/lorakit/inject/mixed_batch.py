"""The changes of one place for rows that go to different adapters, computed in one of four ways.

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

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
        numbers: (rows of this adapter,), their numbers; None for all rows.
        weight: the adapter's weight; (rows of this adapter,) where rows differ.
    """

    numbers: Tensor | None
    weight: float | Tensor


class JoinedFactors(NamedTuple):
    """Factors of several adapters in one pair, with the version of the parameters they are from."""

    version: int
    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class RoutingTable:
    """The adapters of each row of a batch, as index tensors for every way to compute them.

    A group is a set of adapters and weights that some rows share.

    Attributes:
        adapter_rows: the rows of each adapter, by name.
        groups: the distinct sets, in order of first occurrence.
        is_uniform: whether all rows belong to one group.
        masked_ns: True where a row does not use a stacked rank.
        weight_ns: weight of each stacked rank for each row; None if all weights are 0 or 1.
        group_rank: largest sum of ranks in a group.
        wasted_rank: ranks that `stacked` computes in vain for each input.
        group_n: number of each row's group; the count of groups for rows of the base alone.
        order_n: row numbers, sorted by group.
        end_g: for each group, the end of its rows in the sorted batch.
    """

    adapter_rows: dict[str, AdapterRows]
    groups: list[AdapterWeights]
    is_uniform: bool
    masked_ns: Tensor
    weight_ns: Tensor | None
    group_rank: int
    wasted_rank: int
    group_n: Tensor
    order_n: Tensor
    end_g: Tensor


def build_table(
    ranks: Mapping[str, int], rows: Iterable[AdapterWeights], device: torch.device
) -> RoutingTable:
    """Return the table of one or more places.

    Args:
        ranks: rank of each adapter that has a delta there; 0 if only `adapter_rows` is used.
        rows: weights of the adapters of each row; adapters without a rank have no effect.
        device: device of the layers.
    """
    entries = [_select(row, ranks) for row in rows]
    groups = _distinct(entries)
    group_n = torch.tensor([_number_of(entry, groups) for entry in entries])
    size_g = group_n.bincount(minlength=len(groups) + 1)
    end_g = size_g.cumsum(0)
    order_n = group_n.argsort(stable=True)

    weight_na = torch.tensor([_all_weights(entry, ranks) for entry in entries])
    rank_a = torch.tensor([*ranks.values()])
    weight_ns = weight_na.repeat_interleave(rank_a, dim=1)
    masked_ns = weight_ns == 0
    is_switch = bool(((weight_na == 0) | (weight_na == 1)).all())
    group_rank = max(_sum_ranks(group, ranks) for group in groups)
    adapter_rows = {name: _find_rows(name, entries, device) for name in ranks}

    return RoutingTable(
        adapter_rows=adapter_rows,
        groups=groups,
        is_uniform=len(groups) == 1 and all(entries),
        masked_ns=masked_ns.to(device),
        weight_ns=None if is_switch else weight_ns.to(device),
        group_rank=group_rank,
        wasted_rank=sum(ranks.values()) - group_rank,
        group_n=group_n.to(device),
        order_n=order_n.to(device),
        end_g=end_g.to(device, torch.int32),
    )


def _select(row: AdapterWeights, ranks: Mapping[str, int]) -> AdapterWeights:
    """Return the weights of the adapters that have a rank, in the order of `ranks`."""
    return {name: float(row[name]) for name in ranks if name in row}


def _all_weights(row: AdapterWeights, ranks: Mapping[str, int]) -> list[float]:
    return [row.get(name, 0.0) for name in ranks]


def _sum_ranks(group: AdapterWeights, ranks: Mapping[str, int]) -> int:
    return sum(ranks[name] for name in group)


def _distinct(rows: Iterable[AdapterWeights]) -> list[AdapterWeights]:
    """Return the rows that are not empty without repetitions, in order of first occurrence."""
    groups: list[AdapterWeights] = []
    for row in rows:
        if row and row not in groups:
            groups.append(row)
    return groups


def _number_of(row: AdapterWeights, groups: list[AdapterWeights]) -> int:
    """Return the number of a row's group; the count of groups for an empty row."""
    return groups.index(row) if row else len(groups)


def _find_rows(name: str, rows: list[AdapterWeights], device: torch.device) -> AdapterRows:
    """Return the rows that go to this adapter."""
    numbers = [number for number, row in enumerate(rows) if name in row]
    weights = [rows[number][name] for number in numbers]
    index = None
    if len(numbers) < len(rows):
        index = torch.tensor(numbers, device=device)
    weight = weights[0]
    if any(other != weight for other in weights):
        weight = torch.tensor(weights, device=device)
    return AdapterRows(index, weight)


class PlaceRouting:
    """The changes that the rows of a batch get at one place.

    Args:
        site: site of the place.
        deltas: delta of each adapter at this place, by the adapter's name.

    Attributes:
        table: the adapters of each row. It is set later, because all places with the same `ranks`
            share one.
        is_stackable: whether the factors of several adapters can be joined in one pair.
        products: the deltas, to be used only if stackable: then each is a plain product B A.
    """

    table: RoutingTable

    def __init__(self, site: Site, deltas: Mapping[str, Delta]):
        self.site = site
        self.deltas = dict(sorted(deltas.items()))
        self.products = cast(dict[str, LowRank], self.deltas)
        self.is_dense = site.full_site.is_dense
        self.is_stackable = self._can_stack()
        self.joined: dict[str, JoinedFactors] = {}

    def _can_stack(self) -> bool:
        if not self.is_dense and not self.site.full_site.is_lookup:
            return False
        for delta in self.deltas.values():
            if not delta.is_product or delta.stack:
                return False
        # A factor that is not finite would reach other rows through the zeros of the mask.
        factors = [delta.B for delta in self.products.values()]
        return all(_is_finite(B) for B in factors)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapter here; 0 if the factors cannot be joined."""
        if not self.is_stackable:
            return dict.fromkeys(self.deltas, 0)
        return {name: delta.rank for name, delta in self.products.items()}

    def add(self, layer: nn.Module, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Return `out` plus the change of each row.

        Args:
            layer: the layer.
            x: its input.
            y: its own output.
            out: y, and the changes added before.
        """
        if not self.is_stackable or self.table.is_uniform:
            return self.add_one_by_one(layer, x, y, out)
        if not x.numel() or self._drops_inputs():
            return self.add_one_by_one(layer, x, y, out)
        first = next(iter(self.products.values()))
        outputs, inputs = first.shape
        vectors = x.numel() // inputs if self.is_dense else x.numel()
        waste = vectors * self.table.wasted_rank * (inputs + outputs)
        if waste <= MAX_WASTE.get(y.dtype, 0):
            return out + self.multiply_stacked(layer, x, y)
        if not self.is_dense:
            return self.add_one_by_one(layer, x, y, out)
        rows = x.shape[0]
        x_nti = x.reshape(rows, vectors // rows, inputs)
        if _grouped_is_faster(x_nti, outputs, y.dtype):
            change_nto = self.multiply_grouped(x_nti, y.dtype)
        else:
            change_nto = self.multiply_batched(x_nti, y.dtype)
        change = change_nto.view(*x.shape[:-1], outputs)
        return out + self.site.scatter_outputs(change, 0.0)

    def _drops_inputs(self) -> bool:
        return any(delta.dropout and delta.training for delta in self.deltas.values())

    def add_one_by_one(self, layer: nn.Module, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Return `out` plus each adapter's change of its own rows, by the forward of its delta."""
        for name, (index, weight) in self.table.adapter_rows.items():
            delta = self.deltas[name]
            if index is None:
                change = delta(self.site, layer, x, y)
                out = out + _weigh(change, weight)
            else:
                own_x = x.index_select(0, index)
                own_y = y.index_select(0, index)
                change = delta(self.site, layer, own_x, own_y)
                change = _weigh(change, weight)
                out = out.index_add(0, index, change)
        return out

    def multiply_stacked(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the change: all ranks of all adapters, those of other rows' adapters masked."""
        A_si, B_os = self.join_factors("stacked", y.dtype)
        projected = self.site.project(layer, A_si, x)  # (n, ..., s)
        ones = [1] * (projected.ndim - 2)
        shape = (len(x), *ones, -1)
        masked = self.table.masked_ns.view(shape)
        # Filled, not multiplied: another row's infinity times zero would be NaN.
        projected = projected.masked_fill(masked, 0.0)
        if self.table.weight_ns is not None:
            weight = self.table.weight_ns.view(shape)
            projected = projected * weight.to(projected.dtype)
        return self.site.expand(layer, B_os, projected, y)

    def multiply_grouped(self, x_nti: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the change (n, t, o): rows sorted by group, one product for each group."""
        A_gri, B_gor = self.join_factors("grouped", dtype)
        rows, per_row, _ = x_nti.shape
        ends = self.table.end_g * per_row
        sorted_x = x_nti.index_select(0, self.table.order_n)
        sorted_x = sorted_x.flatten(0, 1)
        projected = F.grouped_mm(sorted_x, A_gri.mT, offs=ends)
        change = F.grouped_mm(projected, B_gor.mT, offs=ends)
        sorted_change = change.view(rows, per_row, -1)
        zeros = torch.zeros_like(sorted_change)
        return zeros.index_copy(0, self.table.order_n, sorted_change)

    def multiply_batched(self, x_nti: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the change (n, t, o): each row with a copy of its group's factors."""
        A_gri, B_gor = self.join_factors("grouped", dtype)
        A_nri = A_gri.index_select(0, self.table.group_n)
        projected_ntr = torch.bmm(x_nti, A_nri.mT)
        B_nor = B_gor.index_select(0, self.table.group_n)
        return torch.bmm(projected_ntr, B_nor.mT)

    def join_factors(self, form: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A and the scaled B of all adapters, cached while the parameters cannot change.

        Args:
            form: "stacked" or "grouped".
            dtype: dtype of the result.
        """
        parameters: list[Tensor] = []
        for delta in self.products.values():
            parameters += [delta.A, delta.B]
        trains = any(parameter.requires_grad for parameter in parameters)
        has_graph = trains and torch.is_grad_enabled()
        if has_graph or torch.compiler.is_compiling():
            A, B = self._join(form)
            return A.to(dtype), B.to(dtype)
        version = 0
        if trains:
            version = sum(parameter._version for parameter in parameters)
        joined = self.joined.get(form)
        if joined is None or joined.version != version or joined.A.dtype != dtype:
            with torch.no_grad():
                A, B = self._join(form)
                joined = JoinedFactors(version, A.to(dtype), B.to(dtype))
            self.joined[form] = joined
        return joined.A, joined.B

    def _join(self, form: str) -> tuple[Tensor, Tensor]:
        return self._stack_factors() if form == "stacked" else self._group_factors()

    def _stack_factors(self) -> tuple[Tensor, Tensor]:
        """Return A (s, i) and the scaled B (o, s) with the ranks of all adapters."""
        deltas = self.products.values()
        A_si = torch.cat([delta.A for delta in deltas])
        scaled_B = [delta.B * delta.scale for delta in deltas]
        return A_si, torch.cat(scaled_B, dim=1)

    def _group_factors(self) -> tuple[Tensor, Tensor]:
        """Return A (g, r, i) and the scaled B (g, o, r), all groups padded to one rank."""
        blocks = math.ceil(self.table.group_rank / GROUPED_MULTIPLE)
        rank = blocks * GROUPED_MULTIPLE
        scaled_B = {name: delta.B * delta.scale for name, delta in self.products.items()}
        A_of_groups: list[Tensor] = []
        B_of_groups: list[Tensor] = []
        for group in self.table.groups:
            A_ri = torch.cat([self.products[name].A for name in group])
            weighted_B = [scaled_B[name] * weight for name, weight in group.items()]
            B_or = torch.cat(weighted_B, dim=1)
            missing = rank - len(A_ri)
            A_ri = F.pad(A_ri, (0, 0, 0, missing))
            B_or = F.pad(B_or, (0, missing))
            A_of_groups.append(A_ri)
            B_of_groups.append(B_or)
        # Rows of the base alone get zeros.
        A_of_groups.append(torch.zeros_like(A_of_groups[0]))
        B_of_groups.append(torch.zeros_like(B_of_groups[0]))
        return torch.stack(A_of_groups), torch.stack(B_of_groups)


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _weigh(change: Tensor, weight: float | Tensor) -> Tensor:
    """Return a change (n, ...) times the weight of each row, or of all."""
    if isinstance(weight, Tensor):
        ones = [1] * (change.ndim - 1)
        weight = weight.to(change.dtype)
        return change * weight.view(-1, *ones)
    return change if weight == 1.0 else change * weight


def _grouped_is_faster(x_nti: Tensor, outputs: int, dtype: torch.dtype) -> bool:
    """Return True if torch's grouped product takes these sizes and is faster than batched ones."""
    _, per_row, inputs = x_nti.shape
    if per_row >= MIN_BATCHED_INPUTS:
        return False
    if inputs % GROUPED_MULTIPLE or outputs % GROUPED_MULTIPLE:
        return False
    if x_nti.device.type != "cpu":
        return False
    return x_nti.dtype == dtype == torch.float32
