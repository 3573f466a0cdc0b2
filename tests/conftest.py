"""What holds for all tests: no network, and what this machine lacks is skipped with a reason."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # of the runner: messages are compared without line breaks
SHARED = Path(os.environ.get("LORAKIT_SHARED") or Path(__file__).parents[2] / "shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "shared": None
        if (SHARED / "data").is_dir()
        else f"no small real models in {SHARED} (LORAKIT_SHARED names them)"
    }
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        reasons["gpu"] = None if torch.cuda.is_available() else "no GPU"
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with small real models and data sets; only for tests marked `shared`."""
    return SHARED / "data"


@pytest.fixture
def kept_sites() -> Iterator[None]:
    """Sites that are added by a test are taken away after it."""
    from lorakit.sites.find import SITES

    before = dict(SITES)
    yield
    SITES.clear()
    SITES.update(before)


TEXT = (
    "the cat sat on a mat and saw one small red dog run to its warm house in old town by two "
    "green trees"
)
WORDS = TEXT.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return sentences of a tiny language: enough to train a tokenizer and a toy model on."""
    import random

    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) + "." for _ in range(count)]


def make_tokenizer(special: list[str], template: str | None = None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(200), trainer)
    named = {"unk_token": special[0], "pad_token": special[1]}
    if "[CLS]" in special:
        ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, ids)
        named |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        ids = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", ids)
        named |= {"bos_token": "<s>", "eos_token": "</s>"}
        inputs = ["input_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **named
    )
    fast.chat_template = template
    return fast


CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


SIZES: dict = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model with random weights, a tokenizer and a chat template, as a Hugging
    Face folder.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tokenizer = make_tokenizer(["<unk>", "<pad>", "<s>", "</s>"], CHAT)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SIZES,
        num_key_value_heads=2,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder-decoder with random weights, as a Hugging Face folder."""
    import torch
    from tokenizers import processors
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny") / "t5"
    tokenizer = make_tokenizer(["<unk>", "<pad>", "<s>", "</s>"])
    end = [("</s>", tokenizer.convert_tokens_to_ids("</s>"))]
    ends = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", end)
    tokenizer.backend_tokenizer.post_processor = ends
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=1,
        eos_token_id=3,
        decoder_start_token_id=1,
        is_gated_act=True,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with random weights and dropout, without a head, as a Hugging Face folder."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "bert"
    tokenizer = make_tokenizer(["[UNK]", "[PAD]", "[CLS]", "[SEP]"])
    config = BertConfig(vocab_size=len(tokenizer), **SIZES, pad_token_id=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
