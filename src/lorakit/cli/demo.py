"""`python -m lorakit.cli.demo`: the main job on what is on every machine; `make demo` runs it.

A real encoder (all-MiniLM-L6-v2) learns to proofread: which sentences of Python's own docstrings
are intact, and in which have two words changed places? A linear head on the frozen encoder can
hardly tell; a LoRA of 0.8 million parameters can.
"""

import sys
from typing import Any

from lorakit.cli import quieting, show
from lorakit.cli.train import show_files, show_next
from lorakit.errors import LorakitError
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec

OUTPUT = "lorakit-demo"
STEPS = 200
SHOWN = 5
FITTED = 4000  # rows that the linear head is fitted on: more does not help it


def main() -> int:
    """Train, compare and tell; returns the exit code."""
    quieting.calm()
    try:
        _run()
    except LorakitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run() -> None:
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
        "The task: is this sentence of Python's documentation intact, or have two of its words changed places?\n"
    )
    from lorakit.train.run import train_adapter

    report = train_adapter(settings, Spec(rank=16), say=print)
    head, said = _compared(report)
    print(
        f"\n{report['steps']} steps in {report['seconds']:.0f} s ({report['tokens_per_second']:,.0f} tokens/s)\n"
    )
    show.measures(report["before"], report["after"], ("linear head", head))
    print(
        f"before: the encoder with a new head. linear head: logistic regression on the frozen encoder, {FITTED:,} rows.\n"
    )
    print(f"{SHOWN} held-out sentences, as the adapter read back from disk sees them:")
    for text, truth, told, sure in said:
        right = "right" if truth == told else f"wrong, it is {truth}"
        print(f"  {text}\n      {told}, {100 * sure:.0f} % sure ({right})")
    print()
    show_files(report)
    show_next(report)


def _compared(report: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str, str, float]]]:
    """Fit the linear head on the base, and let the written adapter judge the first held-out
    sentences.
    """
    from lorakit.adapter import Adapter
    from lorakit.compare.methods.linear_head import fit_linear_head
    from lorakit.data.rows import read_rows
    from lorakit.evaluate.score import evaluate
    from lorakit.inject.attach import enable
    from lorakit.models.load import pad_id
    from lorakit.models.open import encode_rows, open_model
    from lorakit.train.log import progress_bar

    loaded = open_model(report["model"], Adapter.load(report["output"]), "classify")
    rows, held_out = (
        read_rows(report["settings"]["data"], split=split) for split in ("train", "test")
    )
    examples, asked, pad = (
        encode_rows(rows, loaded)[:FITTED],
        encode_rows(held_out, loaded),
        pad_id(loaded.tokenizer),
    )
    found = evaluate(loaded.model, asked[:SHOWN], "classify", pad=pad, classes=2).predictions
    enable(loaded.model, None)
    with progress_bar("fitting a linear head", len(examples) + len(asked)) as advance:
        head = fit_linear_head(
            loaded.model.base_model, examples, asked, pad=pad, classes=2, progress=advance
        )
    names = loaded.labels
    return head, [
        (row["text"], row["label"], names[int(label)], sure)
        for row, (label, sure) in zip(held_out.rows[:SHOWN], found, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
