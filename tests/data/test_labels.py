"""Labels are classes or values, or the question is put to the user."""

import pytest

from lorakit.data.labels import infer_task
from lorakit.data.rows import Rows
from lorakit.errors import DataError


def labelled(*labels: object) -> Rows:
    rows = [{"text": "a", "label": label} for label in labels]
    return Rows("labelled", rows, [""] * len(rows), "d.jsonl", typed=True)


@pytest.mark.parametrize("kind", [int, str])
def test_a_mark_for_no_label_is_not_taken_for_a_class(kind: type) -> None:
    found = labelled(*(kind(number) for number in (0, 1, 2, -1, -1)))
    with pytest.raises(DataError, match=r"The label -1 of 2 rows of .* beside 0, 1 and 2"):
        infer_task(found)
    with pytest.raises(DataError, match=r"The label -1 of 1 row of .* beside 0, 1 and 2"):
        infer_task(labelled(*(kind(number) for number in (0, 1, 2, -1))))
    assert infer_task(found, "classify") == "classify"


@pytest.mark.parametrize("labels", [(-1, 0, 1), (-2, -1, 0, 1, 2), (-1, 1), ("-1", "x", "0")])
def test_negative_numbers_may_be_classes(labels: tuple[object, ...]) -> None:
    assert infer_task(labelled(*labels)) == "classify"
