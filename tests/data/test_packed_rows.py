"""Rows of a large source are kept in a file, and are the same rows."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from lorakit.data import collect, content, packed_rows
from lorakit.data.packed_rows import PackedRows
from lorakit.data.rows import Rows, read_rows

TURNS = [{"role": "user", "content": '}, {"x": 1'}, {"role": "assistant", "content": "é"}]
RECORDS: dict[str, dict[str, Any]] = {
    "text": {"text": 'a "}, {" b\\'},
    "completion": {"prompt": "", "completion": '}, {"'},
    "two keys in another order": {"completion": "b 😀\u2028", "prompt": "a"},
    "an end like that of a row": {"text": "a }, {"},
    "half a surrogate pair": {"text": "\ud800"},
    "a number as label": {"text": "a", "label": 0.1},
    "turns as a prompt": {"prompt": [*TURNS, TURNS[0]]},
    "messages": {"messages": TURNS, "tools": []},
}


@pytest.mark.parametrize("case", RECORDS)
def test_packed_rows_are_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.jsonl"
    record = RECORDS[case]
    others = [{**record, next(iter(record)): f"{i % 7}"} for i in range(20)]
    if "messages" in record:
        others = [record] * 20
    path.write_text("".join(json.dumps(row) + "\n" for row in (record, *others)))
    plain = read_rows(str(path))
    monkeypatch.setattr(collect, "MANY", 4)
    monkeypatch.setattr(content, "CHUNK", 3 * len(path.read_bytes()) // 21)
    monkeypatch.setattr(packed_rows, "BLOCK", 3)
    packed = read_rows(str(path))
    assert isinstance(packed.rows, PackedRows)
    chosen = [0, 1, 2, 9, 19, 20]
    for one, other in [(plain, packed), (plain.take(chosen), packed.take(chosen))]:
        assert _facts(one) == _facts(other)
    assert list(packed.take(chosen).take([5, 1]).rows) == [plain.rows[20], plain.rows[1]]


def _facts(rows: Rows) -> tuple[object, ...]:
    each = [rows.rows[i] for i in range(len(rows))]
    assert each == list(rows.rows)
    return (each, list(rows.where), rows.repeated, rows.content_hash(), len(rows), rows.rows[-1])


@pytest.mark.slow
def test_memory_grows_by_little_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "MANY", 2000)
    peaks = []
    for count in (30_000, 60_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f'{{"text": "{i} {"word " * 30}"}}\n' for i in range(count)))
        tracemalloc.start()
        trained = read_rows(str(path)).take(range(1000, count))
        trained.content_hash()
        assert trained.repeated == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A row has 174 bytes in the file, and about 400 as an object.
    assert peaks[1] - peaks[0] < 80 * 30_000
