"""Rows are read as the file means them, or refused by file and line."""

import json
import struct
from pathlib import Path

import pytest

from lorakit.data.documents import cut_passages
from lorakit.data.rows import read_rows
from lorakit.errors import DataError


def jsonl(path: Path, *rows: object) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "a"}, "text"),
        ({"prompt": "a", "completion": "b"}, "completion"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "messages",
        ),
        ({"text": "a", "label": 1}, "labelled"),
        ({"text_a": "a", "text_b": "b", "label": "yes"}, "pair"),
    ],
)
def test_rows_are_known_by_their_keys(row: dict, kind: str, tmp_path: Path) -> None:
    rows = read_rows(jsonl(tmp_path / "d.jsonl", row, row))
    assert (rows.kind, rows.rows, rows.repeated) == (kind, [row, row], 1)
    assert rows.where == [f"{tmp_path}/d.jsonl:1", f"{tmp_path}/d.jsonl:2"]


@pytest.mark.slow
def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"text": 'he said "no", twice', "label": "1"},
        {"text": "line\u2028separator, é", "label": "0"},
    ]
    jsonl(tmp_path / "d.jsonl", *rows)
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "d.csv").write_text(
        'text,label\n"he said ""no"", twice",1\n"line\u2028separator, é",0\n'
    )
    (tmp_path / "d.tsv").write_text(
        'text\tlabel\nhe said "no", twice\t1\nline\u2028separator, é\t0\n'
    )
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "d.parquet")
    with (
        pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    for name in ("d.jsonl", "d.json", "d.csv", "d.tsv", "d.parquet", "d.arrow"):
        assert read_rows(str(tmp_path / name)).rows == rows, name


def test_a_field_may_hold_a_line_break_in_a_csv(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('prompt,completion\n"one\ntwo",three\nfour,five\n')
    rows = read_rows(str(tmp_path / "d.csv"))
    assert rows.rows == [
        {"prompt": "one\ntwo", "completion": "three"},
        {"prompt": "four", "completion": "five"},
    ]
    assert rows.where[1].endswith("d.csv:4")


def test_columns_are_named_by_name_or_number(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("x\tgood\t5.0\ny\tbad\t1.5\n")
    rows = read_rows(str(tmp_path / "d.tsv"), columns=["text=1", "label=2"])
    assert rows.rows == [{"text": "good", "label": "5.0"}, {"text": "bad", "label": "1.5"}]
    source = jsonl(tmp_path / "d.jsonl", {"mr": "a", "ref": "b"})
    assert read_rows(source, columns=["prompt=mr", "completion=ref"]).kind == "completion"


def test_quotation_marks_of_a_tsv_are_text_by_default(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('text\tlabel\n"open quote\t1\n"wrapped"\t0\n')
    assert [r["text"] for r in read_rows(str(tmp_path / "d.tsv")).rows] == [
        '"open quote',
        '"wrapped"',
    ]
    with pytest.raises(DataError, match="see --quotes and --no-quotes"):
        read_rows(str(tmp_path / "d.tsv"), quotes=True)


def test_every_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "d.jsonl",
        {"text": "a", "label": 1},
        "{broken",
        {"text": "", "label": 1},
        {"text": "b"},
        {"text": 5, "label": None},
        "[1]",
        {"text": "c", "label": [1]},
    )
    with pytest.raises(DataError) as caught:
        read_rows(source)
    faults = "\n".join(caught.value.faults)
    assert f"{source}:2   is not JSON: Expecting property name" in faults
    assert f"{source}:3   'text' is empty" in faults
    assert f"{source}:4   'label' is missing" in faults
    assert f"{source}:5   'text' is a int, text is needed" in faults
    assert f"{source}:5   'label' is missing" in faults
    assert f"{source}:6   is not an object with named values" in faults
    assert f"{source}:7   'label' is [1], a word or a number is needed" in faults
    assert caught.value.message == f"7 faults in 7 rows of {source} (rows with text, label)."


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "'messages' is not a list of turns"),
        ("hello", "'messages' is not a list of turns"),
        ([{"role": "user"}], "turn 1 of 'messages' has no 'role' and 'content' as text"),
        ([{"role": "user", "content": "hi"}], "'messages' has no assistant turn to learn from"),
    ],
)
def test_bad_messages_are_named(messages: object, fault: str, tmp_path: Path) -> None:
    good = {"messages": [{"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError) as caught:
        read_rows(jsonl(tmp_path / "d.jsonl", good, {"messages": messages}))
    assert caught.value.faults == [f"{tmp_path}/d.jsonl:2   {fault}"]


def test_a_ragged_table_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,label\na,1\nb\nc,1,2\n")
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / "d.csv"))
    assert caught.value.faults == [
        f"{tmp_path}/d.csv:3   has 1 field, the header has 2",
        f"{tmp_path}/d.csv:4   has 3 fields, the header has 2",
    ]


def test_empty_and_missing_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "data.docx").write_text("x")
    (tmp_path / "broken.txt").write_bytes("café, é".encode()[:-1])
    (tmp_path / "dict.json").write_text("{}")
    cases = {
        "empty.jsonl": "holds no rows",
        "dta.jsonl": "There is no file",
        "data.docx": "The format of .* is not supported: its name has the ending",
        "broken.txt": "is not UTF-8: byte 7",
        "dict.json": "a list of rows is needed",
    }
    for name, text in cases.items():
        with pytest.raises(DataError, match=text):
            read_rows(str(tmp_path / name))
    with pytest.raises(DataError, match=r"Did you mean 'data\.jsonl'"):
        read_rows(str(tmp_path / "dta.jsonl"))
    with pytest.raises(DataError, match="Builtin data: builtin:stdlib-docs"):
        read_rows("builtin:nope")


