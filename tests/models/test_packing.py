"""A packed row is computed as it is alone, in every supported family; leaks are found."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import lorakit
from lorakit import Spec
from lorakit.data.batches import Batches, collate, concatenate_rows, pack_examples
from lorakit.data.encode import IGNORED, Example
from lorakit.evaluate.score import batch_loss
from lorakit.models.packing import find_leak, packed_attention, packing_obstacle

from ..laws.table import fill
from .test_chunked_loss import SIZES, build

FAMILIES = [
    "llama",
    "gpt2, tied",
    "granite, divided",
    "cohere, multiplied",
    "phi, with a bias",
    "qwen2",
]
LENGTHS = (9, 1, 14, 5)


def examples() -> list[Example]:
    draw, out = torch.Generator().manual_seed(3), []
    for n in LENGTHS:
        ids = torch.randint(3, 97, (n,), generator=draw).tolist()
        out.append(Example(ids, [IGNORED] * (n // 3) + ids[n // 3 :]))
    return out


def trained(model: Any, batch: dict[str, Any]) -> list[Tensor]:
    loss = batch_loss(model, batch, "causal-lm")[0]
    return [
        loss.detach(),
        *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(
    name: str, checkpointing: bool
) -> None:
    model = build(name)
    fill(lorakit.attach(model, Spec(rank=3, dtype="float64")))
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attention_dropout = 0.0
    padded = trained(model, collate(examples(), 0))
    with packed_attention(model):
        assert find_leak(model) is None
        packed = trained(model, pack_examples(examples()))
        again = trained(model, collate(examples(), 0))
    for got, same, want in zip(packed, again, padded, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
        assert torch.equal(same, want)  # what is padded is computed as before


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_packed_rows_are_those_of_rows_alone(name: str) -> None:
    model, rows = build(name), [e.ids for e in examples()]
    with packed_attention(model), torch.no_grad():
        logits = model(**concatenate_rows(rows), use_cache=False).logits[0].split(LENGTHS)
    for row, got in zip(rows, logits, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(
                got, model(input_ids=torch.tensor([row])).logits[0], rtol=1e-9, atol=1e-9
            )


def test_a_row_before_never_predicts_the_first_token_of_the_next() -> None:
    batch = pack_examples([Example([5, 6], [5, 6]), Example([7, 8, 9], [7, 8, 9])])
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED, 8, 9]]
    assert batch["packed"] == (2, 3)


def small(kind: str, **more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **more)
        return transformers.AutoModelForCausalLM.from_config(config).double().eval()


def test_a_recurrent_model_is_seen_to_leak() -> None:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
        "pad_token_id": 0,
    }
    model = small("mamba", **sizes)
    with packed_attention(model):
        assert find_leak(model) is not None


def test_positions_that_the_model_makes_itself_are_seen() -> None:
    model = small(
        "bloom", vocab_size=97, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0
    )  # ALiBi, by the mask
    with packed_attention(model):
        assert find_leak(model) is not None


def test_a_window_shorter_than_the_rows_is_refused() -> None:
    config = transformers.MistralConfig(**SIZES, sliding_window=8)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert packing_obstacle(model, 8) is None
    assert packing_obstacle(model, 9) == "rows of 9 tokens are longer than its sliding_window, 8"


def test_another_attention_is_refused_and_the_models_own_comes_back() -> None:
    model = build("llama")
    with packed_attention(model):
        pass
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert packing_obstacle(model, 5) == "its attention is 'eager', not sdpa"


@pytest.mark.parametrize("seed", range(4))
def test_batches_by_tokens_hold_each_example_once_and_about_as_many_tokens(seed: int) -> None:
    lengths = torch.randint(1, 60, (200,), generator=torch.Generator().manual_seed(seed)).tolist()
    batches = Batches(lengths, 16, seed, tokens=256, packed=True)
    for epoch in range(3):
        order = [
            batches[k] for k in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
        ]
        assert sorted(i for batch in order for i in batch) == list(range(200))
        sums = [sum(lengths[i] for i in batch) for batch in order]
        assert min(sums) > 0 and max(
            abs(s - sum(lengths) / batches.per_epoch) for s in sums
        ) <= max(lengths)
    assert batches.width(batches.longest(0, batches.per_epoch)) == max(
        sum(lengths[i] for i in batches[k]) for k in range(batches.per_epoch)
    )
