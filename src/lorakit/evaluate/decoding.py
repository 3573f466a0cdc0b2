"""Decoding: how the next token is chosen. Torch is not imported here, so `--help` can read the
fields.
"""

import math
from dataclasses import dataclass

from lorakit.errors import SpecError
from lorakit.spec import option
from lorakit.text import plural


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen."""

    max_new_tokens: int = option(128, "tokens to generate at most")
    temperature: float = option(0.0, "0 takes the most probable token; above 0 samples")
    top_p: float = option(
        1.0, "sample from the most probable tokens that together have this probability"
    )
    beams: int = option(1, "beams of a beam search; 1 is none")
    length_penalty: float = option(1.0, "beam search: above 1 favours long, below 1 short texts")
    no_repeat_ngram: int = option(0, "no run of so many tokens occurs twice; 0 is no such rule")

    def __post_init__(self) -> None:
        faults = []
        if self.max_new_tokens < 1:
            faults.append(f"max_new_tokens: at least 1 is needed, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            faults.append(f"temperature: 0 or more is needed, got {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p: above 0, at most 1 is needed, got {self.top_p:g}")
        if self.top_p < 1 and self.temperature == 0:
            faults.append("top_p: only sampling uses it; set temperature above 0")
        if self.beams < 1:
            faults.append(f"beams: at least 1 is needed, got {self.beams}")
        if self.length_penalty != 1 and self.beams == 1:
            faults.append("length_penalty: only beam search uses it; set beams above 1")
        if self.no_repeat_ngram < 0:
            faults.append(f"no_repeat_ngram: 0 or more is needed, got {self.no_repeat_ngram}")
        if faults:
            raise SpecError(f"{plural(len(faults), 'fault')} in how to generate.", faults)
