"""The folder of a search: a killed one does not block it, and one search at a time works in it."""

import json
from pathlib import Path

import pytest

from lorakit.errors import OutputError
from lorakit.rank_search.output import begin_search, check_output


def leave_unfinished(output: Path) -> None:
    """Leave what a search leaves that was killed."""
    with begin_search(output / "run"):
        (output / "run" / "rank-4" / "checkpoints").mkdir(parents=True)
        (output / "run" / "metrics.jsonl").write_text("")


def test_a_killed_search_does_not_block_the_next(tmp_path: Path) -> None:
    leave_unfinished(tmp_path / "out")
    check_output(tmp_path / "out")
    with begin_search(tmp_path / "out" / "run"):
        assert [path.name for path in (tmp_path / "out" / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize("name", ["rank.json", "notes.txt", "run/notes.txt"])
def test_a_finished_search_and_other_files_are_kept(name: str, tmp_path: Path) -> None:
    leave_unfinished(tmp_path / "out")
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(OutputError, match="is not empty"):
        check_output(tmp_path / "out")
    with pytest.raises(OutputError, match="is not empty"), begin_search(tmp_path / "out" / "run"):
        pass
    assert (tmp_path / "out" / "run" / "metrics.jsonl").exists()


def test_a_folder_called_run_of_other_origin_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "out" / "run" / "run.json").write_text(json.dumps({"mine": True}))
    with pytest.raises(OutputError, match="is not empty"):
        check_output(tmp_path / "out")


def test_two_searches_do_not_share_a_folder(tmp_path: Path) -> None:
    another = pytest.raises(OutputError, match="Another run is writing to")
    with begin_search(tmp_path / "out" / "run"), another:
        leave_unfinished(tmp_path / "out")
