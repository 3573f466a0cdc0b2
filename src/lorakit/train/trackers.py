"""Trackers: the metrics of a run in TensorBoard, trackio, Weights & Biases or MLflow."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from lorakit.errors import NOT_STARTED, MissingExtra, TrainingError, install_line
from lorakit.files import write_json
from lorakit.text import first_line, plural, print_message

IDENTITY = "trackers.json"  # names of the run, by which it is resumed
PROJECT = "lorakit"
Values = dict[str, Any]


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed, before anything is loaded.

    Raises:
        MissingExtra: all of them are named.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        count = plural(len(missing), "package")
        raise MissingExtra(
            f"log_to: {count} not installed: {', '.join(missing)}.",
            advice=f"{install_line(','.join(missing))}\n{NOT_STARTED}",
        )


class Trackers:
    """The open trackers of a run.

    Args:
        names: names of trackers, as accelerate has them.
        output: folder of the run; TensorBoard writes there.
        config: settings of the run.
        step: the step that the run continues from.
    """

    def __init__(self, names: Sequence[str], output: Path, config: Mapping[str, object], step: int):
        self.open: dict[str, Any] = {}
        identity = _read_identity(output / IDENTITY) if step else {}
        identity.setdefault("name", f"{output.absolute().name}-{uuid4().hex[:8]}")
        for name in names:
            tracker = _start(name, _choose_options(name, output, identity, step))
            self.open[name] = tracker
            if not step:
                tracker.store_init_configuration(_flatten(config))
            if name == "mlflow":
                identity["mlflow"] = tracker.tracker.info.run_id
        if names:
            write_json(output / IDENTITY, identity)

    def log(self, line: Mapping[str, float]) -> None:
        """Log the numbers of a step. A tracker that fails is closed, and the run goes on."""
        numbers = {
            name: value
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        for name, tracker in [*self.open.items()]:
            try:
                tracker.log(numbers, step=int(line["step"]))
            # Of the network, of a disk, or of the tracker's own code.
            except Exception as error:
                del self.open[name]
                print_message(f"note: no more is logged to {name}: {first_line(error)}")

    def close(self) -> None:
        """Finish all trackers."""
        with redirect_stdout(sys.stderr):
            for name, tracker in self.open.items():
                _finish(name, tracker)


def _start(name: str, options: Values) -> Any:  # noqa: ANN401  each class has its own members
    """Start a tracker.

    Raises:
        TrainingError: it refuses to, for instance because nobody is logged in.
    """
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](**options)
        # They greet on stdout, which is for the result.
        with redirect_stdout(sys.stderr):
            tracker.start()
    except Exception as error:  # each library has its own
        raise TrainingError(
            f"{name} cannot be started: {first_line(error)}",
            advice="Leave it out of --log-to, or set it up first. No step was taken.",
        ) from error
    return tracker


def _finish(name: str, tracker: Any) -> None:  # noqa: ANN401  each class has its own members
    if name == "trackio":
        # accelerate leaves the run open, and trackio closes it once more, aloud, at the end.
        import_module("trackio").finish()
    else:
        tracker.finish()


def _read_identity(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # The run was not tracked before.


def _choose_options(name: str, output: Path, identity: Mapping[str, str], step: int) -> Values:
    """Return the arguments of a tracker, so that a resumed run goes on in the same place."""
    run = identity["name"]
    if name == "tensorboard":
        # Steps after the checkpoint, of a run that was killed, are dropped.
        options = {"purge_step": step + 1} if step else {}
        return {"run_name": run, "logging_dir": output / "tensorboard", **options}
    if name == "wandb":
        place = {"dir": str(output), "id": run}
        return {"run_name": PROJECT, "name": run, "resume": "allow", **place}
    if name == "trackio":
        return {"run_name": PROJECT, "name": run, "resume": "allow"}
    return {"experiment_name": PROJECT, "run_name": run, "run_id": identity.get("mlflow")}


def _flatten(config: Mapping[str, object]) -> Values:
    """Return settings as trackers take them: numbers and texts.

    >>> _flatten({"rank": 8, "targets": ["q_proj"], "template": None})
    {'rank': 8, 'targets': '["q_proj"]', 'template': 'null'}
    """
    flat: Values = {}
    for name, value in config.items():
        is_plain = isinstance(value, bool | int | float | str)
        flat[name] = value if is_plain else json.dumps(value)
    return flat
