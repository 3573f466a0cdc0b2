"""Models and rows that the battery of same_as.py works on, made without lorakit."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = (
    "the cat sat on a mat and saw one small red dog run to its warm house "
    "in old town by two green trees"
)
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
NAMED = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}
GPT2 = {
    "vocab_size": 384,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "head_dim": 8}


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return sentences of a tiny language."""
    draw = random.Random(seed)
    words = TEXT.split()
    made = []
    for _ in range(count):
        chosen = draw.choices(words, k=draw.randint(4, 9))
        made.append(" ".join(chosen) + ".")
    return made


def byte_pairs(special: list[str]) -> Tokenizer:
    """Return a byte-level tokenizer trained on the tiny language."""
    tokenizer = Tokenizer(models.BPE(unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(200), trainer)
    return tokenizer


def causal_tokenizer() -> Any:
    """Return the tokenizer of the language models, with a chat template."""
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    tokenizer = byte_pairs(special)
    ids = [("<s>", tokenizer.token_to_id("<s>"))]
    template = processors.TemplateProcessing("<s> $A", "<s> $A $B", ids)
    tokenizer.post_processor = template
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )
    fast.chat_template = CHAT
    return fast


def encoder_tokenizer() -> Any:
    """Return the tokenizer of the encoders."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    tokenizer = byte_pairs(special)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    template = processors.TemplateProcessing("[CLS] $A [SEP]", pair, ids)
    tokenizer.post_processor = template
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def seeded(model_class: Any, config: Any, seed: int = 0) -> Any:
    """Return a model whose random weights follow from the seed, its biases filled too."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)
    return model


def llama_config(vocabulary: int, **more: Any) -> Any:
    """Return the config of the tiny Llama."""
    sizes = {**SIZES, **NAMED, "num_key_value_heads": 2, **more}
    return transformers.LlamaConfig(vocab_size=vocabulary, **sizes)


def mixtral_config(vocabulary: int) -> Any:
    """Return the config of a tiny mixture of experts."""
    sizes = {**SIZES, **NAMED, **EXPERTS, "num_key_value_heads": 2}
    return transformers.MixtralConfig(vocab_size=vocabulary, **sizes)


def bert_config(vocabulary: int, **more: Any) -> Any:
    """Return the config of the tiny encoder."""
    sizes = {**SIZES, "pad_token_id": 1, **more}
    return transformers.BertConfig(vocab_size=vocabulary, **sizes)


def saved(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def moved(model: Any, size: float) -> Any:
    """Move every weight of a model, as a full fine-tune does."""
    for seed, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(size * noise)
    return model


def write_models(folder: Path) -> None:
    """Write every model folder of the battery."""
    causal = causal_tokenizer()
    size = len(causal)
    llama = transformers.LlamaForCausalLM
    saved(seeded(llama, llama_config(size)), causal, folder / "llama")
    saved(moved(seeded(llama, llama_config(size)), 0.02), causal, folder / "llama-tuned")
    saved(seeded(llama, llama_config(size), seed=9), causal, folder / "llama-other")
    tied = llama_config(size, tie_word_embeddings=True)
    saved(seeded(llama, tied), causal, folder / "tied")
    mixtral = transformers.MixtralForCausalLM
    saved(seeded(mixtral, mixtral_config(size)), causal, folder / "mixtral")
    gpt2 = transformers.GPT2LMHeadModel
    octets = transformers.ByT5Tokenizer(model_max_length=64)
    saved(seeded(gpt2, transformers.GPT2Config(**GPT2)), octets, folder / "gpt2")
    encoder = encoder_tokenizer()
    config = bert_config(len(encoder))
    saved(seeded(transformers.BertModel, config), encoder, folder / "bert")
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    config = bert_config(len(encoder), **labels)
    tuned = seeded(transformers.BertForSequenceClassification, config)
    saved(moved(tuned, 0.02), encoder, folder / "bert-tuned")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    lines = [json.dumps(row) + "\n" for row in rows]
    path.write_text("".join(lines))


def completions(count: int) -> list[dict[str, str]]:
    """Return sentences cut in half: a prompt and its completion."""
    rows = []
    for text in sentences(count):
        middle = len(text) // 2
        rows.append({"prompt": text[:middle], "completion": text[middle:]})
    return rows


def labelled(count: int, mark: str, head: str) -> str:
    """Return a table of sentences, labelled by a word in them."""
    lines = [head + "\n"]
    for text in sentences(count, seed=1):
        label = "yes" if "cat" in text else "no"
        lines.append(f"{text}{mark}{label}\n")
    return "".join(lines)


def conversations(count: int) -> list[dict[str, Any]]:
    """Return short conversations of two turns."""
    rows = []
    for text in sentences(count, seed=3):
        asked = {"role": "user", "content": text[:12]}
        answer = {"role": "assistant", "content": text[12:] or "yes."}
        rows.append({"messages": [asked, answer]})
    return rows


def pairs(count: int) -> list[dict[str, Any]]:
    """Return pairs of sentences with one of three labels."""
    left, right = sentences(count, seed=4), sentences(count, seed=5)
    rows = []
    for i in range(count):
        row = {"text_a": left[i], "text_b": right[i], "label": "abc"[i % 3]}
        rows.append(row)
    return rows


def write_rows(folder: Path) -> None:
    """Write every file of rows of the battery."""
    folder.mkdir()
    write_lines(folder / "text.jsonl", [{"text": text} for text in sentences(120)])
    write_lines(folder / "pairs.jsonl", completions(60))
    write_lines(folder / "chat.jsonl", conversations(24))
    write_lines(folder / "two.jsonl", pairs(60))
    numbers = [{"text": text, "label": len(text) / 10} for text in sentences(80, seed=2)]
    write_lines(folder / "numbers.jsonl", numbers)
    (folder / "labelled.tsv").write_text(labelled(80, "\t", "text\tlabel"))
    (folder / "columns.tsv").write_text(labelled(80, "\t", "sentence\tkind"))
    (folder / "labelled.csv").write_text(labelled(40, ",", "text,label"))
    story = [" ".join(sentences(5, seed=seed)) for seed in range(60)]
    (folder / "story.txt").write_text("\n\n".join(story))
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\nno JSON\n')
    (folder / "half.csv").write_text("text;label\na;1\n")
    (folder / "lone.csv").write_text("text,label\na cat,yes\na dog,yes\n")
