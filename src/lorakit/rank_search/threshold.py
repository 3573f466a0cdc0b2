"""The rank that a threshold on singular values suggests: what it says of a change, and why it says
little of W.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorakit.analysis.spectra import rank_for_energy
from lorakit.errors import SpecError

ENERGIES = ("square", "sum")
LIMITS_OF_W = (
    "The singular values of W say how W itself could be compressed. LoRA leaves W whole: what needs a rank is the change, and "
    "that mostly amplifies directions which W does not emphasise (arXiv 2106.09685, section 7.3)."
)


def suggest_rank(M: Tensor, threshold: float = 0.9, *, energy: str = "square") -> int:
    """Return how many singular values hold a share of the whole: the rank of a compressed M, if M
    is what is to be kept.

    Of a change ΔW it says how far it can be cut. Of a weight matrix W it says next to nothing about
    the rank that training
    needs: W is not decomposed, and its spectrum is not that of its change.

    Args:
        M: (out, in), a weight matrix, or a change of one.
        threshold: above 0 and below 1.
        energy: "square", the share of the squared norm; or "sum", of the plain sum of the values.

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
    """Return the same from singular values, descending.

    Raises:
        SpecError: an argument is out of its range.

    >>> rank_at(torch.tensor([16.848, 1.068, 0.0]), 0.9, "sum")
    1
    """
    if not 0 < threshold < 1 or energy not in ENERGIES:
        raise SpecError(
            f"A share above 0 and below 1 of {' or '.join(ENERGIES)} is needed, got {threshold!r} of {energy!r}."
        )
    # The share of the sum of the values is that of the squares of their roots.
    return rank_for_energy(values if energy == "square" else values.sqrt(), threshold)


def suggest_ranks(
    matrices: Mapping[str, Tensor], changes: Mapping[str, Tensor], threshold: float, energy: str
) -> dict[str, Any]:
    """Return what a threshold suggests, module by module, and what of it can be used.

    Args:
        matrices: W by module.
        changes: singular values of ΔW by module; empty where there is no adapter.
        threshold: above 0 and below 1.
        energy: "square" or "sum".

    Returns:
        `modules`: name, the most that a rank could be, `rank_of_w`, and `rank_of_change` where
        there is one; `recommended_rank`, which holds for nine of ten modules' changes, None without
        changes; `reason`.
    """
    rows = []
    for name, W in matrices.items():
        row: dict[str, Any] = {
            "name": name,
            "most": min(W.shape),
            "rank_of_w": suggest_rank(W, threshold, energy=energy),
        }
        if name in changes:
            row["rank_of_change"] = rank_at(changes[name], threshold, energy)
        rows.append(row)
    share = sum(row["rank_of_w"] / row["most"] for row in rows) / max(len(rows), 1)
    reason = f"{threshold:g} of W's {energy}s needs {100 * share:.0f} % of all directions on average. {LIMITS_OF_W}"
    found = sorted(row["rank_of_change"] for row in rows if "rank_of_change" in row)
    if not found:
        return {
            "modules": rows,
            "recommended_rank": None,
            "reason": f"{reason} So no rank is recommended: train, and let "
            "--way truncate measure it, or name a trained --adapter.",
        }
    rank = max(1, found[min(len(found) - 1, int(0.9 * len(found)))])
    return {
        "modules": rows,
        "recommended_rank": rank,
        "reason": f"Of the change, {threshold:g} of the {energy}s needs rank "
        f"{found[len(found) // 2]} in half of the modules and {rank} in nine of ten. That is how far this adapter can be "
        f"cut, not yet how good it then is: --way truncate measures that. {reason}",
    }
