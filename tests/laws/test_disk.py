"""All or nothing on the disk: an operation that fails anywhere leaves the old state or the new one.

The injector makes every file operation fail in turn: with an error, with an interrupt before and
after it, and, in a process of its own, with the end of the process.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import lorakit
from lorakit import Adapter, Spec
from lorakit.cli.__main__ import main
from lorakit.files import is_leftover, replace_folder
from lorakit.merging.export import export
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import sentences
from ..inject.test_all_or_nothing import describe
from ..sources import sample
from .disk_faults import MOMENTS, Fault, Moment, kill, run_and_die
from .table import fill

pytestmark = pytest.mark.slow
FAILURES = (OSError, KeyboardInterrupt)


@dataclass(frozen=True)
class Case:
    """An operation that writes.

    Attributes:
        start: function of an empty folder that puts there what is there before.
        operation: function of the folder.
        state: function of the folder that returns what is there; it raises if that is not whole.
        again: function of the folder that gets through after a fault; None for the operation.
        overwrites: True if the operation may be repeated where it has been done.
        memory: function that describes the model and the adapter in memory, which may not change.
    """

    start: Callable[[Path], object]
    operation: Callable[[Path], object]
    state: Callable[[Path], object]
    again: Callable[[Path], object] | None = None
    overwrites: bool = False
    memory: Callable[[], object] = lambda: None


def names_in(folder: Path) -> list[str]:
    """Return the paths in a folder without what the next writer removes."""
    if not folder.is_dir():
        return []
    names = []
    for path in sorted(folder.rglob("*")):
        steps = [path, *path.parents]
        if not any(is_leftover(step) for step in steps[: len(path.relative_to(folder).parts)]):
            names.append(str(path.relative_to(folder)))
    return names


def adapter_state(folder: Path) -> str:
    """Return the hash of the adapter in `out`; empty if there is none."""
    output = folder / "out"
    if names_in(output):
        return Adapter.load(output).content_hash()
    return ""


def file_state(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder in full."""
    paths = [folder / name for name in names_in(folder)]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def attached(rank: int) -> tuple[nn.Module, Adapter]:
    model = nn.ModuleDict({"q": nn.Linear(4, 4), "v": nn.Linear(4, 4)})
    return model, fill(lorakit.attach(model, Spec(rank=rank)), seed=rank)


def run_command(*words: object) -> Callable[[Path], None]:
    """Return a function of a folder that runs a command; OUT is its output."""

    def run(folder: Path) -> None:
        code = main([str(word).replace("OUT", str(folder / "out")) for word in words])
        if code:
            raise OSError(f"exit code {code}")

    return run


def write_folder(name: str) -> Callable[[Path], None]:
    """Return a function of a folder that replaces `out` in it by two files."""

    def write(folder: Path) -> None:
        with replace_folder(folder / "out") as part:
            part.mkdir()
            (part / "a").write_text(name)
            (part / "b").write_text(name)

    return write


def whole_folder(folder: Path) -> str:
    """Return the content of the two files, which are alike; empty without the folder."""
    names = names_in(folder / "out")
    if not names:
        assert not (folder / "out").exists()
        return ""
    assert names == ["a", "b"]
    first, second = [(folder / "out" / name).read_text() for name in names]
    assert first == second
    return first


def is_trained(adapter: Adapter) -> list[bool]:
    return [parameter.requires_grad for parameter in adapter.parameters()]


def nothing(folder: Path) -> None: ...


def run_training(settings: dict[str, Any], **more: Any) -> Callable[[Path], object]:
    """Return a function of a folder that trains an adapter in `out`."""
    return lambda folder: train_adapter(
        TrainSpec(**settings, **more, output=str(folder / "out")), Spec(rank=1)
    )


