"""The methods that LoRA is compared with, and the trial that measures them."""

from pathlib import Path

import pytest
import torch
from torch import nn

import lorakit
from lorakit import LorakitError, Spec
from lorakit.compare.methods.compressed import truncate_weights
from lorakit.compare.methods.full import full_finetuning_spec
from lorakit.compare.methods.trial import (
    run_linear_head,
    run_trial,
    score_classifier,
    wilson_interval,
)
from lorakit.data.batches import Batches, collate
from lorakit.data.encode import Example
from lorakit.evaluate.score import batch_loss
from lorakit.models.load import Loaded, load, pad_id
from lorakit.train.optim import lr_factor, set_lr

from ..conftest import sentences

STEPS, BATCH, LR = 3, 4, 1e-3


def opened(folder: Path) -> tuple[Loaded, list[Example]]:
    loaded = load(str(folder), "classify", labels=["no", "yes"])
    texts = sentences(24, seed=3)
    rows = [
        Example(loaded.tokenizer(t).input_ids, target=int("cat" in t), row=i)
        for i, t in enumerate(texts)
    ]
    return loaded, rows


@pytest.mark.slow
def test_full_fine_tuning_equals_a_plain_loop(tiny_bert: Path):
    loaded, rows = opened(tiny_bert)
    found = run_trial(
        loaded,
        full_finetuning_spec(loaded.model),
        rows,
        rows,
        method="full",
        steps=STEPS,
        lr=LR,
        batch_size=BATCH,
    )
    plain, _ = opened(tiny_bert)
    count = sum(p.numel() for p in plain.model.parameters())
    assert found.parameters == count
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=LR, weight_decay=0.0)
    order = Batches([len(e.ids) for e in rows], BATCH, 0)
    plain.model.train()
    torch.manual_seed(0)
    for step in range(STEPS):
        set_lr(optimizer, LR * lr_factor(step, STEPS, 0.05, "cosine"))
        loss = (
            batch_loss(
                plain.model,
                collate([rows[i] for i in order[step]], pad_id(plain.tokenizer, plain.model)),
                "classify",
            )[0]
            / BATCH
        )
        loss.backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    lorakit.merge(loaded.model)
    lorakit.detach(loaded.model)
    tuned = dict(loaded.model.named_parameters())
    for name, parameter in plain.model.named_parameters():
        assert torch.allclose(tuned[name], parameter, atol=1e-6), name


def test_full_fine_tuning_covers_a_decoder_and_keeps_the_base(tiny_llama: Path):
    model = load(str(tiny_llama), "causal-lm").model
    before = {n: p.clone() for n, p in model.named_parameters()}
    adapter = lorakit.attach(model, full_finetuning_spec(model))
    assert set(adapter.full_parameters) == set(before)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1.0)
    lorakit.detach(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_parameters_beside_buffers_are_named():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("mean", torch.ones(2))

    with pytest.raises(LorakitError) as caught:
        full_finetuning_spec(nn.Sequential(Mixed()))
    assert "Sequential cannot be trained in full." in str(caught.value)
    assert "0.weight   is in a module with buffers, or in none" in str(caught.value)


def test_a_truncated_model_computes_with_the_truncated_svd():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    found, x = truncate_weights(model, 2), torch.randn(3, 6, dtype=torch.float64)
    dense, tail, total = (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double(),
        0.0,
        0.0,
    )
    dense.load_state_dict(model.state_dict())
    for layer in (dense[0], dense[2]):
        U, S, Vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        layer.weight.data = U[:, :2] * S[:2] @ Vh[:2]
        tail, total = tail + float(S[2:].square().sum()), total + float(S.square().sum())
    assert found.error == pytest.approx((tail / total) ** 0.5)
    assert (found.stored_values, found.full_values) == (2 * 11 + 10, 30 + 10)
    base = model(x)
    lorakit.attach(model, found.adapter)
    assert torch.allclose(model(x), dense(x), atol=1e-12)
    lorakit.detach(model)
    assert torch.equal(model(x), base)


@pytest.mark.parametrize(
    ("rank", "says"),
    [(5, "Rank 5 changes no matrix"), (0, "A rank of at least 1 is needed, got 0")],
)
def test_a_truncation_without_effect_is_refused(rank: int, says: str):
    with pytest.raises(LorakitError, match=says):
        truncate_weights(nn.Sequential(nn.Linear(6, 5)), rank)


@pytest.mark.slow
def test_a_trial_measures_accuracy_and_cost(tiny_bert: Path):
    loaded, rows = opened(tiny_bert)
    found = run_trial(
        loaded,
        Spec(rank=2, targets="qv"),
        rows,
        rows,
        method="LoRA",
        steps=STEPS,
        lr=LR,
        batch_size=BATCH,
    )
    assert (
        found.parameters == 2 * 2 * 2 * 64 + 2 * 32 + 2
    )  # two layers of q and v, and the new head
    assert found.memory_bytes > 12 * found.parameters and found.seconds > 0
    assert lorakit.enabled(loaded.model) == {"default": 1.0} and not loaded.model.training
    again = score_classifier(loaded, rows, method="again")
    assert (again.accuracy, again.low, again.high) == (found.accuracy, found.low, found.high)
    assert found.low < found.accuracy < found.high
    assert (found.low, found.high) == wilson_interval(round(24 * found.accuracy), 24)


@pytest.mark.slow
def test_full_fine_tuning_trains_more_and_takes_more_memory(tiny_bert: Path):
    small, rows = opened(tiny_bert)
    whole, _ = opened(tiny_bert)
    trials = [
        run_trial(loaded, spec, rows, rows, method="", steps=1, lr=LR, batch_size=BATCH)
        for loaded, spec in (
            (small, Spec(rank=2, targets="qv")),
            (whole, full_finetuning_spec(whole.model)),
        )
    ]
    lora, full = trials
    assert lora.parameters < full.parameters
    assert lora.memory_bytes < full.memory_bytes


@pytest.mark.slow
def test_the_linear_head_is_a_trial(tiny_bert: Path):
    loaded, rows = opened(tiny_bert)
    found = run_linear_head(loaded, rows, rows)
    assert found.parameters == 3 * 32 + 1 and 0 <= found.low <= found.accuracy <= found.high <= 1


def test_a_trial_without_classes_is_refused(tiny_llama: Path):
    with pytest.raises(
        LorakitError, match="Trials need a classifier; this model was loaded for causal-lm"
    ):
        score_classifier(load(str(tiny_llama), "causal-lm"), [], method="")
