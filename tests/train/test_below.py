"""Below the lowest adapted layer no activation is kept, and no gradient is computed."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lorakit
from lorakit.evaluate.score import batch_loss
from lorakit.models.load import load
from lorakit.spec import Spec


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_gradient_goes_below_the_lowest_adapted_layer(
    checkpointing: bool, tiny_llama: Path
) -> None:
    model: Any = load(str(tiny_llama), "causal-lm").model
    adapter = lorakit.attach(model, Spec(rank=2, targets=["layers.1.self_attn.q_proj"]))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()  # as the loop does
    kept: list[bool] = []
    for module in (model.model.embed_tokens, model.model.layers[0], model.model.layers[1]):
        module.register_forward_hook(lambda _, args, out: kept.append(out.requires_grad))
    ids = torch.arange(4, 16).view(2, 6)
    loss = batch_loss(model.train(), {"input_ids": ids, "labels": ids}, "causal-lm")[0]
    assert kept[-3:] == [False, False, True]
    loss.backward()
    assert all(p.grad is not None for p in adapter.parameters())
