"""Tables as spreadsheets, pandas and GLUE write them."""

import shlex
from pathlib import Path

import pytest

from lorakit.data.rows import Rows, read_rows
from lorakit.errors import DataError


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


QQP_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
# As in QQP of GLUE: other quotation marks are text, and those around several lines are not.
QQP = (
    QQP_HEADER + '1\t1\t2\tWhat is "a"?\tWhat is b?\t0\n'
    '2\t3\t4\t"Which is best?\n"\tWhat is best?\t1\n'
    '3\t5\t6\tWhy so?\t"Is it so? Any comment?\n"\t0\n'
    '4\t7\t8\tWhy now?\t"Why ""then""?\n\nI would like to know."\t1\n'
    "5\t9\t10\tWhy?\t\t0\n"
)


def test_qqp_is_read_as_glue_published_it(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "train.tsv", QQP))
    assert [(row["text_a"], row["text_b"]) for row in rows.rows] == [
        ('What is "a"?', "What is b?"),
        ("Which is best?\n", "What is best?"),
        ("Why so?", "Is it so? Any comment?\n"),
        ("Why now?", 'Why "then"?\n\nI would like to know.'),
        ("Why?", ""),
    ]
    assert [place.rpartition(":")[2] for place in rows.where] == ["2", "3", "5", "7", "10"]
    assert "1 pair with one empty text" in rows.notes


BROKEN = {
    "a short line": "1\t1\t2\tWhat?\n2\t3\t4\tWhy?\tHow?\t0\n",
    "a quotation mark that nothing closes": '1\t1\t2\t"What?\n2\t3\t4\tWhy?\tHow?\t0\n',
    "a short line of quotation marks": '1\t1\t2\t"What?\nno"\n2\t3\t4\tWhy?\tHow?\t0\n',
}


@pytest.mark.parametrize("case", BROKEN)
def test_other_short_lines_are_named(case: str, tmp_path: Path) -> None:
    source = write(tmp_path / "train.tsv", QQP_HEADER + '0\t0\t0\tIs "a"?\tb\t1\n' + BROKEN[case])
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert caught.value.faults[0] == f"{source}:3   has 4 fields, the header has 6"


def test_a_pair_of_two_empty_texts_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "train.tsv", "sentence1\tsentence2\tlabel\n\t\t0\n")
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert caught.value.faults == [f"{source}:2   'text_{x}' is empty" for x in "ab"]


SPREADSHEETS = {
    "d.csv": "sep=;\ntext;label\n3,5 stars;good\nnone;bad\n",
    "tab.csv": "sep=\t\ntext\tlabel\n3,5 stars\tgood\nnone\tbad\n",
    "quoted.csv": '"sep=;"\r\ntext;label\r\n3,5 stars;good\r\nnone;bad\r\n',
    "bar.txt": "sep=|\ntext|label\n3,5 stars|good\nnone|bad\n",
    "usual.csv": 'sep=,\ntext,label\n"3,5 stars",good\nnone,bad\n',
}


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_the_separator_that_a_spreadsheet_declares_is_used(name: str, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / name, SPREADSHEETS[name]))
    assert rows.rows == [{"text": "3,5 stars", "label": "good"}, {"text": "none", "label": "bad"}]
    assert rows.where == [f"{tmp_path}/{name}:{line}" for line in (3, 4)]


def test_a_declared_separator_of_no_known_columns_is_used_too(tmp_path: Path) -> None:
    source = write(tmp_path / "d.csv", "sep=;\nReview;Stars\nGood, I say;5\n")
    rows = read_rows(source, columns=["text=Review", "label=Stars"])
    assert rows.rows == [{"text": "Good, I say", "label": "5"}]


INDEXED = {
    "pandas": (",text,label\n0,Well done.,good\n", "columns not used: ''"),
    "pandas, read and written": ("Unnamed: 0,text,label\n0,Well done.,good\n", "Unnamed: 0"),
    "an index of the user": ("index,text,label\n7,Well done.,good\n", "columns not used: index"),
}


@pytest.mark.parametrize("case", INDEXED)
def test_an_index_is_named_as_not_used(case: str, tmp_path: Path) -> None:
    content, note = INDEXED[case]
    rows = read_rows(write(tmp_path / "d.csv", content))
    assert rows.rows == [{"text": "Well done.", "label": "good"}]
    assert note in " ".join(rows.notes)


NUMBERED = {
    "with an index": ",0,1\n0,Well done it is.,good\n1,Not at all well.,bad\n",
    "without": "0,1\nWell done it is.,good\nNot at all well.,bad\n",
}


@pytest.mark.parametrize("case", NUMBERED)
def test_numbers_that_pandas_writes_for_names_are_no_row(case: str, tmp_path: Path) -> None:
    source = write(tmp_path / "d.csv", NUMBERED[case])
    with pytest.raises(DataError, match="use their numbers") as caught:
        read_rows(source)
    advised = shlex.split(caught.value.advice.partition("--columns ")[2].removesuffix("."))
    assert advised == ["text=0", "label=1"]
    rows: Rows = read_rows(source, columns=advised)
    assert rows.rows == [
        {"text": "Well done it is.", "label": "good"},
        {"text": "Not at all well.", "label": "bad"},
    ]


def test_empty_rows_of_a_spreadsheet_are_no_rows(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "d.csv", "text,label\na,x\n,\n , \nb,y\n,\n"))
    assert rows.rows == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert rows.where[1].endswith(":5")
