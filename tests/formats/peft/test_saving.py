"""Saving over an adapter: a reader beside it, a second writer, and a writer that is killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import nn

import lorakit
from lorakit import Adapter, Spec

from ..models import fill
from ..rewrite import CONFIG, WEIGHTS, make_foreign

MODEL = """
import sys
from torch import nn
import lorakit
from lorakit import Spec

def build(rank):
    model = nn.ModuleDict({"q": nn.Linear(6, 6), "v": nn.Linear(6, 6)})
    adapter = lorakit.attach(model, Spec(rank=rank, alpha=float(rank)))
    for parameter in adapter.parameters():
        parameter.data.fill_(rank)
    return adapter
"""
WRITER = (
    MODEL
    + """
adapters = [build(int(rank)) for rank in sys.argv[2:]]
print("ready", flush=True)
while True:
    for adapter in adapters:
        adapter.save(sys.argv[1])
"""
)
KILLED = (
    MODEL
    + """
import os
from pathlib import Path

moves = 0
replace = Path.replace

def count_moves(self, target):
    global moves
    if moves == int(sys.argv[3]):
        os._exit(9)
    moves += 1
    return replace(self, target)

adapter = build(int(sys.argv[2]))
Path.replace = count_moves
adapter.save(sys.argv[1])
"""
)


def build(rank: int) -> Adapter:
    """Return an adapter whose values, rank and alpha are all the same number."""
    model = nn.ModuleDict({"q": nn.Linear(6, 6), "v": nn.Linear(6, 6)})
    adapter = lorakit.attach(model, Spec(rank=rank, alpha=float(rank)))
    for parameter in adapter.parameters():
        parameter.data.fill_(rank)
    return adapter


def find_mix(adapter: Adapter) -> set[float]:
    """Return all numbers of an adapter; there is only one unless it is a mix of two."""
    values = {float(adapter.spec.rank), adapter.spec.alpha}
    for delta in adapter.deltas.values():
        values |= {float(delta.rank), delta.alpha}
    for parameter in adapter.parameters():
        values |= set(parameter.flatten().tolist())
    return values


@contextmanager
def writing(folder: Path, *ranks: int) -> Iterator[None]:
    """Let another process save adapters of these ranks in turn."""
    command = [sys.executable, "-c", WRITER, str(folder), *map(str, ranks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        assert process.poll() is None
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("writers", [1, 2])
def test_loads_beside_writers_see_no_mix(writers: int, tmp_path: Path) -> None:
    build(1).save(tmp_path)
    seen = set()
    with writing(tmp_path, 1, 2):
        if writers == 2:
            with writing(tmp_path, 3, 4):
                for _ in range(150):
                    seen.add(frozenset(find_mix(Adapter.load(tmp_path))))
        else:
            for _ in range(300):
                seen.add(frozenset(find_mix(Adapter.load(tmp_path))))
    assert all(len(values) == 1 for values in seen)
    assert len(seen) == 2 * writers
    build(5).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS]


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "peft"])
def test_a_writer_killed_between_two_moves_loses_nothing(foreign: bool, tmp_path: Path) -> None:
    build(1).save(tmp_path)
    if foreign:
        make_foreign(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path), "2", "1"]
    assert subprocess.run(command, check=False).returncode == 9
    assert find_mix(Adapter.load(tmp_path)) == {2.0}
    # A second writer that is killed as well loses nothing either.
    command = [sys.executable, "-c", KILLED, str(tmp_path), "3", "0"]
    assert subprocess.run(command, check=False).returncode == 9
    assert find_mix(Adapter.load(tmp_path)) == {2.0}
    fill(build(4)).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("failing", [1, 2])
def test_an_exception_between_two_moves_restores_the_old_adapter(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(1).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace, moves = Path.replace, []

    def fail_once(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == failing:
            raise OSError("no space left on device")
        return replace(self, target)

    adapter = build(2)
    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(OSError, match="no space"):
        adapter.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
