"""The YAML file of `init` has every setting of a run with its default, and `train` takes it."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lorakit.cli.__main__ import main, parser_for
from lorakit.cli.flags import read_settings
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec


@pytest.fixture
def file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "new" / "run.yaml"
    assert main(["init", str(path)]) == 0
    assert f"lorakit train --config {path} --dry-run" in capsys.readouterr().out
    return path


def uncomment(text: str) -> str:
    """Return the file with all of its settings switched on."""
    names = [one.name for one in (*fields(TrainSpec), *fields(Spec))]
    lines = []
    for line in text.splitlines():
        name = line.removeprefix("# ").partition(":")[0]
        lines.append(line.removeprefix("# ") if name in names else line)
    return "\n".join(lines)


def test_as_written_it_has_the_settings_that_are_needed(file: Path) -> None:
    assert list(yaml.safe_load(file.read_text())) == ["model", "data", "output"]


def test_switched_on_every_line_is_the_default(file: Path) -> None:
    file.write_text(uncomment(file.read_text()))
    assert len(yaml.safe_load(file.read_text())) == len({*fields(TrainSpec), *fields(Spec)})
    args = parser_for("train").parse_args(["--config", str(file)])
    run, spec = read_settings(args, TrainSpec, Spec)
    needed = {name: run[name] for name in ("model", "data", "output")}
    assert TrainSpec(**run) == TrainSpec(**needed)
    assert Spec(**spec) == Spec()


def test_each_setting_has_its_purpose_and_choices_above_it(file: Path) -> None:
    text = " ".join(line.removeprefix("# ") for line in file.read_text().splitlines())
    for one in (*fields(TrainSpec), *fields(Spec)):
        assert f"{one.metadata['help']}" in text
        for choice in one.metadata.get("choices") or ():
            assert choice in text.partition(one.metadata["help"])[2].partition(f" {one.name}:")[0]


def test_a_file_is_not_written_over(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_bytes()
    assert main(["init", str(file)]) == 2
    assert f"OutputError: {file} exists already." in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_file_that_is_not_filled_in_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(file), "--dry-run"]) == 2
    assert "There is no file path/to/rows.jsonl." in capsys.readouterr().err


@pytest.mark.slow
def test_train_takes_it(
    file: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the cat sat on a mat."}\n' * 30)
    filled = {"to/model": tiny_llama, "to/rows.jsonl": rows, "to/adapter": tmp_path / "out"}
    text = file.read_text()
    for placeholder, value in filled.items():
        text = text.replace(f"path/{placeholder}", str(value))
    file.write_text(text)
    words = ["train", "--config", str(file), "--dry-run", "--steps", "2", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
