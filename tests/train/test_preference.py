"""Runs on preferences: they learn, write their files, resume, and refuse what is wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from lorakit.adapter import Adapter
from lorakit.cli.__main__ import main
from lorakit.data.rows import read_rows
from lorakit.errors import MissingExtra, SpecError, TrainingError
from lorakit.evaluate.preview import preview
from lorakit.models.load import load
from lorakit.spec import Spec
from lorakit.tasks.preference import Preference, switch_dropout_off
from lorakit.tasks.rows import resolve_task
from lorakit.train import loop
from lorakit.train.config import TrainSpec
from lorakit.train.prepare import prepare_run
from lorakit.train.run import train_adapter

from ..conftest import sentences


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that prefer the shorter of two answers."""
    lines = []
    for sentence in sentences(40):
        first, second, *words = sentence[:-1].split()
        short, long = f" {words[0]}.", f" {' '.join(words + words)}."
        row = {"prompt": f"{first} {second}", "chosen": short, "rejected": long}
        lines.append(json.dumps(row) + "\n")
    path = tmp_path_factory.mktemp("preference") / "pairs.jsonl"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def rated_file(pairs_file: Path) -> Path:
    lines = []
    for text in pairs_file.read_text().splitlines():
        row = json.loads(text)
        for key in ("chosen", "rejected"):
            rated = {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
            lines.append(json.dumps(rated) + "\n")
    path = pairs_file.with_name("rated.jsonl")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def settings(tiny_llama: Path, pairs_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_llama),
        "data": str(pairs_file),
        "output": str(tmp_path / "out"),
        "batch_size": 4,
        "steps": 20,
        "eval_every": 10,
        "lr": 5e-3,
        "threads": 1,
    }


