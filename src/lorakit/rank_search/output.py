"""The output folder of a search: what a killed search has left in it is deleted by the next one."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorakit.errors import NOT_STARTED
from lorakit.files import check_new_folder, is_leftover, write_json
from lorakit.train import output as run_output
from lorakit.train.report import versions

RUN = "run"  # the folder of a search's runs
CANDIDATE = re.compile(r"rank-\d+")  # the folder of one rank in it


def check_output(output: Path) -> None:
    """Check that a search may write to a folder: it is new, empty, or of a search that was killed.

    Raises:
        OutputError: a file, or a folder with something else in it.
    """
    if not _is_unfinished(output):
        check_new_folder(output, "an adapter", NOT_STARTED)


@contextmanager
def begin_search(folder: Path) -> Iterator[None]:
    """Make the folder of a search's runs, and keep other searches out of it during the block.

    Raises:
        OutputError: another search works in the folder, or has finished there.
    """
    with run_output.hold_output(folder):
        check_output(folder.parent)
        if run_output.is_run(folder / run_output.RUN):
            _empty(folder)
        write_json(folder / run_output.RUN, {"versions": versions()})
        yield


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_unfinished(output: Path) -> bool:
    """Return True for a folder that holds the runs of a search, and no result of it."""
    runs = output / RUN
    if not runs.is_dir():
        return False
    if any(runs.iterdir()) and not run_output.is_run(runs / run_output.RUN):
        return False
    if not all(_is_of_search(entry) for entry in runs.iterdir()):
        return False
    return all(entry == runs or is_leftover(entry) for entry in output.iterdir())


def _is_of_search(entry: Path) -> bool:
    is_candidate = CANDIDATE.fullmatch(entry.name) is not None
    return is_candidate or entry.name in run_output.WRITTEN or is_leftover(entry)
