"""Several labels for each text: their flags, their loss, their metrics, and one command."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorakit.cli.__main__ import main
from lorakit.data.batches import collate
from lorakit.data.encode import Encoding
from lorakit.data.labels import encode_several
from lorakit.data.rows import Rows
from lorakit.errors import DataError
from lorakit.evaluate.score import batch_loss
from lorakit.tasks.metrics import several_labels

LABELS = ["cat", "dog", "mat"]
ROWS = [
    {"text": "the cat sat on a mat", "labels": ["mat", "cat"]},
    {"text": "the dog ran", "labels": ["dog"]},
    {"text": "a", "labels": []},
]


def several(*rows: dict) -> Rows:
    places = [f"d.jsonl:{i + 1}" for i in range(len(rows))]
    return Rows("multi-label", list(rows), places, "d.jsonl")


def settings(folder: Path) -> Encoding:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Encoding(tokenizer=tokenizer, max_length=32, labels=LABELS)


@pytest.mark.slow
def test_the_loss_is_that_of_the_model(tiny_bert: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=3, problem_type="multi_label_classification"
    ).eval()
    examples = encode_several(several(*ROWS), settings(tiny_bert))
    assert [example.flags for example in examples] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    batch = collate(examples, pad=1)
    with torch.no_grad():
        own = model(**batch).loss * 3
        torch.testing.assert_close(batch_loss(model, batch, "multi-label")[0], own)
        rows = batch_loss(model, batch, "multi-label", by_row=True)[0]
    torch.testing.assert_close(rows.sum(), own)


def test_unknown_labels_are_named_with_near_misses(tiny_bert: Path) -> None:
    with pytest.raises(DataError) as caught:
        encode_several(several({"text": "a", "labels": ["cats", "x"]}), settings(tiny_bert))
    assert caught.value.faults == [
        "d.jsonl:1   label 'cats' is no class; did you mean 'cat'?",
        "d.jsonl:1   label 'x' is no class",
    ]


def test_metrics() -> None:
    scores = several_labels([[1, 0, 1], [0, 1, 0]], [[True, False, False], [False, True, False]])
    assert scores["accuracy"] == 0.5
    assert scores["precision"] == 1.0
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(0.8)
    assert scores["f1_macro"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_one_command_trains_and_predicts(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, found = tmp_path / "d.jsonl", tmp_path / "run", tmp_path / "found.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS * 8))
    base = ["--model", str(tiny_bert)]
    steps = ["--steps", "40", "--lr", "0.01", "--eval-data", str(data)]
    assert main(["train", *base, "--data", str(data), "--output", str(run), *steps, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["labels"]) == ("multi-label", LABELS)
    assert report["after"]["accuracy"] == 1.0
    command = ["eval", *base, "--adapter", str(run), "--data", str(data)]
    assert main([*command, "--predictions", str(found)]) == 0
    first, second, third = map(json.loads, found.read_text().splitlines()[:3])
    assert [first["labels"], second["labels"], third["labels"]] == [["cat", "mat"], ["dog"], []]
    assert set(first["probabilities"]) == set(LABELS)
