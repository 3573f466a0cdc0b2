"""The rank that a threshold on singular values suggests, for a change and for W itself."""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from lorakit.analysis.spectra import rank_for_energy
from lorakit.errors import SpecError
from lorakit.rank_search.config import ENERGIES

LIMITS_OF_W = (
    "The singular values of W say how W itself could be compressed. "
    "LoRA leaves W unchanged: what needs a rank is the change, and "
    "that mostly amplifies directions which W does not emphasise "
    "(arXiv 2106.09685, section 7.3)."
)
MODULES_SHARE = 0.9  # of the modules whose changes need no more than the recommended rank


class ModuleRanks(TypedDict):
    """The ranks that a threshold suggests for one module."""

    name: str
    most: int
    rank_of_w: int
    rank_of_change: NotRequired[int]


class RankSuggestion(TypedDict):
    """The ranks that a threshold suggests for a model."""

    modules: list[ModuleRanks]
    recommended_rank: int | None
    reason: str


def suggest_rank(M: Tensor, threshold: float = 0.9, *, energy: str = "square") -> int:
    """Return the number of singular values that hold a share of them all.

    For a change it says how far the change can be cut. For a weight matrix W it says next to
    nothing about the rank that training needs: LoRA does not decompose W, and the spectrum of W is
    not that of its change.

    Args:
        M: (out, in), a weight matrix, or a change of one.
        threshold: above 0 and below 1.
        energy: "square", the share of the squared norm; or "sum", that of the sum of the values.

    Raises:
        SpecError: M is no matrix, or an argument is out of its range.

    >>> M = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    >>> suggest_rank(M, energy="sum"), suggest_rank(M), suggest_rank(M, 0.95, energy="sum")
    (1, 1, 2)
    """
    if M.ndim != 2:
        raise SpecError(f"A matrix is needed, got a tensor of {tuple(M.shape)}.")
    return rank_at(torch.linalg.svdvals(M.detach().double()), threshold, energy)


def rank_at(values: Tensor, threshold: float, energy: str) -> int:
    """Return the same as `suggest_rank` from singular values, descending.

    Raises:
        SpecError: an argument is out of its range.

    >>> rank_at(torch.tensor([16.848, 1.068, 0.0]), 0.9, "sum")
    1
    """
    if not 0 < threshold < 1 or energy not in ENERGIES:
        raise SpecError(
            f"A share above 0 and below 1 of {' or '.join(ENERGIES)} is needed, "
            f"got {threshold!r} of {energy!r}."
        )
    # The share of a sum of values is the share of the squares of their roots.
    roots = values if energy == "square" else values.sqrt()
    return rank_for_energy(roots, threshold)


def suggest_ranks(
    matrices: Mapping[str, Tensor], changes: Mapping[str, Tensor], threshold: float, energy: str
) -> RankSuggestion:
    """Return the ranks that a threshold suggests for each module, and what they are good for.

    Args:
        matrices: W by module.
        changes: singular values of the change by module; empty where there is no adapter.
        threshold: above 0 and below 1.
        energy: "square" or "sum".

    Returns:
        `modules`, with the largest possible rank of each (`most`); and `recommended_rank`, which
        holds for the changes of nine modules in ten, or None without changes.
    """
    modules = [
        _module_ranks(name, M, changes.get(name), threshold, energy) for name, M in matrices.items()
    ]
    shares = [module["rank_of_w"] / module["most"] for module in modules]
    mean = sum(shares) / max(len(shares), 1)
    of_w = (
        f"{threshold:g} of W's {energy}s needs {100 * mean:.0f} % of all directions on average. "
        f"{LIMITS_OF_W}"
    )
    ranks = sorted(module["rank_of_change"] for module in modules if "rank_of_change" in module)
    if not ranks:
        advice = (
            "So no rank is recommended: train, and let --way truncate measure it, "
            "or name a trained --adapter."
        )
        return {"modules": modules, "recommended_rank": None, "reason": f"{of_w} {advice}"}
    position = min(len(ranks) - 1, int(MODULES_SHARE * len(ranks)))
    rank = max(1, ranks[position])
    reason = (
        f"Of the change, {threshold:g} of the {energy}s needs rank {ranks[len(ranks) // 2]} "
        f"in half of the modules and {rank} in nine of ten. "
        "That is how far this adapter can be cut, not yet how good it then is: "
        f"--way truncate measures that. {of_w}"
    )
    return {"modules": modules, "recommended_rank": rank, "reason": reason}


def _module_ranks(
    name: str, M: Tensor, change: Tensor | None, threshold: float, energy: str
) -> ModuleRanks:
    ranks: ModuleRanks = {
        "name": name,
        "most": min(M.shape),
        "rank_of_w": suggest_rank(M, threshold, energy=energy),
    }
    if change is not None:
        ranks["rank_of_change"] = rank_at(change, threshold, energy)
    return ranks
