"""Every law on every row of the table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from .law import (
    LAWS,
    biases_train_and_merge,
    gradient_equals_differences,
    gradient_takes_the_norm_as_constant,
)
from .table import EXACT, ROWS, Row

pytestmark = pytest.mark.usefixtures("added_sites")


# While one works, a few rows of each delta are enough, in the dtype that is exact; plain low rank
# keeps all kinds of layers, and all dtypes for a linear layer.
FEW = ("linear", "convolution2d-circular")


def is_quick(row: Row) -> bool:
    """Return True if a row belongs to `make unit`."""
    if row.precision != "float64":
        return row.delta == "lowrank" and row.kind == "linear"
    return row.delta == "lowrank" or row.kind in FEW


MARKED_LAWS = [
    pytest.param(law, marks=pytest.mark.slow) if law is biases_train_and_merge else law
    for law in LAWS
]


def marked(rows: Sequence[Row], quick: Callable[[Row], bool]) -> list[Any]:
    """Return the rows, of which those that are not quick are marked slow."""
    return [row if quick(row) else pytest.param(row, marks=pytest.mark.slow) for row in rows]


def is_plain(row: Row) -> bool:
    """Return True if `make unit` compares the gradient of a row with the formula."""
    return row.delta in ("lowrank", "dora") and row.kind in ("linear", "embedding")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test its rows; thousands that `make unit` would throw away are not even made."""
    of_formula = metafunc.function is test_gradient_is_that_of_the_formula
    rows, quick = (EXACT, is_plain) if of_formula else (ROWS, is_quick)
    if "not slow" in metafunc.config.option.markexpr:
        rows = [row for row in rows if quick(row)]
    metafunc.parametrize("row", marked(rows, quick), ids=str)


@pytest.mark.parametrize("law", MARKED_LAWS, ids=lambda law: law.__name__)
def test_law(law: Callable[[Row, Path], None], row: Row, tmp_path: Path) -> None:
    law(row, tmp_path)


def test_gradient_is_that_of_the_formula(row: Row, tmp_path: Path) -> None:
    law = (
        gradient_takes_the_norm_as_constant if row.delta == "dora" else gradient_equals_differences
    )
    law(row, tmp_path)
