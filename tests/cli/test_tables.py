"""Tables fit into the terminal: texts are shortened, numbers are not, and no word is broken."""

import pytest

from lorakit.cli.tables import print_table

ROWS = [
    [f"model.layers.{i}.self_attn.q_proj", 1_234_567, "a long remark on this layer"]
    for i in range(3)
]


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_a_table_fits(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(["layer", "values", "remark"], ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert sum("1,234,567" in line for line in lines) == 3
    whole = {"model.layers.0.self_attn.q_proj", "a", "long", "remark", "on", "this", "layer"}
    for word in " ".join(lines).split():
        assert (
            word in whole
            or word.endswith("…")
            or not word.isalpha()
            or word in "layer values remark"
        )


def test_a_table_without_a_terminal_is_not_shortened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(["layer", "values", "remark"], ROWS)
    assert "model.layers.2.self_attn.q_proj   1,234,567   a long remark" in capsys.readouterr().out
