"""`lorakit eval`."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lorakit.cli import flags
from lorakit.cli.request import DataRequest, ModelRequest, require
from lorakit.cli.tables import print_table
from lorakit.errors import NOT_STARTED, DataError
from lorakit.evaluate.decoding import Decoding
from lorakit.files import check_new_file
from lorakit.spec import option, option_like
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.adapter import Adapter
    from lorakit.cli.results import EvalResult
    from lorakit.data.encode import Example
    from lorakit.data.rows import Rows
    from lorakit.evaluate.score import Scores
    from lorakit.models.load import Loaded
    from lorakit.tasks.base import Task
    from lorakit.train.report import Metrics

METRICS = (
    "loss",
    "perplexity",
    "tokens",
    "accuracy",
    "margin",
    "f1",
    "f1_macro",
    "precision",
    "recall",
    "matthews",
    "pearson",
    "spearman",
    "bleu",
    "chrf",
    "rouge_l",
    "exact_match",
    "answerable_exact_match",
    "answerable_f1",
    "unanswerable_accuracy",
    "rows",
)


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """The scores to compute."""

    task: str = option_like(
        TrainSpec,
        "task",
        help="task to score; auto takes that of the adapter, otherwise that of the rows",
    )
    loss_on: str = option_like(
        TrainSpec,
        "loss_on",
        help="tokens that are scored: only completions and assistant turns, or all",
    )
    max_length: int | None = option_like(TrainSpec, "max_length", least=2)
    batch_size: int = option(32, "sequences in one forward pass", least=1)
    predictions: str | None = option(
        None,
        "write the predicted label of each row to this new file; rows need no labels then",
        type=str,
    )
    format: str = option(
        "jsonl",
        "of --predictions; glue is what the server of GLUE takes",
        choices=("jsonl", "glue"),
    )
    text_metrics: bool = option(
        False,
        "also generate texts, and compare them with the completions: BLEU, chrF, ROUGE-L, and for "
        "questions in the layout of SQuAD exact match, F1 and the accuracy of unanswerable ones",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, ModelRequest, "the model")
    flags.add_fields(parser, DataRequest, "the data")
    flags.add_fields(parser, EvalRequest, "the scores")
    flags.add_fields(parser, Decoding, "generation, with --text-metrics")


def run(args: argparse.Namespace) -> "EvalResult":
    model, data, scores, decoding = flags.read_settings(
        args, ModelRequest, DataRequest, EvalRequest, Decoding
    )
    require({**model, **data}, ModelRequest, DataRequest)
    return _evaluate(
        ModelRequest(**model), DataRequest(**data), EvalRequest(**scores), Decoding(**decoding)
    )


def _evaluate(
    model: ModelRequest, data: DataRequest, request: EvalRequest, decoding: Decoding
) -> "EvalResult":
    from lorakit.data.labels import WITH_TARGETS
    from lorakit.data.template_files import check_use
    from lorakit.evaluate.predictions import check_form, write_predictions
    from lorakit.models.tasks import TASKS
    from lorakit.tasks.rows import encode_rows, resolve_task

    if request.predictions:
        check_new_file(Path(request.predictions))
    rows = data.read()
    check_use(rows, model.template)
    adapter = model.load_adapter()
    task = resolve_task(
        adapter, model.model, request.task, rows, trust_remote_code=model.trust_remote_code
    )
    if request.predictions and not TASKS[task].has_head:
        raise DataError(
            f"--predictions is for labels and values, and the task is {task}.",
            advice=f"Use `lorakit generate --data` for texts. {NOT_STARTED}",
        )
    if request.predictions:
        check_form(request.format, task)
    if request.text_metrics:
        _check_completions(rows)
    loaded = model.open(adapter, task)
    examples = encode_rows(
        rows,
        loaded,
        request.max_length,
        request.loss_on,
        to_predict=request.predictions is not None,
    )
    scores = _score(loaded, examples, request.batch_size, _settle(task, adapter))
    has_targets = not TASKS[task].has_head or rows.kind in WITH_TARGETS
    result: Metrics = {
        **(scores.metrics if has_targets else {}),
        "task": task,
        "rows": len(rows),
        "rows_cut": sum(example.cut > 0 for example in examples),
        "model": model.model,
        "adapter": model.adapter,
    }
    if request.predictions:
        path = Path(request.predictions)
        path.parent.mkdir(parents=True, exist_ok=True)
        result["predictions"] = str(path)
        write_predictions(path, request.format, task, scores.predictions, loaded.labels)
    if request.text_metrics:
        result |= _text_metrics(loaded, rows, decoding, request.batch_size)
    return cast("EvalResult", result)


def _check_completions(rows: "Rows") -> None:
    from lorakit.data.prompts import ANSWERED

    if rows.kind not in ANSWERED:
        found = "messages" if rows.kind == "messages" else "none"
        raise DataError(
            f"--text-metrics compares with completions, but the rows of {rows.source} have {found}."
        )


def _settle(task: str, adapter: "Adapter | None") -> "Task":
    """Return a task with the settings that an adapter was trained with."""
    from lorakit.tasks.find import find_task
    from lorakit.tasks.preference import Preference

    if task != Preference.name or adapter is None:
        return find_task(task)
    return Preference(adapter.provenance.get("loss"), adapter.provenance.get("beta"))


def _score(
    loaded: "Loaded", examples: Sequence["Example"], batch_size: int, task: "Task"
) -> "Scores":
    from lorakit.evaluate.score import evaluate
    from lorakit.models.load import pad_id
    from lorakit.train.log import progress_bar

    with progress_bar("scoring", len(examples)) as advance:
        return evaluate(
            loaded.model,
            examples,
            task,
            pad=pad_id(loaded.tokenizer, loaded.model),
            batch_size=batch_size,
            labels=loaded.labels,
            progress=advance,
        )


def _text_metrics(loaded: "Loaded", rows: "Rows", decoding: Decoding, batch_size: int) -> "Metrics":
    """Generate once for each different prompt; all its completions are its references."""
    from lorakit.data.layouts import squad
    from lorakit.data.prompts import group_references
    from lorakit.evaluate.generate import generate
    from lorakit.evaluate.questions import score_answers
    from lorakit.tasks.metrics import text
    from lorakit.train.log import progress_bar

    groups = group_references(rows, loaded.tokenizer)
    prompts = [prompt for prompt, _ in groups]
    with progress_bar("generating", len(prompts)) as advance:
        texts = generate(loaded, prompts, decoding, batch_size=batch_size, progress=advance)
    references = [own for _, own in groups]
    scores: Metrics = dict(text(texts, references))
    if rows.layout == squad.NAME:
        scores |= score_answers(texts, references)
    return {**scores, "prompts": len(prompts), "decoding": asdict(decoding)}


def show(result: "EvalResult") -> None:
    rows = [[name.replace("_", " "), result.get(name)] for name in METRICS if name in result]
    adapter = f" + {result['adapter']}" if result["adapter"] else ", the base alone"
    title = f"{result['model']}{adapter} ({result['task']})"
    print_table(["metric", "value"], rows, title=title)
    if "predictions" in result:
        print(f"{result['rows']:,} predictions are in {result['predictions']}")
    if result["rows_cut"]:
        print(f"note: {result['rows_cut']:,} rows are longer than fits and were cut")
    if result.get("pearson", 0) is None:
        print("note: one side is constant, so there is no correlation")
