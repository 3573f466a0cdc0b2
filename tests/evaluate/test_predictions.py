"""Predictions are written for rows with and without labels, also in the form of GLUE's server."""

import json
from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from lorakit.evaluate.predictions import write_predictions


def test_classes_and_values_in_both_forms(tmp_path: Path) -> None:
    classes, values = [(1.0, 0.75), (0.0, 0.5)], [(5.3, 1.0), (2.25, 1.0), (-1.0, 1.0)]
    write_predictions(tmp_path / "a.tsv", "glue", "classify", classes, ["no", "yes"])
    write_predictions(tmp_path / "b.tsv", "glue", "regress", values, [])
    write_predictions(tmp_path / "c.jsonl", "jsonl", "classify", classes, ["no", "yes"])
    assert (tmp_path / "a.tsv").read_text() == "index\tprediction\n0\tyes\n1\tno\n"
    assert (tmp_path / "b.tsv").read_text() == "index\tprediction\n0\t5.000\n1\t2.250\n2\t0.000\n"
    first = json.loads((tmp_path / "c.jsonl").read_text().partition("\n")[0])
    assert first == {"prediction": "yes", "probability": 0.75}


@pytest.mark.slow
def test_a_test_set_without_labels(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{label}\t{number}\t{number}\ta{number}\tb" for number, label in enumerate("0101")]
    train, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    train.write_text("\n".join([header, *lines]))
    test.write_text("index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n2\te\tf\n")
    run, model = tmp_path / "run", ["--model", str(tiny_bert)]
    settings = ["--output", str(run), "--steps", "2"]
    assert main(["train", *model, "--data", str(train), *settings]) == 0
    written = tmp_path / "new" / "MRPC.tsv"
    command = ["eval", *model, "--adapter", str(run), "--data", str(test), "--format", "glue"]
    assert main([*command, "--predictions", str(written)]) == 0
    rows = [line.split("\t") for line in written.read_text().splitlines()]
    assert [row[0] for row in rows] == ["index", "0", "1", "2"]
    assert {row[1] for row in rows[1:]} <= {"0", "1"}
    capsys.readouterr()
    assert main([*command, "--predictions", str(written)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(command) == 2
    assert "--predictions" in capsys.readouterr().err
