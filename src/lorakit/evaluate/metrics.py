"""Metrics of predictions; the libraries of the field compute them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


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
