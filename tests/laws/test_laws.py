"""Every law on every row of the table."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .law import LAWS, gradient_equals_differences
from .table import EXACT, ROWS, Row


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law: Callable[[Row, Path], None], row: Row, tmp_path: Path) -> None:
    law(row, tmp_path)


@pytest.mark.parametrize("row", EXACT, ids=str)
def test_gradient_equals_finite_differences(row: Row, tmp_path: Path) -> None:
    gradient_equals_differences(row, tmp_path)
