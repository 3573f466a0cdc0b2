"""One step of full fine-tuning compared with one of LoRA: one layer, one batch, true gradients.

The layer is Y = X W^T + s (X A^T) B^T, the loss L = |Y - target|^2 / 2n for n rows, and G = dL/dY.

Source: W, A and B as in Hu et al., LoRA, arXiv 2106.09685, section 4.1; G, X by the chain rule.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import torch
from torch import Tensor, nn

from lorakit.deltas.base import LowRank
from lorakit.explain import example
from lorakit.explain.text import Matrix, paragraph, side_by_side
from lorakit.inject.attach import attach
from lorakit.spec import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INPUTS = [[1.0, 0.0, 0.5], [0.0, 1.0, -0.5], [0.5, -1.0, 1.0], [-1.0, 0.5, 0.0]]
WANTED = [[0.0, 1.0, -1.0], [2.0, 0.0, 1.0], [1.0, -1.0, 0.0]]  # the change of the layer
RATE, ALPHA = 0.1, 4.0
STEP = 1e-5  # of finite differences


class FullStep(TypedDict):
    """One step of W: its loss before and after, its gradient and the change."""

    loss_base: float
    gradient_W: Matrix
    loss_after_full_step: float
    rank_of_full_step: int
    gradient_formula_error_W: float
    step_W: Matrix
    learning_rate: float


class LoraStep(TypedDict):
    """One step of A and B: losses, gradients, the change, and errors of the formulas."""

    scale: float
    fresh_gradient_A: float
    fresh_gradient_B: Matrix
    loss_before_lora_step: float
    gradient_B: Matrix
    gradient_A: Matrix
    loss_after_lora_step: float
    rank_of_lora_change: int
    formula_error: float
    difference_error: float
    step_lora: Matrix


class StepNumbers(FullStep, LoraStep):
    """One step of full fine-tuning and one of LoRA."""


@dataclass(frozen=True)
class Problem:
    """A layer that should change, its inputs, and its target outputs."""

    model: nn.Module
    base: Tensor
    inputs: Tensor
    target: Tensor

    def loss(self) -> Tensor:
        """Return the loss of the model as it is."""
        return self.loss_of(self.model(self.inputs))

    def loss_with(self, weight: Tensor) -> Tensor:
        """Return the loss of another weight."""
        return self.loss_of(self.inputs @ weight.T)

    def loss_of(self, outputs: Tensor) -> Tensor:
        """Return the loss of these outputs."""
        return 0.5 * (outputs - self.target).square().sum() / len(outputs)

    def output_gradient(self) -> Tensor:
        """Return G = dL/dY."""
        return (self.model(self.inputs).detach() - self.target) / len(self.inputs)


def numbers() -> StepNumbers:
    """Return gradients and steps of both, and the error of the formulas.

    The formulas are compared with autograd and with finite differences.

    >>> found = numbers()
    >>> max(found["formula_error"], found["difference_error"]) < 1e-6, found["fresh_gradient_A"]
    (True, 0.0)
    """
    problem = _make_problem()
    return {**_full_step(problem), **_lora_step(problem)}


def _make_problem() -> Problem:
    base, inputs = _tensor(example.W), _tensor(INPUTS)
    layer = nn.Linear(3, 3, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(base)
    target = inputs @ (base + _tensor(WANTED)).T
    return Problem(nn.Sequential(layer), base, inputs, target)


def _full_step(problem: Problem) -> FullStep:
    """Return a step of W itself, whose gradient is G^T X."""
    (weight,) = problem.model.parameters()
    loss = problem.loss()
    (gradient,) = torch.autograd.grad(loss, [weight])
    formula = problem.output_gradient().T @ problem.inputs
    after = problem.loss_with(problem.base - RATE * gradient)
    return {
        "loss_base": float(loss.detach()),
        "gradient_W": gradient.tolist(),
        "loss_after_full_step": float(after),
        "rank_of_full_step": int(torch.linalg.matrix_rank(gradient)),
        "gradient_formula_error_W": _largest(gradient - formula),
        "step_W": (-RATE * gradient).tolist(),
        "learning_rate": RATE,
    }


def _lora_step(problem: Problem) -> LoraStep:
    """Return a step of A and B; with B = 0, as in a fresh adapter, A gets no gradient yet."""
    spec = Spec(rank=2, alpha=ALPHA, targets="all-linear", dtype="float64")
    delta = cast(LowRank, attach(problem.model, spec).deltas["0"])
    delta.A.data.copy_(_tensor(example.A))
    fresh_B, fresh_A = torch.autograd.grad(problem.loss(), [delta.B, delta.A])

    delta.B.data.copy_(0.1 * _tensor(example.B))
    A, B = delta.A.detach().clone(), delta.B.detach().clone()
    scale = delta.scale
    before = problem.loss()
    gradient_B, gradient_A = torch.autograd.grad(before, [delta.B, delta.A])
    G = problem.output_gradient()
    formula_B = scale * G.T @ (problem.inputs @ A.T)
    formula_A = scale * B.T @ G.T @ problem.inputs
    difference_B = _differences(problem, delta.B)
    difference_A = _differences(problem, delta.A)
    moved = scale * (B - RATE * gradient_B) @ (A - RATE * gradient_A)
    return {
        "scale": scale,
        "fresh_gradient_A": _largest(fresh_A),
        "fresh_gradient_B": fresh_B.tolist(),
        "loss_before_lora_step": float(before.detach()),
        "gradient_B": gradient_B.tolist(),
        "gradient_A": gradient_A.tolist(),
        "loss_after_lora_step": float(problem.loss_with(problem.base + moved)),
        "rank_of_lora_change": int(torch.linalg.matrix_rank(moved)),
        "formula_error": max(_largest(gradient_B - formula_B), _largest(gradient_A - formula_A)),
        "difference_error": max(
            _largest(gradient_B - difference_B), _largest(gradient_A - difference_A)
        ),
        "step_lora": (moved - scale * B @ A).tolist(),
    }


def _tensor(rows: Matrix) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _differences(problem: Problem, values: Tensor) -> Tensor:
    """Return the gradient by moving each value a little up and down."""
    found = torch.zeros_like(values)
    flat = values.view(-1)
    with torch.no_grad():
        for index in range(values.numel()):
            start = flat[index].clone()
            flat[index] = start + STEP
            above = problem.loss()
            flat[index] = start - STEP
            below = problem.loss()
            flat[index] = start
            found.view(-1)[index] = (above - below) / (2 * STEP)
    return found


def describe(found: StepNumbers) -> str:
    """Return the numbers as text."""
    gradients = {"dW": found["gradient_W"], "dB": found["gradient_B"], "dA": found["gradient_A"]}
    steps = {
        f"a full step adds (rank {found['rank_of_full_step']})": found["step_W"],
        "a LoRA step adds": found["step_lora"],
    }
    formulas = f"""
        The formulas agree with autograd (largest difference {found["formula_error"]:.0e}) and
        with finite differences ({found["difference_error"]:.0e}). W has no part in the LoRA step:
        it needs no gradient and no optimizer state, and s B A keeps rank
        {found["rank_of_lora_change"]} for any number of steps.
    """
    start = f"""
        A fresh LoRA has B = 0. Then dA = s Bᵀ Gᵀ X = {found["fresh_gradient_A"]:g}: in the first
        step only B moves, and from the second on both do. If both were zero, nothing would ever
        move; if both were random, the layer would change before it has seen any data.
    """
    full = _losses(found["loss_base"], found["loss_after_full_step"])
    lora = _losses(found["loss_before_lora_step"], found["loss_after_lora_step"])
    setting = "A layer Y = X Wᵀ, four rows X, loss L = ½ |Y − target|² / 4, and G = dL/dY."
    parts = [
        setting,
        "",
        f"  full fine-tuning   dW = Gᵀ X{' ' * 27}{full}",
        f"  LoRA, s = {found['scale']:g}        dB = s Gᵀ (X Aᵀ),  dA = s Bᵀ Gᵀ X    {lora}",
        "",
        side_by_side(gradients, ".3f"),
        "",
        side_by_side(steps, ".3f"),
        "",
        paragraph(formulas),
        paragraph(start),
    ]
    return "\n".join(parts)


def _losses(before: float, after: float) -> str:
    return f"loss {before:.4f} → {after:.4f}"


def draw(found: StepNumbers) -> "Figure":
    """Return a figure of both steps, and of the gradients."""
    from lorakit.plots import draw_matrices

    matrices = {
        "a full step adds": found["step_W"],
        "a LoRA step adds": found["step_lora"],
        "dW": found["gradient_W"],
        "dB": found["gradient_B"],
        "dA": found["gradient_A"],
    }
    return draw_matrices(
        matrices,
        title="one step, the same batch and rate",
        same_scale=("a full step adds", "a LoRA step adds"),
    )
