"""Metrics of predictions; the libraries of the field compute them."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

# Prefixes of the tags of entities: begin, inside, end, single; last and unit.
PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")
CONTINUING = ("I", "E", "L")
ENDING = ("E", "L", "S", "U")


def classification(
    targets: Sequence[int], predictions: Sequence[int], classes: int
) -> dict[str, float]:
    """Return accuracy, F1, precision, recall and Matthews correlation.

    F1, precision and recall are those of class 1 where there are two, else the mean over classes.

    Source: scikit-learn; GLUE's choice of metrics, Wang et al., arXiv 1804.07461.

    >>> classification([0, 1, 1], [0, 1, 0], classes=2)["accuracy"]
    0.6666666666666666
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

    # Any: the stubs know only "warn" where the library documents a number.
    zero_division: Any = 0.0
    precision, recall, f1, _ = precision_recall_fscore_support(
        targets,
        predictions,
        average="binary" if classes == 2 else "macro",
        zero_division=zero_division,
    )
    return {
        "accuracy": float(accuracy_score(targets, predictions)),
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "matthews": float(matthews_corrcoef(targets, predictions)),
    }


def regression(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float | None]:
    """Return Pearson and Spearman correlation; None if one side is constant or has one value."""
    from scipy.stats import pearsonr, spearmanr

    if len(targets) < 2 or np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return {"pearson": None, "spearman": None}
    pearson: Any = pearsonr(targets, predictions)
    spearman: Any = spearmanr(targets, predictions)
    return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}


def text(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return BLEU and chrF (0 to 100), and ROUGE-L (0 to 1) of the best reference of each row.

    Args:
        hypotheses: one generated text a row.
        references: one or more a row.

    Source: sacrebleu (tokenizer 13a, all references), rouge-score.

    >>> text(["the cat sat on the mat"], [["the cat sat on the mat", "a cat sat"]])["bleu"]
    100.00000000000004
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    scorer = RougeScorer(["rougeL"])
    best: list[float] = []
    for hypothesis, row in zip(hypotheses, references, strict=True):
        scores = [scorer.score(reference, hypothesis)["rougeL"] for reference in row]
        best.append(max(score.fmeasure for score in scores))
    streams: Any = _reference_streams(references)
    return {
        "bleu": corpus_bleu(list(hypotheses), streams).score,
        "chrf": corpus_chrf(list(hypotheses), streams).score,
        "rouge_l": float(np.mean(best)),
    }


def _reference_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return the first reference of all rows, the second of all, and so on, as sacrebleu needs.

    None stands for a row that has fewer.
    """
    most = max(len(row) for row in references)
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def several_labels(
    targets: Sequence[Sequence[float]], predictions: Sequence[Sequence[bool]]
) -> dict[str, float]:
    """Return the share of rows with exactly the right labels as accuracy, F1, precision, recall.

    F1, precision and recall count all labels of all rows together (micro); `f1_macro` is the mean
    of the F1 of each label.

    Source: scikit-learn.

    >>> several_labels([[1, 0], [1, 1]], [[True, False], [True, False]])["accuracy"]
    0.5
    """
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    truth, found = np.asarray(targets, int), np.asarray(predictions, int)
    zero_division: Any = 0.0
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, found, average="micro", zero_division=zero_division
    )
    macro = f1_score(truth, found, average="macro", zero_division=zero_division)
    return {
        "accuracy": float(accuracy_score(truth, found)),
        "f1": float(f1),
        "f1_macro": float(macro),
        "precision": float(precision),
        "recall": float(recall),
    }


def tags(
    targets: Sequence[Sequence[int]], predictions: Sequence[Sequence[int]], names: Sequence[str]
) -> dict[str, float]:
    """Return the share of tokens with the right tag as accuracy, and F1, precision and recall.

    Where the tags are those of entities (B-PER, I-PER, O), these three count entities: one is right
    if its kind, its start and its end are. For other tags they are means over the tags.

    Args:
        targets: class of each token of each row.
        predictions: as many.
        names: of the classes.

    Source: the evaluation of CoNLL-2000 and 2003 (conlleval), micro-averaged.

    >>> tags([[1, 2, 0]], [[1, 0, 0]], ["O", "B-PER", "I-PER"])["f1"]
    0.0
    """
    flat_targets = list(chain.from_iterable(targets))
    flat_found = list(chain.from_iterable(predictions))
    if not is_entity_scheme(names):
        scores = classification(flat_targets, flat_found, max(3, len(names)))
        scores.pop("matthews")
        return scores
    wanted = _entities_of_rows(targets, names)
    found = _entities_of_rows(predictions, names)
    hits = len(wanted & found)
    precision, recall = hits / max(1, len(found)), hits / max(1, len(wanted))
    equal = [target == tag for target, tag in zip(flat_targets, flat_found, strict=True)]
    return {
        "accuracy": float(np.mean(equal)),
        "f1": 2 * hits / max(1, len(wanted) + len(found)),
        "precision": precision,
        "recall": recall,
    }


def is_entity_scheme(names: Sequence[str]) -> bool:
    """Return True if tags are those of entities: O, and a prefix with the kind of the entity.

    >>> is_entity_scheme(["O", "B-PER", "I-PER"]), is_entity_scheme(["NOUN", "VERB"])
    (True, False)
    """
    return "O" in names and all(name == "O" or name[:2] in PREFIXES for name in names)


def _entities_of_rows(
    rows: Sequence[Sequence[int]], names: Sequence[str]
) -> set[tuple[int, str, int, int]]:
    """Return (row, kind, start, end) of each entity."""
    found: set[tuple[int, str, int, int]] = set()
    for number, row in enumerate(rows):
        found |= {(number, *entity) for entity in find_entities([names[tag] for tag in row])}
    return found


def find_entities(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return (kind, start, end) of the entities in a row of tags, in IOB, IOBES or BILOU.

    An I that follows no entity of its kind begins one, as conlleval has it.

    >>> find_entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    entities: list[tuple[str, int, int]] = []
    kind, start, is_ended = "", 0, False
    for position, name in enumerate([*names, "O"]):
        prefix, _, own = name.partition("-")
        goes_on = prefix in CONTINUING and own == kind and not is_ended
        if kind and not goes_on:
            entities.append((kind, start, position))
        if not goes_on:
            kind, start = own, position
        is_ended = prefix in ENDING
    return entities
