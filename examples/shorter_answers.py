"""An adapter that prefers shorter answers, on made rows: the margin and the answers' length.

The base is made here: a small Llama that has learned short and long answers alike. docs/training.md
quotes what this prints.
"""

import json
from pathlib import Path

import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from lorakit.adapter import Adapter
from lorakit.evaluate.decoding import Decoding
from lorakit.evaluate.generate import generate
from lorakit.models.open import open_model
from lorakit.spec import Spec
from lorakit.train.config import TrainSpec
from lorakit.train.run import train_adapter

COLOURS = "red green blue white black brown pink grey gold tan lime teal plum rust jade navy"
ROWS = [
    {"prompt": f"Say {word}:", "chosen": f" {word}.", "rejected": f" {word}, {word}, {word}."}
    for word in COLOURS.split(" ")
]


def make_base(folder: Path) -> None:
    """Train a small Llama on both answers to each prompt."""
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer(extra_ids=0)
    sizes = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    texts = [row["prompt"] + row[key] for row in ROWS for key in ("chosen", "rejected")]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    for _ in range(200):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def mean_length(adapter: Adapter | None) -> float:
    """Return the mean length of sampled answers, in characters."""
    loaded = open_model("base", adapter, "causal-lm")
    prompts = [row["prompt"] for row in ROWS] * 8
    answers = generate(loaded, prompts, Decoding(max_new_tokens=40, temperature=1.0), seed=0)
    return sum(map(len, answers)) / len(answers)


make_base(Path("base"))
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
settings = TrainSpec(
    model="base", data="rows.jsonl", output="shorter", steps=30, batch_size=4, lr=5e-4, beta=0.5
)
report = train_adapter(settings, Spec(rank=4))
before, after = report["before"], report["after"]
lengths = mean_length(None), mean_length(Adapter.load("shorter"))
print("held-out rows   before    after")
for name in ("loss", "accuracy", "margin"):
    print(f"{name:14} {before[name]:7.3f}  {after[name]:7.3f}")
print(f"{'length':14} {lengths[0]:7.1f}  {lengths[1]:7.1f}")
assert after["margin"] > before["margin"] + 0.5
assert lengths[1] < 0.7 * lengths[0]
