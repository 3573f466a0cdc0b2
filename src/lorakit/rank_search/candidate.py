"""One adapter of a search: checked, trained, scored."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NotRequired, TypedDict

from torch import nn

from lorakit.adapter import Adapter
from lorakit.data.encode import Example
from lorakit.errors import NOT_STARTED, DataError, SpecError
from lorakit.inits.start import STARTS
from lorakit.inject.attach import attach, attached, detach
from lorakit.rank_search.config import CLASS_METRICS
from lorakit.rank_search.evidence import Choice, RowScores, choose_rank, scores_by_row
from lorakit.spec import Spec
from lorakit.tasks.find import find_task
from lorakit.train.config import TrainSpec
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log, Say
from lorakit.train.loop import fit
from lorakit.train.report import Metrics


class RankDetails(TypedDict):
    """Details of one rank of the curve, beside its `Point`."""

    train: NotRequired[float]
    parameters: int
    energy: NotRequired[float]
    metrics: Metrics


class ByModule(TypedDict):
    """The adapter with ranks by module, of as many parameters as the chosen rank."""

    metric: float
    taken: bool
    parameters: int
    ranks: dict[str, int]


class SearchFacts(TypedDict):
    """Facts of a search, as its report has them; some belong to one way of searching."""

    by_module: NotRequired[ByModule]
    steps: int
    seconds: float
    steps_a_rank: NotRequired[int]
    tokens: NotRequired[int]
    refined_steps: NotRequired[int]
    rows_measured: NotRequired[int]
    seconds_of_one_run: NotRequired[float]
    cost: NotRequired[float]


@dataclass(frozen=True)
class Candidate:
    """An adapter of one rank, and its scores on the held-out rows."""

    adapter: Adapter
    scores: RowScores

    def details(self) -> RankDetails:
        """Return its details for the curve."""
        return {"parameters": self.adapter.parameters_count, "metrics": self.scores.metrics}


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        choice: the curve and the recommended rank.
        adapter: the adapter of the recommended rank.
        metric: name of the metric that decided.
        candidates: the adapter of each rank of the curve.
        facts: facts of the search for its report.
    """

    choice: Choice
    adapter: Adapter
    metric: str
    candidates: Mapping[int, Candidate]
    facts: SearchFacts

    @property
    def details(self) -> dict[int, RankDetails]:
        """Details of each rank of the curve."""
        return {rank: candidate.details() for rank, candidate in self.candidates.items()}


def check_searchable(job: Job, spec: Spec, *, needs_plain: bool = True) -> None:
    """Check that adapters of this spec can be cut or grown, and scored.

    Args:
        job: the run.
        spec: spec of its adapter.
        needs_plain: True if the adapter will be cut or grown.

    Raises:
        SpecError: an adapter that is not plain low rank from its start on.
        DataError: nothing is held out.
    """
    if needs_plain and (spec.delta != "lora" or STARTS[spec.init].moves_B):
        kind = f"init {spec.init}" if spec.delta == "lora" else f"delta {spec.delta}"
        raise SpecError(
            f"{kind} cannot be cut or grown: that needs plain LoRA, and a start that leaves the "
            "base unchanged.",
            advice="Search without --delta and --init, and train with them at the rank that is "
            f"found; or use --way grid. {NOT_STARTED}",
        )
    if not job.held_out:
        raise DataError(
            "No rows are held out, so no rank can be measured.",
            advice=f"Give --eval-data, or a larger --eval-fraction. {NOT_STARTED}",
        )


def deciding_metric(metric: str, job: Job) -> str:
    """Return the metric that decides, for "auto" that of the task.

    Raises:
        SpecError: a metric of classes where there are none, or one of two classes where there are
            more.
    """
    if metric in CLASS_METRICS and job.task != "classify":
        raise SpecError(
            f"metric: {metric} is counted where rows have classes; the task is {job.task}."
        )
    if metric in CLASS_METRICS and metric != "accuracy" and len(job.labels) != 2:
        raise SpecError(
            f"metric: {metric} decides between two classes; here are {len(job.labels)}: "
            "take accuracy or loss."
        )
    if metric != "auto":
        return metric
    return find_task(job.task).deciding_metric


@contextmanager
def attached_alone(
    model: nn.Module, adapter: Adapter, *, trainable: bool = False
) -> Iterator[None]:
    """Attach this adapter, and no other, while the block lasts; none is attached after it."""
    if attached(model):
        detach(model)
    attach(model, adapter, trainable=trainable, any_base=True)
    model.eval()
    try:
        yield
    finally:
        detach(model)


def attach_rank(job: Job, like: Adapter, rank: int) -> Adapter:
    """Attach a new adapter of another rank to the model, which has none."""
    adapter = attach(job.model, replace(like.spec, rank=rank), seed=job.settings.seed)
    adapter.provenance |= like.provenance
    return adapter


def train_candidate(
    job: Job,
    adapter: Adapter,
    name: str,
    settings: TrainSpec,
    *,
    lr: float | None = None,
    quiet: bool = False,
) -> None:
    """Train an attached adapter without evaluations; its log and checkpoints go to a folder.

    Args:
        job: model and data.
        adapter: the adapter; changed in place.
        name: name of the folder inside the job's output.
        settings: settings of this training.
        lr: peak learning rate; that of the job where None.
        quiet: True to print nothing.
    """
    folder = job.output / name
    folder.mkdir(parents=True, exist_ok=True)
    training = replace(
        job,
        adapter=adapter,
        held_out=(),
        settings=settings,
        lr=job.lr if lr is None else lr,
        output=folder,
    )
    fit(training, lambda start: Log(folder / METRICS, start, training.steps, quiet=quiet))


def continue_training(job: Job, adapter: Adapter, name: str, *, steps: int, lr: float) -> None:
    """Train an adapter for a few more steps, with a learning rate that falls to zero.

    Args:
        job: model and data; nothing is evaluated on the way.
        adapter: a detached adapter; changed in place.
        name: name of the folder for its log and checkpoint.
        steps: optimizer steps.
        lr: learning rate of the first step.
    """
    settings = replace(
        job.settings,
        steps=steps,
        schedule="linear",
        warmup=0.0,
        final="last",
        checkpoint_every=steps,
        seed=job.settings.seed + 1,
    )
    with attached_alone(job.model, adapter, trainable=True):
        train_candidate(job, adapter, name, settings, lr=lr, quiet=True)
    for parameter in adapter.parameters():
        parameter.requires_grad_(False)


def score_adapter(
    job: Job, adapter: Adapter, examples: Sequence[Example], metric: str
) -> RowScores:
    """Return the scores of an adapter on examples, by row."""
    with attached_alone(job.model, adapter):
        scores = job.evaluate(examples)
    return scores_by_row(scores, examples, metric)


def try_rank(
    job: Job, adapter: Adapter, rank: int, settings: TrainSpec, metric: str, say: Say
) -> Candidate:
    """Train an attached adapter of a rank, score it on all held-out rows, and detach it."""
    train_candidate(job, adapter, f"rank-{rank}", settings)
    scores = score_adapter(job, adapter, job.held_out, metric)
    say(f"rank {rank}: {metric} {scores.metric:.4f}")
    return Candidate(adapter, scores)


def choose_candidate(
    candidates: Mapping[int, Candidate], metric: str, seed: int, held_out: int = 0
) -> Choice:
    """Return the choice among candidates by rank, as `choose_rank` makes it from their scores."""
    scores = {rank: candidate.scores for rank, candidate in candidates.items()}
    return choose_rank(scores, metric, seed=seed, held_out=held_out)
