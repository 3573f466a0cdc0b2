"""Columns that are not used, those that `--columns` names, and the advice on them."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from lorakit.data.rows import read_rows
from lorakit.errors import DataError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


MISREAD = {
    "a label beside a completion": ({"prompt": "a", "completion": "b", "label": 3}, "'label'"),
    "a weight": ({"text": "a", "weight": 0.5}, "'weight'"),
    "labels in another column": ({"text": "a", "labels": "x"}, "'labels'"),
    "a label in capitals": ({"text": "a", " Label": 1}, "' Label'"),
    "a rating in a conversation": ({"prompt": "a", "kto_tag": False}, "'kto_tag'"),
    "a weight of a pair": (
        {"#1 String": "a", "#2 String": "b", "Quality": 1, "weight": 2},
        "'weight'",
    ),
    "entities": ({"text": "a", "entities": [{"start": 0}]}, "'entities'"),
    "an answer that was rejected": (
        {"query": "a", "response": "b", "rejected_response": "c"},
        "'rejected_response'",
    ),
    "choices": ({"question": "a", "choices": ["x", "y"], "answer": "x"}, "'choices'"),
    "a gold label": ({"text": "a", "gold_label": "x"}, "'gold_label'"),
    "an image of a conversation": (
        {"conversations": [USER, ANSWER], "image": "a.png"},
        "'image'",
    ),
    "other tags": ({"tokens": ["a"], "ner_tags": [0], "labels": [1]}, "'labels'"),
    "a class of another name": ({"text": "a", "category": "x"}, "'category'"),
    "a message of a tree": ({"text": "a", "role": "prompter", "lang": "en"}, "'role'"),
    "a summary": ({"text": "a", "summary": "x"}, "'summary'"),
    "images": ({"messages": [USER, ANSWER], "images": ["a.png"]}, "'images'"),
}


@pytest.mark.parametrize("case", MISREAD)
def test_a_column_that_changes_the_meaning_is_not_dropped(case: str, tmp_path: Path) -> None:
    record, column = MISREAD[case]
    with pytest.raises(DataError, match="would change what is learned") as caught:
        read_rows(write(tmp_path / "d.jsonl", record))
    assert caught.value.faults == [column]
    advised = caught.value.advice.partition("--columns ")[2].partition(".")[0]
    advised = shlex.split(advised)
    assert len(read_rows(str(tmp_path / "d.jsonl"), columns=advised)) == 1


def test_columns_that_cannot_be_left_out_by_a_flag_are_said_so(tmp_path: Path) -> None:
    record = {"context": "a", "question": "b", "answers": {"text": ["c"]}, "weight": 2}
    with pytest.raises(DataError, match="remove them from the file"):
        read_rows(write(tmp_path / "d.jsonl", record))


def test_columns_that_are_named_drop_the_others(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", {"text": "a", "weight": 0.5, "id": 7})
    rows = read_rows(source, columns=["text=text"])
    assert rows.rows == [{"text": "a"}]
    assert rows.notes == ("columns not used: weight, id",)


def test_columns_named_as_they_are_choose_a_layout_of_no_others(tmp_path: Path) -> None:
    rated = write(tmp_path / "d.jsonl", {"prompt": "a", "completion": "b", "label": True})
    assert read_rows(rated, columns=["prompt=prompt", "completion=completion"]).kind == "completion"
    labelled = write(tmp_path / "e.jsonl", {"text": "a", "label": "x"})
    rows = read_rows(labelled, columns=["text=text"])
    assert (rows.rows, rows.notes) == ([{"text": "a"}], ("columns not used: label",))


def test_columns_may_be_named_for_what_a_conversation_needs(tmp_path: Path) -> None:
    record = {"article": "Hi", "highlights": "Hello", "persona": "Be kind."}
    columns = ["instruction=article", "output=highlights", "system=persona"]
    (row,) = read_rows(write(tmp_path / "d.jsonl", record), columns=columns).rows
    assert row["messages"] == [{"role": "system", "content": "Be kind."}, USER, ANSWER]


def test_columns_without_a_plain_name_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(",text,label, note\n0,a,x,n\n")
    rows = read_rows(str(tmp_path / "d.csv"))
    assert rows.notes == ("columns not used: '', ' note'",)
    (tmp_path / "e.csv").write_text("3,A title,A text\n4,One more,Text\n")
    rows = read_rows(str(tmp_path / "e.csv"), columns=["text=2", "label=0"])
    assert rows.notes == ("columns not used: column 1",)


# A first record of columns in no layout, and the columns that are advised.
ADVISED: dict[str, tuple[dict[str, Any], str]] = {
    "summaries": ({"id": "1", "article": "a b", "highlights": "c"}, "article highlights"),
    "dialogues": ({"dialogue": "a", "summary": "b", "id": "12345"}, "dialogue summary"),
    "pairs": ({"problem": "a", "solution": "b", "answer": "4"}, "problem answer"),
    "a label of its own name": ({"id": "1", "tweet": "a", "label": 0}, "tweet label"),
    "capitals": ({"Text": "a", "Label": 0}, "Text Label"),
    "an instruction in capitals": (
        {"Instruction": "a", "Response": "b"},
        "Instruction Response",
    ),
    "an answer that is true or false": (
        {"question": "Is a b?", "passage": "A is b.", "answer": True},
        "question passage answer",
    ),
    "AG News with a header": (
        {"Class Index": 3, "Title": "a b", "Description": "c d"},
        "Title Description Class Index",
    ),
    "a label with a further text": (
        {"headline": "a b", "labels": "x", "snippet": "c d"},
        "headline snippet labels",
    ),
    "a name with spaces": ({"my text": "a", "stars": 5}, "my text stars"),
    "turns": ({"id": "abcdef", "items": [USER, ANSWER]}, "items"),
    "texts in turn": ({"id": "abcdef", "data": ["a b", "c"]}, "data"),
    "numbers as names": ({"0": "a b", "1": 3, "label": "x"}, "0 label"),
    "a column without a name": ({"": "a b c", "headline": "a"}, "headline"),
    "inputs and outputs": ({"input_text": "a", "output_text": "b"}, "input_text output_text"),
    "speakers beside their turns": (
        {"dialogue": ["a b", "c d"], "speakers": ["A", "B"], "narrative": "they met"},
        "narrative",
    ),
    "tokens and tags": ({"words": ["a", "b"], "ner": ["O", "B"]}, "words ner"),
    "numbers as tags": ({"id": "0", "words": ["a", "b"], "ner": [0, 1]}, "words ner"),
    "tags before their tokens": ({"ner": [0, 1], "words": ["a", "b"]}, "words ner"),
    "several labels": ({"comment": "a b", "topics": ["x", "y", "z"]}, "comment topics"),
    "one of several labels": ({"id": "a1", "comment": "a b", "topics": ["x"]}, "comment topics"),
    "an identifier beside a text": ({"user_id": "abcdef", "body": "a"}, "body"),
}


@pytest.mark.parametrize("case", ADVISED)
def test_the_advised_columns_work(case: str, tmp_path: Path) -> None:
    record, columns = ADVISED[case]
    source = write(tmp_path / "d.jsonl", record)
    with pytest.raises(DataError) as caught:
        read_rows(source)
    advised = shlex.split(caught.value.advice.partition("--columns ")[2].removesuffix("."))
    assert " ".join(pair.partition("=")[2] for pair in advised) == columns
    assert len(read_rows(source, columns=advised)) == 1


def test_a_system_prompt_is_kept_by_the_advised_columns(tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", {"input": "Hi", "output": "Hello", "system": "Be kind."})
    with pytest.raises(DataError, match="--columns instruction=input output=output"):
        read_rows(source)
    (row,) = read_rows(source, columns=["instruction=input", "output=output"]).rows
    assert row["messages"][0] == {"role": "system", "content": "Be kind."}


FLAGS: dict[str, dict[str, Any]] = {
    "of a known text": {"text": "a", "toxic": 0, "threat": 1},
    "as a table has them": {"text": "a", "id": "7", "toxic": "0", "threat": "1.0"},
    "as true and false": {"text": "a", "toxic": False, "threat": True},
    "of another text": {"id": "1", "comment_text": "a b", "toxic": 0, "threat": 1},
}


@pytest.mark.parametrize("case", FLAGS)
def test_a_column_for_each_label_is_not_dropped(case: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path / "d.jsonl", FLAGS[case]))
    assert "The columns toxic, threat seem to say which of several labels" in caught.value.advice
    name = "text" if "text" in FLAGS[case] else "comment_text"
    assert len(read_rows(str(tmp_path / "d.jsonl"), columns=[f"text={name}"])) == 1


def test_no_columns_are_advised_where_none_would_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column holds a text") as caught:
        read_rows(write(tmp_path / "d.jsonl", {"id": 1, "segments": [{"text": "a"}]}))
    assert "--columns" not in caught.value.advice


def test_a_table_without_a_header_is_advised_by_numbers(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('"3","Wall St. bears","Short sellers are back"\n"4","b","c"\n')
    with pytest.raises(DataError, match="use their numbers") as caught:
        read_rows(str(tmp_path / "d.csv"))
    assert "--columns text_a=1 text_b=2 label=0." in caught.value.advice
    assert caught.value.faults[0] == "its first row has column 0 '3'"


def test_an_unknown_table_shows_its_columns_and_fitting_flags(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("x1\tGood book, I read it twice.\t5\n" * 2)
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / "d.tsv"))
    assert "use their numbers" in caught.value.advice
    assert caught.value.faults[1].startswith("its first row has column 1 'Good book")
