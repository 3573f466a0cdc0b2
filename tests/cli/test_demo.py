"""The demo says all that it promises, on the real encoder and a few of the real sentences."""

from pathlib import Path

import pytest

from lorakit.cli import demo
from lorakit.cli.__main__ import main
from lorakit.data import stdlib_docs


@pytest.mark.slow
def test_no_module_stands_on_both_sides_and_both_labels_are_as_many() -> None:
    sides = {
        split: {
            module
            for module, _ in stdlib_docs.read_docstrings()
            if stdlib_docs.split_of(module) == split
        }
        for split in ("train", "test")
    }
    assert not sides["train"] & sides["test"] and len(sides["test"]) > 30
    train, test = stdlib_docs.make_rows("train"), stdlib_docs.make_rows("test")
    assert len(train) > 4000 and len(test) > 800
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    for rows in (train, test):
        assert 0.45 < sum(row["label"] == "swapped" for row in rows) / len(rows) < 0.55
    assert train == stdlib_docs.make_rows("train")


@pytest.mark.slow
def test_the_demo_shows_what_happened_and_its_next_commands_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = stdlib_docs.make_rows
    monkeypatch.setattr(stdlib_docs, "make_rows", lambda split: real(split)[:60])
    monkeypatch.setattr(demo, "STEPS", 4)
    monkeypatch.setattr(demo, "FITTED", 50)
    monkeypatch.chdir(tmp_path)
    assert demo.main() == 0
    out = capsys.readouterr().out
    promised = [
        "37 of 40 layers adapted",
        "fully trained classifier.bias, classifier.weight",
        "before   linear head",
        "accuracy",
    ]
    for text in [*promised, "lorakit-demo/adapter_model.safetensors", "lorakit-demo/report.json"]:
        assert text in out, text
    assert out.count("% sure (") == 5
    commands = [line.split()[1:] for line in out.splitlines() if line.startswith("  lorakit ")]
    assert [command[0] for command in commands] == ["eval", "inspect", "merge"]
    for command in commands:
        assert main(command) == 0
