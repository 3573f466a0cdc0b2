"""Attention maps equal the formula, and their distance measures only the effect of an adapter."""

from pathlib import Path

import pytest
import torch

import lorakit
from lorakit import LorakitError, Spec
from lorakit.analysis.attention import attention_maps, compare_attention, divergence
from lorakit.models.load import load
from lorakit.models.open import open_model

from ..conftest import sentences

TEXT = sentences(1, seed=7)[0]


@pytest.fixture(params=["bert", "llama"])
def opened(request: pytest.FixtureRequest, tiny_bert: Path, tiny_llama: Path):
    if request.param == "bert":
        return load(str(tiny_bert), "classify", labels=["no", "yes"])
    return open_model(str(tiny_llama), None, "causal-lm")


def adapted(opened, targets="q", scale: float = 1.0):
    adapter = lorakit.attach(opened.model, Spec(rank=2, targets=targets))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for delta in adapter.deltas.values():
            delta.B.copy_(scale * torch.randn(delta.B.shape, generator=draw))
    return adapter


def projected(opened, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and k of the first layer for a text, (tokens, width), as its linear layers give
    them.
    """
    kept = {}
    end = {"q": ("query", "q_proj"), "k": ("key", "k_proj")}
    hooks = [
        m.register_forward_hook(lambda _m, _i, y, k=k: kept.setdefault(k, y[0].detach()))
        for k, ends in end.items()
        for n, m in opened.model.named_modules()
        if n.endswith(ends)
    ]
    with torch.no_grad():
        opened.model(**inputs)
    for hook in hooks:
        hook.remove()
    return kept["q"].double(), kept["k"].double()


@pytest.mark.slow
def test_the_map_of_an_encoder_is_softmax_of_q_k(tiny_bert: Path):
    opened = load(str(tiny_bert), "classify", labels=["no", "yes"])
    adapted(opened)
    inputs = opened.tokenizer(TEXT, return_tensors="pt")
    q, k = projected(opened, inputs)
    heads = opened.model.config.num_attention_heads
    q, k = (x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k))
    dense = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    assert torch.allclose(attention_maps(opened.model, inputs)[0], dense, atol=1e-6)


@pytest.mark.slow
def test_a_comparison_does_not_change_the_model(opened):
    adapted(opened)
    inputs = opened.tokenizer(TEXT, return_tensors="pt")
    opened.model.train()
    names = (opened.model.config._attn_implementation, lorakit.enabled(opened.model))
    with torch.no_grad():
        before = opened.model.eval()(**inputs).logits
    opened.model.train()
    found = compare_attention(opened.model, opened.tokenizer, TEXT)
    assert (opened.model.config._attn_implementation, lorakit.enabled(opened.model)) == names
    assert opened.model.training
    with torch.no_grad():
        assert torch.equal(opened.model.eval()(**inputs).logits, before)
    assert torch.equal(found.after, attention_maps(opened.model, inputs))
    lorakit.enable(opened.model, None)
    assert torch.equal(found.before, attention_maps(opened.model, inputs))
    assert torch.allclose(found.after.sum(-1), torch.ones(()).double(), atol=1e-6)


@pytest.mark.slow
def test_a_fresh_adapter_changes_no_map_and_a_trained_one_does(opened):
    lorakit.attach(opened.model, Spec(rank=2, targets="q"))
    assert compare_attention(opened.model, opened.tokenizer, TEXT).distance.count_nonzero() == 0
    lorakit.detach(opened.model)
    adapted(opened, scale=0.1)
    near = compare_attention(opened.model, opened.tokenizer, TEXT)
    lorakit.detach(opened.model)
    adapted(opened, scale=2.0)
    far = compare_attention(opened.model, opened.tokenizer, TEXT)
    assert 0 < near.mean_distance < far.mean_distance < 1
    assert far.distance[
        far.most_changed_head
    ] == far.distance.max() and far.mean_distance == pytest.approx(float(far.distance.mean()))


@pytest.mark.slow
def test_a_change_of_values_changes_no_map_of_its_own_layer(opened):
    adapted(opened, targets="v")
    found = compare_attention(opened.model, opened.tokenizer, TEXT)
    assert (
        found.distance[0].count_nonzero() == 0
    )  # maps come from q and k; later layers see other inputs
    assert found.distance[1].min() > 0


@pytest.mark.slow
def test_a_token_that_sees_only_itself_does_not_count(tiny_llama: Path):
    opened = open_model(str(tiny_llama), None, "causal-lm")
    adapted(opened)
    found = compare_attention(opened.model, opened.tokenizer, TEXT)
    assert (found.before[..., 0, 0] == 1).all()
    kept = divergence(found.before, found.after)[..., 1:].mean(-1)
    assert torch.allclose(found.distance, kept)


def test_divergence_equals_that_of_scipy():
    from scipy.spatial.distance import jensenshannon

    draw = torch.Generator().manual_seed(0)
    P, Q = (torch.rand(3, 4, 7, generator=draw).softmax(-1) for _ in range(2))
    P[0, 0] = torch.eye(7)[0]
    wanted = torch.from_numpy(
        jensenshannon(P.double().numpy(), Q.double().numpy(), base=2, axis=-1) ** 2
    )
    assert torch.allclose(divergence(P, Q), wanted, atol=1e-7)
    assert torch.equal(divergence(P, Q), divergence(Q, P))


@pytest.mark.slow
def test_the_largest_changes_come_first(opened):
    adapted(opened)
    found = compare_attention(opened.model, opened.tokenizer, TEXT)
    layer, head = found.most_changed_head
    gap = (found.after - found.before)[layer, head].abs().flatten().sort(descending=True).values
    moves = found.largest_changes(layer, head, count=3)
    assert [abs(m["after"] - m["before"]) for m in moves] == pytest.approx(gap[:3].tolist())
    assert {m["token"] for m in moves} | {m["at"] for m in moves} <= set(found.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "text", "says"),
    [
        ("off", TEXT, "No adapter is enabled, so there is nothing to compare."),
        ("on", "  ", "is too short: attention needs at least 2 tokens of text"),
        ("on", "cat " * 80, "tokens; the model takes at most 64"),
    ],
)
def test_a_text_or_state_that_cannot_be_compared_is_refused(
    tiny_bert: Path, which: str, text: str, says: str
):
    opened = load(str(tiny_bert), "classify", labels=["no", "yes"])
    adapted(opened)
    lorakit.enable(opened.model, "default" if which == "on" else None)
    with pytest.raises(LorakitError, match=says):
        compare_attention(opened.model, opened.tokenizer, text)


@pytest.mark.slow
def test_a_model_without_maps_is_refused():
    from torch import nn
    from transformers import MambaConfig, MambaModel

    with pytest.raises(
        LorakitError,
        match="Linear is not a model of transformers, so its attention maps are not available",
    ):
        attention_maps(nn.Linear(2, 2), {})
    config = MambaConfig(
        vocab_size=16, hidden_size=8, state_size=4, num_hidden_layers=1, expand=1, time_step_rank=2
    )
    with pytest.raises(LorakitError, match="MambaModel returns no attention maps"):
        attention_maps(MambaModel(config), {"input_ids": torch.tensor([[1, 2, 3]])})
