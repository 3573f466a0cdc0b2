"""A picture shows the numbers that it was given, and is refused before any work where it could not
be written.
"""

import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from lorakit import LorakitError, plots
from lorakit.analysis.report import compare_adapters, describe_modules
from lorakit.errors import install_line

from ..analysis.test_spectra import pair


@pytest.mark.slow
def test_the_picture_holds_the_numbers(tmp_path: Path) -> None:
    rows, pairs = describe_modules(pair(0)), compare_adapters(pair(0), pair(100))
    drawn = plots.draw_adapter(rows, pairs, title="one and another")
    panels = [ax for ax in drawn.axes if ax.get_title()]
    assert [ax.get_title().partition(":")[0] for ax in panels] == [
        "size of the change",
        "number of directions",
        "singular values, by the largest of each module",
        "shared subspace phi(i, j); random",
    ]
    for ax, key in ((panels[0], "norm"), (panels[1], "effective_rank")):
        assert ax.get_images()[0].get_array().tolist() == [
            [rows[0][key], rows[1][key]],
            [rows[2][key], rows[3][key]],
        ]
    shown = panels[3].get_images()[0].get_array()
    assert shown[0, 0] == pytest.approx(sum(p["similarity"][0][0] for p in pairs) / 4)
    thin = [line for line in panels[2].get_lines() if line.get_linewidth() < 1]
    assert list(thin[0].get_ydata()) == [
        v / rows[0]["singular_values"][0] for v in rows[0]["singular_values"]
    ]
    path = plots.save_figure(drawn, tmp_path / "picture.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and [p.name for p in tmp_path.iterdir()] == [
        "picture.png"
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("p.pgn", "p.pgn: .pgn is no kind of picture. Did you mean 'png'"),
        ("p", "no ending is no kind of picture"),
        ("no/p.png", "no/p.png is in a folder that does not exist"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LorakitError) as caught:
        plots.check_path(name)
    assert says in str(caught.value) and "Nothing was written." in str(caught.value)


def test_a_missing_matplotlib_is_told_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LorakitError) as caught:
        plots.check_path("p.png")
    expected = f"Pictures need matplotlib, which is not installed.\n{install_line('plot')}"
    assert str(caught.value) == expected
