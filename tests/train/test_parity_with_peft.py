"""From the same start and on the same batches, lorakit's loss curve is PEFT's."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import lorakit

# PEFT asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

STEPS, RANK, BOUND = 30, 4, 1e-5
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,  # large enough for a fault in an adapter to show in the loss
}


@pytest.fixture(autouse=True)
def one_thread():
    """Several threads would only wait for each other on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True
        )
    )


def bert() -> nn.Module:
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(**SIZES, **still, max_position_embeddings=32, num_labels=3)
    )


def language(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def classes(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(input_ids=ids).logits, ids.sum(1) % 3)


def curve(model: nn.Module, parameters: list[nn.Parameter], loss_of) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)
    model.train()
    losses = []
    for _ in range(STEPS):
        loss = loss_of(model, torch.randint(0, 40, (4, 8), generator=generator))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# 4 is exact in binary, 1.3 is not: lorakit scales before B and PEFT after it, so only there do
# roundings differ.
@pytest.mark.slow
@pytest.mark.parametrize("scale", [4.0, 1.3])
@pytest.mark.parametrize(
    ("base", "loss_of", "targets", "theirs", "head"),
    [
        (llama, language, "all-linear", "all-linear", ()),
        (bert, classes, "qv", ["query", "value"], ("classifier",)),
    ],
    ids=["llama", "bert"],
)
def test_loss_curve_is_that_of_peft(base, loss_of, targets, theirs, head, scale: float):
    peft = pytest.importorskip("peft")
    ours, other = base(), base()
    spec = lorakit.Spec(rank=RANK, alpha=scale * RANK, targets=targets, full_modules=head)
    adapter = lorakit.attach(ours, spec)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=scale * RANK,
        target_modules=theirs,
        lora_dropout=0.0,
        modules_to_save=list(head) or None,
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
    )
    wrapped = peft.get_peft_model(other, config)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert set(layers) == set(adapter.deltas)
    with torch.no_grad():
        for name, delta in adapter.deltas.items():
            layers[name].lora_A["default"].weight.copy_(delta.A)
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == adapter.parameters_count
    found, wanted = (
        curve(ours, list(adapter.parameters()), loss_of),
        curve(wrapped, trained, loss_of),
    )
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= BOUND
    # That the curves agree says something only where every layer has learned.
    assert all(delta.B.any() for delta in adapter.deltas.values())
