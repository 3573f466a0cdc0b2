"""Atomic writing: new content in full, or the old one, and no temporary file stays for good."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorakit.errors import OutputError
from lorakit.files import (
    check_can_be_made,
    check_new_folder,
    folder_bytes,
    part_path,
    remove_leftovers,
    replace_file,
    replace_files,
    replace_folder,
    write_json,
    write_json_lines,
    write_text,
)

SLOW_WRITER = """
import sys
from pathlib import Path
from lorakit.files import replace_file

with replace_file(Path(sys.argv[1])) as part:
    part.write_text("slow " * 1000, "utf-8")
    print("written", flush=True)
    sys.stdin.readline()
"""


class BlockError(Exception):
    """The exception that the blocks of these tests raise."""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def slow_writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that has written its content and waits for a line before the end."""
    command = [sys.executable, "-c", SLOW_WRITER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        if process.poll() is None:
            process.communicate("\n")
        assert process.returncode == 0


def test_a_file_is_replaced_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replace_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["a.txt"]


def test_an_exception_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(BlockError), replace_file(path) as part:
        part.write_text("half of the n")
        raise BlockError
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(BlockError), replace_file(tmp_path / "a.txt") as part:
        part.write_text("half of the n")
        raise BlockError
    assert names_in(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replace_file(path):
        pass
    assert path.read_text() == "old"


def test_files_are_replaced_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    with replace_files(tmp_path, ["a", "b"]) as parts:
        parts["a"].write_text("new a")
        parts["b"].write_text("new b")
        assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["old", "old"]
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["new a", "new b"]
    assert names_in(tmp_path) == ["a", "b"]


def test_an_exception_leaves_all_old_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    with pytest.raises(BlockError), replace_files(tmp_path, ["a", "b"]) as parts:
        parts["a"].write_text("new a")
        raise BlockError
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["old", "old"]
    assert names_in(tmp_path) == ["a", "b"]


def test_a_missing_second_file_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), replace_files(tmp_path, ["a", "b"]) as parts:
        parts["a"].write_text("new a")
    assert (tmp_path / "a").read_text() == "old"
    assert names_in(tmp_path) == ["a"]


def test_all_files_have_the_mode_of_the_first(tmp_path: Path) -> None:
    with replace_files(tmp_path, ["a", "b"]) as parts:
        for name, mode in (("a", 0o644), ("b", 0o600)):
            parts[name].write_text(name)
            parts[name].chmod(mode)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o644


def test_a_folder_is_replaced_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").write_text("old")
    with replace_folder(path) as part:
        part.mkdir()
        (part / "new").write_text("new")
        assert names_in(path) == ["old"]
    assert names_in(path) == ["new"]
    assert names_in(tmp_path) == ["run"]


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(BlockError), replace_folder(path) as part:
        part.mkdir()
        (part / "new").write_text("new")
        raise BlockError
    assert names_in(path) == ["old"]
    assert names_in(tmp_path) == ["run"]


def test_the_rest_of_an_earlier_attempt_is_not_in_the_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    left = part_path(path)
    left.mkdir()
    (left / "half").write_text("half")
    with replace_folder(path) as part:
        part.mkdir()
    assert names_in(path) == []
    assert not left.exists()


@pytest.mark.slow
def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with slow_writer(path):
        write_text(path, "fast")
        assert path.read_text() == "fast"
    assert path.read_text() == "slow " * 1000
    assert names_in(tmp_path) == ["a.txt"]


def killed_writer(path: Path) -> int:
    """Kill another process after it has written its content, and return its number."""
    command = [sys.executable, "-c", SLOW_WRITER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()
    return process.pid


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    killed_writer(path)
    assert path.read_text() == "old"


def test_the_next_writer_of_a_file_removes_the_part_of_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    pid = killed_writer(path)
    (left,) = names_in(tmp_path)
    assert left.startswith(f".a.txt.{pid}-") and left.endswith(".part")
    write_text(path, "new")
    assert names_in(tmp_path) == ["a.txt"]


def test_the_next_writer_of_a_folder_removes_the_part_of_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    pid = killed_writer(tmp_path / "a.txt")
    left = tmp_path / f".run.{pid}.part"
    left.mkdir()
    (left / "half").write_text("half")
    with replace_folder(path) as part:
        assert not left.exists()
        part.mkdir()
    assert names_in(path) == []


def test_the_parts_of_living_processes_stay(tmp_path: Path) -> None:
    living = tmp_path / f".run.{os.getppid()}.part"
    living.mkdir()
    with replace_folder(tmp_path / "run") as part:
        part.mkdir()
    assert living.is_dir()


def test_only_parts_of_matching_names_are_removed(tmp_path: Path) -> None:
    pid = os.getpid()
    kept = [".step-1.part", f".step-a.{pid}.part.txt", f".other.{pid}.part", f"step-1.{pid}.part"]
    for name in (*kept, f".step-1.{pid}.part"):
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path, "step-*")
    assert names_in(tmp_path) == sorted(kept)


@pytest.mark.parametrize("name", ["a[1].txt", "a*", "a?"])
def test_a_name_is_no_pattern(name: str, tmp_path: Path) -> None:
    pid = os.getpid()
    for other in ("a1.txt", "ab", "a.b"):
        (tmp_path / f".{other}.{pid}.part").write_text("half")
    before = names_in(tmp_path)
    (tmp_path / f".{name}.{pid}.part").write_text("half")
    write_text(tmp_path / name, "new")
    assert names_in(tmp_path) == sorted([*before, name])


def test_the_part_is_in_the_same_folder_and_is_of_this_process(tmp_path: Path) -> None:
    part = part_path(tmp_path / "a.txt")
    assert part.parent == tmp_path
    assert str(os.getpid()) in part.name


def test_json_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"é": [1, None]}
    write_json_lines(tmp_path / "a.jsonl", [{"a": 1}, [2]])
    assert (tmp_path / "a.jsonl").read_text("utf-8") == '{"a": 1}\n[2]\n'


