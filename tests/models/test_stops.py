"""The tokens at which a model stops: what it, its tokenizer and its chat template declare."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from lorakit.data.rows import Rows
from lorakit.evaluate.decoding import Decoding
from lorakit.evaluate.generate import generate
from lorakit.evaluate.preview import preview
from lorakit.models.load import load
from lorakit.models.stops import find_stops

from ..data import chat_templates as templates

ENDS = {
    "LLAMA_3": "<|eot|>",
    "CHATML": "<|im_end|>",
    "QWEN_3": "<|im_end|>",
    "GPT_OSS": "<|return|>",
    "GEMMA_3": "<end_of_turn>",
    "MISTRAL_3": "</s>",
    "PHI_4": "<|im_end|>",
    "GLM": "<|user|>",  # the next turn begins so
    "GEMMA_4": "<turn|>",
    "PLAIN": "</s>",  # it ends a turn by ordinary text
}


def make_tokenizer(folder: Path, template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": templates.TOKENS})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", ENDS)
def test_a_model_stops_where_its_template_ends_an_answer(name: str, tiny_llama: Path) -> None:
    tokenizer = make_tokenizer(tiny_llama, getattr(templates, name))
    stops = {tokenizer.convert_ids_to_tokens(token) for token in find_stops(tokenizer)}
    assert stops == {"</s>", ENDS[name]}


@pytest.mark.parametrize(("declared", "expected"), [(None, [3]), (5, [3, 5]), ([5, 7], [3, 5, 7])])
def test_a_model_stops_where_its_settings_say(
    declared: Any, expected: list[int], tiny_llama: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert find_stops(tokenizer, GenerationConfig(eos_token_id=declared)) == expected


def test_generation_ends_with_the_turn(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(str(tiny_llama), "causal-lm")
    norm: Any = loaded.model.get_submodule("model.norm")
    torch.nn.init.zeros_(norm.weight)  # it says <unk> and nothing else
    loaded.tokenizer.chat_template = templates.CHATML.replace("<|im_end|>", "<unk>")
    lengths = []
    model: Any = loaded.model
    original = model.generate

    def count(**settings: Any) -> Any:
        generated = original(**settings)
        lengths.append(generated.shape[1] - settings["input_ids"].shape[1])
        return generated

    monkeypatch.setattr(loaded.model, "generate", count)
    chat = [{"role": "user", "content": "a"}]
    generate(loaded, [chat], Decoding(max_new_tokens=8))
    assert lengths == [1]


@pytest.mark.parametrize("name", ["CHATML", "GEMMA_3", "LLAMA_3"])
def test_the_preview_counts_the_end_of_a_turn(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tiny_llama, getattr(templates, name))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = Rows("messages", [{"messages": turns}], ["rows:1"], "rows")
    found = preview(rows, str(tmp_path), "auto", "completion", None, 1)
    assert (found["eos_trained"], found["eos"]) == (1, ENDS[name])
