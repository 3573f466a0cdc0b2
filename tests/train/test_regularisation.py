"""The loss of training with its regularisation is that of the published formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from lorakit.errors import SpecError
from lorakit.evaluate.regularisation import (
    Regularisation,
    masked_embeddings,
    symmetric_divergence,
    training_loss,
)
from lorakit.plan.estimate import Plan, Work
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

from ..conftest import SIZES, WORDS, sentences
from ..plan.models import bare
from .test_run import equal, stop_after


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


# --- two passes ----------------------------------------------------------------------------------


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p.log() - q.log())).sum()


def test_r_drop_is_the_sum_of_two_losses_and_of_half_the_divergence_both_ways() -> None:
    """The loss of the paper, with the logits of the two passes noted as they come."""
    model, batch = classifier().train(), labelled()
    logits = []
    handle = model.register_forward_hook(lambda _, args, out: logits.append(out.logits.detach()))
    torch.manual_seed(3)
    got = training_loss(model, batch, "classify", Regularisation(r_drop=0.7))
    handle.remove()
    first, second = (one.double().softmax(-1) for one in logits)
    assert not torch.equal(first, second)
    labels = batch["labels"].unsqueeze(1)
    likelihood = -(first.gather(1, labels).log() + second.gather(1, labels).log()).sum()
    want = likelihood + 0.7 * (kl(first, second) + kl(second, first)) / 2
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


def test_the_term_of_microsofts_examples_is_a_multiple_for_predictions_that_are_near() -> None:
    """They measure both predictions from that of the mean logits, and divide by all elements:
    0.5 w (KL(m || p) + KL(m || q)), with KL reduced by "mean".
    """
    p, q = (torch.randn(8, 3, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2))
    q = p + 1e-3 * q
    mean = ((p + q) / 2).softmax(-1)
    theirs = sum(F.kl_div(one.log_softmax(-1), mean, reduction="sum") for one in (p, q)) / 2 / 24
    ours = symmetric_divergence(p, q, torch.zeros(8)) / 8
    assert float(ours / theirs) == pytest.approx(4 * 3, rel=1e-3)


def test_r_drop_of_a_language_model_counts_trained_tokens_alone() -> None:
    p, q = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.full((2, 5), -100)
    labels[0, 2] = labels[1, 4] = 1
    first, second = p.softmax(-1), q.softmax(-1)
    places = ((0, 2), (1, 4))
    want = sum(kl(first[i], second[i]) + kl(second[i], first[i]) for i in places) / 2
    torch.testing.assert_close(symmetric_divergence(p, q, labels), want)


def test_cutoff_sets_the_embeddings_of_its_share_of_plain_tokens_to_zero() -> None:
    model = classifier()
    ids = torch.randint(3, 97, (40, 50), generator=torch.Generator().manual_seed(1))
    how = Regularisation(cutoff=0.3, special_tokens=(5, 6))
    plain = model.get_input_embeddings()(ids)
    torch.manual_seed(0)
    with masked_embeddings(model, ids, how) as calls:
        masked = model.get_input_embeddings()(ids)
    assert calls == [plain.shape]
    gone = (masked == 0).all(-1)
    assert torch.equal(masked[~gone], plain[~gone])
    special = (ids == 5) | (ids == 6)
    assert not gone[special].any() and special.any()
    assert float(gone[~special].double().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(model.get_input_embeddings()(ids), plain)


def test_cutoff_alone_adds_the_loss_of_the_masked_pass() -> None:
    model, batch = classifier(), labelled()
    plain = training_loss(model, batch, "classify")
    both = training_loss(model, batch, "classify", Regularisation(cutoff=0.5))
    assert both > plain and both != 2 * plain
    none = training_loss(
        model, batch, "classify", Regularisation(cutoff=0.5, special_tokens=tuple(range(97)))
    )
    torch.testing.assert_close(none, 2 * plain)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def settings(short_run: dict[str, Any]) -> dict[str, Any]:
    return {
        **short_run,
        "batch_size": 8,
        "steps": 4,
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
    values = {**settings, "model": str(tiny_bert), "data": str(data)}
    values |= {"label_smoothing": 0.1, "r_drop": 1.0}
    with pytest.raises(SpecError) as caught:
        train_adapter(TrainSpec(**values), Spec(rank=2))
    assert str(caught.value) == (
        "2 settings cannot be used in this run.\n"
        "  label_smoothing: spreads the probability of classes that exclude each other, and "
        "regress has none\n"
        "  r_drop: compares probabilities of classes that exclude each other, and regress has "
        "none\n"
        "Nothing was started."
    )
    assert not (tmp_path / "out").exists()


def test_r_drop_without_dropout_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        train_adapter(TrainSpec(**settings, r_drop=1.0), Spec(rank=2))
    assert str(caught.value) == (
        "r_drop: two passes are equal, since there is no dropout; give --dropout or --cutoff.\n"
        "Nothing was started."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "dropout", "in_chunks"),
    [
        ({"packing": "on", "r_drop": 1.0}, 0.2, False),
        ({"packing": "on", "cutoff": 0.3}, 0.0, True),
        ({"packing": "off", "cutoff": 0.3, "r_drop": 1.0}, 0.0, False),
    ],
    ids=str,
)
def test_two_passes_train_and_resumed_equals_straight(
    changed: dict[str, Any],
    dropout: float,
    in_chunks: bool,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    settings |= {"steps": 6, "checkpoint_every": 3, **changed}
    spec = Spec(rank=2, dropout=dropout, targets="qv")
    straight = TrainSpec(**{**settings, "output": str(tmp_path / "straight")})
    report = train_adapter(straight, spec)
    assert (report["logits"] == "in chunks") is in_chunks
    assert report["loss_first"] > 2 * 5  # of two passes, each about log 320
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, RuntimeError("the power went out"))
        with pytest.raises(RuntimeError, match="power"):
            train_adapter(TrainSpec(**settings), spec)
    train_adapter(TrainSpec(**settings, resume=True), spec)
    assert equal(tmp_path / "out", tmp_path / "straight")


@pytest.mark.slow
def test_dropout_of_the_base_is_enough_for_r_drop(
    settings: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    data = tmp_path / "labels.csv"
    rows = [f'"{s}",{"yes" if "cat" in s else "no"}\n' for s in sentences(40)]
    data.write_text("text,label\n" + "".join(rows))
    values = {**settings, "model": str(tiny_bert), "data": str(data)}
    report = train_adapter(TrainSpec(**values, r_drop=0.5), Spec(rank=2))
    assert report["loss_first"] > 2 * 0.5  # two losses, each about log 2


def test_the_plan_counts_both_passes() -> None:
    one, two = (
        Plan(bare("llama", "causal-lm"), Spec(rank=4), Work(batch=2, length=16, regularisation=how))
        for how in (Regularisation(), Regularisation(cutoff=0.1, r_drop=1.0))
    )
    traces = [plan.trace(plan.work.step("causal-lm", gpu=False)) for plan in (one, two)]
    assert traces[1].flops == pytest.approx(2 * traces[0].flops, rel=1e-3)
    assert traces[1].activations == pytest.approx(2 * traces[0].activations, rel=0.2)
    assert traces[1].logits > 2 * traces[0].logits
