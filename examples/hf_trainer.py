"""Hugging Face's Trainer trains an adapted model as it trains any other: only the adapter requires
a gradient.
"""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import lorakit
from lorakit.train.callback import SaveAdapter


def fresh_base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
        )
    )


# Counting in steps of 1 to 4: a language that a model can learn.
rows = [
    {"input_ids": (ids := [(start + i * step) % 64 for i in range(16)]), "labels": ids}
    for start in range(64)
    for step in (1, 2, 3, 4)
]
model = fresh_base()
adapter = lorakit.attach(model, lorakit.Spec(rank=8, targets="all-linear"))
print(lorakit.coverage(model))

settings = TrainingArguments(
    output_dir="trainer",
    max_steps=40,
    per_device_train_batch_size=16,
    learning_rate=5e-3,
    logging_steps=10,
    save_steps=20,
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
# The Trainer's own checkpoints hold the whole model; with the callback they are the adapter alone.
trainer = Trainer(model=model, args=settings, train_dataset=rows, callbacks=[SaveAdapter(adapter)])
print(f"loss before: {trainer.evaluate(rows)['eval_loss']:.3f}")
trainer.train()
after = trainer.evaluate(rows)["eval_loss"]
print(f"loss after:  {after:.3f}")

saved = sorted(str(path.parent) for path in Path("trainer").rglob("adapter_model.safetensors"))
print(f"adapters:    {', '.join(saved)}")
again = fresh_base().eval()
lorakit.attach(again, lorakit.Adapter.load("trainer"), trainable=False)
same = Trainer(model=again, args=settings).evaluate(rows)["eval_loss"]
print(f"read back:   {same:.3f}")
assert abs(same - after) < 1e-4 and saved[1:] == ["trainer/checkpoint-20", "trainer/checkpoint-40"]
assert not list(Path("trainer").rglob("model.safetensors"))
