"""Sums and differences of what adapters do: exact in ΔW, or the best of a smaller rank; TIES, DARE
and pruning.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.algebra.outcome import (
    Factors,
    Ledger,
    Outcome,
    build_adapter,
    factors_by_module,
    pool_spectra,
    round_as_stored,
)
from lorakit.algebra.sparse import SPARSE_METHODS
from lorakit.analysis.spectra import rank_for_energy
from lorakit.deltas.base import Delta
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.full_parameters import find_full_modules
from lorakit.linalg import product_norm, randomised_svd, split_singular_values, svd_of_product
from lorakit.sites.slot import base_parameters
from lorakit.text import near_misses, plural

METHODS = ("exact", *SPARSE_METHODS)
WHOLE = ("sum", "first", "drop")
BIASES = ("none", "adapted", "all")  # from the fewest to the most
KEPT = ("base_model", "task", "task_type", "labels")  # of the provenance, where all agree
Weighted = Sequence[tuple[Adapter, float]]


def scale(adapter: Adapter, factor: float, **more: Any) -> Adapter:
    """Return the adapter whose change is `factor` times this one's.

    Args:
        adapter: any.
        factor: finite; 0 gives one that changes nothing.
        **more: base, whole, … as in `combine`.

    >>> import lorakit
    >>> adapter = Adapter(lorakit.Spec(rank=1), {"0": lorakit.LowRank(torch.ones(1, 2), torch.ones(1, 1), alpha=3.0)})
    >>> scale(adapter, -0.5).deltas["0"].matrix().tolist()
    [[-1.5, -1.5]]
    """
    return combine([(adapter, factor)], **more).adapter


def negate(adapter: Adapter, **more: Any) -> Adapter:
    """Return the adapter that takes off what this one adds; `**more` as in `combine`."""
    return scale(adapter, -1.0, **more)


def add(*adapters: Adapter, **more: Any) -> Adapter:
    """Return the adapter that does what all of these do together: their factors, concatenated;
    `**more` as in `combine`.
    """
    return combine([(adapter, 1.0) for adapter in adapters], **more).adapter


def subtract(adapter: Adapter, other: Adapter, **more: Any) -> Adapter:
    """Return the adapter that does what the first does and takes off what the other does; `**more`
    as in `combine`.
    """
    return combine([(adapter, 1.0), (other, -1.0)], **more).adapter


def combine(
    weighted: Weighted,
    *,
    rank: int | None = None,
    energy: float | None = None,
    method: str = "exact",
    density: float | None = None,
    seed: int = 0,
    whole: str = "sum",
    base: nn.Module | None = None,
    any_base: bool = False,
    dtype: torch.dtype | None = None,
) -> Outcome:
    """Return one adapter whose change is the weighted sum of the changes of several, module by
    module.

    Ranks, targets and scale rules may differ: what is summed is ΔW, not factors. Concatenated
        factors give the sum to the
    last bit of their dtype at rank sum; a smaller rank is the best there is (QR of the factors, SVD
    of the core).

    Args:
        weighted: (adapter, weight) pairs.
        rank: of every module at most; None keeps the sum of ranks.
        energy: instead of a rank, the share of each module's squared norm to keep, above 0 and at
            most 1.
        method: exact; or on the dense ΔW of each: ties, dare, magnitude (see
            `lorakit.algebra.sparse`).
        density: share of the weights of each ΔW that ties, dare and magnitude keep.
        seed: of DARE's draw.
        whole: what becomes of parameters that are trained whole (heads, biases): "sum" adds up
            their changes, which needs no base where the weights of those that hold one add up to 1;
            "first" takes the first adapter's; "drop" leaves out.
        base: the model they belong to; needed for DoRA, and for the sum of whole parameters with
            other weights.
        any_base: take adapters that say they were trained on different bases, or on another than
            `base`.
        dtype: of the result; the widest of the adapters' where None.

    Raises:
        SpecError: a request that cannot be meant, or a change that depends on the base's matrix
            while there is none.
        AdapterMismatch: shapes, kinds or bases differ, or whole parameters cannot be summed; all
            are named.

    Source: TIES from Yadav et al., arXiv 2306.01708; DARE from Yu et al., arXiv 2311.03099.

    >>> import lorakit
    >>> one = Adapter(lorakit.Spec(rank=1), {"0": lorakit.LowRank(torch.eye(2)[:1], torch.eye(2)[:, :1], alpha=1.0)})
    >>> two = Adapter(lorakit.Spec(rank=1), {"0": lorakit.LowRank(torch.eye(2)[1:], torch.eye(2)[:, 1:], alpha=4.0)})
    >>> combine([(one, 1.0), (two, 0.5)]).adapter.deltas["0"].matrix().tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    >>> round(combine([(one, 1.0), (two, 0.5)], rank=1).energy, 6)
    0.8
    """
    _check_request(weighted, rank, energy, method, density, whole)
    adapters = [adapter for adapter, _ in weighted]
    like: dict[str, Delta] = {}
    faults = [*_misfits(adapters, like), *_other_bases(adapters, base, any_base)]
    held, notes = _whole(weighted, whole, base, faults)
    if faults:
        raise AdapterMismatch(
            f"These adapters cannot be combined: {plural(len(faults), 'fault')}.",
            faults,
            "Nothing was made.",
        )
    changes = [(factors_by_module(adapter, base), weight) for adapter, weight in weighted]
    wide = dtype or _widest(adapters)
    if rank is not None:
        _check_rank(
            rank,
            {
                n: _limit(like[n], sum(c[n][0].shape[-2] for c, _ in changes if n in c))
                for n in like
            },
        )
    ledger = Ledger()
    for name, delta in like.items():
        parts = [(found[name], weight) for found, weight in changes if name in found]
        if method == "exact":
            _exact(ledger, name, delta, parts, rank, energy, wide)
        else:
            dense = SPARSE_METHODS[method](
                [(A, B, w) for (A, B), w in parts], density or 1.0, seed, name
            )
            most = _limit(delta, sum(A.shape[-2] for (A, _), _ in parts))
            wanted = min(rank or most, most) if energy is None else None
            truncate_dense(
                ledger,
                name,
                dense,
                randomised_svd(dense, wanted or min(dense.shape[-2:])),
                wanted,
                energy,
                wide,
            )
    plain = [
        f"{plural(sum(d.name != 'lora' for d in a.deltas.values()), 'module')} of {a.spec.delta} made plain"
        for a in adapters
        if any(d.name != "lora" for d in a.deltas.values())
    ]
    spec = _spec(adapters, held)
    made = build_adapter(
        like, spec, ledger.factors, held, _provenance(weighted, base, spec, method), wide
    )
    return ledger.close(made, (*plain, *notes))


def _exact(
    ledger: Ledger,
    name: str,
    delta: Delta,
    parts: list[tuple[Factors, float]],
    rank: int | None,
    energy: float | None,
    dtype: torch.dtype,
) -> None:
    A = torch.cat([A for (A, _), _ in parts], -2)
    B = torch.cat([B * weight for (_, B), weight in parts], -1)
    truncate_product(
        ledger, name, A, B, min(rank or A.shape[-2], _limit(delta, A.shape[-2])), energy, dtype
    )


def truncate_product(
    ledger: Ledger,
    name: str,
    A: Tensor,
    B: Tensor,
    rank: int,
    energy: float | None,
    dtype: torch.dtype,
) -> None:
    """Book the best factors of B A of this rank (or that hold this energy), as they are stored."""
    if energy is None and rank >= A.shape[-2]:
        pair, asked, least = (A, B), product_norm(A, B) ** 2, 0.0
    else:
        U, S, Vh = svd_of_product(A, B)
        spectrum = pool_spectra(S)
        rank = max(1, rank_for_energy(spectrum, energy)) if energy is not None else rank
        pair, asked, least = (
            split_singular_values(U, S, Vh, rank),
            float(S.square().sum()),
            float(spectrum[rank:].square().sum()),
        )
    # What is stored is what counts: the difference to the rounded factors, again from factors
    # alone.
    A2, B2 = (t.double() for t in round_as_stored(pair, dtype))
    lost = product_norm(torch.cat([A, A2], -2), torch.cat([B, -B2], -1)) ** 2
    ledger.book(name, asked, lost, min(least, lost), pair)


def truncate_dense(
    ledger: Ledger,
    name: str,
    dense: Tensor,
    parts: tuple[Tensor, Tensor, Tensor],
    rank: int | None,
    energy: float | None,
    dtype: torch.dtype,
) -> None:
    """Book the factors of a dense change from its leading directions, and what they leave of it."""
    U, S, Vh = parts
    spectrum, asked = pool_spectra(S), float(dense.double().square().sum())
    if rank is None:
        rest = max(0.0, asked - float(spectrum.square().sum()))
        rank = max(
            1,
            rank_for_energy(torch.cat([spectrum, spectrum.new_tensor([rest**0.5])]), energy or 1.0),
        )
    pair = split_singular_values(U, S, Vh, min(rank, S.shape[-1]))
    A2, B2 = (t.double() for t in round_as_stored(pair, dtype))
    lost = float((dense.double() - B2 @ A2).square().sum())
    ledger.book(name, asked, lost, min(float(spectrum[rank:].square().sum()), lost), pair)


def _limit(delta: Delta, rank: int) -> int:
    return min(rank, *delta.shape[-2:])


def _check_request(
    weighted: Weighted,
    rank: int | None,
    energy: float | None,
    method: str,
    density: float | None,
    whole: str,
) -> None:
    faults = [
        f"weight {weight!r} is no finite number"
        for _, weight in weighted
        if isinstance(weight, bool)
        or not isinstance(weight, int | float)
        or not math.isfinite(weight)
    ]
    faults += size_faults(rank=rank, energy=energy)
    for what, asked, known in (("method", method, METHODS), ("whole", whole, WHOLE)):
        if asked not in known:
            faults.append(
                f"{what} {asked!r} is none of {', '.join(known)} {near_misses(asked, known)}".rstrip()
            )
    if method in SPARSE_METHODS and (density is None or not 0 < density <= 1):
        faults.append(f"method {method!r} needs a density above 0 and at most 1, got {density!r}")
    if method not in SPARSE_METHODS and density is not None:
        faults.append(f"density {density!r}: method {method!r} keeps every weight")
    if not weighted:
        faults.append("no adapter is given")
    if faults:
        raise SpecError("This cannot be combined as asked.", faults, "Nothing was made.")


def size_faults(**asked: float | None) -> list[str]:
    """Return what is wrong with a rank, an energy or a budget: at most one of them, each in its
    range.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    faults = (
        [f"{' and '.join(given)} are given: each decides the size by itself"]
        if len(given) > 1
        else []
    )
    for name, value in given.items():
        if name == "energy":
            if isinstance(value, bool) or not 0 < value <= 1:
                faults.append(f"energy {value!r}: a share above 0 and at most 1 is needed")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            faults.append(f"{name} {value!r}: a whole number of at least 1 is needed")
    return faults


