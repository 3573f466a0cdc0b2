"""What trained LoRA reaches at each rank: the best that the rank can do, and at full rank the
change itself.
"""

from typing import Any

import torch
from torch import nn

from lorakit.explain.text import paragraph
from lorakit.inject.attach import attach
from lorakit.spec import Spec

SPECTRUM = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)  # of the change that is asked for
STEPS = 400  # at most; it stops where the gradient is gone


def numbers() -> dict[str, Any]:
    """Return, by rank, how far the trained change is from the one asked for, beside what an SVD
    leaves.
    """
    size, draw = len(SPECTRUM), torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64)).Q
        for _ in "lr"
    )
    asked = left @ torch.diag(torch.tensor(SPECTRUM, dtype=torch.float64)) @ right.T
    rows: list[dict[str, Any]] = []
    for rank in range(1, size + 1):
        tail = sum(value**2 for value in SPECTRUM[rank:]) ** 0.5
        rows.append({"rank": rank, "trained": train(asked, rank), "tail": tail})
    return {"spectrum": list(SPECTRUM), "ranks": rows}


def train(asked: torch.Tensor, rank: int) -> float:
    """Train LoRA of this rank on linear regression until it is done; returns |s B A - asked|.

    Args:
        asked: (out, in), float64: what the frozen layer should be changed by.
        rank: of the adapter.
    """
    out, inputs = asked.shape
    model = nn.Sequential(nn.Linear(inputs, out, bias=False, dtype=torch.float64))
    layer: Any = model[0]
    X = torch.eye(inputs, dtype=torch.float64)  # inputs that weigh every direction alike
    target = (X @ (layer.weight + asked).T).detach()
    delta: Any = attach(
        model, Spec(rank=rank, alpha=rank, targets="all-linear", dtype="float64"), seed=1
    ).deltas["0"]
    optimizer = torch.optim.LBFGS(
        delta.parameters(),
        max_iter=STEPS,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (model(X) - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float((delta.matrix() - asked).norm().detach())


def tell(told: dict[str, Any]) -> str:
    lines = [
        f"  rank {r['rank']}   trained {r['trained']:.6f}   best there is {r['tail']:.6f}"
        for r in told["ranks"]
    ]
    return "\n".join(
        [
            paragraph(
                "A layer should be changed by a ΔW with the singular values "
                f"{', '.join(f'{value:g}' for value in told['spectrum'])}. LoRA of each rank is trained by gradients; "
                f"how far is it from ΔW in the end?"
            ),
            "",
            *lines,
            "",
            paragraph(
                "Gradients alone find the best matrix of each rank. At full rank nothing is left: LoRA can then learn "
                "whatever full fine-tuning of this matrix can. Below it, what is lost is the tail of ΔW's spectrum, so LoRA "
                "works well where the change that the task needs, not W, has few directions that count."
            ),
        ]
    )


def draw(told: dict[str, Any]) -> Any:
    from lorakit.plots import draw_reached

    return draw_reached(told["ranks"])
