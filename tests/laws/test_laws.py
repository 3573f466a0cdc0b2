"""Every law on every row of the table."""

from collections.abc import Callable
from pathlib import Path

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


MARKED = [row if is_quick(row) else pytest.param(row, marks=pytest.mark.slow) for row in ROWS]
MARKED_LAWS = [
    pytest.param(law, marks=pytest.mark.slow) if law is biases_train_and_merge else law
    for law in LAWS
]
PLAIN = [
    row for row in EXACT if row.delta in ("lowrank", "dora") and row.kind in ("linear", "embedding")
]


@pytest.mark.parametrize("row", MARKED, ids=str)
@pytest.mark.parametrize("law", MARKED_LAWS, ids=lambda law: law.__name__)
def test_law(law: Callable[[Row, Path], None], row: Row, tmp_path: Path) -> None:
    law(row, tmp_path)


@pytest.mark.parametrize(
    "row",
    [row if row in PLAIN else pytest.param(row, marks=pytest.mark.slow) for row in EXACT],
    ids=str,
)
def test_gradient_is_that_of_the_formula(row: Row, tmp_path: Path) -> None:
    law = (
        gradient_takes_the_norm_as_constant if row.delta == "dora" else gradient_equals_differences
    )
    law(row, tmp_path)
