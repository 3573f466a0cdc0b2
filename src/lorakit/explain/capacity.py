"""The error of trained LoRA at each rank: the least of that rank, and zero at full rank."""

from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch import Tensor, nn

from lorakit.deltas.base import LowRank
from lorakit.explain.text import paragraph
from lorakit.inject.attach import attach
from lorakit.spec import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lorakit.plots.sizes import Reached

SPECTRUM = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)  # singular values of the wanted change
STEPS = 400  # at most; training stops when the gradient is zero


class CapacityNumbers(TypedDict):
    """The singular values of the wanted change, and the errors by rank."""

    spectrum: list[float]
    ranks: list["Reached"]


def numbers() -> CapacityNumbers:
    """Return the error of the trained change by rank, and the error of the SVD."""
    size = len(SPECTRUM)
    generator = torch.Generator().manual_seed(0)
    left, right = _random_rotation(size, generator), _random_rotation(size, generator)
    wanted = left @ torch.diag(torch.tensor(SPECTRUM, dtype=torch.float64)) @ right.T
    rows: list[Reached] = []
    for rank in range(1, size + 1):
        tail = sum(value**2 for value in SPECTRUM[rank:]) ** 0.5
        rows.append({"rank": rank, "trained": train(wanted, rank), "tail": tail})
    return {"spectrum": list(SPECTRUM), "ranks": rows}


def _random_rotation(size: int, generator: torch.Generator) -> Tensor:
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q


def train(wanted: Tensor, rank: int) -> float:
    """Train LoRA of this rank on linear regression to its end, and return |s B A - wanted|.

    Args:
        wanted: (out, in), float64, the change of the frozen layer.
        rank: rank of the adapter.
    """
    out, inputs = wanted.shape
    layer = nn.Linear(inputs, out, bias=False, dtype=torch.float64)
    model = nn.Sequential(layer)
    # Inputs that weigh every direction alike.
    x = torch.eye(inputs, dtype=torch.float64)
    target = (x @ (layer.weight + wanted).T).detach()
    spec = Spec(rank=rank, alpha=rank, targets="all-linear", dtype="float64")
    delta = cast(LowRank, attach(model, spec, seed=1).deltas["0"])
    optimizer = torch.optim.LBFGS(
        delta.parameters(),
        max_iter=STEPS,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (model(x) - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((delta.matrix() - wanted).norm().detach())


def describe(found: CapacityNumbers) -> str:
    """Return the numbers as text."""
    spectrum = ", ".join(f"{value:g}" for value in found["spectrum"])
    question = f"""
        A layer should change by a ΔW with the singular values {spectrum}. LoRA of each rank is
        trained by gradients; how far is it from ΔW in the end?
    """
    answer = """
        Gradients alone find the best matrix of each rank. At full rank the error is zero: LoRA
        can then learn whatever full fine-tuning of this matrix can. Below it, the error is the
        tail of ΔW's spectrum, so LoRA works well if the change that the task needs, not W, has
        few large directions.
    """
    lines = [paragraph(question), ""]
    for row in found["ranks"]:
        trained, tail = row["trained"], row["tail"]
        lines.append(f"  rank {row['rank']}   trained {trained:.6f}   least there is {tail:.6f}")
    return "\n".join([*lines, "", paragraph(answer)])


def draw(found: CapacityNumbers) -> "Figure":
    """Return a figure of both errors by rank."""
    from lorakit.plots import draw_reached

    return draw_reached(found["ranks"])