def tensors(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("loss", [None, "orpo", "kto"])
def test_the_margin_rises(settings: dict[str, Any], loss: str | None) -> None:
    report = train_adapter(TrainSpec(**settings, loss=loss), Spec(rank=4))
    before, after = report["before"], report["after"]
    assert before is not None and after is not None
    assert report["task"] == "preference"
    assert after["loss"] < before["loss"]
    assert after["margin"] > before["margin"] + 0.05
    assert after["accuracy"] == 1.0
    if loss is None:
        assert before["loss"] == pytest.approx(0.6931, abs=1e-4)
        assert before["margin"] == 0.0


@pytest.mark.slow
def test_rated_answers_are_learned_by_kto(settings: dict[str, Any], rated_file: Path) -> None:
    report = train_adapter(TrainSpec(**{**settings, "data": str(rated_file)}), Spec(rank=4))
    before, after = report["before"], report["after"]
    assert before is not None and after is not None
    assert (before["loss"], before["margin"]) == (pytest.approx(0.5), 0.0)
    assert after["loss"] < 0.5 and after["margin"] > 0.2
    assert after["accuracy"] > 0.6


@pytest.mark.slow
def test_a_run_writes_what_every_run_writes(settings: dict[str, Any], tiny_llama: Path) -> None:
    report = train_adapter(TrainSpec(**settings, beta=0.2), Spec(rank=4))
    output = Path(report["output"])
    lines = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    names = {"loss", "lr", "tokens", "seconds", "grad_norm", "rewards/margins"}
    assert names | {"rewards/accuracies", "rewards/chosen", "logps/rejected"} <= lines[0].keys()
    assert lines[0]["rewards/margins"] == 0.0
    assert {"eval_loss", "eval_accuracy", "eval_margin"} <= lines[-1].keys()
    assert json.loads((output / "report.json").read_text())["after"] == report["after"]
    assert "| margin | 0.0000 |" in (output / "README.md").read_text()
    assert sorted(path.name for path in (output / "checkpoints").iterdir())[-1] == "step-000020"
    adapter = Adapter.load(output)
    assert adapter.provenance["task_type"] == "CAUSAL_LM"
    assert (adapter.provenance["loss"], adapter.provenance["beta"]) == (None, 0.2)
    assert resolve_task(adapter, str(tiny_llama)) == "preference"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto"])
def test_a_resumed_run_has_the_weights_of_a_straight_one(
    settings: dict[str, Any],
    loss: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = Spec(rank=4, dropout=0.1)
    straight = {
        **settings,
        "loss": loss,
        "steps": 8,
        "eval_every": 4,
        "output": str(tmp_path / "a"),
    }
    train_adapter(TrainSpec(**straight, final="last"), spec)
    stopped = {**straight, "output": str(tmp_path / "b"), "final": "last"}
    take_step = loop.train_step

    def stop_after_four(session: loop.Session) -> None:
        if session.progress.step == 4:
            raise TrainingError("stopped")
        take_step(session)

    monkeypatch.setattr(loop, "train_step", stop_after_four)
    with pytest.raises(TrainingError, match="stopped"):
        train_adapter(TrainSpec(**stopped), spec)
    monkeypatch.setattr(loop, "train_step", take_step)
    train_adapter(TrainSpec(**stopped, resume=True), spec)
    wanted, got = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.slow
def test_eval_gives_the_numbers_of_the_run(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    held = {**settings, "eval_data": settings["data"]}
    report = train_adapter(TrainSpec(**held, loss="orpo", beta=0.5), Spec(rank=4))
    after = report["after"]
    assert after is not None
    data = ["--data", settings["data"], "--split", "test", "--batch-size", "8"]
    capsys.readouterr()
    model = ["--model", settings["model"]]
    assert main(["eval", *model, "--adapter", report["output"], *data, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    for name in ("loss", "accuracy", "margin"):
        assert scores[name] == pytest.approx(after[name], abs=1e-4)
    assert main(["eval", *model, *data]) == 0
    assert "margin" in capsys.readouterr().out


@pytest.mark.slow
def test_an_adapter_of_preferences_writes_and_merges_as_any_other(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = train_adapter(TrainSpec(**{**settings, "steps": 2}), Spec(rank=4))
    model = ["--model", settings["model"], "--adapter", report["output"]]
    assert main(["generate", *model, "--prompt", "the cat", "--max-new-tokens", "4"]) == 0
    merged = str(tmp_path / "merged")
    assert main(["merge", *model, "--output", merged]) == 0
    assert main(["generate", "--model", merged, "--prompt", "the cat"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "kind", "fault"),
    [
        ({"loss": "dpo"}, "rated", "loss: dpo compares two answers, and the rows have one, rated"),
        ({"batch_size": 1}, "rated", "batch_size: kto compares the rows of a batch"),
        ({"loss": "kto", "batch_size": 1}, "pairs", "batch_size: kto compares the rows of a batch"),
        ({"loss_on": "all"}, "pairs", "loss_on: preferences are about answers, not about prompts"),
        ({"r_drop": 1.0}, "pairs", "r_drop: compares probabilities of classes"),
        ({"cutoff": 0.1}, "pairs", "cutoff: hides tokens of one text, and preference reads two"),
        ({"label_smoothing": 0.1}, "pairs", "label_smoothing: spreads the probability"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    settings: dict[str, Any],
    pairs_file: Path,
    rated_file: Path,
    given: dict[str, Any],
    kind: str,
    fault: str,
) -> None:
    data = {"pairs": pairs_file, "rated": rated_file}[kind]
    with pytest.raises(SpecError) as caught:
        prepare_run(TrainSpec(**{**settings, "data": str(data), **given}), Spec(rank=4))
    (found,) = caught.value.faults
    assert found.startswith(fault)


def test_other_tasks_have_no_loss_and_no_beta(settings: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "a b"}\n' * 3)
    given = {**settings, "data": str(data), "loss": "dpo", "beta": 0.1}
    with pytest.raises(SpecError) as caught:
        prepare_run(TrainSpec(**given), Spec(rank=4))
    assert caught.value.faults == [
        "loss: is of preferences, and the task is causal-lm",
        "beta: is of preferences, and the task is causal-lm",
    ]


@pytest.mark.parametrize(("name", "value"), [("loss", "ppo"), ("beta", 0.0)])
def test_wrong_values_are_refused(settings: dict[str, Any], name: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        TrainSpec(**settings, **{name: value})
    assert caught.value.faults[0].startswith(f"{name}: ")


def test_without_trl_the_line_that_installs_it_is_printed(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtra, match="Preferences need TRL, which is not inst") as caught:
        prepare_run(TrainSpec(**settings), Spec(rank=4))
    assert "[preference]'" in caught.value.advice


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto"])
def test_a_trainer_of_trl_leaves_no_trace(
    loss: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    shared = dict(AcceleratorState._shared_state), dict(PartialState._shared_state)
    task = Preference(loss)
    task._find_objective(None).trainer  # noqa: B018  it is made when it is asked for
    assert torch.equal(torch.get_rng_state(), state)
    assert (AcceleratorState._shared_state, PartialState._shared_state) == shared
    assert [*tmp_path.iterdir()] == []
    assert capfd.readouterr() == ("", "")


def test_the_dropout_of_a_base_is_off() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    switch_dropout_off(model)
    assert model[0].p == 0.0


@pytest.mark.parametrize("kind", ["pairs", "rated"])
def test_preview_shows_every_answer(
    settings: dict[str, Any], pairs_file: Path, rated_file: Path, kind: str
) -> None:
    data = {"pairs": pairs_file, "rated": rated_file}[kind]
    shown = preview(read_rows(str(data)), settings["model"], "auto", "completion", None, 2)
    assert shown["task"] == "preference"
    targets = {"pairs": ["chosen", "rejected"] * 2, "rated": ["good", "bad"]}[kind]
    assert [one["target"] for one in shown["shown"]] == targets
    row = json.loads(data.read_text().splitlines()[0])
    answers = {"pairs": ("chosen", "rejected"), "rated": ("completion",)}[kind]
    for one, key in zip(shown["shown"], answers, strict=False):
        trained = "".join(text for text, is_trained in one["pieces"] if is_trained)
        assert trained == row[key] + "</s>"
    assert shown["eos_trained"] == 80


def test_a_pair_counts_the_tokens_of_both_answers(settings: dict[str, Any]) -> None:
    job = prepare_run(TrainSpec(**settings), Spec(rank=4)).job
    example = job.examples[0]
    assert example.rejected is not None
    assert example.size == len(example.ids) + len(example.rejected.ids)
    assert example.trained == 1
    assert job.collate([example])["input_ids"].shape[0] == 2


def test_the_base_is_loaded_as_a_language_model(tiny_llama: Path) -> None:
    assert type(load(str(tiny_llama), "preference").model).__name__ == "LlamaForCausalLM"


@pytest.mark.slow
def test_prompts_of_preferences_are_generated_from(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", settings["model"], "--data", settings["data"]]
    assert main(["generate", *model, "--max-new-tokens", "2", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    row = json.loads(Path(settings["data"]).read_text().splitlines()[0])
    assert answers[0]["prompt"] == row["prompt"]


@pytest.mark.slow
def test_preferences_between_turns_take_a_template(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    turns = {"prompt": [{"role": "user", "content": "Hi"}]}
    for key in ("chosen", "rejected"):
        turns[key] = [{"role": "assistant", "content": key}]
    data = tmp_path / "turns.jsonl"
    data.write_text((json.dumps(turns) + "\n") * 3)
    given = {**settings, "data": str(data), "template": "chatml", "steps": 1}
    report = train_adapter(TrainSpec(**given), Spec(rank=4))
    assert "<|im_start|>" in (Path(report["output"]) / "chat_template.jinja").read_text()
    with pytest.raises(SpecError, match="are no conversations; a chat template changes nothing"):
        prepare_run(TrainSpec(**{**settings, "template": "chatml"}), Spec(rank=4))
