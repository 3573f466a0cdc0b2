"""Frequent statements about LoRA that are wrong, each with what is true.

Source: the letters W, A and B are those of Hu et al., LoRA, arXiv 2106.09685, section 4.1.
"""

from typing import TypedDict

import torch

from lorakit.explain.text import paragraph
from lorakit.linalg import factorize

STATEMENTS = {
    "W is decomposed into two small matrices": (
        "W stays whole and frozen. What is written as B A is the change that is added. Cut "
        "to rank {rank} itself, a random {size} × {size} matrix would be off by {lost:.0f} "
        "% of its norm."
    ),
    "the weights are multiplied by the low-rank matrices": ("B A is added: W + s B A."),
    "B is r × d and A is d × r, and W' = W + B A": (
        "Then B A would be r × r and could not be added. B is (out, r), A is (r, in). For "
        "row vectors, X (W + A B), the letters change places."
    ),
    "LoRA runs an SVD of the weights": (
        "It runs none: A and B are learned by gradient descent. SVDs serve to look at "
        "adapters, to cut them down, and in later methods (PiSSA) as a start."
    ),
    "A and B both start at random": (
        "Then the model would be changed before it is trained: by {damage:.0f} % of |W| "
        "where all three are drawn alike. One of them starts at zero, so B A = 0."
    ),
    "weights are of low rank": (
        "Mostly they are of full rank. The hypothesis is about the change that a task needs."
    ),
    "the rank can be read off the singular values of W": (
        "The rank that matters is that of ΔW, which mostly amplifies directions that W does "
        "not emphasise."
    ),
    "normalisation layers are adapted by low rank": (
        "Their scale and bias are vectors: there is nothing to factor. They can be trained "
        'in full (full_modules=["norms"]), 2 d values each.'
    ),
    "LoRA makes the model smaller": (
        "It makes what is trained and stored for each task smaller. The base keeps its size."
    ),
    "training is faster because fewer parameters are trained": (
        "The forward pass costs a little more. Saved are gradients of W and their optimizer "
        "state: memory first of all, and time only where these were what a step waited for."
    ),
    "LoRA always makes inference as fast as the base": (
        "Merged it is the base's architecture, with no added time. Unmerged it costs a "
        "little, and that is what lets adapters be switched and mixed in a batch."
    ),
    "it is unstable because the rank is low": (
        "What is known to be unstable are high ranks and high rates; alpha / rank shrinks "
        "high ranks, alpha / sqrt(rank) keeps them level."
    ),
    "it beats fine-tuning on GLUE with GPT-3": (
        "The paper has GLUE with RoBERTa and DeBERTa, E2E, WebNLG and DART with GPT-2, and "
        "WikiSQL, MNLI and SAMSum with GPT-3: on a par with fine-tuning the same model or "
        "better, and worse in several cells."
    ),
    "LoRA pre-trains a model first": ("It starts from a model that is trained already."),
    "distilled models (DistilBERT) are low-rank factorizations": (
        "They are trained by knowledge distillation."
    ),
    "adapters and prefix tuning always train more": ("Their size is a setting, as LoRA's rank is."),
}
SIZE, RANK = 256, 8


Correction = TypedDict("Correction", {"said": str, "is": str})


class MisconceptionNumbers(TypedDict):
    """The corrected statements, and the numbers in the corrections."""

    size: int
    rank: int
    lost: float
    damage: float
    misconceptions: list[Correction]


def numbers() -> MisconceptionNumbers:
    """Return the statements with their corrections, and the numbers in these."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(SIZE, SIZE, generator=generator)
    A = torch.randn(RANK, SIZE, generator=generator)
    B = torch.randn(SIZE, RANK, generator=generator)
    down, up = factorize(W, RANK)
    lost = 100 * float((up @ down - W).norm() / W.norm())
    damage = 100 * float((B @ A).norm() / W.norm())
    corrections: list[Correction] = []
    for said, true in STATEMENTS.items():
        correction = true.format(size=SIZE, rank=RANK, lost=lost, damage=damage)
        corrections.append({"said": said, "is": correction})
    return {
        "size": SIZE,
        "rank": RANK,
        "lost": lost,
        "damage": damage,
        "misconceptions": corrections,
    }


def describe(found: MisconceptionNumbers) -> str:
    """Return the statements and corrections as text."""
    parts = []
    for row in found["misconceptions"]:
        parts.append(f"  “{row['said']}”\n{paragraph(row['is'])}\n")
    return "\n".join(parts).rstrip()
