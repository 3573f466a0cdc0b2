"""Operations on adapters: sums, differences, truncation, and extraction from a full fine-tune."""

from lorakit.algebra.combination import METHODS, add, combine, negate, scale, subtract
from lorakit.algebra.extraction import extract
from lorakit.algebra.outcome import Outcome
from lorakit.algebra.truncation import resize

__all__ = [
    "METHODS",
    "Outcome",
    "add",
    "combine",
    "extract",
    "negate",
    "resize",
    "scale",
    "subtract",
]
