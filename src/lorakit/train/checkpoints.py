"""Checkpoints: the adapter and the state of the run, written completely or not at all."""

import random
import re
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from lorakit.adapter import Adapter
from lorakit.data.templates import TEMPLATE_FILE
from lorakit.errors import OutputError
from lorakit.files import PART, remove_leftovers, replace_folder, write_text
from lorakit.text import first_line
from lorakit.train.budget import Budget, BudgetState
from lorakit.train.progress import Progress

FOLDER, STATE = "checkpoints", "training_state.pt"
NAME = re.compile(r"step-\d{6,}")
# In one checkpoint.
WRITTEN = ("adapter_config.json", "adapter_model.safetensors", STATE, TEMPLATE_FILE)
RandomState = dict[str, Any]  # by library


class CheckpointState(TypedDict):
    """The content of a checkpoint beside the adapter."""

    optimizer: dict[str, Any]
    random: RandomState
    progress: dict[str, Any]
    step: int
    budget: NotRequired[BudgetState]
    scaler: NotRequired[dict[str, Any]]


def checkpoint_folder(output: Path, step: int) -> Path:
    """Return the folder of the checkpoint after a step."""
    return output / FOLDER / f"step-{step:06d}"


def save(
    output: Path,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    budget: Budget | None = None,
    chat_template: str | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Path:
    """Write a checkpoint: a loadable adapter folder, and the state of everything else.

    Args:
        output: folder of the run.
        adapter: the adapter as it is now.
        optimizer: its optimizer.
        progress: the progress of the run; its step names the checkpoint.
        budget: AdaLoRA's rank budget, if there is one.
        chat_template: chat template that the adapter is trained with, if there is one.
        scaler: the scale of the loss in fp16, if there is one.

    Returns:
        The folder `checkpoints/step-N`. A run that is killed leaves no half of it.

    Raises:
        OSError: the folder cannot be written, for instance because the disk is full.
    """
    folder = checkpoint_folder(output, progress.step)
    state: CheckpointState = {
        "optimizer": optimizer.state_dict(),
        "random": random_state(),
        "progress": asdict(progress),
        "step": progress.step,
    }
    if budget:
        state["budget"] = budget.state_dict()
    if scaler:
        state["scaler"] = scaler.state_dict()
    try:
        with replace_folder(folder) as part:
            adapter.save(part)
            if chat_template is not None:
                write_text(part / TEMPLATE_FILE, chat_template)
            torch.save(state, part / STATE)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError.
        raise OSError(f"The checkpoint {folder} cannot be written: {first_line(error)}") from error
    return folder


def load(folder: Path) -> CheckpointState:
    """Read the state of a checkpoint; `Adapter.load` reads the adapter in it.

    Raises:
        OutputError: the file is cut off or damaged.
    """
    try:
        return torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # The reader of a damaged file can raise any exception.
        raise OutputError(
            f"{folder / STATE} cannot be read: {first_line(error)}",
            advice=f"Delete {folder} to resume from the one before.",
        ) from error


def newest(output: Path) -> Path:
    """Return the last complete checkpoint of a run.

    Raises:
        OutputError: the run has no checkpoint.
    """
    folders = [path for path in all_checkpoints(output) if (path / STATE).is_file()]
    if not folders:
        raise OutputError(
            f"There is no checkpoint in {output / FOLDER} to resume from.",
            advice="Start without --resume.",
        )
    return folders[-1]


def all_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first."""
    folders = [path for path in (output / FOLDER).glob("step-*") if _is_checkpoint(path)]
    return sorted(folders, key=_step_of)


def _is_checkpoint(path: Path) -> bool:
    is_folder = path.is_dir() and not path.is_symlink()
    return is_folder and NAME.fullmatch(path.name) is not None


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def foreign_names(folder: Path) -> list[str]:
    """Return the paths in a folder of checkpoints that no run has written."""
    if not folder.is_dir() or folder.is_symlink():
        return [folder.name]
    foreign: list[Path] = []
    for path in folder.iterdir():
        if _is_checkpoint(path):
            foreign += [one for one in path.iterdir() if one.is_dir() or one.name not in WRITTEN]
        else:
            foreign.append(path)
    names = [path for path in foreign if not PART.fullmatch(path.name)]
    return sorted(str(path.relative_to(folder)) for path in names)


def remove_all(output: Path) -> None:
    """Delete the checkpoints of a run, what a killed run left of one, and their empty folder."""
    folder = output / FOLDER
    remove_leftovers(folder, "step-*")
    for checkpoint in all_checkpoints(output):
        shutil.rmtree(checkpoint)
    with suppress(OSError):  # The folder is not empty.
        folder.rmdir()


def prune(output: Path, keep: int, best_step: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and the best, and what a killed run left."""
    remove_leftovers(output / FOLDER, "step-*")
    best = None if best_step is None else checkpoint_folder(output, best_step)
    for folder in all_checkpoints(output)[:-keep]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)


def restore(adapter: Adapter, folder: Path) -> None:
    """Copy the tensors of a checkpoint into an attached adapter, frozen tensors included."""
    saved = Adapter.load(folder)
    with torch.no_grad():
        for name, delta in adapter.deltas.items():
            delta.load_state_dict(saved.deltas[name].state_dict())
        for name, parameter in adapter.full_parameters.items():
            parameter.copy_(saved.full_parameters[name])


def random_state() -> RandomState:
    """Return the state of every random generator that a model may use, as plain types and tensors.

    These types can be loaded with `weights_only`.
    """
    algorithm, keys, *position = np.random.get_state()
    version, internal, gauss = random.getstate()
    state: RandomState = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [algorithm, torch.from_numpy(np.asarray(keys).astype(np.int64)), *position],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: RandomState) -> None:
    """Set every random generator to a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, *position = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), *position))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
