"""An adapter that the authors of LoRA published: RoBERTa-base on MNLI, rank 8 on query and value,
with its head.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorakit
from lorakit.deltas.base import LowRank

from .layers import ours

TARGETS = ("query", "value")
pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, Tensor]:
    path = shared / "models" / "real-adapters" / "roberta_base_lora_mnli.bin"
    return torch.load(path, map_location="cpu", weights_only=True)


def roberta() -> Any:
    """Return a model of RoBERTa-base's shape, but for fewer words, with random weights from one
    seed.
    """
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=1000, max_position_embeddings=514, type_vocab_size=1, num_labels=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RobertaForSequenceClassification(config).eval()


def edited(model: nn.Module) -> nn.Module:
    """Replace query and value, as the paper's own code does."""
    for layer in model.roberta.encoder.layer:  # pyright: ignore
        attention = layer.attention.self
        for name in TARGETS:
            base = getattr(attention, name)
            adapted = ours.Linear(base.in_features, base.out_features, r=8, lora_alpha=16)
            adapted.load_state_dict(base.state_dict(), strict=False)
            setattr(attention, name, adapted)
    return model


def test_the_published_file_lands_where_it_belongs(published: dict[str, Tensor]):
    factors = {key: tensor for key, tensor in published.items() if "lora_" in key}
    head = {key: tensor for key, tensor in published.items() if key not in factors}
    assert [sum(t.numel() for t in part.values()) for part in (factors, head)] == [294_912, 592_899]
    ids = torch.randint(5, 1000, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = roberta()
        own_head = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
        base = plain(ids).logits
        model = edited(plain).eval()
        assert torch.equal(model(ids).logits, base)  # B is zero yet

        assert ours.lora_state_dict(model).keys() == factors.keys()
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert {key: tensor.shape for key, tensor in published.items()}.items() <= shapes.items()
        result = model.load_state_dict(published, strict=False)
        assert result.unexpected_keys == []
        assert set(result.missing_keys) == shapes.keys() - published.keys()
        state = model.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in published.items())
        assert all(torch.equal(state[key], own_head[key]) for key in result.missing_keys)

        merged = model(ids).logits
        assert (merged - base).abs().max() > 0.01
        for module in model.modules():
            if isinstance(module, ours.Linear):
                module.train()  # those alone: the model has dropout of its own
        torch.testing.assert_close(model(ids).logits, merged, rtol=0, atol=1e-5)
        model.load_state_dict({key: own_head[key] for key in head}, strict=False)
        changed = model(ids).logits  # what the factors alone do
        del model, plain
        assert (changed - base).abs().max() > 1e-3

        attached = roberta()
        by_name = {}
        for key, A in factors.items():
            if key.endswith("lora_A"):
                by_name[key.removesuffix(".lora_A")] = LowRank(
                    A, factors[key.removesuffix("A") + "B"], alpha=16
                )
        assert {delta.scale for delta in by_name.values()} == {2.0}
        assert len(by_name) == 24
        adapter = lorakit.Adapter(lorakit.Spec(rank=8, alpha=16, targets=TARGETS), by_name)
        lorakit.attach(attached, adapter, trainable=False)
        torch.testing.assert_close(attached(ids).logits, changed, rtol=0, atol=1e-5)
        attached.load_state_dict(head, strict=False)
        torch.testing.assert_close(attached(ids).logits, merged, rtol=0, atol=1e-5)


def test_training_marks_what_the_paper_counts(published: dict[str, Tensor]):
    """The factors, and the head, which the paper's script trains beside them."""
    model = edited(roberta())
    ours.mark_only_lora_as_trainable(model)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 294_912
    model.classifier.requires_grad_(True)  # pyright: ignore
    assert {name for name, p in model.named_parameters() if p.requires_grad} == published.keys()
