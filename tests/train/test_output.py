"""The folder of a run: nothing of another origin is deleted, and one run at a time works in it."""

import json
import os
from pathlib import Path

import pytest

from lorakit.errors import OutputError
from lorakit.train import checkpoints
from lorakit.train.config import TrainSpec
from lorakit.train.output import check_content, check_output, clear_output, hold_output

CARD = "---\nbase_model: tiny\ntags:\n- lora\n- lorakit\n---\n\n# A LoRA adapter of tiny\n"
OVERWRITE = TrainSpec(model="tiny", data="rows.jsonl", output="run", overwrite=True)
PLAIN = TrainSpec(model="tiny", data="rows.jsonl", output="run")


def write_run(folder: Path) -> Path:
    """Write what a run leaves, and what a killed one leaves of a checkpoint."""
    for step in (9, 10):
        checkpoint = checkpoints.checkpoint_folder(folder, step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_config.json").write_text("{}")
    (folder / "checkpoints" / ".step-000011.999999999.part").mkdir()
    (folder / "run.json").write_text(json.dumps({"versions": {"lorakit": "0.1.0"}}))
    (folder / "README.md").write_text(CARD)
    for name in ("report.json", "metrics.jsonl", "adapter_config.json"):
        (folder / name).write_text("{}")
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_overwriting_deletes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    check_output(folder, OVERWRITE)
    clear_output(folder)
    assert files_of(folder) == ["notes.txt"]


@pytest.mark.parametrize("settings", [PLAIN, OVERWRITE], ids=["plain", "overwrite"])
@pytest.mark.parametrize("name", ["README.md", "checkpoints/notes.txt", "run.json", "report.json"])
def test_a_file_of_other_origin_is_never_replaced(
    name: str, settings: TrainSpec, tmp_path: Path
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": true}')
    with pytest.raises(OutputError) as caught:
        check_output(tmp_path / "run", settings)
    assert "no run of lorakit wrote them: " + name.split("/")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("README.md", "README.md"),
        ("checkpoints/notes.txt", "checkpoints/notes.txt"),
        ("checkpoints/step-best/adapter.bin", "checkpoints/step-best"),
        ("checkpoints/step-000010/notes.txt", "checkpoints/step-000010/notes.txt"),
        ("checkpoints/step-000010/plots/loss.png", "checkpoints/step-000010/plots"),
    ],
)
def test_a_file_added_to_a_run_is_never_deleted(name: str, told: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("# My own words")
    before = files_of(folder)
    with pytest.raises(OutputError) as caught:
        check_output(folder, OVERWRITE)
    assert f"no run of lorakit wrote them: {told}." in caught.value.message
    assert files_of(folder) == before


def test_a_pipe_is_no_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(OutputError, match=r"no run of lorakit wrote them: run\.json"):
        check_output(tmp_path, OVERWRITE)


def test_checkpoints_behind_a_link_are_not_deleted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "checkpoints").rename(tmp_path / "elsewhere")
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="no run of lorakit wrote them: checkpoints"):
        check_output(folder, OVERWRITE)


def test_an_interrupted_clearing_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = write_run(tmp_path / "run"), Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "report.json":
            raise KeyboardInterrupt
        real(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            clear_output(folder)
    check_output(folder, OVERWRITE)
    clear_output(folder)
    assert files_of(folder) == []


def test_a_second_run_is_refused_while_the_first_works(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with hold_output(folder):
        check_content(folder, PLAIN)
        for settings in (PLAIN, OVERWRITE):
            with pytest.raises(OutputError, match="Another run is writing to"):
                check_output(folder, settings)
    check_output(folder, PLAIN)


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        folder = checkpoints.checkpoint_folder(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / checkpoints.STATE).write_text("")
    assert checkpoints.newest(tmp_path).name == "step-1000000"
