"""`--template` of the commands, and the marks of `preview`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorakit.cli import preview
from lorakit.cli.__main__ import main
from lorakit.data.rows import read_rows
from lorakit.plan.meta_model import load_meta_model
from lorakit.plan.report import tokenise_rows

CHAT = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "on a mat."}]


@pytest.fixture(scope="module")
def bare(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template, with rows in its folder."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / "chat_template.jinja").unlink()
    row = json.dumps({"messages": CHAT})
    (folder / "chat.jsonl").write_text(f"{row}\n" * 8)
    (folder / "text.jsonl").write_text('{"text": "the cat"}\n' * 8)
    return folder


def say(capsys: pytest.CaptureFixture[str], command: str, *words: object) -> tuple[int, str, str]:
    code = main([command, *map(str, words)])
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("command", ["preview", "eval", "plan"])
def test_messages_need_a_template(
    command: str, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", bare, "--data", bare / "chat.jsonl"]
    code, _, told = say(capsys, command, *words)
    assert code == 2
    assert "--template chatml" in told.replace("\n", " ")
    if command != "plan":  # which takes long
        assert say(capsys, command, *words, "--template", "chatml")[0] == 0


def test_a_plan_reads_rows_by_the_template(bare: Path) -> None:
    rows = read_rows(str(bare / "chat.jsonl"))
    base = load_meta_model(str(bare), "causal-lm")
    (bare / "own.jinja").write_text("{{ messages[1].content }}")
    lengths = []
    for template in ("chatml", str(bare / "own.jinja")):
        examples = tokenise_rows(base, rows, None, [], "all", template)
        lengths.append(len(examples[0].ids))
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize("command", ["preview", "eval", "plan"])
def test_a_template_that_changes_nothing_is_refused(
    command: str, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", bare, "--data", bare / "text.jsonl", "--template", "chatml"]
    code, _, told = say(capsys, command, *words)
    assert code == 2
    assert "no conversations" in told


def test_prompts_that_are_no_chat_take_no_template(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", bare, "--prompt", "the cat", "--template", "chatml"]
    code, _, told = say(capsys, "generate", *words)
    assert code == 2
    assert "template: plain prompts are used as they are." in told


@pytest.mark.slow
def test_an_adapter_keeps_the_template_it_was_trained_with(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--model", bare, "--data", bare / "chat.jsonl"]
    run = ["--output", out, "--rank", 2, "--steps", 2, "--max-length", 64]
    code, _, told = say(capsys, "train", *words, *run, "--template", "chatml")
    assert code == 0, told
    template = (out / "chat_template.jinja").read_text()
    assert "<|im_start|>" in template
    for checkpoint in (out / "checkpoints").iterdir():
        assert (checkpoint / "chat_template.jinja").read_text() == template
    code, _, told = say(capsys, "eval", *words, "--adapter", out)
    assert code == 0, told
    chat = ["--model", bare, "--prompt", "hi", "--chat", "--max-new-tokens", 2]
    assert say(capsys, "generate", *chat)[0] == 2
    assert say(capsys, "generate", *chat, "--adapter", out)[0] == 0
    code, _, told = say(capsys, "train", *words, *run, "--template", "chatml", "--overwrite")
    assert code == 0, told


def shown(pieces: list[tuple[str, bool]]) -> Any:
    counts = dict.fromkeys(("rows", "sequences", "tokens", "trained_tokens", "rows_cut"), 1)
    more = {"tokens_cut": 0, "rows_repeated": 0, "max_length": 64, "eos_trained": None}
    row = {"where": "d.jsonl:1", "pieces": pieces, "target": None}
    histogram = [{"from": 1, "to": 2, "count": 1}]
    parts = {"task": "causal-lm", "labels": {}, "histogram": histogram, "shown": [row]}
    return {**counts, **more, **parts}


LONG = "word " * 60
ROWS = {
    "a part": ([("Say:", False), (" one", True), (" two", True)], "Say:[ one two]"),
    "the end of a line": ([("A:", False), (" b\n", True), ("U:", False)], "A:[ b↵]\nU:"),
    "a terminal's commands": ([("a\x1b[31m", False), ("b\x07", True)], "a␛[31m[b␇]"),
    "everything": ([("a", True), (LONG, True), ("b\n", True), ("c", True)], f"[a{LONG}b\nc]"),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(
    "variables", [{}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"COLUMNS": "40"}]
)
def test_without_colour_what_trains_is_in_brackets(
    name: str,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pieces, expected = ROWS[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    preview.show(shown(pieces))
    out = capsys.readouterr().out
    assert f"d.jsonl:1\n{expected}\n" in out
    assert "in [brackets]" in out


def test_with_colour_what_trains_is_green(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    preview.show(shown([("Say:", False), (" one", True)]))
    out = capsys.readouterr().out
    assert "Say:\x1b[1;30;42m one\x1b[0m" in out
    assert "Trained tokens are green." in out
