"""Numbers out of predictions; the libraries of the field compute them, this file names and gathers
them.
"""

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
    none: Any = 0.0
    average = "binary" if classes == 2 else "macro"
    told = precision_recall_fscore_support(
        targets, predictions, average=average, zero_division=none
    )
    precision, recall, f1 = (float(value) for value in told[:3])
    return {
        "accuracy": float(accuracy_score(targets, predictions)),
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "matthews": float(matthews_corrcoef(targets, predictions)),
    }


def regression(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float | None]:
    """Return Pearson and Spearman correlation; None where one side is constant, so that there is
    none.
    """
    from scipy.stats import pearsonr, spearmanr

    if len(targets) < 2 or np.ptp(targets) == 0 or np.ptp(predictions) == 0:
        return {"pearson": None, "spearman": None}
    pearson: Any = pearsonr(targets, predictions)
    spearman: Any = spearmanr(targets, predictions)
    return {"pearson": float(pearson.statistic), "spearman": float(spearman.statistic)}


def text(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return BLEU and chrF (0 to 100) and ROUGE-L (0 to 1, best reference of each), over several
    references a row.

    Args:
        hypotheses: one generated text a row.
        references: one or more a row.

    Source: sacrebleu (tokenizer 13a, all references), rouge-score.

    >>> text(["the cat sat on the mat"], [["the cat sat on the mat", "a cat sat"]])["bleu"]
    100.00000000000004
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    width = max(len(r) for r in references)
    # sacrebleu takes one stream a reference; None marks a row that has fewer.
    streams: Any = [[r[i] if i < len(r) else None for r in references] for i in range(width)]
    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(r, h)["rougeL"].fmeasure for r in refs)
        for h, refs in zip(hypotheses, references, strict=True)
    ]
    return {
        "bleu": corpus_bleu(list(hypotheses), streams).score,
        "chrf": corpus_chrf(list(hypotheses), streams).score,
        "rouge_l": float(np.mean(best)),
    }


def perplexity(loss: float) -> float:
    """Return exp(loss), infinity where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
