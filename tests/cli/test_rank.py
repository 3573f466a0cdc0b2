"""`lorakit rank` in each of its ways: the fields others rely on, the adapter and the picture it
writes, what it refuses.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from lorakit import Adapter, Spec, attach
from lorakit.cli.__main__ import main
from lorakit.models.load import load

from ..conftest import sentences
from .test_commands import ask, tell


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": s}) + "\n" for s in sentences(120))
    )
    lines = [f"{s}\t{'yes' if 'cat' in s else 'no'}\n" for s in sentences(120, seed=1)]
    (folder / "labelled.tsv").write_text("text\tlabel\n" + "".join(lines))
    return folder


POINT = {"rank", "metric", "low", "high"}
RUN = ("--steps", 30, "--batch-size", 8, "--lr", 5e-3, "--threads", 1, "--eval-fraction", 0.25)


@pytest.mark.slow
def test_one_run_tells_the_curve_and_writes_the_small_adapter(
    capsys: Any, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    told = ask(
        capsys,
        "rank",
        "--model",
        tiny_llama,
        "--data",
        data / "text.jsonl",
        "--rank",
        8,
        *RUN,
        "--refine",
        0.3,
        "--output",
        tmp_path / "small",
        "--plot",
        tmp_path / "curve.png",
    )
    assert {"curve", "recommended_rank", "reason", "cost", "metric_name"} <= told.keys()
    assert all(p.keys() >= POINT for p in told["curve"]) and [p["rank"] for p in told["curve"]] == [
        1,
        2,
        4,
        8,
    ]
    assert (
        told["metric_name"] == "loss"
        and told["recommended_rank"] in (1, 2, 4, 8)
        and "standard error" in told["reason"]
    )
    assert told["curve"][-1]["metric"] < told["before"]
    small = Adapter.load(tmp_path / "small")
    assert {name: delta.rank for name, delta in small.deltas.items()} == told["ranks"]
    assert small.parameters_count == told["trainable_parameters"]
    assert json.loads((tmp_path / "small" / "rank.json").read_text())["curve"] == told["curve"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {d.rank for d in Adapter.load(tmp_path / "small" / "run").deltas.values()} == {8}
    found = ask(
        capsys,
        "eval",
        "--model",
        tiny_llama,
        "--adapter",
        tmp_path / "small",
        "--data",
        data / "text.jsonl",
    )
    assert found["loss"] < told["before"]


@pytest.mark.slow
def test_classes_are_decided_by_accuracy_and_nothing_is_kept(
    capsys: Any, tiny_bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tell(
        capsys, "rank", "--model", tiny_bert, "--data", data / "labelled.tsv", "--rank", 4, *RUN
    )
    assert (
        "held-out accuracy by rank" in out
        and "Recommended: rank" in out
        and "times as long as the one run" in out
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_growing_tells_the_same_fields(
    capsys: Any, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    told = ask(
        capsys,
        "rank",
        "--model",
        tiny_llama,
        "--data",
        data / "text.jsonl",
        "--way",
        "grow",
        "--rank",
        4,
        *RUN,
        "--good-enough",
        9,
        "--output",
        tmp_path / "grown",
    )
    assert told["recommended_rank"] == 1 and told["reason"] == "Rank 1 reached the goal, loss 9."
    assert [p["rank"] for p in told["curve"]] == [1] and told["steps"] == told["steps_a_rank"] == 10
    assert {d.rank for d in Adapter.load(tmp_path / "grown").deltas.values()} == {1}


@pytest.mark.slow
def test_a_grid_tells_all_metrics_of_each_rank_on_rows_apart(
    capsys: Any, tiny_bert: Path, data: Path, tmp_path: Path
) -> None:
    given = (
        "--model",
        tiny_bert,
        "--data",
        data / "labelled.tsv",
        "--eval-data",
        data / "labelled.tsv",
        *RUN[:-2],
        "--steps",
        5,
    )
    told = ask(capsys, "rank", *given, "--way", "grid", "--rank", 2, "--metric", "f1")
    assert told["metric_name"] == "f1" and told["higher_is_better"] and told["rows_held_out"] == 120
    assert [p["rank"] for p in told["curve"]] == [1, 2] and told["steps"] == 10
    for point in told["curve"]:
        assert {"accuracy", "f1", "precision", "recall", "loss"} <= point["metrics"].keys()
        assert point["metric"] == pytest.approx(point["metrics"]["f1"])
    # The second rank began from the base and a new head, as if it had been the only one.
    alone = ask(
        capsys, "train", *given, "--rank", 2, "--final", "last", "--output", tmp_path / "alone"
    )
    assert alone["after"]["loss"] == pytest.approx(told["curve"][1]["metrics"]["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_threshold_on_w_recommends_nothing_and_on_a_change_a_rank(
    capsys: Any, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    told = ask(capsys, "rank", "--model", tiny_llama, "--way", "threshold")
    assert told["recommended_rank"] is None and "LoRA leaves W unchanged" in told["reason"]
    assert len(told["modules"]) == 14 and all(
        1 <= m["rank_of_w"] <= m["most"] for m in told["modules"]
    )
    more = ask(
        capsys,
        "rank",
        "--model",
        tiny_llama,
        "--way",
        "threshold",
        "--energy",
        "sum",
        "--threshold",
        0.95,
    )
    assert sum(m["rank_of_w"] for m in more["modules"]) > sum(
        m["rank_of_w"] for m in told["modules"]
    )
    ask(
        capsys,
        "train",
        "--model",
        tiny_llama,
        "--data",
        data / "text.jsonl",
        "--output",
        tmp_path / "a",
        "--rank",
        4,
        *RUN,
    )
    told = ask(
        capsys, "rank", "--model", tiny_llama, "--way", "threshold", "--adapter", tmp_path / "a"
    )
    assert 1 <= told["recommended_rank"] <= 4 and all(
        1 <= m["rank_of_change"] <= 4 for m in told["modules"]
    )
    assert "of the change" in tell(
        capsys, "rank", "--model", tiny_llama, "--way", "threshold", "--adapter", tmp_path / "a"
    )


@pytest.mark.slow
def test_a_threshold_reads_the_task_of_an_adapter_of_peft(
    capsys: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    model = load(str(tiny_bert), "classify", labels=["no", "yes"], dtype="float32").model
    adapter = attach(model, Spec(rank=2, targets=("query",)))
    adapter.provenance = {"task_type": "SEQ_CLS"}
    adapter.save(tmp_path / "adapter")
    told = ask(
        capsys,
        "rank",
        "--model",
        tiny_bert,
        "--way",
        "threshold",
        "--adapter",
        tmp_path / "adapter",
    )
    assert [module["name"] for module in told["modules"]] == list(adapter.deltas)


@pytest.mark.slow
def test_advice_is_a_rank_with_its_reasons(capsys: Any, tiny_llama: Path, data: Path) -> None:
    told = ask(
        capsys, "rank", "--model", tiny_llama, "--data", data / "text.jsonl", "--way", "advice"
    )
    assert told["recommended_rank"] == 16 and told["reasons"][0].startswith(
        "causal-lm on 120 rows: 16 up to 10,000 rows"
    )
    assert "Recommended: rank 16." in tell(
        capsys, "rank", "--model", tiny_llama, "--data", data / "text.jsonl", "--way", "advice"
    )


WRONG = {
    "no data": (["--model", "{llama}"], "data: is needed"),
    "a way that trains nothing writes nothing": (
        ["--model", "{llama}", "--way", "threshold", "--output", "{out}"],
        "output: --way threshold makes no adapter",
    ),
    "no such rank": (
        ["--model", "{llama}", "--data", "{data}", "--rank", "8", "--try-ranks", "9"],
        "below the highest, 8",
    ),
    "a moved base": (
        [
            "--model",
            "{llama}",
            "--data",
            "{data}",
            "--init",
            "pissa",
            "--rank",
            "4",
            "--output",
            "{out}",
        ],
        "init pissa cannot be cut or grown",
    ),
    "nothing held out": (
        [
            "--model",
            "{llama}",
            "--data",
            "{data}",
            "--rank",
            "4",
            "--eval-fraction",
            "0",
            "--output",
            "{out}",
        ],
        "No rows are held out",
    ),
    "ranks by layer": (
        ["--model", "{llama}", "--data", "{data}", "--config", "{config}"],
        "3 faults in the request.\n  overwrite: a search starts a new run\n"
        "  ranks: the search itself finds ranks by layer",
    ),
    "a picture of no kind": (
        ["--model", "{llama}", "--data", "{data}", "--plot", "curve.xyz"],
        ".xyz is no kind of picture",
    ),
    "a full folder": (
        ["--model", "{llama}", "--data", "{data}", "--output", "{full}"],
        "is not empty",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_write_nothing(
    capsys: Any, tiny_llama: Path, data: Path, tmp_path: Path, case: str
) -> None:
    argv, says = WRONG[case]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    config = tmp_path / "config.yaml"
    config.write_text("overwrite: true\nranks: linear\noverrides: {q_proj: {rank: 2}}\n")
    names = {
        "config": config,
        "llama": tiny_llama,
        "data": data / "text.jsonl",
        "out": tmp_path / "out",
        "full": tmp_path / "full",
    }
    code = main(["rank", *(word.format(**names) for word in argv), "--json"])
    out, errors = capsys.readouterr()
    assert code == 2 and says in errors and not (tmp_path / "out").exists()
    assert {"error", "message", "faults"} <= json.loads(out).keys()