def test_a_value_that_is_no_json_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {1, 2})
    assert json.loads(path.read_text()) == 1
    assert names_in(tmp_path) == ["a.json"]


# --- folders that are written to -----------------------------------------------------------------


def test_a_folder_to_write_to_is_missing_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        check_new_folder(tmp_path / name, "an adapter", "Nothing was written.")


def test_a_folder_with_what_a_killed_process_left_can_be_written_to(tmp_path: Path) -> None:
    living = tmp_path / f".b.{os.getppid()}.part"
    killed_writer(tmp_path / "a.txt")
    check_new_folder(tmp_path, "an adapter", "Nothing was written.")
    living.touch()
    with pytest.raises(OutputError, match="is not empty"):
        check_new_folder(tmp_path, "an adapter", "Nothing was written.")


@pytest.mark.parametrize(
    ("name", "fault"), [("file", "is a file; an adapter is a folder"), ("full", "is not empty")]
)
def test_another_path_is_no_folder_to_write_to(tmp_path: Path, name: str, fault: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(OutputError) as caught:
        check_new_folder(tmp_path / name, "an adapter", "Nothing was written.")
    path = tmp_path / name
    assert str(caught.value) == f"{path} {fault}.\nName a new folder. Nothing was written."


def test_a_new_place_can_be_made_and_nothing_of_the_check_stays(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b" / "c.txt"):
        check_can_be_made(path)
    assert names_in(tmp_path) == []


IMPOSSIBLE = {
    "file/out": "{}/file is a file",
    "link": "{}/link is a link to a place that does not exist",
    "link/out": "{}/link is a link to a place that does not exist",
    "x" * 255: "file name too long",
    "a/" + "x" * 300 + "/out": "file name too long",
    "a\0b": "embedded null byte",
}


@pytest.mark.parametrize("name", IMPOSSIBLE, ids=[name[:10] for name in map(repr, IMPOSSIBLE)])
def test_a_place_that_cannot_be_made_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(OutputError, match="cannot be made: ") as caught:
        check_can_be_made(tmp_path / name)
    assert IMPOSSIBLE[name].format(tmp_path) in caught.value.message


def test_a_place_is_tried_because_permissions_do_not_tell() -> None:
    with pytest.raises(OutputError, match="nothing can be written in /proc: "):
        check_can_be_made(Path("/proc/out/adapter"))


def test_a_place_in_a_deleted_working_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OutputError, match="out cannot be made: "):
        check_can_be_made(Path("out"))


def test_the_size_of_a_folder_is_that_of_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for path, size in (("a", 3), ("b", 4), ("run/c", 100)):
        (tmp_path / path).write_bytes(bytes(size))
    assert folder_bytes(tmp_path) == 7
