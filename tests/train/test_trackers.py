"""Trackers get the numbers of every step and evaluation, once, also when a run is resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from lorakit.errors import MissingExtra, SpecError, TrainingError, install_line
from lorakit.spec import Spec
from lorakit.train import trackers
from lorakit.train.config import TRACKERS, TrainSpec
from lorakit.train.log import read_metrics
from lorakit.train.run import train_adapter
from lorakit.train.trackers import Trackers, check_trackers

from ..conftest import sentences
from .test_run import stop_after

Numbers = dict[int, dict[str, float]]  # by step


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(40)))
    return {
        "model": str(tiny_llama),
        "data": str(rows),
        "output": str(tmp_path / "out"),
        "batch_size": 8,
        "steps": 4,
        "threads": 1,
    }


def interrupt(run: TrainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for two steps, then die as a crash would."""
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        stop_after(patch, 2, InterruptedError())
        train_adapter(run, Spec(rank=4))


class Recorder(GeneralTracker):
    """A tracker of accelerate's interface that keeps what it is given."""

    name, requires_logging_directory, tracker = "wandb", False, None
    started: list["Recorder"]

    def __init__(self, **options: Any):
        super().__init__()
        self.options, self.lines, self.config = options, [], []
        self.is_finished = False

    def start(self) -> None:
        self.started.append(self)

    def store_init_configuration(self, values: dict) -> None:
        self.config.append(values)

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """The trackers that were started in place of wandb's."""
    monkeypatch.setattr(Recorder, "started", [], raising=False)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    return Recorder.started


@pytest.mark.slow
def test_a_tracker_gets_settings_and_every_line(
    settings: dict[str, Any], tmp_path: Path, started: list[Recorder]
) -> None:
    train_adapter(TrainSpec(**settings, log_to=("wandb",)), Spec(rank=4))
    (tracker,) = started
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [(line.pop("step"), line) for line in lines] == tracker.lines
    assert "eval_loss" in tracker.lines[-1][1]
    (config,) = tracker.config
    assert (config["rank"], config["steps"], config["targets"]) == (4, 4, "all-linear")
    assert config["lr"] > 0 and tracker.is_finished


@pytest.mark.slow
def test_a_resumed_run_goes_on_under_its_name(
    settings: dict[str, Any], started: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrainSpec(**settings, log_to=("wandb",), checkpoint_every=1)
    interrupt(run, monkeypatch)
    train_adapter(TrainSpec(**run.to_dict() | {"resume": True}), Spec(rank=4))
    first, second = started
    assert [step for step, _ in first.lines + second.lines] == [1, 2, 3, 4]
    assert first.options["id"] == second.options["id"] and second.options["resume"] == "allow"
    assert (len(first.config), second.config) == (1, [])
    train_adapter(TrainSpec(**run.to_dict() | {"overwrite": True}), Spec(rank=4))
    assert started[2].options["id"] != first.options["id"]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path,
    started: list[Recorder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: Recorder, values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("no network")

    open_trackers = Trackers(("wandb",), tmp_path, {}, 0)
    monkeypatch.setattr(Recorder, "log", fail)
    open_trackers.log({"step": 1, "loss": 1.0})
    open_trackers.log({"step": 2, "loss": 1.0})
    assert capsys.readouterr().err == "note: no more is logged to wandb: no network\n"


def test_a_tracker_that_does_not_start_is_refused(
    tmp_path: Path, started: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Recorder) -> None:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(Recorder, "start", fail)
    with pytest.raises(TrainingError, match=r"wandb cannot be started: api_key not configured"):
        Trackers(("wandb",), tmp_path, {}, 0)


def test_packages_that_are_missing_are_named_with_the_line_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as refused:
        check_trackers(("trackio", "mlflow"))
    assert str(refused.value) == (
        "log_to: 2 packages not installed: trackio, mlflow.\n"
        f"{install_line('trackio,mlflow')}\nNothing was started."
    )


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(SpecError, match=r"log_to: 'wandd' is none of .*; did you mean 'wandb'"):
        TrainSpec(model="m", data="d", output="o", log_to=("wandd",))


def test_every_tracker_is_one_of_accelerates() -> None:
    assert {*TRACKERS} <= {*LOGGER_TYPE_TO_CLASS}


# --- the libraries themselves --------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard_reads_what_was_logged(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = TrainSpec(**settings, log_to=("tensorboard",), checkpoint_every=1)
    interrupt(run, monkeypatch)
    train_adapter(TrainSpec(**run.to_dict() | {"resume": True}), Spec(rank=4))
    (folder,) = (tmp_path / "out" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    for name in ("loss", "lr", "eval_loss"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert logged == wanted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of those libraries
@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_the_others_take_a_run_without_a_network(
    name: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    pytest.importorskip(name)  # some read the environment as they are imported
    train_adapter(TrainSpec(**settings, log_to=(name,)), Spec(rank=4))
    assert capsys.readouterr().out == ""
    places = {"wandb": tmp_path / "out" / "wandb", "trackio": tmp_path / "trackio"}
    assert places.get(name, tmp_path / "mlflow.db").exists()
