"""Preferences: their tokens, and their losses against the papers and against TRL alone."""

import warnings
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorakit
from lorakit.data.batches import collate
from lorakit.data.encode import IGNORED, Encoding, Example
from lorakit.data.preferences import encode_preferences
from lorakit.data.rows import Rows
from lorakit.errors import DataError
from lorakit.evaluate.score import batch_loss
from lorakit.models.load import Loaded, load
from lorakit.spec import Spec
from lorakit.tasks.preference import Preference, exchange_answers
from lorakit.tasks.rows import encode_rows

PAIRS = [
    {"prompt": "the cat", "chosen": " sat.", "rejected": " sat on a mat and sat."},
    {"prompt": "a dog saw", "chosen": " me.", "rejected": " me and me and a cat."},
    {"prompt": "the bird", "chosen": " ran off.", "rejected": " ran."},
]
RATED = [
    {"prompt": row["prompt"], "completion": row[key], "label": key == "chosen"}
    for row in PAIRS
    for key in ("chosen", "rejected")
]
BETA = 0.3


def as_rows(rows: list[dict[str, Any]]) -> Rows:
    kind = "rated" if "label" in rows[0] else "preference"
    return Rows(kind, rows, [f"row {i}" for i in range(len(rows))], "made")


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> Loaded:
    """The base in float64 with an adapter whose B is not zero."""
    base = load(str(tiny_llama), "preference")
    adapter = lorakit.attach(base.model, Spec(rank=4), seed=0)
    base.model.double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for delta in adapter.deltas.values():
            nn.init.normal_(delta.get_parameter("B"), std=0.2)
    return base


def log_probs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-probability of each answer, from all logits."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        spoken = model(**inputs).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    each = spoken.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return each.masked_fill(labels == IGNORED, 0.0).sum(-1)