def test_unknown_keys_and_columns_are_named_with_the_known_ones(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "d.jsonl", {"review": "a book", "stars": "b"})
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert "its first row has 'review': a book" in caught.value.faults
    assert "--columns text=review label=stars" in caught.value.advice
    with pytest.raises(DataError, match=r"No such column in .*: prompt=mr"):
        read_rows(source, columns=["prompt=mr", "completion=stars"])
    with pytest.raises(DataError) as caught:
        read_rows(source, columns=["promt=review"])
    assert caught.value.faults == ["promt=review; did you mean 'prompt'?"]


def test_passages_lose_nothing(tmp_path: Path) -> None:
    text = (
        "\n\n".join(f"Paragraph {i}. " + "word " * 120 for i in range(40)) + "\n" + "long " * 3000
    )
    parts = list(cut_passages(text.split("\n")))
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert all(len(part) <= 8000 for part in parts)
    assert len(parts) > 10


def test_an_ending_in_capitals_and_odd_line_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "D.CSV").write_bytes(
        "\ufefftext,label\r\nthe cat,1\r\nform\x0cfeed \u2028 here,0\r\n".encode()
    )
    rows = read_rows(str(tmp_path / "D.CSV"))
    assert rows.rows == [
        {"text": "the cat", "label": "1"},
        {"text": "form\x0cfeed \u2028 here", "label": "0"},
    ]


@pytest.mark.slow
def test_a_table_whose_texts_lie_outside_of_the_file_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.table({"text": ["abc", "def"]})
    path = tmp_path / "d.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = path.read_bytes()
    offsets, damaged = struct.pack("<3i", 0, 3, 6), struct.pack("<3i", 0, 3, 1 << 30)
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, damaged))
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert str(caught.value).startswith(f"{path} cannot be read as a table: ")


@pytest.mark.slow
def test_a_table_with_texts_that_are_not_utf8_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    table = pa.table({"text": texts})
    path = tmp_path / "d.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_rows(str(path))
