"""One step of full fine-tuning beside one step of LoRA: the same layer, the same batch, the same
rate, true gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorakit.explain import example
from lorakit.explain.text import beside, paragraph
from lorakit.inject.attach import attach
from lorakit.spec import Spec

X = [[1.0, 0.0, 0.5], [0.0, 1.0, -0.5], [0.5, -1.0, 1.0], [-1.0, 0.5, 0.0]]
ASKED = [[0.0, 1.0, -1.0], [2.0, 0.0, 1.0], [1.0, -1.0, 0.0]]  # what the layer should be changed by
RATE, ALPHA = 0.1, 4.0


def numbers() -> dict[str, Any]:
    """Return gradients and steps of both, and how far the formulas are from autograd and from
    finite differences.

    >>> told = numbers()
    >>> max(told["formula_error"], told["difference_error"]) < 1e-6, told["fresh_gradient_A"]
    (True, 0.0)
    """
    base, inputs = _wide(example.W), _wide(X)
    target = inputs @ (base + _wide(ASKED)).T
    model = nn.Sequential(nn.Linear(3, 3, bias=False, dtype=torch.float64))
    layer: Any = model[0]
    layer.weight.data.copy_(base)

    # Full fine-tuning: W itself has a gradient, G^T X.
    loss = _loss(model(inputs), target)
    (full,) = torch.autograd.grad(loss, [layer.weight])
    G = (model(inputs).detach() - target) / len(inputs)
    full_after = _loss(inputs @ (base - RATE * full).T, target)

    # LoRA: the same loss through y = x W^T + s (x A^T) B^T. A fresh one has B = 0, so A gets no
    # gradient yet.
    delta: Any = attach(
        model, Spec(rank=2, alpha=ALPHA, targets="all-linear", dtype="float64")
    ).deltas["0"]
    delta.A.data.copy_(_wide(example.A))
    fresh_B, fresh_A = torch.autograd.grad(_loss(model(inputs), target), [delta.B, delta.A])
    B = 0.1 * _wide(example.B)
    delta.B.data.copy_(B)
    A, s = delta.A.detach().clone(), delta.scale
    before = _loss(model(inputs), target)
    dB, dA = torch.autograd.grad(before, [delta.B, delta.A])
    G2 = (model(inputs).detach() - target) / len(inputs)
    by_formula = {"B": s * G2.T @ (inputs @ A.T), "A": s * B.T @ G2.T @ inputs}
    by_difference = {
        "B": _differences(model, delta.B, inputs, target),
        "A": _differences(model, delta.A, inputs, target),
    }
    moved = s * (B - RATE * dB) @ (A - RATE * dA)
    return {
        "loss_base": float(loss.detach()),
        "gradient_W": full.tolist(),
        "loss_after_full_step": float(full_after),
        "rank_of_full_step": int(torch.linalg.matrix_rank(full)),
        "scale": s,
        "learning_rate": RATE,
        "gradient_formula_error_W": float((full - G.T @ inputs).abs().max()),
        "fresh_gradient_A": float(fresh_A.abs().max()),
        "fresh_gradient_B": fresh_B.tolist(),
        "loss_before_lora_step": float(before.detach()),
        "gradient_B": dB.tolist(),
        "gradient_A": dA.tolist(),
        "loss_after_lora_step": float(_loss(inputs @ (base + moved).T, target)),
        "rank_of_lora_change": int(torch.linalg.matrix_rank(moved)),
        "formula_error": max(
            float((g - by_formula[n]).abs().max()) for n, g in (("B", dB), ("A", dA))
        ),
        "difference_error": max(
            float((g - by_difference[n]).abs().max()) for n, g in (("B", dB), ("A", dA))
        ),
        "step_W": (-RATE * full).tolist(),
        "step_lora": (moved - s * B @ A).tolist(),
    }


def _wide(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _loss(y: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (y - target).square().sum() / len(y)


def _differences(
    model: nn.Module, values: Tensor, inputs: Tensor, target: Tensor, step: float = 1e-5
) -> Tensor:
    """Return the gradient by moving each value a little up and down."""
    found = torch.zeros_like(values)
    with torch.no_grad():
        for i in range(values.numel()):
            ends: list[Tensor] = []
            for sign in (1, -1):
                values.view(-1)[i] += sign * step
                ends.append(_loss(model(inputs), target))
                values.view(-1)[i] -= sign * step
            found.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return found


def tell(told: dict[str, Any]) -> str:
    return "\n".join(
        [
            paragraph(
                "A layer Y = X Wᵀ, four rows X, loss L = ½ |Y − target|² / 4, and G = dL/dY."
            ),
            "",
            f"  full fine-tuning   dW = Gᵀ X                           loss {told['loss_base']:.4f} → "
            f"{told['loss_after_full_step']:.4f}",
            f"  LoRA, s = {told['scale']:g}        dB = s Gᵀ (X Aᵀ),  dA = s Bᵀ Gᵀ X    "
            f"loss {told['loss_before_lora_step']:.4f} → {told['loss_after_lora_step']:.4f}",
            "",
            beside(
                {"dW": told["gradient_W"], "dB": told["gradient_B"], "dA": told["gradient_A"]},
                ".3f",
            ),
            "",
            beside(
                {
                    f"what a full step adds (rank {told['rank_of_full_step']})": told["step_W"],
                    "what a LoRA step adds": told["step_lora"],
                },
                ".3f",
            ),
            "",
            paragraph(
                f"The formulas are what autograd gives (largest difference {told['formula_error']:.0e}) and what moving each "
                f"value a little gives ({told['difference_error']:.0e}). W has no part in the LoRA step: it needs no "
                f"gradient, no optimizer state, and s B A keeps rank {told['rank_of_lora_change']} whatever the number of "
                "steps."
            ),
            paragraph(
                f"A fresh LoRA has B = 0. Then dA = s Bᵀ Gᵀ X = {told['fresh_gradient_A']:g}: in the first step B alone "
                "moves, and from the second on both do. Were both zero, nothing would ever move; were both random, the "
                "layer would be changed before it has seen anything."
            ),
        ]
    )


def draw(told: dict[str, Any]) -> Any:
    from lorakit.plots import draw_matrices

    return draw_matrices(
        {
            "a full step adds": told["step_W"],
            "a LoRA step adds": told["step_lora"],
            "dW": told["gradient_W"],
            "dB": told["gradient_B"],
            "dA": told["gradient_A"],
        },
        title="one step, the same batch and rate",
        same_scale=("a full step adds", "a LoRA step adds"),
    )
