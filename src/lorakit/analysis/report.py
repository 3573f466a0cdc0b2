"""Adapters described by plain numbers, module by module: the report of `inspect` and of the plots.

Letters U, S, V are those of the singular value decomposition.

Source: Golub and Van Loan, Matrix Computations, 4th ed., section 2.4 (U, S, V).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import median
from typing import NamedTuple, NotRequired, TypedDict, cast

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
    scaled_factors,
    stable_rank,
)
from lorakit.deltas.base import Delta, LowRank
from lorakit.errors import AdapterMismatch, SpecError
from lorakit.inject.places import find_places
from lorakit.linalg import Factors, Svd, product_norm, singular_values, svd_of_product

DEAD_SHARE = 0.01  # of the median norm: a module below it is dead
RANDOM_DRAWS = 8  # pairs of random subspaces, whose mean similarity is the control
NOISE = 1e-12  # directions below this share of the largest are rounding errors
SMALLEST_NORM = 1e-30  # divisor of the relative norm of a zero matrix


class ModuleReport(TypedDict):
    """The change of one module.

    `energy` is the share of the squared norm in the first 1, 2, … directions, `rank_90` the number
    of directions with 90 % of it. A `dead` module has a zero norm, or one below 1 % of the median.
    `partial` is given if only the low-rank part of a change is described. `relative_norm` (to the
    norm of W), `amplification` (see `overlap.Amplification`) and `intruders` need the base.
    """

    name: str
    kind: str
    shape: list[int]
    rank: int
    alpha: float
    scale: float
    norm: float
    effective_rank: float
    stable_rank: float
    rank_90: int
    singular_values: list[float] | list[list[float]]
    energy: list[float] | list[list[float]]
    dead: bool
    partial: NotRequired[bool]
    relative_norm: NotRequired[float]
    amplification: NotRequired[dict[str, float]]
    intruders: NotRequired[int]


class AdapterSummary(TypedDict):
    """A whole adapter: its norm, means over its modules that are not zero, and its dead modules."""

    norm: float
    effective_rank: float
    stable_rank: float
    rank_90: float
    dead_modules: int


class PairReport(TypedDict):
    """The changes of two adapters at one module.

    `similarity` is phi(i, j) of the input side (rank 1, rank 2), `output_similarity` that of the
    output side, `random` phi of random subspaces of these ranks; `angles` are in degrees. These are
    missing if a change is zero, or for stacks. `sign_conflict` is the share of weights with
    opposite signs; 0.5 is chance.
    """

    name: str
    similarity: NotRequired[list[list[float]]]
    output_similarity: NotRequired[list[list[float]]]
    random: NotRequired[float]
    angles: NotRequired[list[float]]
    cosine: float
    sign_conflict: float


class LayerGrid(NamedTuple):
    """A number of each module as a table.

    Attributes:
        layers: names of the rows.
        kinds: names of the columns.
        values: (layers, kinds); None for a layer without a module of that kind.
    """

    layers: list[str]
    kinds: list[str]
    values: list[list[float | None]]


def describe_modules(
    adapter: Adapter, base: nn.Module | None = None, *, intruders: bool = False
) -> list[ModuleReport]:
    """Return a description of the change of each module, as JSON holds it.

    Without a base, a change that depends on the base's matrix (DoRA) is described by its low-rank
    part only, with `partial` set.

    Args:
        adapter: any.
        base: the model it is for, with or without adapters attached.
        intruders: count the intruder dimensions too, which takes a dense SVD of every matrix.

    >>> import torch, lorakit
    >>> delta = LowRank(torch.ones(1, 4), torch.ones(4, 1), alpha=0.5)
    >>> module, = describe_modules(Adapter(lorakit.Spec(rank=1), {"0": delta}))
    >>> module["norm"], module["effective_rank"], module["dead"]
    (2.0, 1.0, False)
    """
    matrices = base_matrices(adapter, base)
    modules: list[ModuleReport] = []
    for name, delta in adapter.deltas.items():
        modules.append(_describe(name, delta, matrices.get(name), intruders=intruders))
    norms = [module["norm"] for module in modules]
    usual = median(norms) if norms else 0.0
    for module in modules:
        module["dead"] = module["norm"] == 0 or module["norm"] < DEAD_SHARE * usual
    return modules


def base_matrices(adapter: Adapter, base: nn.Module | None) -> dict[str, Tensor]:
    """Return the base's matrix (out, in) of each adapted module; empty without a base.

    Raises:
        AdapterMismatch: the base has no such module, or one of another shape; all are named.
    """
    if base is None:
        return {}
    places = find_places(base, adapter.spec.parts)
    faults: list[str] = []
    for name, delta in adapter.deltas.items():
        if name not in places:
            faults.append(f"{name}   is not in the model")
            continue
        shape = tuple(places[name].shape)
        if shape != tuple(delta.shape):
            faults.append(f"{name}   is {tuple(delta.shape)}, the model's is {shape}")
    if faults:
        raise AdapterMismatch(f"The adapter does not fit {type(base).__name__}.", faults)
    matrices: dict[str, Tensor] = {}
    for name in adapter.deltas:
        place = places[name]
        matrices[name] = place.matrix
    return matrices


def _describe(name: str, delta: Delta, M: Tensor | None, *, intruders: bool) -> ModuleReport:
    """Return the description of one change; `dead` is not decided yet."""
    try:
        A, B = factors_of(name, delta, M)
        is_partial = False
    except SpecError:
        # Without the base's matrix only the low-rank part is known.
        if M is not None or not isinstance(delta, LowRank):
            raise
        A, B = scaled_factors(delta)
        is_partial = True
    values = singular_values(A, B)
    module: ModuleReport = {
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
        "dead": False,
    }
    if is_partial:
        module["partial"] = True
    if M is not None:
        _add_base(module, M, (A, B), intruders=intruders)
    return module


def _add_base(module: ModuleReport, M: Tensor, factors: Factors, *, intruders: bool) -> None:
    """Add the numbers that compare a change with the base's matrix."""
    base_norm = max(float(M.float().norm()), SMALLEST_NORM)
    module["relative_norm"] = module["norm"] / base_norm
    if M.ndim > 2 or not module["norm"]:
        return
    module["amplification"] = amplification(M, *factors).to_dict()
    if intruders:
        module["intruders"] = intruder_dimensions(M, *factors)


