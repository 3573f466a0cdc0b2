"""Records that are checked many at once give what each gives alone: the same rows and faults."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorakit.data import collect, content, documents, records
from lorakit.data.collect import Collector
from lorakit.data.records import Block, gather
from lorakit.data.rows import Rows, read_rows
from lorakit.errors import DataError

TEXTS = ['"a"', '"é\\n"', '"\\ud83d\\ude00"', '"}, {"', '"},\\n{\\""', '"\\\\"']
ODD = ['""', '" "', "null", "1", "[]", '"\\ud800"', "{}", "true"]
LABELS = ["0", "1", "true", "1.0", '"yes"', "1e2", '" x"']
ODD_LABELS = ["NaN", "Infinity", '""', "null", "[1]", "1e999", "9" * 30, "-0.0"]
# Lines that are no record, or more than one, or that only together are one.
ODD_LINES = [
    "",
    "  ",
    "null",
    "[1]",
    "3",
    '{"text": "a"',
    '{"text": "a"}, {"text": "b"}',
    '{"text": "a"} {"text": "b"}',
    '{"text": [{"x": 1}',
    '{"y": 2}]}',
    '{"text": "a\tb"}',
    '{"text": "a", "text": "b"}',
    '  {"text": "b"}  ',
    "[" * 2000,
    '{"text": ' + "7" * 5000 + "}",
]
KEYS = {
    "text": ["text"],
    "labelled": ["text", "label"],
    "completion": ["prompt", "completion"],
    "pair": ["text_a", "text_b", "label"],
    "prompt": ["prompt"],
}


def write_lines(draw: random.Random, keys: list[str]) -> Iterator[str]:
    """Yield lines of records, some of which have odd values, names or forms."""
    oddness = draw.choice([0, 0, 0.02, 0.3])
    names = [*keys, *draw.sample(["id", "note", "weight"], draw.choice([0, 0, 1, 2]))]
    for _ in range(draw.randrange(1, 30)):
        if draw.random() < oddness / 2:
            yield draw.choice(ODD_LINES)
            continue
        own = draw.sample(names, len(names)) if draw.random() < oddness else names
        own = own[1:] if draw.random() < oddness / 4 else own
        pairs = (f'"{name}": {write_value(draw, name, oddness)}' for name in own)
        yield f"{{{', '.join(pairs)}}}"


def write_value(draw: random.Random, name: str, oddness: float) -> str:
    is_odd = draw.random() < oddness
    if name == "label":
        return draw.choice(ODD_LABELS if is_odd else LABELS)
    return draw.choice(ODD if is_odd else TEXTS)


def outcome(path: Path, columns: tuple[str, ...]) -> object:
    """Return all that is read of a file, or why it is refused."""
    try:
        rows = read_rows(str(path), columns=columns)
    except DataError as error:
        return str(error), error.faults, error.advice
    values = repr([sorted(row.items()) for row in rows.rows])
    return values, list(rows.where), facts(rows)


def facts(rows: Rows) -> tuple[object, ...]:
    return rows.describe(), rows.repeated, rows.content_hash(), rows.layout


def refuse_block(self: Collector, block: Block) -> None:
    """Take no block as a whole."""


def refuse_lines(lines: list[str]) -> None:
    """Parse no lines together."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEYS)
def test_blocks_give_what_records_give(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.jsonl"
    draw = random.Random(kind)
    kinds = {"whole": 0, "refused": 0}
    for number in range(60):
        path.write_text("\n".join(write_lines(draw, KEYS[kind])) + draw.choice(["", "\n"]))
        columns = draw.choice([(), (), (f"{KEYS[kind][0]}={KEYS[kind][0]}",)])
        with monkeypatch.context() as patch:
            patch.setattr(content, "CHUNK", draw.choice([40, 300, 1 << 20]))
            together = outcome(path, columns)
            patch.setattr(collect, "MANY", draw.choice([0, 5]))
            packed = outcome(path, columns)
        with monkeypatch.context() as patch:
            patch.setattr(Collector, "_convert_whole", refuse_block)
            patch.setattr(documents, "_parse_together", refuse_lines)
            alone = outcome(path, columns)
        assert together == alone, f"case {number}"
        assert packed == alone, f"case {number} in a file"
        kinds["whole" if isinstance(together, tuple) and len(together[1]) else "refused"] += 1
    assert kinds["whole"] > 10


@pytest.mark.parametrize("lines", [ODD_LINES[6:10], ['{"text": [1', "2]}", *ODD_LINES[6:7]]])
def test_lines_that_are_objects_only_together_are_refused(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(['{"text": "a"}', *lines]))
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert [fault.split()[0] for fault in caught.value.faults] == [
        f"{path}:{number}" for number, _ in enumerate(lines, 2)
    ]


def test_extra_columns_are_named_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    records = [{"id": i, "sentence1": f"a{i}", "label": i % 2, "sentence2": "b"} for i in range(9)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = read_rows(str(path))
    assert rows.rows[3] == {"text_a": "a3", "text_b": "b", "label": 1}
    assert "columns not used: id" in rows.describe()


def test_a_limit_reads_few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK", 8)
    made: list[int] = []

    def make() -> Iterator[records.Found]:
        for number in range(100):
            made.append(number)
            yield records.Found(number, {"text": "a"})

    sizes = [len(block.values) for block in gather("d.csv:", make())]
    assert sizes[:5] == [1, 2, 4, 8, 8]
    assert sum(sizes) == len(made) == 100
