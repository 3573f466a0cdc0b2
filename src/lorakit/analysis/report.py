"""What an adapter is made of, as plain numbers by module: the report that `inspect` shows and
pictures are drawn from.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.analysis.overlap import (
    amplification,
    cosine,
    intruder_dimensions,
    principal_angles,
    random_similarity,
    sign_conflict,
    subspace_similarity,
)
from lorakit.analysis.spectra import (
    cumulative_energy,
    effective_rank,
    factors_of,
    rank_for_energy,
    stable_rank,
)
from lorakit.deltas.base import Delta, LowRank
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.inject.places import find_places
from lorakit.linalg import singular_values, svd_of_product

DEAD = 0.01  # of the median norm
DRAWS = 8  # of random subspaces, whose mean is the control


def describe_modules(
    adapter: Adapter, base: nn.Module | None = None, *, intruders: bool = False
) -> list[dict[str, Any]]:
    """Return what is known of each module's change, one dict a module, as JSON holds it.

    name, kind, shape (out, in), rank, alpha, scale, norm, singular_values, energy (shares, summed
    up), effective_rank, stable_rank, rank_90 (directions that hold 90 % of the energy), dead (its
    norm is zero, or below 1 % of the median); with the base also relative_norm and amplification
    (see `overlap.Amplification`), and intruders where asked. A change that depends on the base's
    matrix (DoRA) is described by its low-rank part alone while there is none: partial is true.

    Args:
        adapter: any.
        base: the model it belongs to, with or without adapters on it.
        intruders: count the intruder dimensions too, which needs a dense SVD of every matrix.

    >>> import torch, lorakit
    >>> adapter = Adapter(lorakit.Spec(rank=1), {"0": LowRank(torch.ones(1, 4), torch.ones(4, 1), alpha=0.5)})
    >>> row, = describe_modules(adapter)
    >>> row["norm"], row["effective_rank"], row["dead"]
    (2.0, 1.0, False)
    """
    matrices = base_matrices(adapter, base)
    rows = [
        _row(name, delta, matrices.get(name), intruders) for name, delta in adapter.deltas.items()
    ]
    usual = median([row["norm"] for row in rows] or [0.0])
    for row in rows:
        row["dead"] = row["norm"] == 0 or row["norm"] < DEAD * usual
    return rows


def base_matrices(adapter: Adapter, base: nn.Module | None) -> dict[str, Tensor]:
    """Return the base's matrix (out, in) of each adapted module; empty without a base.

    Raises:
        AdapterMismatch: the base has no such module, or one of another shape; all are named.
    """
    if base is None:
        return {}
    known, faults = find_places(base, adapter.spec.parts), []
    for name, delta in adapter.deltas.items():
        if name not in known:
            faults.append(f"{name}   is not in the model")
        elif tuple(known[name].shape) != tuple(delta.shape):
            faults.append(
                f"{name}   is {tuple(delta.shape)}, the model's is {tuple(known[name].shape)}"
            )
    if faults:
        raise AdapterMismatch(f"The adapter does not fit {type(base).__name__}.", faults)
    return {name: known[name].site.read(known[name].layer) for name in adapter.deltas}


def _row(name: str, delta: Delta, M: Tensor | None, intruders: bool) -> dict[str, Any]:
    partial = False
    try:
        A, B = factors_of(name, delta, M)
    except SpecError:  # its change depends on the base's matrix
        if M is not None or not isinstance(delta, LowRank):
            raise
        partial, A, B = True, delta.A.detach().double(), delta.B.detach().double() * delta.scale
    values = singular_values(A, B)
    row = {
        "name": name,
        "kind": delta.kind,
        "shape": list(delta.shape),
        "rank": delta.rank,
        "alpha": delta.alpha,
        "scale": delta.scale,
        "norm": float(values.norm()),
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        "rank_90": rank_for_energy(values, 0.9),
        "singular_values": values.tolist(),
        "energy": cumulative_energy(values).tolist(),
    }
    if partial:
        row["partial"] = True
    if M is not None:
        row["relative_norm"] = row["norm"] / max(float(M.float().norm()), 1e-30)
        if M.ndim == 2 and row["norm"]:
            row["amplification"] = vars(amplification(M, A, B))
            if intruders:
                row["intruders"] = intruder_dimensions(M, A, B)
    return row


def summarise_modules(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the whole adapter in a few numbers: norm, mean effective and stable rank, how many
    modules are dead.

    >>> summarise_modules([{"norm": 3.0, "effective_rank": 2.0, "stable_rank": 1.0, "rank_90": 2, "dead": False},
    ...          {"norm": 4.0, "effective_rank": 1.0, "stable_rank": 1.0, "rank_90": 1, "dead": False}])
    {'norm': 5.0, 'effective_rank': 1.5, 'stable_rank': 1.0, 'rank_90': 1.5, 'dead_modules': 0}
    """
    live = [row for row in rows if row["norm"]]
    means = {
        key: sum(row[key] for row in live) / max(1, len(live))
        for key in ("effective_rank", "stable_rank", "rank_90")
    }
    return {
        "norm": sum(row["norm"] ** 2 for row in rows) ** 0.5,
        **means,
        "dead_modules": sum(row["dead"] for row in rows),
    }


