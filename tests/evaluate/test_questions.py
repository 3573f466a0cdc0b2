"""Exact match and F1 of answers, as SQuAD v2's own script computes them."""

import json
from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from lorakit.data.layouts.squad import NO_ANSWER
from lorakit.evaluate.questions import score_answers, token_f1


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The Moon", "moon", 1.0),
        ("384,400 km", "384400 km.", 1.0),
        ("about 384,400 km", "384,400 km", 0.8),
        ("Rome", "Paris", 0.0),
        ("the", "", 1.0),
        ("", "Rome", 0.0),
    ],
)
def test_f1_of_words(answer: str, reference: str, f1: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)


def test_scores_of_both_parts() -> None:
    answers = ["in Rome", "Rome", "", "Paris"]
    references = [["Rome", "in Rome"], ["Milan"], [NO_ANSWER], [NO_ANSWER]]
    assert score_answers(answers, references) == {
        "exact_match": 50.0,
        "f1": 50.0,
        "answerable_exact_match": 50.0,
        "answerable_f1": 50.0,
        "unanswerable_accuracy": 50.0,
    }
    assert score_answers(["Rome"], [["Rome"]])["unanswerable_accuracy"] is None


@pytest.mark.slow
def test_questions_in_the_layout_of_squad(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "d.jsonl"
    rows = [
        {"context": "a cat", "question": "who?", "answers": {"text": ["cat", "a cat"]}},
        {"context": "a mat", "question": "who?", "answers": {"text": []}},
    ]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    run = tmp_path / "run"
    command = ["--model", str(tiny_llama), "--data", str(data)]
    steps = ["--steps", "120", "--lr", "0.02", "--eval-data", str(data)]
    assert main(["train", *command, "--output", str(run), *steps, "--seed", "1"]) == 0
    capsys.readouterr()
    settings = ["--adapter", str(run), "--text-metrics", "--max-new-tokens", "40", "--json"]
    assert main(["eval", *command, *settings]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["prompts"] == 2
    assert scores["exact_match"] == scores["unanswerable_accuracy"] == 100.0
