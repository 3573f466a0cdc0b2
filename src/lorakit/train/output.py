"""The folder of a run: checked before, cleared, and the state that a resumed run goes on from."""

import json
import shutil
from pathlib import Path
from typing import Any

from lorakit.errors import OutputError
from lorakit.formats.peft.spec_header import use_present_names
from lorakit.train import checkpoints
from lorakit.train.config import TrainSpec
from lorakit.train.log import METRICS

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
    if output.exists() and not output.is_dir():
        raise OutputError(
            f"{output} is a file; --output needs a folder.", advice="Nothing was written."
        )
    there = [name for name in WRITTEN if (output / name).exists()]
    if there and not (settings.resume or settings.overwrite):
        raise OutputError(
            f"{output} holds a run already ({', '.join(there)}).",
            advice="--resume goes on with it, --overwrite deletes it. Nothing was written.",
        )
    if settings.resume and not (output / RUN).is_file():
        raise OutputError(
            f"There is no run in {output} to resume: {RUN} is missing.",
            advice="Start without --resume.",
        )


def clear_output(output: Path) -> None:
    for name in WRITTEN:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def earlier_state(output: Path, settings: TrainSpec, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the state to resume from, or refuse what would give other weights than the run that
    was interrupted.
    """
    try:
        earlier = json.loads((output / RUN).read_text())
    except ValueError as error:
        raise OutputError(
            f"{output / RUN} is damaged: {error}.", advice="Start anew, with --overwrite."
        ) from error
    earlier["spec"] = use_present_names(earlier["spec"])
    faults = settings.differences(earlier["settings"])
    faults += [
        f"{key}: was {earlier['spec'].get(key)!r}, now {value!r}"
        for key, value in facts["spec"].items()
        if value != earlier["spec"].get(key)
    ]
    for key, what in (("data_hash", "the data"), ("base_fingerprint", "the base's weights")):
        faults += (
            [f"{what}: was {earlier[key]}, now {facts[key]}"] if earlier[key] != facts[key] else []
        )
    if faults:
        raise OutputError(
            f"The run in {output} was started otherwise; going on would mix two runs.",
            faults,
            "Give the settings it was started with, or start anew in another folder.",
        )
    return checkpoints.load(checkpoints.newest(output))
