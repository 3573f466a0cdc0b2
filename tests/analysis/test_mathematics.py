"""The mathematics that LoRA stands on, each against its closed formula."""

import pytest
import torch
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
)

import lorakit
from lorakit import LorakitError, Spec

from ..laws.table import randn


def test_factorize_is_exact_at_the_rank_and_best_below_it() -> None:
    M = randn(9, 4) @ randn(4, 12, seed=1)
    for rank in (4, 6, 9):
        A, B = lorakit.factorize(M, rank)
        assert A.shape == (rank, 12) and B.shape == (9, rank)
        assert (B @ A - M).norm() < 1e-12 * M.norm()
    left = torch.linalg.svdvals(M)
    for rank in (1, 2, 3):
        A, B = lorakit.factorize(M.float(), rank)
        assert float((B @ A - M).norm()) == pytest.approx(
            float(left[rank:].square().sum().sqrt()), rel=1e-5
        )


@pytest.mark.parametrize("rank", [0, 10, True, 1.0])
def test_factorize_refuses_a_rank_that_cannot_be(rank: object) -> None:
    with pytest.raises(
        LorakitError, match=r"at least 1, at most 9 are needed: M is \(9, 12\), rank is"
    ):
        lorakit.factorize(randn(9, 12), rank)  # type: ignore[arg-type]
    with pytest.raises(LorakitError, match=r"M is \(3,\)"):
        lorakit.factorize(randn(3), 1)


def test_gradients_are_those_of_the_formula_beside_a_full_step() -> None:
    """With G = dL/dY: a full step moves W by G^T X; LoRA moves B by s G^T X A^T and A by s B^T G^T
    X.
    """
    layer, x, target = (
        nn.Linear(7, 5, dtype=torch.float64),
        randn(11, 7, seed=2),
        randn(11, 5, seed=3),
    )
    loss = 0.5 * (layer(x) - target).square().sum()
    G, (full,) = layer(x).detach() - target, torch.autograd.grad(loss, [layer.weight])
    assert torch.allclose(full, G.T @ x, atol=1e-12)
    model = nn.Sequential(layer)
    delta = lorakit.attach(model, Spec(rank=3, alpha=6, dtype="float64")).deltas["0"]
    (0.5 * (model(x) - target).square().sum()).backward()
    assert not delta.A.grad.any()  # B is zero
    assert torch.allclose(delta.B.grad, 2.0 * G.T @ x @ delta.A.detach().T, atol=1e-12)
    delta.B.data.copy_(randn(5, 3, seed=4))
    delta.zero_grad()
    (0.5 * (model(x) - target).square().sum()).backward()
    G = model(x).detach() - target
    assert torch.allclose(delta.A.grad, 2.0 * delta.B.detach().T @ G.T @ x, atol=1e-11)
    assert torch.allclose(delta.B.grad, 2.0 * G.T @ x @ delta.A.detach().T, atol=1e-11)


def opt(width: int, layers: int) -> nn.Module:
    """A decoder with q, k and v apart, of GPT-3's width and depth; its vocabulary does not count
    here.
    """
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "ffn_dim": 4 * width,
        "word_embed_proj_dim": width,
    }
    return OPTModel(OPTConfig(**sizes, num_attention_heads=96, vocab_size=8))


ROBERTA_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
DEBERTA_XXL = {
    "hidden_size": 1536,
    "num_hidden_layers": 48,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
}
PUBLISHED = {  # Hu et al., arXiv 2106.09685: tables 2, 4, 9, 10, 12 and 15
    "RoBERTa large, r = 8": (lambda: RobertaModel(RobertaConfig(**ROBERTA_LARGE)), 8, 786_432),
    "DeBERTa XXL, r = 16": (lambda: DebertaV2Model(DebertaV2Config(**DEBERTA_XXL)), 16, 4_718_592),
    "GPT-3, r = 1": (lambda: opt(12288, 96), 1, 4_718_592),
    "GPT-3, r = 4": (lambda: opt(12288, 96), 4, 18_874_368),
    "GPT-3, r = 64": (lambda: opt(12288, 96), 64, 301_989_888),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PUBLISHED)
def test_published_counts_on_query_and_value(case: str) -> None:
    make, rank, count = PUBLISHED[case]
    with torch.device("meta"):
        model = make()
    assert lorakit.attach(model, Spec(rank=rank, targets="qv")).parameters_count == count
