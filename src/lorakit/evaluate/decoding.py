"""Decoding: the choice of the next token. No torch is imported, so that `--help` is fast."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lorakit.errors import SpecError
from lorakit.spec import option
from lorakit.text import plural


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings of the choice of the next token: greedy, sampling or beam search.

    Raises:
        SpecError: fields out of their range, or that the chosen way does not use; all are named.
    """

    max_new_tokens: int = option(128, "largest number of tokens to generate")
    temperature: float = option(
        0.0, "0 always takes the most probable token; above 0 tokens are sampled"
    )
    top_p: float = option(
        1.0, "sample only from the most probable tokens that together have this probability"
    )
    beams: int = option(1, "number of beams of a beam search; 1 turns it off")
    length_penalty: float = option(
        1.0, "beam search: above 1 favours long texts, below 1 short ones"
    )
    no_repeat_ngram: int = option(
        0, "length of token sequences that may not be repeated; 0 allows all"
    )

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise SpecError(f"{plural(len(faults), 'fault')} in the generation settings.", faults)

    def _faults(self) -> Iterator[str]:
        if self.max_new_tokens < 1:
            yield f"max_new_tokens: at least 1 is needed, got {self.max_new_tokens}"
        if not 0 <= self.temperature < math.inf:
            yield f"temperature: 0 or more is needed, got {self.temperature:g}"
        if not 0 < self.top_p <= 1:
            yield f"top_p: above 0, at most 1 is needed, got {self.top_p:g}"
        if self.top_p < 1 and self.temperature == 0:
            yield "top_p: only sampling uses it; set temperature above 0"
        if self.beams < 1:
            yield f"beams: at least 1 is needed, got {self.beams}"
        if self.length_penalty != 1 and self.beams == 1:
            yield "length_penalty: only beam search uses it; set beams above 1"
        if self.no_repeat_ngram < 0:
            yield f"no_repeat_ngram: 0 or more is needed, got {self.no_repeat_ngram}"
