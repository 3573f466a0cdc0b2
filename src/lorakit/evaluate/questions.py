"""Scores of answers to questions on a text, of which some have no answer: SQuAD v2's metrics."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from lorakit.data.layouts.squad import NO_ANSWER

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def score_answers(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float | None]:
    """Return exact match and F1 in percent, as SQuAD v2 computes them, and those of its two parts.

    An answer scores as the best of its references. A question whose only reference is NO_ANSWER
    has none: there an answer is right if it says so, or is empty.

    Args:
        answers: one generated text a question.
        references: one or more a question.

    Returns:
        exact_match and f1 over all questions; answerable_exact_match and answerable_f1 over those
        with an answer, and unanswerable_accuracy over the others; None where there are none.

    Source: Rajpurkar et al., arXiv 1806.03822, and its official evaluation script, version 2.0.

    >>> score_answers(["The cat.", NO_ANSWER], [["a cat", "cat sat"], [NO_ANSWER]])["exact_match"]
    100.0
    """
    exact: list[float] = []
    overlaps: list[float] = []
    for answer, wanted in zip(answers, references, strict=True):
        found = "" if is_no_answer(answer) else answer
        golds = ["" if is_no_answer(one) else one for one in wanted]
        exact.append(max(_equals(found, gold) for gold in golds))
        overlaps.append(max(token_f1(found, gold) for gold in golds))
    answerable: list[int] = []
    unanswerable: list[int] = []
    for number, wanted in enumerate(references):
        has_answer = not all(map(is_no_answer, wanted))
        (answerable if has_answer else unanswerable).append(number)
    everything = range(len(answers))
    return {
        "exact_match": _percent(exact, everything),
        "f1": _percent(overlaps, everything),
        "answerable_exact_match": _percent(exact, answerable),
        "answerable_f1": _percent(overlaps, answerable),
        "unanswerable_accuracy": _percent(exact, unanswerable),
    }


def _equals(answer: str, reference: str) -> float:
    return float(normalise(answer) == normalise(reference))


def is_no_answer(text: str) -> bool:
    """Return True if a text says that there is no answer, or is empty.

    >>> is_no_answer("Cannot find answer."), is_no_answer("Rome")
    (True, False)
    """
    return normalise(text).replace(" ", "") in ("", NO_ANSWER.lower().replace(" ", ""))


def normalise(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and superfluous spaces.

    >>> normalise("The  U.S. army")
    'us army'
    """
    bare = ARTICLES.sub(" ", text.lower().translate(PUNCTUATION))
    return " ".join(bare.split())


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words of two texts; 1 if neither has any.

    >>> token_f1("the black cat", "cat sat")
    0.5
    """
    found = normalise(answer).split()
    wanted = normalise(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def _percent(values: Sequence[float], chosen: Sequence[int]) -> float | None:
    """Return the mean of the chosen values in percent; None where there are none."""
    return 100 * fmean(values[i] for i in chosen) if chosen else None
