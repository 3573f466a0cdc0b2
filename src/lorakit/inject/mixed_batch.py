"""What the rows of a batch get at one place, where they go to adapters of their own, computed in
one of four ways.

All factors stacked, two products and a mask between them; rows sorted by what they get, grouped
products; the factors of each row beside it, batched products; and, for whatever is no plain LowRank
on a linear layer or an embedding, one adapter after the other on its rows. Which is the fastest is
a matter of sizes: docs/rows.md has the figures.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.sites.base import Site
from lorakit.sites.fused_parts import OutputSliceSite

AdapterWeights = dict[str, float]  # of adapters, by name
# How many multiplications stacking may waste before another way is faster; low precision multiplies
# faster, so it may waste more. And from how many inputs a row on batched products are faster than
# grouped ones.
WASTE = {
    torch.float64: 1_000_000,
    torch.float32: 1_200_000,
    torch.bfloat16: 30_000_000,
    torch.float16: 30_000_000,
}
LONG = 32


class RoutingTable:
    """Who gets what: which rows, in which groups, with which ranks.

    Args:
        ranks: of each adapter by name; 0 where only `apart` is used.
        rows: names and weights of each row.
        device: of the layer.
    """

    def __init__(self, ranks: dict[str, int], rows: list[AdapterWeights], device: torch.device):
        here = [{n: float(row[n]) for n in ranks if n in row} for row in rows]
        self.apart: dict[
            str, tuple[Tensor | None, Any]
        ] = {}  # which rows (None: all) get an adapter, and at which weights
        for n in ranks:
            at = [i for i, row in enumerate(here) if n in row]
            weights = [here[i][n] for i in at]
            index = None if len(at) == len(here) else torch.tensor(at, device=device)
            same = all(w == weights[0] for w in weights)
            self.apart[n] = index, weights[0] if same else torch.tensor(weights, device=device)
        kinds = list(
            dict.fromkeys(tuple(row.items()) for row in here if row)
        )  # what rows get, once each
        self.groups, self.alike = [dict(kind) for kind in kinds], len(kinds) == 1 and all(here)
        group = torch.tensor(
            [kinds.index(tuple(row.items())) if row else len(kinds) for row in here]
        )
        weights = torch.tensor([[row.get(n, 0.0) for n in ranks] for row in here])
        strength = weights.repeat_interleave(torch.tensor([*ranks.values()]), dim=1)
        self.off = (strength == 0).to(device)
        self.strength = (
            None if bool(((weights == 0) | (weights == 1)).all()) else strength.to(device)
        )
        self.rank = max(sum(ranks[n] for n in g) for g in self.groups)
        self.waste = sum(ranks.values()) - self.rank
        self.group, self.order = group.to(device), group.argsort(stable=True).to(device)
        self.ends = group.bincount(minlength=len(kinds) + 1).cumsum(0).to(device, torch.int32)


class PlaceRouting:
    """What the rows get at one place: a layer, or a part of one.

    Args:
        site: how the layer holds the matrix.
        deltas: by the adapter's name.
    """

    table: RoutingTable

    def __init__(self, site: Site, deltas: Mapping[str, Any]):
        self.site, self.deltas = site, dict(sorted(deltas.items()))
        whole = site.full_site
        self.linear = whole.is_dense
        known = whole.is_dense or whole.is_lookup
        self.plain = known and all(d.is_product and not d.stack for d in self.deltas.values())
        # A factor that is not finite would reach other rows through the zeros of the mask.
        self.plain = self.plain and all(bool(d.B.isfinite().all()) for d in self.deltas.values())
        self.held: dict[str, tuple[int, Tensor, Tensor]] = {}

    def add(self, layer: nn.Module, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Return `out` plus what each row gets, for the layer's own input x and output y."""
        drops = any(d.dropout and d.training for d in self.deltas.values())
        if not self.plain or self.table.alike or drops or not x.numel():
            return self.one_by_one(layer, x, y, out)
        outputs, inputs = next(iter(self.deltas.values())).shape
        count = x.shape[0]
        each = x.numel() // (count * inputs) if self.linear else x.numel() // count  # inputs a row
        if count * each * self.table.waste * (inputs + outputs) <= WASTE.get(y.dtype, 0):
            return out + self.stacked(layer, x, y)
        if not self.linear:
            return self.one_by_one(layer, x, y, out)
        single = x.dtype == y.dtype == torch.float32 and x.device.type == "cpu"
        grouped = (
            each < LONG and single and inputs % 4 == outputs % 4 == 0
        )  # it takes rows of 16 bytes, backward too
        change = (self.grouped if grouped else self.batched)(
            x.reshape(count, each, inputs), y.dtype
        )
        return out + self.spread(change.view(*x.shape[:-1], outputs))

    def one_by_one(self, layer: nn.Module, x: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """Each adapter on its own rows, by the forward of its delta."""
        for name, (index, weight) in self.table.apart.items():
            delta = self.deltas[name]
            rows, own = (
                (x, y) if index is None else (x.index_select(0, index), y.index_select(0, index))
            )
            change = delta(self.site, layer, rows, own)
            if isinstance(weight, Tensor):
                change = change * weight.to(change.dtype).view(-1, *[1] * (change.ndim - 1))
            elif weight != 1.0:
                change = change * weight
            out = out + change if index is None else out.index_add(0, index, change)
        return out

    def stacked(self, layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """All A's on top of each other, a row's own ranks kept, all B's side by side."""
        A, B = self.factors("stacked", y.dtype)
        h = self.site.project(layer, A, x)
        # Filled, not multiplied: another's infinity times zero would be NaN.
        shape = (len(x), *[1] * (h.ndim - 2), -1)
        h = h.masked_fill(self.table.off.view(shape), 0.0)
        if self.table.strength is not None:
            h = h * self.table.strength.to(h.dtype).view(shape)
        return self.site.expand(layer, B, h, y)

    def grouped(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (count, each, in) sorted by what they get, one product a group."""
        A, B = self.factors("grouped", dtype)
        count, each, inputs = x.shape
        ends, order = self.table.ends * each, self.table.order
        h = F.grouped_mm(x.index_select(0, order).view(-1, inputs), A.mT, offs=ends)
        change = F.grouped_mm(h, B.mT, offs=ends)
        return (
            torch.zeros_like(change)
            .view(count, each, -1)
            .index_copy(0, order, change.view(count, each, -1))
        )

    def batched(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows (count, each, in), each with a copy of its factors."""
        A, B = self.factors("grouped", dtype)
        h = torch.bmm(x, A.index_select(0, self.table.group).mT)
        return torch.bmm(h, B.index_select(0, self.table.group).mT)

    def spread(self, change: Tensor) -> Tensor:
        return (
            self.site.scatter_outputs(change, 0.0)
            if isinstance(self.site, OutputSliceSite)
            else change
        )

    def factors(self, form: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A and the scaled B of a form, kept where they cannot change before the next call."""
        own = [p for d in self.deltas.values() for p in (d.A, d.B)]
        trains = any(p.requires_grad for p in own)
        if torch.compiler.is_compiling() or (trains and torch.is_grad_enabled()):
            A, B = self.join(form)
            return A.to(dtype), B.to(dtype)
        version = sum(p._version for p in own) if trains else 0
        found = self.held.get(form)
        if found is None or found[0] != version or found[1].dtype != dtype:
            with torch.no_grad():
                A, B = self.join(form)
                found = self.held[form] = version, A.to(dtype), B.to(dtype)
        return found[1:]

    def join(self, form: str) -> tuple[Tensor, Tensor]:
        """Return (ranks, in) and (out, ranks); or of each group (rank, in) and (out, rank), and
        zeros for the base.
        """
        A, B = (
            {n: d.A for n, d in self.deltas.items()},
            {n: d.B * d.scale for n, d in self.deltas.items()},
        )
        if form == "stacked":
            return torch.cat([*A.values()]), torch.cat([*B.values()], dim=1)
        rank = -(-self.table.rank // 4) * 4  # grouped products want rows of 16 bytes
        As = [torch.cat([A[n] for n in group]) for group in self.table.groups]
        Bs = [torch.cat([B[n] * w for n, w in group.items()], dim=1) for group in self.table.groups]
        As = [F.pad(a, (0, 0, 0, rank - len(a))) for a in As]
        Bs = [F.pad(b, (0, rank - b.shape[1])) for b in Bs]
        return torch.stack([*As, torch.zeros_like(As[0])]), torch.stack(
            [*Bs, torch.zeros_like(Bs[0])]
        )