def compare_adapters(
    first: Adapter, second: Adapter, base: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Return how two adapters lie to each other, one dict for each module that both change.

    name, similarity (phi by the directions of the change's input side, rank 1 x rank 2), random
    (phi(all, all) of random directions of these sizes, the mean of some draws), output_similarity
    (phi of the output side), angles (degrees), cosine of the two changes, and sign_conflict (share
    of weights that they push in opposite directions; 0.5 is chance).

    Args:
        first: any adapter.
        second: one for the same base.
        base: the model; only needed by deltas whose change depends on it.

    Raises:
        AdapterMismatch: they share no module, or differ in a shape; all are named.
        SpecError: a change depends on the base's matrix, and there is none.

    >>> import torch, lorakit
    >>> adapter = Adapter(lorakit.Spec(rank=1), {"0": LowRank(torch.ones(1, 4), torch.ones(4, 1), alpha=0.5)})
    >>> row, = compare_adapters(adapter, adapter)
    >>> row["similarity"], row["cosine"], row["sign_conflict"]
    ([[1.0]], 1.0, 0.0)
    """
    shared = [name for name in first.deltas if name in second.deltas]
    faults = [
        f"{n}   is {tuple(first.deltas[n].shape)} in one, {tuple(second.deltas[n].shape)} in the other"
        for n in shared
        if first.deltas[n].shape != second.deltas[n].shape
    ]
    if faults or not shared:
        raise AdapterMismatch(
            "The two adapters cannot be laid beside each other."
            if faults
            else "The two adapters share no module.",
            faults,
        )
    matrices = [base_matrices(adapter, base) for adapter in (first, second)]
    return [
        _pair(n, *((a.deltas[n], m.get(n)) for a, m in zip((first, second), matrices, strict=True)))
        for n in shared
    ]


def _pair(name: str, *sides: tuple[Delta, Tensor | None]) -> dict[str, Any]:
    one, two = (factors_of(name, delta, M) for delta, M in sides)
    if not all(float(singular_values(*side).norm()) for side in (one, two)) or one[0].ndim > 2:
        return {"name": name, "cosine": cosine(one, two), "sign_conflict": sign_conflict(one, two)}
    (U1, S1, V1), (U2, S2, V2) = (_live(*svd_of_product(*side)) for side in (one, two))
    left = subspace_similarity(U1.mT * S1[:, None], U2.mT * S2[:, None])
    right = subspace_similarity(V1 * S1[:, None], V2 * S2[:, None])
    drawn = (
        float(random_similarity(len(S1), len(S2), V1.shape[1], seed=seed)[-1, -1])
        for seed in range(DRAWS)
    )
    return {
        "name": name,
        "similarity": right.tolist(),
        "output_similarity": left.tolist(),
        "random": sum(drawn) / DRAWS,
        "angles": principal_angles(V1, V2).tolist(),
        "cosine": cosine(one, two),
        "sign_conflict": sign_conflict(one, two),
    }


def _live(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the directions that are there: those of rounding alone point anywhere."""
    keep = int((S[0] * 1e-12 < S).sum())
    return U[:, :keep], S[:keep], Vh[:keep]


def grid_by_layer(
    rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Return a number of each module as a grid: what the rows are (layers), the columns (kinds),
    and the values.

    A module that stands in no numbered layer is a row of its own.

    >>> grid_by_layer([{"name": "h.0.q", "x": 1.0}, {"name": "h.1.q", "x": 2.0}, {"name": "h.1.v", "x": 3.0}], "x")
    (['0', '1'], ['q', 'v'], [[1.0, None], [2.0, 3.0]])
    """
    cells: dict[tuple[str, str], float] = {}
    for row in rows:
        if key not in row:
            continue
        parts = row["name"].split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        layer, kind = (
            ("", row["name"]) if at is None else (parts[at], ".".join(parts[at + 1 :]) or "itself")
        )
        cells[layer, kind] = row[key]
    layers = list(dict.fromkeys(layer for layer, _ in cells))
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    return layers, kinds, [[cells.get((layer, kind)) for kind in kinds] for layer in layers]
