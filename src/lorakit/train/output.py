"""The output folder of a run: its files, checks before a run, and the state to resume from."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorakit.data.templates import TEMPLATE_FILE
from lorakit.errors import OutputError
from lorakit.files import check_can_be_made, hold_folder
from lorakit.formats.peft.spec_header import use_present_names
from lorakit.models.own_tokenizer import COPIED, list_tokenizer_files
from lorakit.text import plural
from lorakit.train import checkpoints
from lorakit.train.card import is_model_card
from lorakit.train.checkpoints import CheckpointState
from lorakit.train.config import TrainSpec
from lorakit.train.log import METRICS
from lorakit.train.report import RunFacts
from lorakit.train.trackers import IDENTITY, check_trackers

RUN, REPORT, CARD = "run.json", "report.json", "README.md"
WRITTEN = (
    RUN,
    REPORT,
    CARD,
    METRICS,
    "adapter_config.json",
    "adapter_model.safetensors",
    TEMPLATE_FILE,
    IDENTITY,
    checkpoints.FOLDER,
)


def check_output(output: Path, settings: TrainSpec) -> None:
    """Check that a run may write to a folder, or continue the run in it; nothing is created.

    Raises:
        OutputError: as `check_can_be_made`, `hold_output` and `check_content` say.
        MissingExtra: the package of a tracker is not installed.
    """
    check_trackers(settings.log_to)
    check_can_be_made(output)
    if output.is_dir():
        with hold_output(output):
            check_content(output, settings)
    else:
        check_content(output, settings)


@contextmanager
def hold_output(output: Path) -> Iterator[None]:
    """Create the folder of a run, and keep other runs out of it during the block.

    The lock is on the folder itself, so that it leaves no file and ends with the process. A file
    system without locks lets several runs in.

    Raises:
        OutputError: another run works in the folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    with hold_folder(output) as is_free:
        if not is_free:
            raise OutputError(
                f"Another run is writing to {output} at the moment.",
                advice="Wait until it has ended, or name another folder. Nothing was written.",
            )
        yield


def check_content(output: Path, settings: TrainSpec) -> None:
    """Check that the content of a folder leaves room for a run, or is the run to continue.

    Raises:
        OutputError: a file instead of a folder, a folder with another run or with files of other
            origin that the run would replace, or no run to resume.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(
            f"{output} is a file; --output needs a folder.", advice="Nothing was written."
        )
    if settings.resume:
        if not (output / RUN).is_file():
            raise OutputError(
                f"There is no run in {output} to resume: {RUN} is missing.",
                advice="Start without --resume.",
            )
        return
    copied = list_tokenizer_files(settings.adapter) if settings.adapter else []
    foreign = _foreign_names(output, copied)
    if foreign:
        raise OutputError(
            f"{output} holds files that a run would replace, and no run of lorakit wrote them: "
            f"{', '.join(foreign)}.",
            advice="Move them, or name another folder. Nothing was written.",
        )
    existing = [name for name in WRITTEN if (output / name).exists()]
    if existing and not settings.overwrite:
        raise OutputError(
            f"{output} holds a run already ({', '.join(existing)}).",
            advice="--resume goes on with it, --overwrite deletes it. Nothing was written.",
        )


def _foreign_names(output: Path, copied: Iterable[str]) -> list[str]:
    """Return the names of a run's files in a folder that no run has written.

    Args:
        output: the folder.
        copied: names of the files that the run copies from the adapter that it goes on from.
    """
    existing = [name for name in (*WRITTEN, *copied) if os.path.lexists(output / name)]
    if not is_run(output / RUN):
        return list(dict.fromkeys(existing))
    card, folder = output / CARD, output / checkpoints.FOLDER
    known = (*WRITTEN, *_copied_names(read_earlier_run(output)))
    foreign = [name for name in existing if name not in known]
    if card.exists() and not (card.is_file() and is_model_card(card.read_bytes())):
        foreign.append(CARD)
    if os.path.lexists(folder):
        foreign += [f"{checkpoints.FOLDER}/{name}" for name in checkpoints.foreign_names(folder)]
    return foreign


def _copied_names(run: Mapping[str, Any]) -> list[str]:
    """Return the names of the files that a run has copied from the adapter that it went on from."""
    origin = run.get("started_from")
    return [name for name in origin["files"] if name in COPIED] if origin else []


def is_run(path: Path) -> bool:
    """Return True if a run.json was written by a run of lorakit."""
    if not path.is_file():
        return False  # a pipe would never end
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    versions = content.get("versions") if isinstance(content, dict) else None
    return isinstance(versions, dict) and "lorakit" in versions


def clear_output(output: Path) -> None:
    """Delete the files of an earlier run, and no others.

    `run.json`, by which a run is known, is the last one: if this is interrupted, the next
    --overwrite deletes the rest.
    """
    if (output / checkpoints.FOLDER).is_dir():
        checkpoints.remove_all(output)
    copied = _copied_names(read_earlier_run(output)) if is_run(output / RUN) else []
    for name in (*copied, *WRITTEN[1:], RUN):
        path = output / name
        if not path.is_dir():
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
            f"{path} is damaged: {error}.", advice="Start anew, in another folder."
        ) from error


def load_state(output: Path, settings: TrainSpec, facts: RunFacts, steps: int) -> CheckpointState:
    """Return the state of the newest checkpoint, if this run would continue the same training.

    Args:
        output: folder of the interrupted run.
        settings: settings of the run that resumes.
        facts: facts of the run that resumes.
        steps: steps of the whole run that resumes.

    Raises:
        OutputError: no or a damaged checkpoint, fewer steps than are done, or settings that would
            give other weights; each is named.
    """
    earlier = read_earlier_run(output)
    earlier["spec"] = use_present_names(earlier["spec"])
    if "mixed_precision" not in earlier and earlier["settings"]["mixed_precision"] == "no":
        del earlier["settings"]["mixed_precision"]  # It was the default of earlier versions.
    faults = [*settings.differences(earlier["settings"]), *_other_facts(earlier, facts)]
    if faults:
        raise OutputError(
            f"The run in {output} was started with other settings; resuming it would mix two runs.",
            faults,
            "Give the settings it was started with, or start anew in another folder.",
        )
    state = checkpoints.load(checkpoints.newest(output))
    if steps < state["step"]:
        raise OutputError(
            f"The run in {output} has taken {plural(state['step'], 'step')} already, and "
            f"{plural(steps, 'step')} are asked for.",
            advice="Give as many --steps (or --epochs) or more; its checkpoints hold the weights "
            "of earlier steps. Nothing was written.",
        )
    return state


def _hash_of(origin: Mapping[str, Any] | None) -> str:
    return origin["content_hash"] if origin else "none"


def _other_facts(earlier: dict[str, Any], facts: RunFacts) -> Iterator[str]:
    """Yield how the spec, the data and the base differ from those of an earlier run."""
    for key, value in facts["spec"].items():
        before = earlier["spec"].get(key)
        if value != before:
            yield f"{key}: was {before!r}, now {value!r}"
    before_start, now_start = earlier.get("started_from"), facts["started_from"]
    hashes = {
        "the data": (earlier["data_hash"], facts["data_hash"]),
        "the base's weights": (earlier["base_fingerprint"], facts["base_fingerprint"]),
        "the adapter to go on from": (_hash_of(before_start), _hash_of(now_start)),
    }
    for what, (before, now) in hashes.items():
        if before != now:
            yield f"{what}: was {before}, now {now}"
