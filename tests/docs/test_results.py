"""Every figure on the pages is that of benchmarks/results: they are written from there, and not by
hand.
"""

import shutil
import sys
from pathlib import Path

import pytest

from .blocks import ROOT


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import report

    yield report
    for name in ("report", "claims"):  # their names are too plain to stay
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_pages_show_what_the_results_hold(
    report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        shutil.copy(page, tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "results.md")
    report.write()
    stale = [
        page.name
        for page in tmp_path.glob("*.md")
        if page.read_text("utf-8") != (ROOT / "docs" / page.name).read_text("utf-8")
    ]
    assert stale == [], "run `python benchmarks/report.py`"


@pytest.mark.slow
def test_a_claim_whose_benchmark_was_not_run_is_unproven(report) -> None:
    from claims import CLAIMS, UNPROVEN, answer

    assert {answer(claim, {})[0] for claims in CLAIMS.values() for claim in claims} == {UNPROVEN}
