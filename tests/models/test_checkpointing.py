"""Checkpointing gives the same gradients, and keeps less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import CheckpointPolicy

import lorakit
from lorakit import Spec
from lorakit.models.checkpointing import _policy, checkpoint_blocks

from ..laws.models import gpt2, llama
from ..laws.table import fill

IDS = torch.arange(24).reshape(2, 12) * 7 % 50


def gradients(model: Any, adapter: lorakit.Adapter, seed: int = 3) -> list[Tensor]:
    torch.manual_seed(seed)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    found = [p.grad.clone() for p in adapter.parameters() if p.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("what", ["light", "full"])
@pytest.mark.parametrize(
    "build", [llama, gpt2]
)  # GPT-2 drops attention weights too, between products that are kept
def test_the_gradients_are_the_same_to_the_bit(build: Any, what: str) -> None:
    model: nn.Module = build().train()
    adapter = fill(lorakit.attach(model, Spec(rank=2, dropout=0.2)))
    want = gradients(model, adapter)
    checkpoint_blocks(model, what)
    got = gradients(model, adapter)
    checkpoint_blocks(model, "")
    assert len(got) == len(want) == len(list(adapter.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(gradients(model, adapter, 4), want, strict=True)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_light_keeps_less_than_the_frozen_model_does() -> None:
    def kept(what: str, *, adapted: bool) -> int:
        model: Any = (
            llama(hidden_size=64, intermediate_size=180, num_hidden_layers=4)
            .train()
            .requires_grad_(False)
        )
        if adapted:
            fill(lorakit.attach(model, Spec(rank=2)))
        if what:
            checkpoint_blocks(model, what)
        embedded = torch.ones(1, 64, 64).requires_grad_()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            loss = model(inputs_embeds=embedded, use_cache=False).logits.sum()
        found = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
        del loss
        return found

    assert (
        kept("full", adapted=True)
        < kept("light", adapted=True)
        < kept("", adapted=False)
        < kept("", adapted=True)
    )


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, True), (0.1, False)])
def test_attention_that_draws_random_numbers_is_made_again(dropout: float, kept: bool) -> None:
    """If its output were kept, later dropout would find another state of the generator."""
    heads = torch.ones(1, 1, 2, 8)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention.default
    assert (
        _policy(None, kernel, heads, heads, heads, dropout) is CheckpointPolicy.MUST_SAVE
    ) is kept
    assert (
        _policy(None, kernel, heads, heads, heads, dropout_p=dropout) is CheckpointPolicy.MUST_SAVE
    ) is kept