def train_again(settings: dict[str, Any]) -> Callable[[Path], object]:
    """Return a function of a folder that goes on with a run as a user would, or starts anew."""

    def run(folder: Path) -> None:
        output = folder / "out"
        more = {}
        if list(output.glob("checkpoints/step-*")):
            more["resume"] = True
        elif (output / "run.json").exists():
            more["overwrite"] = True
        run_training(settings, **more)(folder)
        lines = (output / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
        assert json.loads((output / "report.json").read_text())["steps"] == 2

    return run


def trained_state(folder: Path) -> str:
    """Return the hash of the adapter of a run; empty if there is none yet."""
    output = folder / "out"
    files = [output / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    return Adapter.load(output).content_hash() if any(file.exists() for file in files) else ""


def remove_end_of_run(folder: Path) -> None:
    """Leave what a run of two steps has written after its first checkpoint."""
    for name in ("adapter_config.json", "adapter_model.safetensors", "report.json", "README.md"):
        (folder / "out" / name).unlink()
    shutil.rmtree(folder / "out" / "checkpoints" / "step-000002")


@pytest.fixture(scope="module")
def cases(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    sources = tmp_path_factory.mktemp("sources")
    (_, old), (model, new) = attached(1), attached(2)
    old.save(sources / "old")
    new.save(sources / "new")

    def memory() -> object:
        return describe(model, new)

    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    llama = fill(lorakit.attach(base, Spec(rank=2, targets="q"), any_base=True))
    lorakit.merge(base)
    lorakit.detach(base)
    base.save_pretrained(sources / "tuned")
    shutil.copy(tiny_llama / "tokenizer.json", sources / "tuned")
    shutil.copy(tiny_llama / "tokenizer_config.json", sources / "tuned")
    adapters = (sources / "new", sources / "new")
    data = sources / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(8)))
    settings = {
        **{"model": str(tiny_llama), "data": str(data), "steps": 2, "batch_size": 2, "lr": 1e-2},
        **{"eval_fraction": 0.0, "checkpoint_every": 1, "threads": 1},
    }
    run_training(settings)(sources / "run")
    remove_end_of_run(sources / "run")
    return {
        "train": Case(
            nothing, run_training(settings), trained_state, train_again(settings), overwrites=True
        ),
        "resume": Case(
            lambda folder: shutil.copytree(sources / "run", folder, dirs_exist_ok=True),
            run_training(settings, resume=True),
            trained_state,
            train_again(settings),
            overwrites=True,
        ),
        "save": Case(
            nothing,
            lambda folder: new.save(folder / "out"),
            adapter_state,
            overwrites=True,
            memory=memory,
        ),
        "save over": Case(
            lambda folder: old.save(folder / "out"),
            lambda folder: new.save(folder / "out"),
            adapter_state,
            overwrites=True,
            memory=memory,
        ),
        "folder": Case(nothing, write_folder("new"), whole_folder, overwrites=True),
        "folder over": Case(
            write_folder("old"), write_folder("new"), whole_folder, overwrites=True
        ),
        "resize": Case(
            nothing,
            run_command("resize", sources / "new", "--rank", 1, "--output", "OUT"),
            adapter_state,
        ),
        "combine": Case(
            nothing, run_command("combine", *adapters, "--output", "OUT"), adapter_state
        ),
        "extract": Case(
            nothing,
            run_command(
                *("extract", "--base", tiny_llama, "--tuned", sources / "tuned"),
                *("--rank", 1, "--output", "OUT"),
            ),
            adapter_state,
        ),
        "export": Case(
            nothing,
            lambda folder: export(str(tiny_llama), llama, folder / "out"),
            file_state,
            memory=lambda: (
                llama.content_hash(),
                [one.requires_grad for one in llama.parameters()],
            ),
        ),
    }


NAMES = ("save", "save over", "folder", "folder over", "resize", "combine", "extract", "export")


def try_faults(case: Case, moments: Sequence[Moment], folder: Path, step: int = 1) -> Iterator[str]:
    """Run an operation with a fault at each file operation in turn, and check what is left.

    Args:
        case: the operation.
        moments: of the faults; they take turns.
        folder: an empty folder.
        step: distance of the faults.

    Yields:
        The name of each file operation.
    """
    new = None
    at = 1
    while True:
        moment = moments[at % len(moments)]
        place = folder / str(at)
        place.mkdir()
        case.start(place)
        old, before = case.state(place), case.memory()
        fault = Fault(place, at, moment)
        if moment is kill:
            failed = run_and_die(lambda: case.operation(place), fault)  # noqa: B023
            fault.name = "killed" if failed else ""
        else:
            failed = False
            try:
                with fault:
                    case.operation(place)
            except FAILURES:
                failed = True
        if new is None:
            whole = folder / "whole"
            whole.mkdir()
            case.start(whole)
            case.operation(whole)
            new = case.state(whole)
        where = f"{moment.__name__} at {at}, {fault.name}"
        left = case.state(place)
        assert left in ((old, new) if failed else (new,)), where
        assert case.memory() == before, where
        if left != new or case.overwrites:
            (case.again or case.operation)(place)
            assert case.state(place) == new, where
            assert not list(place.rglob("*.part")), where
        if not fault.name:
            return
        yield fault.name
        at += step


def name_of(argument: object) -> str:
    return getattr(argument, "__name__", str(argument))


@pytest.mark.parametrize(
    ("name", "moment"), sample(product(NAMES, [*MOMENTS, kill]), every=3), ids=name_of
)
def test_a_fault_at_any_file_operation_leaves_old_or_new(
    name: str, moment: Moment, cases: dict[str, Case], tmp_path: Path
) -> None:
    faults = list(try_faults(cases[name], [moment], tmp_path))
    print(len(faults), "faults")
    assert {"mkdir", "fsync"} <= {*faults} or moment is kill


@pytest.mark.parametrize("name", ["train", "resume"])
def test_a_run_that_fails_at_any_file_operation_goes_on_or_starts_anew(
    name: str, cases: dict[str, Case], tmp_path: Path
) -> None:
    faults = list(try_faults(cases[name], MOMENTS, tmp_path, step=4))
    print(len(faults), "faults")
    assert len(faults) > 10
