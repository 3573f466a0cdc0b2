"""The numbers of the worked examples are computed, and equal the known ones."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lorakit.cli.__main__ import main
from lorakit.errors import install_line
from lorakit.explain import TOPICS, load_topic
from lorakit.explain.counts import break_even, count

FREQUENT = (
    "decomposed",
    "multiplied",
    "SVD",
    "at random",
    "singular values of W",
    "normalisation",
    "faster",
    "DistilBERT",
)


def close(found: Sequence[object], known: Sequence[object], atol: float) -> bool:
    return torch.allclose(
        torch.tensor(found, dtype=torch.float64),
        torch.tensor(known, dtype=torch.float64),
        rtol=0,
        atol=atol,
    )


def test_the_example():
    result = load_topic("example").numbers()
    assert result["W"] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert result["change"] == [[1, 2, 1], [0, 1, 1], [1, 3, 2]]
    assert result["adapted"] == [[2, 4, 4], [4, 6, 7], [8, 11, 11]]
    assert result["adapted_after"] == [[2.21, 4.31, 4.21], [4.11, 6.21, 7.21], [8.32, 11.52, 11.42]]
    assert (result["full_parameters"], result["lora_parameters"]) == (9, 12)


def test_a_step_goes_along_true_gradients():
    result = load_topic("step").numbers()
    assert result["formula_error"] < 1e-12 and result["gradient_formula_error_W"] < 1e-12
    assert result["difference_error"] < 1e-6
    assert result["scale"] == 2.0  # a formula without its scale would be seen
    assert result["loss_after_full_step"] < result["loss_base"]
    assert result["loss_after_lora_step"] < result["loss_before_lora_step"]
    assert result["fresh_gradient_A"] == 0.0
    assert torch.tensor(result["fresh_gradient_B"]).abs().max() > 0.1
    assert (result["rank_of_full_step"], result["rank_of_lora_change"]) == (3, 2)


def test_counts():
    examples = load_topic("counts").numbers()["examples"]
    rows = {(row["out"], row["rank"]): row for row in examples}
    known = {
        (1000, 10): (1_000_000, 20_000, 50.0),
        (100, 5): (10_000, 1_000, 10.0),
        (1024, 4): (1_048_576, 8_192, 128.0),
    }
    for key, counts in known.items():
        row = rows[key]
        assert (row["full"], row["lora"], row["times_fewer"]) == counts
    small = rows[3, 2]
    assert (small["full"], small["lora"], small["break_even"]) == (9, 12, 1.5)
    for out, inputs in ((1024, 1024), (64, 48), (4096, 11008)):
        assert count(out, inputs, 1) * break_even(out, inputs) == pytest.approx(out * inputs)


def test_the_best_of_a_rank_is_what_is_left_out():
    result = load_topic("best").numbers()
    assert close(result["singular_values"], [15.1157, 0.7126, 0.0928], 5e-5)
    for row in result["ranks"]:
        assert row["error"] == pytest.approx(row["tail"], abs=1e-12)
    assert result["ranks"][1]["relative_error"] == pytest.approx(0.0061, abs=5e-5)


@pytest.mark.slow
def test_training_reaches_the_best_of_each_rank_and_all_at_full_rank():
    rows = load_topic("capacity").numbers()["ranks"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["trained"] == pytest.approx(row["tail"], abs=1e-6)
    assert rows[-1]["tail"] == 0 and rows[0]["tail"] > 2


def test_the_graph_has_the_known_edges():
    result = load_topic("graph").numbers()
    assert close(result["first"], [[-0.24, -0.91], [-0.63, -0.11], [-0.74, 0.39]], 0.005)
    assert close(result["second"], [[-8.06, -11.04, -6.45], [-0.01, -0.35, 0.62]], 0.005)
    assert result["relative_error"] == pytest.approx(0.0061, abs=5e-5)
    assert (result["edges"], result["edges_through_rank"]) == (9, 12)


def test_the_threshold_suggests_rank_one_by_both_ways_of_counting():
    result = load_topic("threshold").numbers()
    assert close(result["singular_values"], [16.848, 1.068, 0.0], 5e-4)
    assert result["share_by_sum"][0] == pytest.approx(0.940, abs=5e-4)
    assert result["share_by_square"][0] == pytest.approx(0.996, abs=5e-4)
    assert (result["rank_by_sum"], result["rank_by_square"]) == (1, 1)


@pytest.mark.slow
def test_an_image_gets_nearer_with_each_rank():
    pytest.importorskip("PIL")
    result = load_topic("image").numbers()
    assert result["shape"] == [427, 640]
    nearness = [row["psnr"] for row in result["ranks"]]
    assert nearness == sorted(nearness) and nearness[0] > 15 and nearness[-1] > 25
    assert all(row["numbers"] == row["rank"] * (427 + 640) for row in result["ranks"])


def test_misconceptions_have_corrections():
    result = load_topic("misconceptions").numbers()
    assert result["lost"] == pytest.approx(94, abs=1)
    assert result["damage"] == pytest.approx(100 * 8**0.5, rel=0.05)
    rows = result["misconceptions"]
    assert len(rows) >= 14
    assert not any("{" in row["is"] for row in rows)
    text = json.dumps(rows, ensure_ascii=False)
    for words in FREQUENT:
        assert words in text


def test_the_command_gives_the_same_numbers(capsys: pytest.CaptureFixture[str]):
    assert main(["explain", "counts", "graph", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["topics"]
    assert list(result) == ["counts", "graph"]
    assert result["graph"] == {"title": TOPICS["graph"], **load_topic("graph").numbers()}


@pytest.mark.slow
def test_all_topics_are_listed_and_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["explain"]) == 0
    shown = capsys.readouterr().out
    for name, title in TOPICS.items():
        assert f"  {name:<15} {title}\n" in shown
        assert f"\n{name}: {title}\n" in shown
    for numbers in ("8.32 11.52 11.42", "50× fewer", "16.848, 1.068, 0.000"):
        assert numbers in shown
    advice = f"The photograph needs Pillow, which is not installed.\n{install_line('plot')}"
    assert advice in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpah"], "'grpah'   did you mean 'graph'?"),
        (["counts", "graph", "--plot", "p.png"], "there is none of counts, graph"),
        (["threshold", "--plot", "p.png"], "Topics with a picture: example, image,"),
        (["graph", "--plot", "p.pgn"], "Did you mean 'png'"),
    ],
)
def test_an_unknown_topic_or_picture_is_refused(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
