"""Tags of tokens: which of the model's tokens has which, and the metrics of entities."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from lorakit.cli.__main__ import main
from lorakit.data.batches import collate
from lorakit.data.encode import IGNORED, Encoding
from lorakit.data.rows import Rows
from lorakit.data.tags import encode_tagged
from lorakit.errors import DataError
from lorakit.evaluate.score import batch_loss
from lorakit.tasks.metrics import find_entities, tags

TAGS = ["O", "B-PER", "I-PER"]
TOKENS = ["the", "Annabella", "Smith", "ran."]
ROW = {"tokens": TOKENS, "tags": ["O", "B-PER", "I-PER", "O"]}


def tagged(*rows: dict, kind: str = "tokens") -> Rows:
    return Rows(kind, list(rows), [f"d.jsonl:{i + 1}" for i in range(len(rows))], "d.jsonl")


def settings(folder: Path, **changed: object) -> Encoding:
    values: dict = {"max_length": 32, "labels": TAGS, **changed}
    return Encoding(tokenizer=AutoTokenizer.from_pretrained(folder), **values)


def test_the_first_token_of_a_word_has_its_tag(tiny_bert: Path) -> None:
    how = settings(tiny_bert)
    (example,) = encode_tagged(tagged(ROW), how)
    pieces = how.tokenizer.convert_ids_to_tokens(example.ids)
    trained = [(piece, tag) for piece, tag in zip(pieces, example.tags, strict=True) if tag >= 0]
    assert [tag for _, tag in trained] == [0, 1, 2, 0]
    assert [piece.lstrip("Ġ")[:1] for piece, _ in trained] == ["t", "A", "S", "r"]
    assert example.tags[0] == example.tags[-1] == IGNORED
    assert example.trained == 4


@pytest.mark.slow
def test_the_loss_is_that_of_the_model(tiny_bert: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tiny_bert, num_labels=3).eval()
    examples = encode_tagged(tagged(ROW, {"tokens": ["a"], "tags": ["O"]}), settings(tiny_bert))
    batch = collate(examples, pad=1)
    with torch.no_grad():
        own = model(**batch).loss * 5
        torch.testing.assert_close(batch_loss(model, batch, "tokens")[0], own)
        rows = batch_loss(model, batch, "tokens", by_row=True)[0]
    torch.testing.assert_close(rows.sum(), own)


def test_unknown_tags_are_named_all_at_once(tiny_bert: Path) -> None:
    rows = tagged(ROW, {"tokens": ["a", "b"], "tags": ["B-LOC", "I-LOC"]})
    with pytest.raises(DataError) as caught:
        encode_tagged(rows, settings(tiny_bert))
    assert caught.value.faults == [
        "d.jsonl:2   tag 'B-LOC' is none of the classes",
        "d.jsonl:2   tag 'I-LOC' is none of the classes",
    ]


def test_a_cut_row_is_counted_in_training_and_refused_in_prediction(tiny_bert: Path) -> None:
    (example,) = encode_tagged(tagged(ROW), settings(tiny_bert, max_length=6))
    assert example.cut > 0
    assert len(example.ids) == len(example.tags) == 6
    rows = tagged({"tokens": TOKENS}, kind="untagged tokens")
    with pytest.raises(DataError, match="without a predicted tag"):
        encode_tagged(rows, settings(tiny_bert, max_length=6, to_predict=True))


@pytest.mark.parametrize(
    ("names", "entities"),
    [
        (["B-PER", "B-PER"], [("PER", 0, 1), ("PER", 1, 2)]),
        (["I-PER", "I-PER", "I-LOC"], [("PER", 0, 2), ("LOC", 2, 3)]),
        (["B-PER", "I-LOC", "E-LOC", "S-LOC"], [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)]),
        (["B-PER", "L-PER", "I-PER", "U-PER"], [("PER", 0, 2), ("PER", 2, 3), ("PER", 3, 4)]),
        (["O", "O"], []),
    ],
)
def test_entities(names: list[str], entities: list[tuple[str, int, int]]) -> None:
    assert find_entities(names) == entities


def test_metrics_of_entities_and_of_other_tags() -> None:
    scores = tags([[1, 2, 0, 1], [0]], [[1, 2, 0, 0], [1]], TAGS)
    assert scores == {"accuracy": 0.6, "f1": 0.5, "precision": 0.5, "recall": 0.5}
    other = tags([[0, 1, 1]], [[0, 1, 0]], ["NOUN", "VERB"])
    assert other["accuracy"] == pytest.approx(2 / 3)
    assert other["f1"] == pytest.approx(2 / 3)
    assert "matthews" not in other


@pytest.mark.slow
def test_one_command_trains_and_predicts(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, found = tmp_path / "d.jsonl", tmp_path / "run", tmp_path / "found.jsonl"
    data.write_text("\n".join([json.dumps(ROW)] * 20))
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"tokens": TOKENS}) + "\n")
    base = ["--model", str(tiny_bert)]
    steps = ["--steps", "20", "--lr", "0.02"]
    assert main(["train", *base, "--data", str(data), "--output", str(run), *steps, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["labels"]) == ("tokens", TAGS)
    assert report["after"]["f1"] == 1.0
    command = ["eval", *base, "--adapter", str(run), "--data", str(test)]
    assert main([*command, "--predictions", str(found), "--json"]) == 0
    assert "loss" not in json.loads(capsys.readouterr().out)
    assert json.loads(found.read_text()) == {"tags": ROW["tags"]}
    assert main([*command, "--predictions", str(tmp_path / "x"), "--format", "glue"]) == 2
    assert "--format glue holds a class or a value" in capsys.readouterr().err
