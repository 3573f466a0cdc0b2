"""`lorakit eval`."""

import argparse
from dataclasses import asdict, dataclass
from typing import Any

from lorakit.cli import flags
from lorakit.errors import DataError
from lorakit.models.tasks import CHOICES
from lorakit.spec import option
from lorakit.text import plural


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Which model, with which adapter, is asked."""

    model: str = option("", "a folder, a hub id, or builtin:minilm", required=True)
    adapter: str | None = option(None, "an adapter folder; without it the base alone", type=str)
    any_base: bool = option(False, "take an adapter that was trained on other base weights")
    dtype: str = option(
        "auto", "dtype of the base", choices=("auto", "float32", "bfloat16", "float16")
    )
    device: str = option("auto", "cpu, cuda, …")
    threads: int | None = option(None, "threads of torch on the CPU", type=int, least=1)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which rows."""

    data: str = option("", "a file, a hub id, or builtin:stdlib-docs", required=True)
    columns: tuple[str, ...] = option(
        (), "names of columns, as key=column, e.g. text=review label=stars", several=True
    )
    quotes: bool | None = option(
        None, "quotation marks wrap fields of a .csv (default yes) or .tsv (default no)", type=bool
    )
    split: str = option("test", "of a builtin, or of data on a hub", choices=("train", "test"))
    limit: int | None = option(None, "use the first so many rows alone", type=int, least=1)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How they are scored."""

    task: str = option("auto", "auto tells by the adapter, then by the rows", choices=CHOICES)
    loss_on: str = option(
        "completion",
        "score completions and assistant turns alone, or all tokens",
        choices=("completion", "all"),
    )
    max_length: int | None = option(
        None, "tokens of a sequence (default: 512, or what the model takes)", type=int, least=2
    )
    batch_size: int = option(32, "sequences at once", least=1)
    text_metrics: bool = option(
        False, "also generate, and compare with the completions: BLEU, chrF, ROUGE-L"
    )


def add(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, Subject, "the model")
    flags.add_fields(parser, Source, "the data")
    flags.add_fields(parser, Scoring, "the scores")
    add_decoding(parser, "generation, with --text-metrics")


# Torch must not be imported for --help, so the fields of evaluate.generate.Decoding stand in a room
# without it.
def add_decoding(parser: argparse.ArgumentParser, title: str) -> None:
    from lorakit.evaluate.decoding import Decoding

    flags.add_fields(parser, Decoding, title)


def needed(values: dict[str, Any], *names: str) -> None:
    """Refuse a request that lacks what it cannot do without."""
    from lorakit.errors import SpecError

    if missing := [f"--{n.replace('_', '-')} is needed" for n in names if not values.get(n)]:
        raise SpecError(f"{plural(len(missing), 'flag')} missing.", missing, "Nothing was started.")


def rows_of(source: Source):
    """Read the rows that a command asks for."""
    from lorakit.data.rows import read_rows

    rows = read_rows(source.data, columns=source.columns, quotes=source.quotes, split=source.split)
    return rows if source.limit is None else rows.take(range(min(source.limit, len(rows))))


def main(args: argparse.Namespace) -> dict[str, Any]:
    from lorakit.evaluate.decoding import Decoding

    subject_values, source_values, scoring_values, decoding_values = flags.values(
        args, Subject, Source, Scoring, Decoding
    )
    needed({**subject_values, **source_values}, "model", "data")
    subject, source, how = (
        Subject(**subject_values),
        Source(**source_values),
        Scoring(**scoring_values),
    )
    decoding = Decoding(**decoding_values)
    import torch

    from lorakit.adapter import Adapter
    from lorakit.evaluate.score import evaluate
    from lorakit.models.load import pad_id
    from lorakit.models.open import encode_rows, open_model, resolve_task
    from lorakit.train.log import progress_bar

    if subject.threads:
        torch.set_num_threads(subject.threads)
    rows = rows_of(source)
    adapter = Adapter.load(subject.adapter) if subject.adapter else None
    task = resolve_task(adapter, how.task, rows)
    if how.text_metrics and rows.kind != "completion":
        raise DataError(
            f"--text-metrics compares with completions, but the rows of {source.data} have "
            f"{'messages' if rows.kind == 'messages' else 'none'}."
        )
    loaded = open_model(
        subject.model,
        adapter,
        task,
        dtype=subject.dtype,
        device=subject.device,
        any_base=subject.any_base,
    )
    examples = encode_rows(rows, loaded, how.max_length, how.loss_on)
    with progress_bar("scoring", len(examples)) as advance:
        found = evaluate(
            loaded.model,
            examples,
            task,
            pad=pad_id(loaded.tokenizer),
            batch_size=how.batch_size,
            classes=len(loaded.labels),
            progress=advance,
        ).metrics
    cut = sum(e.cut > 0 for e in examples)
    result = {
        **found,
        "task": task,
        "rows": len(rows),
        "rows_cut": cut,
        "model": subject.model,
        "adapter": subject.adapter,
    }
    if how.text_metrics:
        result |= _text_metrics(loaded, rows, decoding, how.batch_size)
    return result


def _text_metrics(loaded: Any, rows: Any, decoding: Any, batch_size: int) -> dict[str, Any]:
    """Generate once for each different prompt; all its completions are its references."""
    from lorakit.evaluate.generate import generate
    from lorakit.evaluate.metrics import text
    from lorakit.train.log import progress_bar

    references: dict[str, list[str]] = {}
    for row in rows.rows:
        references.setdefault(row["prompt"], []).append(row["completion"].strip())
    prompts = list(references)
    with progress_bar("generating", len(prompts)) as advance:
        made = generate(loaded, prompts, decoding, batch_size=batch_size, progress=advance)
    return {
        **text(made, [references[p] for p in prompts]),
        "prompts": len(prompts),
        "decoding": asdict(decoding),
    }


def show(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    names = (
        "loss",
        "perplexity",
        "tokens",
        "accuracy",
        "f1",
        "precision",
        "recall",
        "matthews",
        "pearson",
        "spearman",
        "bleu",
        "chrf",
        "rouge_l",
        "rows",
    )
    title = f"{result['model']}{' + ' + result['adapter'] if result['adapter'] else ', the base alone'} ({result['task']})"
    shown.table(
        ["metric", "value"],
        [[n.replace("_", " "), result[n]] for n in names if n in result],
        title=title,
    )
    if result["rows_cut"]:
        print(f"note: {result['rows_cut']:,} rows are longer than fits and were cut")
    if result["task"] != "causal-lm" and result.get("pearson", 0) is None:
        print("note: one side is constant, so there is no correlation")
