"""Published data sets as they lie on the disk: read without a flag, trained with one command."""

from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from lorakit.data.rows import read_rows

pytestmark = [pytest.mark.shared, pytest.mark.slow]

# file -> kind, layout, rows
FILES = {
    "sst2/train.tsv": ("labelled", "text and label", 60_614),
    "sst2/test.tsv": ("labelled", "text and label", 872),
    "cola/train.tsv": ("labelled", "CoLA of GLUE", 7_250),
    "cola/dev.tsv": ("labelled", "CoLA of GLUE", 1_043),
    "cola/test.tsv": ("text", "text", 1_063),
    "mrpc/msr_paraphrase_train.txt": ("pair", "pairs of texts and label", 4_045),
    "mrpc/msr_paraphrase_test.txt": ("pair", "pairs of texts and label", 1_713),
    "stsb/sts-train.csv": ("pair", "STS benchmark", 5_749),
    "stsb/sts-test.csv": ("pair", "STS benchmark", 1_379),
    "e2e/devset.csv": ("completion", "E2E", 4_672),
    "e2e/testset.csv": ("prompt", "E2E without references", 630),
    "e2e/test.lora-format.txt": ("completion", "prompt and completion", 4_693),
    "webnlg/train.jsonl": ("completion", "WebNLG", 18_102),
    "webnlg/test.jsonl": ("completion", "WebNLG", 4_928),
    "webnlg/challenge2017_dev.json": ("completion", "WebNLG, as released", 2_268),
    "dart-dev/dart-v1.1.1-full-dev.json": ("completion", "DART", 6_980),
    "alpaca-demo/alpaca_en_demo.json": ("instruction", "Alpaca", 999),
    "alpaca-demo/glaive_toolcall_en_demo.json": ("messages", "messages in ShareGPT layout", 300),
    "alpaca-demo/c4_demo.jsonl": ("text", "text", 300),
    "gsm8k/test.jsonl": ("instruction", "question and answer", 1_319),
}
# Each starts with one command: file -> model.
STARTED = {
    "sst2/dev.tsv": "builtin:minilm",
    "cola/train.tsv": "builtin:minilm",
    "mrpc/msr_paraphrase_train.txt": "builtin:minilm",
    "stsb/sts-train.csv": "builtin:minilm",
    "e2e/devset.csv": "stories260K",
    "e2e/test.lora-format.txt": "stories260K",
    "webnlg/dev.jsonl": "stories260K",
    "dart-dev/dart-v1.1.1-full-dev.json": "stories260K",
    "alpaca-demo/alpaca_en_demo.json": "stories260K",
    # Conversations need a template, which stories260K does not have.
    "alpaca-demo/glaive_toolcall_en_demo.json": "stories260K --template chatml",
    "gsm8k/test.jsonl": "stories260K",
}


@pytest.mark.parametrize("file", FILES)
def test_a_published_file_is_read_as_it_is(file: str, shared: Path) -> None:
    rows = read_rows(str(shared / "sets" / file))
    assert (rows.kind, rows.layout, len(rows)) == FILES[file]


def test_webnlg_splits_by_category(shared: Path) -> None:
    test = str(shared / "sets/webnlg/test.jsonl")
    counts = [len(read_rows(test, categories=which)) for which in ("all", "seen", "unseen")]
    assert counts == [4_928, 2_495, 2_433]


@pytest.mark.parametrize("file", STARTED)
def test_training_starts_with_one_command(file: str, shared: Path, tmp_path: Path) -> None:
    model, *template = STARTED[file].split()
    if not model.startswith("builtin:"):
        model = str(shared / "models" / model)
    data = ["--data", str(shared / "sets" / file)]
    few = ["--steps", "2", "--batch-size", "4", "--eval-fraction", "0.001"]
    assert (
        main(["train", "--model", model, *data, "--output", str(tmp_path / "run"), *few, *template])
        == 0
    )
