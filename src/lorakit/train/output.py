"""The output folder of a run: its files, checks before a run, and the state to resume from."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorakit.errors import OutputError
from lorakit.formats.peft.spec_header import use_present_names
from lorakit.train import checkpoints
from lorakit.train.checkpoints import CheckpointState
from lorakit.train.config import TrainSpec
from lorakit.train.log import METRICS
from lorakit.train.report import RunFacts

RUN, REPORT, CARD = "run.json", "report.json", "README.md"
WRITTEN = (
    RUN,
    REPORT,
    CARD,
    METRICS,
    "adapter_config.json",
    "adapter_model.safetensors",
    checkpoints.FOLDER,
)


def check_output(output: Path, settings: TrainSpec) -> None:
    """Check that a run may write to a folder, or continue the run in it.

    Raises:
        OutputError: a file instead of a folder, a folder with another run, or none to resume.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(
            f"{output} is a file; --output needs a folder.", advice="Nothing was written."
        )
    existing = [name for name in WRITTEN if (output / name).exists()]
    if existing and not (settings.resume or settings.overwrite):
        raise OutputError(
            f"{output} holds a run already ({', '.join(existing)}).",
            advice="--resume goes on with it, --overwrite deletes it. Nothing was written.",
        )
    if settings.resume and not (output / RUN).is_file():
        raise OutputError(
            f"There is no run in {output} to resume: {RUN} is missing.",
            advice="Start without --resume.",
        )


def clear_output(output: Path) -> None:
    """Delete the files of an earlier run, and no others."""
    for name in WRITTEN:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def read_earlier_run(output: Path) -> dict[str, Any]:
    """Return run.json of the run in a folder.

    Raises:
        OutputError: the file is damaged.
    """
    path = output / RUN
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OutputError(
            f"{path} is damaged: {error}.", advice="Start anew, with --overwrite."
        ) from error


def load_state(output: Path, settings: TrainSpec, facts: RunFacts) -> CheckpointState:
    """Return the state of the newest checkpoint, if this run would continue the same training.

    Args:
        output: folder of the interrupted run.
        settings: settings of the run that resumes.
        facts: facts of the run that resumes.

    Raises:
        OutputError: no or a damaged checkpoint, or settings that would give other weights; each is
            named.
    """
    earlier = read_earlier_run(output)
    earlier["spec"] = use_present_names(earlier["spec"])
    faults = [*settings.differences(earlier["settings"]), *_other_facts(earlier, facts)]
    if faults:
        raise OutputError(
            f"The run in {output} was started with other settings; resuming it would mix two runs.",
            faults,
            "Give the settings it was started with, or start anew in another folder.",
        )
    return checkpoints.load(checkpoints.newest(output))


def _other_facts(earlier: dict[str, Any], facts: RunFacts) -> Iterator[str]:
    """Yield how the spec, the data and the base differ from those of an earlier run."""
    for key, value in facts["spec"].items():
        before = earlier["spec"].get(key)
        if value != before:
            yield f"{key}: was {before!r}, now {value!r}"
    hashes = {
        "the data": (earlier["data_hash"], facts["data_hash"]),
        "the base's weights": (earlier["base_fingerprint"], facts["base_fingerprint"]),
    }
    for what, (before, now) in hashes.items():
        if before != now:
            yield f"{what}: was {before}, now {now}"
