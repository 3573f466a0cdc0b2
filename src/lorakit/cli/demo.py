"""`python -m lorakit.cli.demo`: the demo, without any download; `make demo` runs it.

A real encoder (all-MiniLM-L6-v2) learns to proofread: which sentences of Python's own docstrings
are intact, and in which have two words changed places? A linear head on the frozen encoder can
hardly tell; a LoRA of 0.8 million parameters can.
"""

import sys
from typing import TYPE_CHECKING, NamedTuple

from lorakit.cli.quiet import silence_libraries
from lorakit.cli.tables import print_metrics
from lorakit.cli.train import show_files, show_next
from lorakit.errors import LorakitError
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.train.report import Metrics, RunReport

OUTPUT = "lorakit-demo"
STEPS = 200
SHOWN = 5
FITTED = 4000  # rows that the linear head is fitted on: more do not help it


class Judgement(NamedTuple):
    """A sentence, its label, and the label that the adapter gives, with its probability."""

    text: str
    truth: str
    label: str
    probability: float


def main() -> int:
    """Train and compare; return the exit code."""
    silence_libraries()
    try:
        _run()
    except LorakitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run() -> None:
    from lorakit.train.run import train_adapter

    settings = TrainSpec(
        model="builtin:minilm",
        data="builtin:stdlib-docs",
        output=OUTPUT,
        steps=STEPS,
        batch_size=32,
        lr=1e-3,
        max_length=64,
        eval_every=50,
        overwrite=True,
    )
    print(
        "The task: is this sentence of Python's documentation intact, or have two of its words "
        "changed places?\n"
    )
    report = train_adapter(settings, Spec(rank=16), say=print)
    head, judgements = _compare(report)
    rate = f"{report['tokens_per_second']:,.0f} tokens/s"
    print(f"\n{report['steps']} steps in {report['wall_seconds']:.0f} s ({rate})\n")
    columns = {"before": report["before"], "linear head": head, "after": report["after"]}
    print_metrics(columns)
    print(
        "before: the encoder with a new head. linear head: logistic regression on the frozen "
        f"encoder, {FITTED:,} rows.\n"
    )
    print(f"{SHOWN} held-out sentences, judged by the adapter as read back from disk:")
    for judgement in judgements:
        _print_judgement(judgement)
    print()
    show_files(report)
    show_next(report)


def _print_judgement(judgement: Judgement) -> None:
    is_right = judgement.truth == judgement.label
    verdict = "right" if is_right else f"wrong, it is {judgement.truth}"
    percent = 100 * judgement.probability
    print(f"  {judgement.text}\n      {judgement.label}, {percent:.0f} % sure ({verdict})")


def _compare(report: "RunReport") -> tuple["Metrics", list[Judgement]]:
    """Return the metrics of a linear head on the base, and the adapter's first judgements."""
    from lorakit.adapter import Adapter
    from lorakit.compare.methods.linear_head import fit_linear_head
    from lorakit.data.rows import read_rows
    from lorakit.evaluate.score import evaluate
    from lorakit.inject.attach import enable
    from lorakit.models.load import pad_id
    from lorakit.models.open import open_model
    from lorakit.tasks.rows import encode_rows
    from lorakit.train.log import progress_bar

    loaded = open_model(report["model"], Adapter.load(report["output"]), "classify")
    data = report["settings"]["data"]
    held_out = read_rows(data, split="test")
    fitted = encode_rows(read_rows(data, split="train"), loaded)[:FITTED]
    scored = encode_rows(held_out, loaded)
    pad = pad_id(loaded.tokenizer, loaded.model)
    scores = evaluate(loaded.model, scored[:SHOWN], "classify", pad=pad, labels=loaded.labels)
    found = scores.predictions
    enable(loaded.model, None)
    with progress_bar("fitting a linear head", len(fitted) + len(scored)) as advance:
        head = fit_linear_head(
            loaded.model.base_model, fitted, scored, pad=pad, classes=2, progress=advance
        )
    judgements = []
    for row, (label, probability) in zip(held_out.rows[:SHOWN], found, strict=True):
        name = loaded.labels[int(label)]
        judgements.append(Judgement(row["text"], row["label"], name, probability))
    return dict(head), judgements


if __name__ == "__main__":
    sys.exit(main())
