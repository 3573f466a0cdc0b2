"""The page of families has a row for each of them, with the result that the tests expect."""

from ..train.families import FAMILIES
from .blocks import ROOT


def test_the_page_has_a_row_for_each_family() -> None:
    page = (ROOT / "docs" / "families.md").read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    names = [row[0] for row in rows[2:]]
    assert names == list(FAMILIES), "then: python docs/book/families.py"
    for name, kind, result, *more in rows[2:]:
        family = FAMILIES[name]
        assert kind.strip("`").startswith(family.kind.removesuffix("Model"))
        assert result.startswith("refused: " if family.refused else "trained, ")
        assert family.refused in result
        assert all(f"`{module}`" in more[1] for module in family.left_out)