def summarise_modules(modules: Sequence[ModuleReport]) -> AdapterSummary:
    """Return an adapter in a few numbers.

    >>> one = {"norm": 3.0, "effective_rank": 2.0, "stable_rank": 1.0, "rank_90": 2, "dead": False}
    >>> two = {"norm": 4.0, "effective_rank": 1.0, "stable_rank": 1.0, "rank_90": 1, "dead": False}
    >>> summary = summarise_modules([one, two])
    >>> summary["norm"], summary["effective_rank"], summary["rank_90"], summary["dead_modules"]
    (5.0, 1.5, 1.5, 0)
    """
    live = [module for module in modules if module["norm"]]
    return {
        "norm": sum(module["norm"] ** 2 for module in modules) ** 0.5,
        "effective_rank": _mean([module["effective_rank"] for module in live]),
        "stable_rank": _mean([module["stable_rank"] for module in live]),
        "rank_90": _mean([module["rank_90"] for module in live]),
        "dead_modules": sum(module["dead"] for module in modules),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def compare_adapters(
    first: Adapter, second: Adapter, base: nn.Module | None = None
) -> list[PairReport]:
    """Return a comparison of two adapters for each module that both change.

    Args:
        first: any adapter.
        second: one for the same base.
        base: the model; needed only by deltas whose change depends on its matrix.

    Raises:
        AdapterMismatch: they share no module, or differ in a shape; all are named.
        SpecError: a change depends on the base's matrix, and `base` is None.

    >>> import torch, lorakit
    >>> delta = LowRank(torch.ones(1, 4), torch.ones(4, 1), alpha=0.5)
    >>> adapter = Adapter(lorakit.Spec(rank=1), {"0": delta})
    >>> pair, = compare_adapters(adapter, adapter)
    >>> pair["similarity"], pair["cosine"], pair["sign_conflict"]
    ([[1.0]], 1.0, 0.0)
    """
    shared = [name for name in first.deltas if name in second.deltas]
    if not shared:
        raise AdapterMismatch("The two adapters share no module.")
    faults: list[str] = []
    for name in shared:
        shape, other = first.deltas[name].shape, second.deltas[name].shape
        if shape != other:
            faults.append(f"{name}   is {tuple(shape)} in one, {tuple(other)} in the other")
    if faults:
        raise AdapterMismatch("The two adapters cannot be compared.", faults)
    first_matrices = base_matrices(first, base)
    second_matrices = base_matrices(second, base)
    pairs: list[PairReport] = []
    for name in shared:
        one = factors_of(name, first.deltas[name], first_matrices.get(name))
        two = factors_of(name, second.deltas[name], second_matrices.get(name))
        pairs.append(_compare(name, one, two))
    return pairs


def _compare(name: str, one: Factors, two: Factors) -> PairReport:
    pair: PairReport = {
        "name": name,
        "cosine": cosine(one, two),
        "sign_conflict": sign_conflict(one, two),
    }
    is_stack = one[0].ndim > 2
    if is_stack or not product_norm(*one) or not product_norm(*two):
        return pair
    first = _remove_noise(svd_of_product(*one))
    second = _remove_noise(svd_of_product(*two))
    inputs = subspace_similarity(
        _weighted_rows(first.Vh, first.S), _weighted_rows(second.Vh, second.S)
    )
    outputs = subspace_similarity(
        _weighted_rows(first.U.mT, first.S), _weighted_rows(second.U.mT, second.S)
    )
    pair["similarity"] = inputs.tolist()
    pair["output_similarity"] = outputs.tolist()
    pair["random"] = _random_level(len(first.S), len(second.S), first.Vh.shape[1])
    pair["angles"] = principal_angles(first.Vh, second.Vh).tolist()
    return pair


def _remove_noise(svd: Svd) -> Svd:
    """Return the directions that are not rounding errors, which would point anywhere."""
    U, S, Vh = svd
    count = int((S[0] * NOISE < S).sum())
    return Svd(U[:, :count], S[:count], Vh[:count])


def _weighted_rows(directions: Tensor, S: Tensor) -> Tensor:
    """Return directions (k, width) times their singular values, which gives them an order."""
    return directions * S[:, None]


@cache
def _random_level(rank1: int, rank2: int, width: int) -> float:
    """Return phi(rank 1, rank 2) of random subspaces, as a mean over several pairs."""
    levels = [
        float(random_similarity(rank1, rank2, width, seed=seed)[-1, -1])
        for seed in range(RANDOM_DRAWS)
    ]
    return sum(levels) / RANDOM_DRAWS


def grid_by_layer(modules: Sequence[Mapping[str, object]], key: str) -> LayerGrid:
    """Return one number of each module as a table of layers and kinds.

    A module outside the numbered layers is a row of its own.

    Args:
        modules: as `describe_modules` returns them; those without the number are skipped.
        key: of the number.

    >>> norms = {"h.0.q": 1.0, "h.1.q": 2.0, "h.1.v": 3.0}
    >>> modules = [{"name": name, "norm": norm} for name, norm in norms.items()]
    >>> grid = grid_by_layer(modules, "norm")
    >>> grid.layers, grid.kinds, grid.values
    (['0', '1'], ['q', 'v'], [[1.0, None], [2.0, 3.0]])
    """
    cells: dict[tuple[str, str], float] = {}
    for module in modules:
        if key in module:
            cell = split_name(str(module["name"]))
            cells[cell] = cast(float, module[key])
    layers = list(dict.fromkeys(layer for layer, _ in cells))
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    values = [[cells.get((layer, kind)) for kind in kinds] for layer in layers]
    return LayerGrid(layers, kinds, values)


def split_name(name: str) -> tuple[str, str]:
    """Return the number of a module's layer and its name within the layer."""
    words = name.split(".")
    for position, word in enumerate(words):
        if word.isdigit():
            return word, ".".join(words[position + 1 :]) or "itself"
    return "", name
