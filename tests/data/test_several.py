"""Several data sets are one, in their order; a folder is all its files of rows."""

import json
from pathlib import Path

import pytest

from lorakit.cli.request import DataRequest
from lorakit.data import collect
from lorakit.data.mixture import count_draws, draw_positions
from lorakit.data.rows import read_for, read_rows
from lorakit.errors import DataError, SpecError
from lorakit.train.config import TrainSpec
from lorakit.train.data import read_data


def write(folder: Path, name: str, *texts: str) -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(folder / name)


def settings(*data: str, **changes: object) -> TrainSpec:
    given = {"model": "m", "output": "o", "eval_fraction": 0.0, **changes}
    return TrainSpec(data=data, **given)


@pytest.mark.parametrize("many", [100, 1])
def test_rows_follow_one_another(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "MANY", many)
    (tmp_path / "b.csv").write_text("text\nc\n")
    sources = [write(tmp_path, "a.jsonl", "a", "b"), f"{tmp_path}/b.csv"]
    rows = read_for(settings(*sources), sources)
    assert [*rows.rows] == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert [*rows.where] == [f"{sources[0]}:1", f"{sources[0]}:2", f"{sources[1]}:2"]
    data = read_data(settings(*sources))
    assert [*data.rows.rows] == [*rows.rows]
    assert data.rows.content_hash() == rows.content_hash()
    assert data.described == (
        f"data: 2 rows of {sources[0]}: text\ndata: 1 row of {sources[1]}: text"
    )


def test_layouts_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("prompt,completion\na,b\n")
    sources = [write(tmp_path, "a.jsonl", "a"), f"{tmp_path}/b.csv"]
    with pytest.raises(DataError, match="cannot be trained on together") as caught:
        read_data(settings(*sources))
    assert caught.value.faults == [
        f"{sources[0]}   text",
        f"{sources[1]}   prompt and completion",
    ]


def test_weights_say_how_often_rows_are_seen(tmp_path: Path) -> None:
    sources = [write(tmp_path, "a.jsonl", *"abcdef"), write(tmp_path, "b.jsonl", "x", "y")]
    data = read_data(settings(*sources, data_weights=(0.75, 0.25)))
    assert len(data.rows) == 8
    data = read_data(settings(*sources, data_weights=[1, 1]))
    texts = [row["text"] for row in data.rows.rows]
    assert texts == [*"abcdef", *"xxxyyy"]
    assert data.rows.repeated - data.copies == 0
    assert data.described.splitlines()[2:] == [
        f"data: 50.0 % of an epoch from {sources[0]}: 6 rows, each once",
        f"data: 50.0 % of an epoch from {sources[1]}: 2 rows, each 3 times",
    ]


def test_held_out_rows_are_not_repeated(tmp_path: Path) -> None:
    sources = [
        write(tmp_path, "a.jsonl", *(f"a{i}" for i in range(30))),
        write(tmp_path, "b.jsonl", *(f"b{i}" for i in range(10))),
    ]
    data = read_data(settings(*sources, data_weights=(1, 1), eval_fraction=0.2))
    assert data.held_out_count == 8
    assert data.count_shared() == 0


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ((1.0,), "data_weights: 1 weight for 2 data sets; give one for each"),
        ((1.0, 0.0), "data_weights: a number above 0 is needed, got 0.0"),
        ((1.0, "x"), "data_weights: a number is needed, got 'x'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: tuple[float, ...], fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        settings("a", "b", data_weights=weights)
    assert caught.value.faults == [fault]


def test_draws_have_the_share_of_their_weight_and_every_row() -> None:
    draws = count_draws([1000, 10, 500], [0.2, 0.5, 0.3])
    assert draws == [1000, 2500, 1500]
    drawn = draw_positions([range(1000), range(1000, 1010), range(1010, 1510)], draws, seed=3)
    assert set(drawn) == set(range(1510))
    assert len(drawn) == 5000
    assert drawn == draw_positions(
        [range(1000), range(1000, 1010), range(1010, 1510)], draws, seed=3
    )


def test_one_data_set_in_a_list_is_the_same_request(tmp_path: Path) -> None:
    source = write(tmp_path, "a.jsonl", "a")
    assert settings(source).data == source
    assert settings(source).to_dict()["data_weights"] is None


def test_a_folder_is_all_its_files_of_rows(tmp_path: Path) -> None:
    write(tmp_path / "set", "b.jsonl", "c")
    write(tmp_path / "set", "a.jsonl", "a", "b")
    (tmp_path / "set" / "README.md").write_text("About it.")
    (tmp_path / "set" / "notes.txt").write_text("Notes.")
    rows = read_rows(f"{tmp_path}/set")
    assert [row["text"] for row in rows.rows] == ["a", "b", "c"]
    assert rows.where[2] == f"{tmp_path}/set/b.jsonl:1"
    assert rows.describe() == f"data: 3 rows of {tmp_path}/set: text"
    few = DataRequest(data=f"{tmp_path}/set", limit=2).read()
    assert (len(few), few.is_part) == (2, True)


def test_a_folder_of_splits_is_left_to_datasets(tmp_path: Path) -> None:
    from lorakit.data.sources import list_files

    write(tmp_path, "train.jsonl", "a")
    write(tmp_path, "test.jsonl", "b")
    assert list_files(str(tmp_path)) == []
    for name in ("saved", "other"):
        write(tmp_path / name, "a.jsonl", "a")
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    assert list_files(f"{tmp_path}/saved") == []
    assert list_files(f"{tmp_path}/other") == [f"{tmp_path}/other/a.jsonl"]
