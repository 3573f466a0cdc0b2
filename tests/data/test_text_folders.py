"""Folders with a file for each text: the sub-folders are classes, or the user is asked."""

from pathlib import Path

import pytest

from lorakit.data.labels import list_labels
from lorakit.data.rows import read_rows
from lorakit.errors import DataError


def write(folder: Path, **texts: list[str]) -> str:
    """Write texts by sub-folder; two underscores stand for a slash."""
    for name, own in texts.items():
        place = folder / name.replace("__", "/")
        place.mkdir(parents=True)
        for number, text in enumerate(own):
            (place / f"{number}_7.txt").write_text(text)
    return str(folder)


REVIEWS = {"pos": ["good one", "well\n\ndone"], "neg": ["bad"], "unsup": ["so", "and so"]}


def test_reviews_of_imdb_have_their_folders_as_labels(tmp_path: Path) -> None:
    source = write(tmp_path / "train", **REVIEWS)
    (tmp_path / "train" / "urls_pos.txt").write_text("http://a\n")
    (tmp_path / "train" / "labeledBow.feat").write_text("1 2:3\n")
    rows = read_rows(source)
    assert rows.rows == [
        {"text": "bad", "label": "neg"},
        {"text": "good one", "label": "pos"},
        {"text": "well\n\ndone", "label": "pos"},
    ]
    assert rows.where[1] == f"{source}/pos/0_7.txt:1"
    assert rows.describe().partition(": text and label; ")[2] == (
        "the names of its 2 sub-folders are the labels; 2 rows without a reference left out"
    )
    assert list_labels(rows) == ["neg", "pos"]


def test_a_few_of_them_are_of_each_class(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "d", pos=["a"] * 5, neg=["b"] * 5), limit=4)
    assert [row["label"] for row in rows.rows] == ["neg", "pos", "neg", "pos"]
    assert rows.is_part


@pytest.mark.slow
def test_more_than_a_thousand_files_are_read(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "d", pos=["a"] * 700, neg=["b"] * 700))
    assert len(rows) == 1400


def test_splits_hold_the_folders(tmp_path: Path) -> None:
    source = write(tmp_path, train__pos=["a"], train__neg=["b"], test__pos=["c"], test__neg=["d"])
    (tmp_path / "README").write_text("About it.")
    assert [row["text"] for row in read_rows(source).rows] == ["b", "a"]
    assert [row["text"] for row in read_rows(source, split="test").rows] == ["d", "c"]


def test_folders_that_may_be_classes_are_asked_about(tmp_path: Path) -> None:
    source = write(tmp_path, chapters=["It was.", "It is."], notes=["See there."])
    with pytest.raises(
        DataError, match=r"has 2 sub-folders of texts \(chapters, notes\)"
    ) as caught:
        read_rows(source)
    assert "--columns text=text label=label to learn these labels" in caught.value.advice
    labelled = read_rows(source, columns=["text=text", "label=label"])
    assert [row["label"] for row in labelled.rows] == ["chapters", "notes", "chapters"]
    texts = read_rows(source, columns=["text=text"])
    assert texts.rows == [{"text": text} for text in ("It was.", "See there.", "It is.")]
    assert texts.notes == ("columns not used: label",)


def test_texts_without_a_label_are_texts_too(tmp_path: Path) -> None:
    source = write(tmp_path / "train", **REVIEWS)
    assert len(read_rows(source, columns=["text=text"])) == 5


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "d", pos=["a"], neg=["b"])
    (tmp_path / "secret").write_text("x")
    (tmp_path / "d" / "neg" / "1.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="has 1 link to files outside of it") as caught:
        read_rows(source)
    assert caught.value.faults == [f"{source}/neg/1.txt"]


def test_an_empty_text_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "d", pos=["a"], neg=[" "])
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert caught.value.faults == [f"{source}/neg/0_7.txt:1   'text' is empty"]