def _check_rank(rank: int, most: dict[str, int]) -> None:
    if most and rank > max(most.values()):
        raise SpecError(
            f"rank {rank} is asked, but no change here has more than {max(most.values())} directions.",
            advice="Leave the rank out: the sum is exact without. Nothing was made.",
        )


def _misfits(adapters: list[Adapter], like: dict[str, Delta]) -> list[str]:
    """Fill `like` with the first delta of each module; return what does not fit it."""
    faults = []
    for number, adapter in enumerate(adapters):
        for name, delta in adapter.deltas.items():
            first = like.setdefault(name, delta)
            here, before = ((*d.stack, *d.shape) for d in (delta, first))
            if here != before or delta.kernel != first.kernel:
                faults.append(f"{name}   is {here} in adapter {number + 1}, {before} before")
            elif delta.output_slice != first.output_slice:
                faults.append(
                    f"{name}   is other rows of its layer in adapter {number + 1} than before"
                )
            elif delta.kind != first.kind and {delta.kind, first.kind} != {"linear", "conv1d"}:
                faults.append(
                    f"{name}   is of kind {delta.kind} in adapter {number + 1}, {first.kind} before"
                )
    return faults


def _other_bases(adapters: list[Adapter], base: nn.Module | None, any_base: bool) -> list[str]:
    if any_base:
        return []
    faults, seen = [], {}
    for number, adapter in enumerate(adapters):
        told, patterns = (
            adapter.provenance.get("base_fingerprint"),
            tuple(adapter.spec.full_modules),
        )
        if base is not None:
            here = fingerprint(
                base,
                without=find_full_modules(base, patterns, require_match=False),
                rows=adapter.trained_tokens,
            )
        else:  # what is trained whole does not count in a fingerprint: those of different sets cannot be compared
            here = seen.setdefault(patterns, told or "") if told else ""
        if told and here and told != here:
            which = "the model's" if base is not None else "those of one before"
            faults.append(
                f"adapter {number + 1}   was trained on other base weights ({told}) than {which} ({here}); any_base "
                "(--any-base) takes it"
            )
    return faults


