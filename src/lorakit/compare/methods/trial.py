"""One method tried once on one task: how good, how sure, how long, how much memory. The loop is
that of `lorakit train`.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorakit.compare.methods.linear_head import fit_linear_head
from lorakit.data.batches import Batches, collate
from lorakit.data.encode import Example
from lorakit.errors import DataError
from lorakit.evaluate.score import batch_loss, evaluate
from lorakit.inject.attach import attach
from lorakit.models.load import Loaded, pad_id
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.job import Job
from lorakit.train.log import Log
from lorakit.train.loop import fit

STEP = 3  # values beside each trained one: its gradient, and the two moments of AdamW


@dataclass(frozen=True)
class Trial:
    """What one training gave, and what it took.

    Attributes:
        method: its name.
        accuracy: share of the held-out rows that it got right.
        low: lower end of the interval of 95 %, of these rows; what another seed would change is not
            in it.
        high: upper end.
        parameters: that it trained.
        seconds: CPU time of training alone, of all threads together.
        memory_bytes: beside the weights: gradients, moments, and what the longest of the first
            batches saves for the way back.
        seed: of the start and of the order of the rows.
    """

    method: str
    accuracy: float
    low: float
    high: float
    parameters: int
    seconds: float
    memory_bytes: int
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them and `plots.draw_methods` draws them."""
        return asdict(self)


def run_trial(
    loaded: Loaded,
    spec: Spec,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    *,
    method: str,
    steps: int,
    lr: float,
    batch_size: int = 16,
    seed: int = 0,
) -> Trial:
    """Attach a new adapter, train it by the loop that `lorakit train` runs, and score it; it stays
    attached.

    Args:
        loaded: a classifier that `models.load` gave; a new head of it is trained whole beside the
            adapter.
        spec: of the adapter; `compare.methods.full.full_finetuning_spec` gives that of full fine-tuning.
        examples: to train on.
        held_out: to score on.
        method: what to call it.
        steps: of the optimizer.
        lr: peak learning rate; warm-up and schedule are those of `TrainSpec`.
        batch_size: sequences a step.
        seed: of the adapter's start, the order of the rows, and dropout.

    Raises:
        DataError: the task has no classes.
        LorakitError: as `attach` and the loop.
    """
    _classes(loaded)
    model, pad = loaded.model, pad_id(loaded.tokenizer)
    heads = (m for m in loaded.new_modules if m not in spec.full_modules)
    adapter = attach(model, replace(spec, full_modules=(*spec.full_modules, *heads)), seed=seed)
    parameters = [p for p in adapter.parameters() if p.requires_grad]
    kept = saved_bytes(loaded, examples, batch_size, seed) + STEP * sum(
        p.numel() * p.element_size() for p in parameters
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = TrainSpec(
            model=loaded.name,
            data="-",
            output=folder,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            seed=seed,
            keep=1,
            checkpoint_every=steps,
        )
        job = Job(
            model, adapter, loaded.task, examples, [], pad, len(loaded.labels), settings, lr, place
        )
        begun = time.process_time()
        fit(job, lambda start: Log(place / "metrics.jsonl", start, steps, quiet=True))
        seconds = time.process_time() - begun
    return score_classifier(
        loaded,
        held_out,
        method=method,
        parameters=sum(p.numel() for p in parameters),
        seconds=seconds,
        memory_bytes=kept,
        seed=seed,
    )


def run_linear_head(
    loaded: Loaded,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    *,
    method: str = "linear head",
) -> Trial:
    """Fit a logistic regression on the frozen encoder, and score it: what is reached without
    changing the encoder.

    Args:
        loaded: a classifier with no adapter on.
        examples: to fit on.
        held_out: to score on.
        method: what to call it.

    Raises:
        DataError: the task has no classes.
    """
    classes, begun = _classes(loaded), time.process_time()
    found = fit_linear_head(
        loaded.model.base_model, examples, held_out, pad=pad_id(loaded.tokenizer), classes=classes
    )
    rows, width = found["rows"], found["features"]
    outputs = 1 if classes == 2 else classes
    return Trial(
        method,
        found["accuracy"],
        *wilson_interval(round(found["accuracy"] * rows), rows),
        parameters=outputs * (width + 1),
        seconds=time.process_time() - begun,
        memory_bytes=4 * width * len(examples),
    )


def score_classifier(
    loaded: Loaded,
    held_out: Sequence[Example],
    *,
    method: str,
    parameters: int = 0,
    seconds: float = 0.0,
    memory_bytes: int = 0,
    seed: int = 0,
) -> Trial:
    """Score a classifier as it stands, with what is attached and on.

    Args:
        loaded: the classifier.
        held_out: to score on.
        method: what to call it.
        parameters: that were trained.
        seconds: that it took.
        memory_bytes: that it took.
        seed: of the training.

    Raises:
        DataError: the task has no classes.
    """
    classes = _classes(loaded)
    found = evaluate(
        loaded.model, held_out, loaded.task, pad=pad_id(loaded.tokenizer), classes=classes
    )
    right = sum(
        int(value) == int(e.target)
        for (value, _), e in zip(found.predictions, held_out, strict=True)
    )
    return Trial(
        method,
        right / len(held_out),
        *wilson_interval(right, len(held_out)),
        parameters,
        seconds,
        memory_bytes,
        seed,
    )


def wilson_interval(right: int, rows: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % for a share.

    Args:
        right: rows that were got right.
        rows: all of them.

    Source: Wilson, Journal of the American Statistical Association 22, 1927, as scipy computes it.

    >>> [round(x, 3) for x in wilson_interval(90, 100)]
    [0.826, 0.945]
    """
    from scipy.stats import binomtest

    low, high = binomtest(right, rows).proportion_ci(method="wilson")
    return float(low), float(high)


@contextmanager
def saved_tensors(beside: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Yield the bytes that autograd saves for the way back while the block lasts, by storage: each
    is counted once.

    Args:
        beside: tensors that are there anyway, and do not count.
    """
    held = {tensor.untyped_storage().data_ptr() for tensor in beside}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def saved_bytes(loaded: Loaded, examples: Sequence[Example], batch_size: int, seed: int) -> int:
    """Return what the forward saves for the way back, beside the weights: of the longest of the
    first ten batches.

    Args:
        loaded: with what is to be trained attached and on.
        examples: to train on.
        batch_size: sequences a step.
        seed: of the order of the rows.
    """
    model, pad = loaded.model, pad_id(loaded.tokenizer)
    order = Batches([len(e.ids) for e in examples], batch_size, seed)
    longest = max(
        (order[k] for k in range(min(10, order.per_epoch))),
        key=lambda at: max(len(examples[i].ids) for i in at),
    )
    model.train()
    with saved_tensors(model.parameters()) as saved:
        loss = batch_loss(
            model,
            collate([examples[i] for i in longest], pad, next(model.parameters()).device),
            loaded.task,
        )[0]
    del loss
    model.eval()
    return sum(saved.values())


def _classes(loaded: Loaded) -> int:
    if loaded.task != "classify":
        raise DataError(
            f"Trials are of classifiers; this model was loaded for {loaded.task}.",
            advice="Nothing was trained.",
        )
    return len(loaded.labels)
