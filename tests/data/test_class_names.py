"""Labels that a file holds as numbers, with the names of their classes beside them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorakit.data.labels import infer_task, list_labels
from lorakit.data.rows import join_rows, read_rows
from lorakit.errors import DataError

LABEL = {"names": ["neutral", "good", "bad"], "_type": "ClassLabel"}
TAGS = {"feature": {"names": ["O", "B-LOC"], "_type": "ClassLabel"}, "_type": "List"}


def write(path: Path, features: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Write rows as `datasets` does, with the features in the schema's metadata."""
    metadata = json.dumps({"info": {"features": features}})
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": metadata})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return str(path)


def labelled(*labels: int | None) -> list[dict[str, Any]]:
    return [{"sentence": "a", "label": label} for label in labels]


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow"])
def test_the_classes_are_the_names_in_the_order_of_their_numbers(name: str, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / name, {"label": LABEL}, labelled(1, 0, 1)))
    assert [row["label"] for row in rows.rows] == ["good", "neutral", "good"]
    assert infer_task(rows) == "classify"
    assert list_labels(rows) == ["neutral", "good", "bad"]
    single = read_rows(write(tmp_path / name, {"label": LABEL}, labelled(1, 1)))
    assert list_labels(single) == ["good"]


def test_classes_are_found_in_the_column_that_is_named(tmp_path: Path) -> None:
    rows = [{"body": "a", "mood": number} for number in (0, 2)]
    source = write(tmp_path / "d.parquet", {"mood": LABEL}, rows)
    found = read_rows(source, columns=["text=body", "label=mood"])
    assert found.rows == [{"text": "a", "label": "neutral"}, {"text": "a", "label": "bad"}]
    assert list_labels(found) == LABEL["names"]


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "d.parquet", {"label": LABEL}, labelled(-1, 0, 1, 2, -1, None))
    rows = read_rows(source)
    assert [row["label"] for row in rows.rows] == LABEL["names"]
    assert rows.notes == ("3 rows without a reference left out",)


NOT_LABELLED = {
    "a sentence": ({"sentence": "a", "label": -1}, "remove the column 'label'"),
    "a text": ({"text": "a", "label": -1}, "name the texts alone: --columns text=text"),
    "a pair": (
        {"text_a": "a", "text_b": "b", "label": -1},
        "name the texts alone: --columns text_a=text_a text_b=text_b",
    ),
}


@pytest.mark.parametrize("case", NOT_LABELLED)
def test_where_no_row_has_a_label_the_way_to_predict_them_is_told(
    case: str, tmp_path: Path
) -> None:
    row, told = NOT_LABELLED[case]
    source = write(tmp_path / "d.parquet", {"label": LABEL}, [row])
    with pytest.raises(DataError, match="holds no rows that can be used") as caught:
        read_rows(source)
    assert caught.value.advice == f"To predict their labels, {told}."
    if "--columns" in told:
        columns = told.partition("--columns ")[2].split()
        assert "label" not in read_rows(source, columns=columns).rows[0]


def test_a_number_without_a_name_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "d.parquet", {"label": LABEL}, labelled(0, 3))
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert caught.value.faults == [f"{source}, row 2   'label' is 3, but its classes are 0 to 2"]


def test_tags_and_several_labels_are_their_names(tmp_path: Path) -> None:
    tokens = [{"tokens": ["in", "Rome"], "ner_tags": [0, 1]}]
    rows = read_rows(write(tmp_path / "d.parquet", {"ner_tags": TAGS}, tokens))
    assert rows.rows == [{"tokens": ["in", "Rome"], "tags": ["O", "B-LOC"]}]
    assert rows.classes == ("O", "B-LOC")
    texts = [{"text": "in Rome", "labels": [1]}]
    rows = read_rows(write(tmp_path / "e.parquet", {"labels": TAGS}, texts))
    assert rows.rows == [{"text": "in Rome", "labels": ["B-LOC"]}]


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": 1}', b"\xff"])
def test_other_metadata_say_nothing(metadata: bytes, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(labelled(0, 1)).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "d.parquet")
    assert list_labels(read_rows(str(tmp_path / "d.parquet"))) == ["0", "1"]


def test_names_beside_numbers_of_another_data_set_are_refused(tmp_path: Path) -> None:
    named = read_rows(write(tmp_path / "d.parquet", {"label": LABEL}, labelled(0, 1)))
    (tmp_path / "e.csv").write_text("text,label\na,good\n")
    words = read_rows(str(tmp_path / "e.csv"))
    assert list_labels(join_rows([named, words])) == ["good", "neutral"]
    (tmp_path / "e.csv").write_text("text,label\na,1\n")
    with pytest.raises(DataError, match="name their classes differently"):
        join_rows([named, read_rows(str(tmp_path / "e.csv"))])


@pytest.mark.slow
def test_a_folder_of_datasets_has_its_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    made = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    made.save_to_disk(tmp_path / "d")
    rows = read_rows(str(tmp_path / "d"))
    assert [row["label"] for row in rows.rows] == ["good", "bad"]
    assert list_labels(rows) == ["bad", "good"]
