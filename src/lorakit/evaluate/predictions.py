"""Predictions of rows, written to a file: JSON Lines, or the form that GLUE's server takes."""

from collections.abc import Sequence
from pathlib import Path

from lorakit.errors import NOT_STARTED, DataError
from lorakit.files import write_json_lines, write_text
from lorakit.tasks.base import Prediction
from lorakit.tasks.find import find_task

GLUE_TASKS = ("classify", "regress")


def check_form(form: str, task: str) -> None:
    """Refuse a form that cannot hold the predictions of a task.

    Raises:
        DataError: GLUE's form holds one value a row.
    """
    if form == "glue" and task not in GLUE_TASKS:
        raise DataError(
            f"--format glue holds a class or a value for each row, and the task is {task}.",
            advice=f"Leave --format out: the predictions are JSON Lines then. {NOT_STARTED}",
        )


def write_predictions(
    path: Path, form: str, task: str, predictions: Sequence[Prediction], labels: Sequence[str]
) -> None:
    """Write a prediction for each row, in the order of the rows.

    Args:
        path: a new file.
        form: jsonl or glue. GLUE's has the columns `index`, from 0, and `prediction`.
        task: its name.
        predictions: of each row.
        labels: names of the classes; empty for a regression.
    """
    if form == "glue":
        named = (_glue_value(prediction, labels) for prediction in predictions)
        lines = [f"{index}\t{value}" for index, value in enumerate(named)]
        write_text(path, "\n".join(["index\tprediction", *lines, ""]))
        return
    describe = find_task(task).describe
    write_json_lines(path, [dict(describe(prediction, labels)) for prediction in predictions])


def _glue_value(prediction: Prediction, labels: Sequence[str]) -> str:
    """Return the name of a class, or a similarity as the server takes it: from 0 to 5."""
    value, _ = prediction
    return labels[int(value)] if labels else f"{min(max(value, 0.0), 5.0):.3f}"
