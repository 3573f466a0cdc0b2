"""Checkpoints: the adapter and all that the next step depends on; written whole or not at all."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorakit.adapter import Adapter
from lorakit.errors import OutputError

FOLDER, STATE = "checkpoints", "training_state.pt"


def save(
    output: Path,
    step: int,
    adapter: Adapter,
    optimizer: Any,
    progress: dict[str, Any],
    budget: Any = None,
) -> Path:
    """Write `checkpoints/step-N`: a loadable adapter folder, and the state of optimizer, random
    numbers and progress.

    It is made under another name and renamed at the end, so a run that is killed leaves no half
    checkpoint.
    """
    folder = output / FOLDER / f"step-{step:06d}"
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    state = {
        "optimizer": optimizer.state_dict(),
        "random": random_state(),
        "progress": progress,
        "step": step,
    }
    state |= {"budget": budget.state_dict()} if budget else {}
    try:
        adapter.save(part)
        torch.save(state, part / STATE)
        with (part / STATE).open("rb") as file:
            os.fsync(file.fileno())
    except (
        OSError,
        RuntimeError,
    ) as error:  # torch's writer tells of a full disk by a RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"The checkpoint {folder} cannot be written: {str(error).splitlines()[0]}"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder


def load(folder: Path) -> dict[str, Any]:
    """Read the state of a checkpoint; the adapter in it is read with Adapter.load.

    Raises:
        OutputError: it is cut off or damaged.
    """
    try:
        return torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its reader raise anything
        raise OutputError(
            f"{folder / STATE} cannot be read: {str(error).splitlines()[0]}",
            advice=f"Delete {folder} to resume from the one before.",
        ) from error


def newest(output: Path) -> Path:
    """Return the last whole checkpoint of a run.

    Raises:
        OutputError: there is none.
    """
    found = sorted(p for p in (output / FOLDER).glob("step-*") if (p / STATE).is_file())
    if not found:
        raise OutputError(
            f"There is no checkpoint in {output / FOLDER} to resume from.",
            advice="Start without --resume.",
        )
    return found[-1]


def prune(output: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest checkpoints and the best."""
    found = sorted((output / FOLDER).glob("step-*"))
    for folder in found[:-keep]:
        if best is None or folder.name != f"step-{best:06d}":
            shutil.rmtree(folder, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """Return the state of every random generator that a model may draw from, in types that load
    with weights_only.
    """
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