def _whole(
    weighted: Weighted, mode: str, base: nn.Module | None, faults: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the whole parameters of the sum and what was decided about them; what cannot be
    decided goes to `faults`.
    """
    holders: dict[str, list[tuple[float, Tensor]]] = {}
    for adapter, weight in weighted:
        for path, tensor in adapter.full_parameters.items():
            holders.setdefault(path, []).append((weight, tensor.detach()))
    if not holders or mode == "drop":
        return {}, [f"left out, though trained whole: {', '.join(holders)}"] if holders else []
    if mode == "first":
        return {path: held[0][1] for path, held in holders.items()}, [
            f"of the first that holds it: {', '.join(holders)}"
        ]
    labels = {
        str(a.provenance["labels"])
        for a, w in weighted
        if a.provenance.get("labels") and a.full_parameters
    }
    if len(labels) > 1:
        faults.append(
            f"{', '.join(holders)}   is trained whole for different labels: {' and '.join(sorted(labels))}"
        )
    own, summed = dict(base_parameters(base)) if base is not None else {}, {}
    for path, held in holders.items():
        total, shapes = sum(weight for weight, _ in held), {tuple(t.shape) for _, t in held}
        if len(shapes) > 1:
            faults.append(
                f"{path}   is trained whole in shapes {' and '.join(map(str, sorted(shapes)))}"
            )
        elif abs(total - 1) < 1e-9:  # the base's own value cancels
            summed[path] = sum((w * t.double() for w, t in held), torch.zeros(())).to(
                held[0][1].dtype
            )
        elif path in own and own[path].shape == held[0][1].shape:
            old = own[path].detach().double()
            summed[path] = sum((w * (t.double() - old) for w, t in held), old).to(held[0][1].dtype)
        else:
            faults.append(
                f"{path}   is trained whole, and its weights add up to {total:g}, not 1, so the base's own value "
                "counts: give the base (--model), or decide: whole='first' or 'drop' (--whole)"
            )
    several = [path for path, held in holders.items() if len(held) > 1]
    return summed, [f"summed with the weights: {', '.join(several)}"] if several else []


def _widest(adapters: list[Adapter]) -> torch.dtype:
    wide = adapters[0].dtype
    for adapter in adapters[1:]:
        wide = torch.promote_types(wide, adapter.dtype)
    return wide


def _spec(adapters: list[Adapter], held: dict[str, Tensor]) -> Any:
    patterns = tuple(dict.fromkeys(p for a in adapters for p in a.spec.full_modules))
    bias = max((a.spec.bias for a in adapters), key=BIASES.index) if held else "none"
    parts = {pattern: sizes for a in reversed(adapters) for pattern, sizes in a.spec.parts.items()}
    return replace(adapters[0].spec, full_modules=patterns, bias=bias, parts=parts)


def _provenance(
    weighted: Weighted, base: nn.Module | None, spec: Any, method: str
) -> dict[str, Any]:
    told = [adapter.provenance for adapter, _ in weighted]
    kept = {
        key: told[0][key]
        for key in KEPT
        if key in told[0] and all(t.get(key) == told[0][key] for t in told)
    }
    if base is not None:
        print_ = fingerprint(
            base, without=find_full_modules(base, spec.full_modules, require_match=False)
        )
    else:  # what is trained whole does not count in it
        same = (a for a, _ in weighted if tuple(a.spec.full_modules) == tuple(spec.full_modules))
        print_ = next((p for a in same if (p := a.provenance.get("base_fingerprint"))), None)
    if print_:
        kept["base_fingerprint"] = print_
    origin = [
        {"content_hash": adapter.content_hash(), "weight": weight} for adapter, weight in weighted
    ]
    return {**kept, "combined": {"method": method, "of": origin}}
