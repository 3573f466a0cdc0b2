"""What a model says of a row does not depend on the other rows of its batch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from lorakit.compare.methods.linear_head import encoder_features
from lorakit.data.encode import IGNORED, Example
from lorakit.evaluate.decoding import Decoding
from lorakit.evaluate.generate import generate
from lorakit.evaluate.score import evaluate
from lorakit.models.load import Loaded, pad_id
from lorakit.models.padding import leaks_padding
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.prepare import prepare_run
from lorakit.train.run import train_adapter

# A single row has a single class.
pytestmark = pytest.mark.filterwarnings("ignore:A single label")
SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
MORE: dict[str, dict[str, Any]] = {
    "GPT2": GPT,
    "OpenAIGPT": GPT,
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2},
    "StableLm": {"num_key_value_heads": 4},
    "Mixtral": {"num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Mamba": {"state_size": 4},
    "ConvBert": {"embedding_size": 16, "num_labels": 3},
    "DistilBert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
}
CAUSAL = {
    "GPT2LMHeadModel": False,
    "LlamaForCausalLM": False,
    "BloomForCausalLM": False,
    "OPTForCausalLM": False,
    "MptForCausalLM": False,
    "StableLmForCausalLM": False,
    "MixtralForCausalLM": False,
    "MambaForCausalLM": False,
    "RwkvForCausalLM": True,  # it has no mask, so padding before a row changes its state
}
CLASSIFIERS = {
    "BertForSequenceClassification": False,
    "RobertaForSequenceClassification": False,
    "DistilBertForSequenceClassification": False,
    "MPNetForSequenceClassification": False,
    "GPT2ForSequenceClassification": False,
    "LlamaForSequenceClassification": False,
    "OpenAIGPTForSequenceClassification": False,
    "ConvBertForSequenceClassification": True,  # it has convolutions
    "NystromformerForSequenceClassification": True,  # it pools over the whole row
}


def build(kind: str) -> Any:
    family = kind.partition("For")[0].removesuffix("LMHeadModel")
    options = {**SMALL, **MORE.get(family, {})}
    if "Classification" in kind:
        options["num_labels"] = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**options))
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name.lower():
                parameter.data.normal_(std=0.2)
    return model.eval()


def rows() -> list[list[int]]:
    return [list(range(start, start + length)) for start, length in ((5, 9), (40, 3), (90, 5))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_class_is_that_of_the_row_alone(kind: str) -> None:
    model = build(kind)
    assert leaks_padding(model, 0) is CLASSIFIERS[kind]
    examples = [Example(ids, target=1) for ids in rows()]
    together = evaluate(model, examples, "classify", pad=0, labels="abc")
    for example, loss in zip(examples, together.losses, strict=True):
        alone = evaluate(model, [example], "classify", pad=0, labels="abc")
        assert loss == pytest.approx(alone.losses[0], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_loss_is_that_of_the_row_alone(kind: str) -> None:
    model = build(kind)
    examples = [Example(ids, [IGNORED, *ids[1:]]) for ids in rows()]
    together = evaluate(model, examples, "causal-lm", pad=0)
    for example, loss in zip(examples, together.losses, strict=True):
        alone = evaluate(model, [example], "causal-lm", pad=0)
        assert loss == pytest.approx(alone.losses[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_text_is_that_of_the_prompt_alone(kind: str) -> None:
    model = build(kind)
    assert leaks_padding(model, 0, on_the_left=True) is CAUSAL[kind]
    tokenizer = transformers.ByT5Tokenizer()
    loaded = Loaded(model, tokenizer, "causal-lm", [], kind, (), 64)
    prompts = ["the cat sat on", "a", "red dog"]
    decoding = Decoding(max_new_tokens=8)
    alone = [generate(loaded, [prompt], decoding)[0] for prompt in prompts]
    assert generate(loaded, prompts, decoding) == alone


@pytest.mark.slow
def test_the_last_token_is_found_where_the_tokenizer_pads_otherwise() -> None:
    model = build("LlamaForSequenceClassification")
    tokenizer = transformers.ByT5Tokenizer(pad_token="</s>")
    assert tokenizer.pad_token_id == 1
    pad = pad_id(tokenizer, model)
    assert pad == model.config.pad_token_id == 0
    examples = [Example(ids, target=1) for ids in rows()]
    together = evaluate(model, examples, "classify", pad=pad, labels="abc")
    alone = [
        evaluate(model, [one], "classify", pad=pad, labels="abc").losses[0] for one in examples
    ]
    assert together.losses == pytest.approx(alone, abs=1e-5)


def test_logits_of_a_padded_row_on_both_sides() -> None:
    model = build("LlamaForCausalLM")
    ids, pads = torch.tensor([rows()[1]]), torch.zeros(1, 4, dtype=torch.int64)
    alone: Tensor = model(ids).logits
    for inputs, masks in ((ids, pads), (pads, ids)):
        padded = torch.cat([inputs, masks], 1)
        mask = (padded != 0).long()
        got = model(padded, attention_mask=mask).logits[mask.bool()]
        assert torch.allclose(got, alone[0], atol=1e-5)


TRAINED = ["ConvBertForSequenceClassification", "NystromformerForSequenceClassification"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TRAINED, "BertForSequenceClassification"])
def test_the_loss_of_training_is_that_of_the_rows_alone(
    kind: str, tiny_bert: Path, tmp_path: Path
) -> None:
    model = build(kind)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    data = tmp_path / "rows.jsonl"
    texts = ["the cat sat", "a dog", "one small red dog run to its warm house", "old town by two"]
    made = [{"text": text, "label": "abc"[i % 3]} for i, text in enumerate(texts)]
    data.write_text("".join(json.dumps(row) + "\n" for row in made))
    settings = TrainSpec(
        model=str(folder), data=str(data), output=str(tmp_path / "out"), steps=1, batch_size=4
    )
    settings = replace(settings, eval_fraction=0.0)
    said: list[str] = []
    prepared = prepare_run(settings, Spec(rank=2), said.append)
    job = prepared.job
    alone = evaluate(job.model, job.examples, "classify", pad=job.pad, batch_size=1, labels="abc")
    is_told = any(f"padding changes what {kind} says of a row" in line for line in said)
    assert is_told is job.unpadded is (kind in TRAINED)
    train_adapter(settings, Spec(rank=2))
    step = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert step["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TRAINED, "BertForSequenceClassification"])
def test_features_of_a_row_are_those_of_the_row_alone(kind: str) -> None:
    encoder = build(kind).base_model
    assert leaks_padding(encoder, 0) is (kind in TRAINED)
    examples = [Example(ids, target=1) for ids in rows()]
    together = encoder_features(encoder, examples, pad=0)
    alone = [encoder_features(encoder, [example], pad=0)[0] for example in examples]
    assert together == pytest.approx(np.stack(alone), abs=1e-5)
