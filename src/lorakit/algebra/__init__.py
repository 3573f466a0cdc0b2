"""Adapter -> Adapter: sums and differences of what adapters do, smaller ones, and one out of a full fine-tune."""

from lorakit.algebra.combine import METHODS, add, combine, negate, scale, subtract
from lorakit.algebra.extract import extract
from lorakit.algebra.outcome import Outcome
from lorakit.algebra.resize import resize

__all__ = ["METHODS", "Outcome", "add", "combine", "extract", "negate", "resize", "scale", "subtract"]
