"""Of a long file no more is read than is needed, and its form is found by its beginning."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from lorakit.cli.request import DataRequest
from lorakit.data import content
from lorakit.data.rows import read_rows
from lorakit.errors import DataError

# Files whose third record is broken.
BROKEN = {
    "lines": ("d.jsonl", b'{"text": "a"}\n{"text": "b"}\n{"text": \n'),
    "lines in a .json": ("d.json", b'{"text": "a"}\n{"text": "b"}\n{"text": \n'),
    "comma": ("d.csv", b"text,id\na,1\nb,2\nc\n"),
    "tab": ("d.tsv", b'text\tid\na\t1\nb\t2\n"c"\n'),
    "packed": ("d.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}\n{"text": \n')),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_lies_behind_the_limit_is_not_read(case: str, tmp_path: Path) -> None:
    name, written = BROKEN[case]
    (tmp_path / name).write_bytes(written)
    rows = read_rows(str(tmp_path / name), limit=2)
    assert rows.rows == [{"text": "a"}, {"text": "b"}]
    assert rows.describe().startswith("data: the first 2 rows of")
    with pytest.raises(DataError, match="1 fault in 3 rows"):
        read_rows(str(tmp_path / name))


def test_a_limit_counts_rows_and_not_records(tmp_path: Path) -> None:
    record = '{"category": "Airport", "triples": ["A | b | C"], "lex": ["One.", "Two."]}\n'
    (tmp_path / "d.jsonl").write_text(record * 2)
    counts = {limit: len(read_rows(str(tmp_path / "d.jsonl"), limit=limit)) for limit in (1, 3, 9)}
    assert counts == {1: 1, 3: 3, 9: 4}
    assert "first" not in read_rows(str(tmp_path / "d.jsonl"), limit=9).describe()


def test_only_the_beginning_of_a_long_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a"}\n' * 10_000)
    monkeypatch.setattr(content, "CHUNK", 64)
    monkeypatch.setattr(content, "HEAD", 32)
    read: list[bytes] = []
    original: Callable[[Path], object] = content._read_chunks

    def count(path: Path):
        for chunk in original(path):
            read.append(chunk)
            yield chunk

    monkeypatch.setattr(content, "_read_chunks", count)
    assert len(DataRequest(data=str(path), limit=3).read()) == 3
    assert sum(map(len, read)) < 2000


# Files that are longer than their head; their rows are those of the whole file.
LONG = {
    "quotation marks hold tabs": ("d.tsv", 'text\tlabel\n"a\tb"\t1\n' + '"c\nd"\t0\n' * 20),
    "quotation marks are text": ("d.tsv", "text\tlabel\n" + '"a\t1\nb"\t0\n' * 20),
    "tabs in a .csv": ("d.csv", "text\tlabel\n" + "a\t1\n" * 30),
    "no header": ("d.tsv", "gj04\t1\t\tThe cat sat.\n" * 10),
    "pairs": ("d.txt", "name : A||A is here.\n" * 10),
    "one object": ("d.json", '{"data": [' + '{"text": "a"},' * 20 + '{"text": "b"}]}\n'),
    "Latin-1 at the end": ("d.csv", "text,label\n" + "a,1\n" * 30 + "caf\xe9,1\n"),
}


@pytest.mark.parametrize("case", LONG)
def test_the_form_of_a_long_file_is_that_of_its_head(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text = LONG[case]
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    whole = read_rows(str(tmp_path / name))
    monkeypatch.setattr(content, "HEAD", 57)
    monkeypatch.setattr(content, "CHUNK", 16)
    read = read_rows(str(tmp_path / name))
    assert (read.rows, read.where, read.notes) == (whole.rows, whole.where, whole.notes)


def test_a_line_that_is_unlike_those_before_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "HEAD", 16)
    monkeypatch.setattr(content, "CHUNK", 16)
    (tmp_path / "d.txt").write_text("A||A is.\nB||B is.\nC is.\n")
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / "d.txt"))
    assert caught.value.faults == [
        f"{tmp_path}/d.txt:3   is not `data||reference`, as the lines before it are"
    ]
    (tmp_path / "e.csv").write_bytes(b"text,id\n" + b"a,1\n" * 9 + b"caf\xe9,1\n")
    with pytest.raises(DataError, match="is not UTF-8, as it begins: "):
        read_rows(str(tmp_path / "e.csv"), limit=20)
