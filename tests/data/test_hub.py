"""Names of models and data sets: refused at once where they are not here and no hub answers."""

import os
from pathlib import Path

import pytest

from lorakit.data import hub
from lorakit.data.rows import read_rows
from lorakit.errors import DataError, ModelError
from lorakit.models.locate import locate
from lorakit.models.read import load_config


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working folder on a machine without a network, on which nobody has said so."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_answers", lambda address: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_that_is_nowhere_is_refused_with_a_similar_folder(unreachable: Path) -> None:
    (unreachable / "llama").mkdir()
    with pytest.raises(ModelError) as caught:
        locate("lama")
    assert "there is no such folder, it has not been downloaded before" in caught.value.message
    assert caught.value.advice.startswith("Did you mean 'llama'? Name a model folder")


def test_a_path_that_is_nowhere_is_refused_with_a_similar_folder(tmp_path: Path) -> None:
    (tmp_path / "stories260K").mkdir()
    with pytest.raises(ModelError) as caught:
        locate(str(tmp_path / "stories260k"))
    assert caught.value.advice == "Did you mean 'stories260K'?"


@pytest.mark.parametrize("name", ["lama", "lama/", "models/laama", "modls/lama"])
def test_a_name_that_the_hub_does_not_know_is_refused_with_a_similar_folder(
    name: str, unreachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("404: there is no such repository")

    monkeypatch.setattr(hub, "_answers", lambda address: True)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    (unreachable / "llama").mkdir()
    (unreachable / "models" / "llama").mkdir(parents=True)
    expected = "models" if name.startswith("modls") else "llama"
    with pytest.raises(ModelError) as caught:
        load_config(name)
    assert f"Did you mean '{expected}'?" in caught.value.advice


def test_a_model_that_was_downloaded_is_found_without_the_hub(unreachable: Path) -> None:
    folder = unreachable / "cache" / "models--nobody--tiny"
    snapshot = folder / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0a1b")
    (snapshot / "config.json").write_text("{}")
    assert locate("nobody/tiny") == (str(snapshot), "nobody/tiny")


def test_no_answer_in_time_is_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub, "PATIENCE", 0.01)
    assert not hub._answers.__wrapped__("https://192.0.2.1")  # an address that is never in use


@pytest.mark.slow
def test_data_that_is_nowhere_is_refused_without_a_retry(
    unreachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from huggingface_hub import constants

    offline: list[bool] = []

    def load_dataset(name: str) -> None:
        offline.append(datasets.config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE)
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset)
    (unreachable / "reviews").mkdir()
    with pytest.raises(DataError, match=r"Did you mean 'reviews'\?"):
        read_rows("review")
    assert offline == [True] and not constants.HF_HUB_OFFLINE


@pytest.mark.slow
@pytest.mark.parametrize(("files", "folders"), [(1001, 1), (0, 1001)])
def test_a_folder_that_is_no_data_set_is_not_searched(
    files: int, folders: int, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    for number in range(folders):
        (tmp_path / f"folder-{number}").mkdir()
    for number in range(files):
        (tmp_path / "folder-0" / f"{number}.bin").touch()
    with pytest.raises(DataError, match="more than 1,000 files or folders") as caught:
        read_rows(str(tmp_path))
    assert caught.value.advice == f"Name a file, such as {tmp_path}/rows.jsonl."


def test_a_folder_without_rows_and_a_device_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder without a file of rows"):
        read_rows(str(tmp_path))
    with pytest.raises(DataError, match="is not an ordinary file"):
        read_rows(os.devnull)