def ratios_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-ratio of each answer, with the adapter on and off."""
    on = log_probs(model, batch)
    was_on = lorakit.enabled(model)
    lorakit.enable(model, None)
    off = log_probs(model, batch)
    lorakit.enable(model, was_on)
    return on - off


def batch_of(loaded: Loaded, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return collate(encode_rows(as_rows(rows), loaded), loaded.tokenizer.pad_token_id)


@pytest.mark.slow
def test_the_loss_of_dpo_is_that_of_the_paper(loaded: Loaded) -> None:
    batch = batch_of(loaded, PAIRS)
    ratios = ratios_of(loaded.model, batch)
    wanted = -F.logsigmoid(BETA * (ratios[:3] - ratios[3:]))
    task = Preference(beta=BETA)
    by_row, rewards = batch_loss(loaded.model, batch, task, by_row=True)
    torch.testing.assert_close(by_row, wanted)
    assert rewards is not None
    torch.testing.assert_close(rewards.double(), BETA * ratios.view(2, 3).T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(batch_loss(loaded.model, batch, task)[0], wanted.sum())
    assert lorakit.enabled(loaded.model) == {"default": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [PAIRS, RATED], ids=["pairs", "rated"])
def test_the_loss_of_kto_is_that_of_the_paper(loaded: Loaded, rows: list[dict[str, Any]]) -> None:
    batch = batch_of(loaded, rows)
    ratios = ratios_of(loaded.model, batch)
    is_good = batch.get("rated", torch.arange(6) < 3)
    divergence = ratios_of(loaded.model, exchange_answers(batch)).mean().clamp(min=0)
    signs = torch.where(is_good, 1.0, -1.0)
    wanted = 1 - torch.sigmoid(BETA * signs * (ratios - divergence))
    loss = batch_loss(loaded.model, batch, Preference("kto", BETA))[0]
    torch.testing.assert_close(loss / len(rows), wanted.mean())


@pytest.mark.slow
def test_the_loss_of_orpo_is_that_of_the_paper(loaded: Loaded) -> None:
    batch = batch_of(loaded, PAIRS)
    counts = (batch["labels"][:, 1:] != IGNORED).sum(1)
    means = log_probs(loaded.model, batch) / counts
    odds = means - torch.log1p(-means.exp())
    whole = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    read = {**batch, "labels": whole}
    likelihood = -log_probs(loaded.model, read)[:3].sum() / (whole[:3, 1:] != IGNORED).sum()
    wanted = likelihood - BETA * F.logsigmoid(odds[:3] - odds[3:]).mean()
    loss = batch_loss(loaded.model, batch, Preference("orpo", BETA))[0]
    torch.testing.assert_close(loss.double() / 3, wanted, rtol=1e-6, atol=1e-6)


def test_answers_are_exchanged_within_a_batch() -> None:
    examples = [
        Example([1, 2, 3], [IGNORED, IGNORED, 3], rating=True),
        Example([4, 5, 6, 7], [IGNORED, 5, 6, 7], rating=False),
    ]
    batch = exchange_answers(collate(examples, 0))
    assert batch["input_ids"].tolist() == [[1, 2, 5, 6], [4, 3, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 5, 6], [IGNORED, 3, IGNORED, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


TRL = {
    "dpo": ("trl", "DPO", PAIRS),
    "kto": ("trl", "KTO", RATED),
    "orpo": ("trl.experimental.orpo", "ORPO", PAIRS),
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", TRL)
def test_trl_alone_reads_the_same_tokens_and_has_the_same_loss(
    loss: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """A trainer of TRL with a data set, the model, and a copy of the base as reference."""
    from datasets import Dataset

    room, name, rows = TRL[loss]
    base = load(str(tiny_llama), "preference")
    reference = deepcopy(base.model)
    adapter = lorakit.attach(base.model, Spec(rank=4), seed=0)
    for delta in adapter.deltas.values():
        nn.init.constant_(delta.get_parameter("B"), 0.1)
    ours = batch_loss(base.model, batch_of(base, rows), Preference(loss, BETA))[0] / len(rows)
    with warnings.catch_warnings(action="ignore"):
        module = import_module(room)
        plain = {"use_cpu": True, "bf16": False, "report_to": "none", "beta": BETA}
        size = {"per_device_train_batch_size": len(rows), "max_length": 60}
        trainer = getattr(module, f"{name}Trainer")(
            model=base.model,
            args=getattr(module, f"{name}Config")(output_dir=str(tmp_path), **plain, **size),
            train_dataset=Dataset.from_list(rows),
            processing_class=base.tokenizer,
            **({} if loss == "orpo" else {"ref_model": reference}),
        )
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
        theirs = trainer.compute_loss(base.model, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_tokens_are_those_of_completions(loaded: Loaded) -> None:
    (example,) = encode_rows(as_rows(PAIRS[:1]), loaded)
    assert example.rejected is not None
    for answer, key in ((example, "chosen"), (example.rejected, "rejected")):
        row = {"prompt": PAIRS[0]["prompt"], "completion": PAIRS[0][key]}
        plain = Loaded(loaded.model, loaded.tokenizer, "causal-lm", [], "", (), 64)
        (want,) = encode_rows(Rows("completion", [row], ["row"], ""), plain)
        assert (answer.ids, answer.labels) == (want.ids, want.labels)


@pytest.mark.parametrize("as_text", [False, True], ids=["turns", "text"])
def test_the_tokens_are_those_of_conversations(loaded: Loaded, as_text: bool) -> None:
    prompt = [{"role": "user", "content": "the cat"}]
    answers = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    row = {"prompt": "the cat" if as_text else prompt, **answers}
    (example,) = encode_rows(as_rows([row]), loaded)
    assert example.rejected is not None
    plain = Loaded(loaded.model, loaded.tokenizer, "causal-lm", [], "", (), 64)
    for answer, key in ((example, "chosen"), (example.rejected, "rejected")):
        turns = Rows("messages", [{"messages": [*prompt, *answers[key]]}], ["row"], "")
        (want,) = encode_rows(turns, plain)
        assert (answer.ids, answer.labels) == (want.ids, want.labels)


def test_a_long_prompt_is_cut_alike_for_both_answers(loaded: Loaded) -> None:
    row = {"prompt": "the cat " * 20, "chosen": " sat.", "rejected": " sat on a mat."}
    how = Encoding(tokenizer=loaded.tokenizer, max_length=20)
    (example,) = encode_preferences(as_rows([row]), how)
    assert example.rejected is not None
    starts = [
        [token for token, label in zip(one.ids, one.labels, strict=True) if label == IGNORED]
        for one in (example, example.rejected)
    ]
    assert starts[0] == starts[1]
    assert len(example.rejected.ids) == 20 and example.cut > 0


def test_a_long_conversation_is_cut_as_for_language_modelling(loaded: Loaded) -> None:
    prompt = [{"role": "user", "content": "the cat " * 20}]
    answers = {key: [{"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    (example,) = encode_preferences(
        as_rows([{"prompt": prompt, **answers}]),
        Encoding(tokenizer=loaded.tokenizer, max_length=20),
    )
    assert example.rejected is not None
    plain = Loaded(loaded.model, loaded.tokenizer, "causal-lm", [], "", (), 64)
    for answer, key in ((example, "chosen"), (example.rejected, "rejected")):
        turns = Rows("messages", [{"messages": [*prompt, *answers[key]]}], ["row"], "")
        (want,) = encode_rows(turns, plain, 20)
        assert (answer.ids, answer.labels) == (want.ids, want.labels)
    assert len(example.ids) == 20 and example.cut > 0


def test_other_rows_are_refused(loaded: Loaded) -> None:
    with pytest.raises(DataError, match="are in the layout text; preference needs a prompt with"):
        encode_rows(Rows("text", [{"text": "a"}], ["a:1"], "a"), loaded)
