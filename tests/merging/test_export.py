"""The folder of an exported model: new or empty before, and nobody else's files are removed."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import lorakit
from lorakit.adapter import Adapter
from lorakit.errors import OutputError
from lorakit.merging.export import export

from ..laws.table import fill


@pytest.fixture
def adapter(tiny_llama: Path) -> Adapter:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    return fill(lorakit.attach(model, lorakit.Spec(rank=2, targets="q"), any_base=True))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_an_empty_folder_is_replaced(tiny_llama: Path, adapter: Adapter, tmp_path: Path) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    export(str(tiny_llama), adapter, output)
    assert "model.safetensors" in names_in(output)
    assert names_in(tmp_path) == ["merged"]


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_loaded(
    adapter: Adapter, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError) as caught:
        export("no model", adapter, tmp_path)
    assert str(caught.value) == f"{tmp_path} is not empty.\nName a new folder. Nothing was written."


@pytest.mark.slow
def test_a_file_that_comes_in_meanwhile_is_kept(
    tiny_llama: Path, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    rename = Path.rename

    def rename_after_a_write(part: Path, target: Path) -> None:
        (target / "mine").write_text("mine")
        rename(part, target)

    monkeypatch.setattr(Path, "rename", rename_after_a_write)
    with pytest.raises(OutputError) as caught:
        export(str(tiny_llama), adapter, output)
    assert str(caught.value) == (
        f"{output} has got files since the beginning.\nThey are kept. Name a new folder. Nothing "
        "was written."
    )
    assert names_in(output) == ["mine"]
    assert names_in(tmp_path) == ["merged"]


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        (".", "is the working directory or a root"),
        ("/", "is the working directory or a root"),
        ("dangling", "is a link to a place that does not exist"),
        ("/proc/x", "cannot be made: "),
        ("file/x", "cannot be made: "),
    ],
)
def test_an_output_that_cannot_be_made_is_refused_before_anything_is_loaded(
    output: str, fault: str, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        export("no model", adapter, output)
    assert f"{output} {fault}" in str(caught.value)
    assert "Nothing was started." in str(caught.value)
    assert names_in(tmp_path) == ["dangling", "file"]


def test_a_working_directory_that_is_gone_is_refused(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(OutputError, match="cannot be made"):
        export("no model", adapter, "merged")
