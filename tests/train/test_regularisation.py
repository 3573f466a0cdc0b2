"""The loss of training with its regularisation is that of the published formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lorakit.errors import SpecError
from lorakit.evaluate.regularisation import Regularisation, training_loss
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import SIZES, WORDS, sentences


def classifier() -> BertForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=97, **SIZES, num_labels=3, pad_token_id=0)
        return BertForSequenceClassification(config).eval()


def labelled() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 97, (4, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": torch.tensor([0, 2, 1, 2])}


def test_smoothing_spreads_a_share_of_the_target_over_all_classes() -> None:
    model, batch = classifier(), labelled()
    log_probabilities = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    target = torch.full((4, 3), 0.3 / 3)
    target[range(4), batch["labels"]] += 0.7
    want = -(target * log_probabilities).sum()
    got = training_loss(model, batch, "classify", Regularisation(label_smoothing=0.3))
    torch.testing.assert_close(got, want)


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": s}) + "\n" for s in sentences(40)))
    return {
        "model": str(tiny_llama),
        "data": str(data),
        "output": str(tmp_path / "out"),
        "batch_size": 8,
        "steps": 4,
        "lr": 5e-3,
        "threads": 1,
        "eval_fraction": 0.0,
    }


def rows_with_values(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": w, "label": len(w) / 8}) + "\n" for w in WORDS))
    return path


@pytest.mark.slow
def test_a_smoothed_run_evaluates_without_it(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "eval_fraction": 0.2}
    plain = train_adapter(TrainSpec(**settings), Spec(rank=2))
    smoothed = train_adapter(
        TrainSpec(**{**settings, "output": str(tmp_path / "two")}, label_smoothing=0.2),
        Spec(rank=2),
    )
    assert smoothed["before"] == plain["before"]
    assert smoothed["after"] != plain["after"]
    assert smoothed["loss_first"] != plain["loss_first"]


def test_a_regression_has_no_classes_to_smooth(
    settings: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    data = rows_with_values(tmp_path / "values.jsonl")
    values = {**settings, "model": str(tiny_bert), "data": str(data), "label_smoothing": 0.1}
    with pytest.raises(SpecError) as caught:
        train_adapter(TrainSpec(**values), Spec(rank=2))
    assert str(caught.value) == (
        "1 setting cannot be used in this run.\n"
        "  label_smoothing: spreads a target over classes, and a regression has none\n"
        "Nothing was started."
    )
    assert not (tmp_path / "out").exists()
