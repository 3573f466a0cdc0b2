"""One trial of one method on one task: accuracy, its interval, time and memory.

The training loop is that of `lorakit train`.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lorakit.adapter import Adapter
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
from lorakit.train.log import METRICS, Log
from lorakit.train.loop import fit

VALUES_PER_PARAMETER = 3  # beside itself: its gradient, and the two moments of AdamW
FIRST_BATCHES = 10  # the longest of them is measured
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Trial:
    """The accuracy of one training, and its cost.

    Attributes:
        method: name of the method.
        accuracy: share of correct held-out rows.
        low: lower end of the 95 % interval for these rows; it does not cover other seeds.
        high: upper end.
        parameters: number of trained values.
        seconds: CPU time of training only, over all threads.
        memory_bytes: memory beside the weights: gradients, moments, and the tensors that the
            longest of the first batches saves for the backward pass.
        seed: seed of the initialisation and of the order of the rows.
    """

    method: str
    accuracy: float
    low: float
    high: float
    parameters: int
    seconds: float
    memory_bytes: int
    seed: int = 0

    def to_dict(self) -> dict[str, object]:
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
    """Attach a new adapter, train it as `lorakit train` does, and score it; it stays attached.

    Args:
        loaded: a classifier that `models.load` returned; a new head of it is trained in full.
        spec: spec of the adapter; `full_finetuning_spec` returns that of full fine-tuning.
        examples: examples to train on.
        held_out: examples to score on.
        method: name of the trial.
        steps: optimizer steps.
        lr: peak learning rate; warm-up and schedule are those of `TrainSpec`.
        batch_size: sequences a step.
        seed: seed of the adapter's initialisation, the order of the rows, and dropout.

    Raises:
        DataError: the task has no classes.
        LorakitError: as `attach` and the training loop.
    """
    _number_of_classes(loaded)
    heads = [name for name in loaded.new_modules if name not in spec.full_modules]
    full_modules = (*spec.full_modules, *heads)
    adapter = attach(loaded.model, replace(spec, full_modules=full_modules), seed=seed)
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    trained_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    activation_bytes = saved_bytes(loaded, examples, batch_size, seed)
    with tempfile.TemporaryDirectory() as folder:
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
        seconds = _train(_job(loaded, adapter, examples, settings, lr))
    return score_classifier(
        loaded,
        held_out,
        method=method,
        parameters=sum(parameter.numel() for parameter in trained),
        seconds=seconds,
        memory_bytes=activation_bytes + VALUES_PER_PARAMETER * trained_bytes,
        seed=seed,
    )


def _job(
    loaded: Loaded,
    adapter: Adapter,
    examples: Sequence[Example],
    settings: TrainSpec,
    lr: float,
) -> Job:
    return Job(
        model=loaded.model,
        adapter=adapter,
        task=loaded.task,
        examples=examples,
        held_out=[],
        pad=pad_id(loaded.tokenizer, loaded.model),
        labels=loaded.labels,
        settings=settings,
        lr=lr,
        output=Path(settings.output),
    )


def _train(job: Job) -> float:
    """Train without progress bars, and return the CPU time in seconds."""

    def open_log(start: int) -> Log:
        return Log(job.output / METRICS, start, job.settings.steps or 0, quiet=True)

    start_seconds = time.process_time()
    fit(job, open_log)
    return time.process_time() - start_seconds


def run_linear_head(
    loaded: Loaded,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    *,
    method: str = "linear head",
) -> Trial:
    """Fit a logistic regression on the frozen encoder, and score it.

    Args:
        loaded: a classifier with no adapter enabled.
        examples: examples to fit on.
        held_out: examples to score on.
        method: name of the trial.

    Raises:
        DataError: the task has no classes.
    """
    start_seconds = time.process_time()
    classes = _number_of_classes(loaded)
    pad = pad_id(loaded.tokenizer, loaded.model)
    encoder = loaded.model.base_model
    scores = fit_linear_head(encoder, examples, held_out, pad=pad, classes=classes)
    correct = round(scores["accuracy"] * scores["rows"])
    low, high = wilson_interval(correct, scores["rows"])
    outputs = 1 if classes == 2 else classes
    return Trial(
        method=method,
        accuracy=scores["accuracy"],
        low=low,
        high=high,
        parameters=outputs * (scores["features"] + 1),
        seconds=time.process_time() - start_seconds,
        memory_bytes=FLOAT32_BYTES * scores["features"] * len(examples),
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
    """Score a classifier with the adapters that are enabled.

    Args:
        loaded: the classifier.
        held_out: examples to score on.
        method: name of the trial.
        parameters: number of values that were trained.
        seconds: time of the training.
        memory_bytes: memory of the training.
        seed: seed of the training.

    Raises:
        DataError: the task has no classes.
    """
    _number_of_classes(loaded)
    pad = pad_id(loaded.tokenizer, loaded.model)
    scores = evaluate(loaded.model, held_out, loaded.task, pad=pad, labels=loaded.labels)
    correct = 0
    for (predicted, *_), example in zip(scores.predictions, held_out, strict=True):
        correct += int(predicted) == int(example.target)
    low, high = wilson_interval(correct, len(held_out))
    return Trial(
        method=method,
        accuracy=correct / len(held_out),
        low=low,
        high=high,
        parameters=parameters,
        seconds=seconds,
        memory_bytes=memory_bytes,
        seed=seed,
    )


def wilson_interval(correct: int, rows: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    Args:
        correct: number of correct rows.
        rows: number of all rows.

    Source: Wilson, Journal of the American Statistical Association 22, 1927, as scipy computes it.

    >>> [round(x, 3) for x in wilson_interval(90, 100)]
    [0.826, 0.945]
    """
    from scipy.stats import binomtest

    low, high = binomtest(correct, rows).proportion_ci(method="wilson")
    return float(low), float(high)


@contextmanager
def saved_tensors(excluded: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Yield the bytes that autograd saves for the backward pass within the block, by storage.

    Args:
        excluded: tensors that do not count, such as the model's weights.
    """
    excluded_storages = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    saved: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded_storages:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def restore(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, restore):
        yield saved


def saved_bytes(loaded: Loaded, examples: Sequence[Example], batch_size: int, seed: int) -> int:
    """Return the bytes that a forward pass saves for the backward pass, without the weights.

    The longest of the first ten batches is measured.

    Args:
        loaded: the model, with the adapter to train attached and enabled.
        examples: examples to train on.
        batch_size: sequences a step.
        seed: seed of the order of the rows.
    """
    model = loaded.model
    longest = _longest_batch(examples, batch_size, seed)
    batch = collate(
        longest, pad_id(loaded.tokenizer, loaded.model), next(model.parameters()).device
    )
    model.train()
    with saved_tensors(model.parameters()) as saved:
        loss = batch_loss(model, batch, loaded.task)
    del loss
    model.eval()
    return sum(saved.values())


def _longest_batch(examples: Sequence[Example], batch_size: int, seed: int) -> list[Example]:
    """Return the batch with the longest example among the first batches."""
    lengths = [len(example.ids) for example in examples]
    order = Batches(lengths, batch_size, seed)
    first = [order[number] for number in range(min(FIRST_BATCHES, order.per_epoch))]
    longest = max(first, key=lambda batch: max(lengths[i] for i in batch))
    return [examples[i] for i in longest]


def _number_of_classes(loaded: Loaded) -> int:
    if loaded.task != "classify":
        raise DataError(
            f"Trials need a classifier; this model was loaded for {loaded.task}.",
            advice="Load it with task='classify'. Nothing was trained.",
        )
    return len(loaded.labels)
