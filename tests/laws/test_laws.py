"""Every law on every row of the table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .law import LAWS, gradient_equals_differences, gradient_takes_the_norm_as_constant
from .table import EXACT, ROWS, Row

pytestmark = pytest.mark.usefixtures("added_sites")


# One dtype that is exact and one that is coarse are enough while one works; plain low rank keeps all four.
MARKED = [
    pytest.param(row, marks=pytest.mark.slow if row.delta != "lowrank" and row.precision in ("float32", "float16") else ())
    for row in ROWS
]


@pytest.mark.parametrize("row", MARKED, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law: Callable[[Row, Path], None], row: Row, tmp_path: Path) -> None:
    law(row, tmp_path)


@pytest.mark.parametrize("row", EXACT, ids=str)
def test_gradient_is_that_of_the_formula(row: Row, tmp_path: Path) -> None:
    law = gradient_takes_the_norm_as_constant if row.delta == "dora" else gradient_equals_differences
    law(row, tmp_path)
