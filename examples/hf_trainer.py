"""Hugging Face's Trainer trains an adapted model as it trains any other: only the adapter requires
a gradient.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import lorakit


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
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model=model, args=settings, train_dataset=rows)
print(f"loss before: {trainer.evaluate(rows)['eval_loss']:.3f}")
trainer.train()
after = trainer.evaluate(rows)["eval_loss"]
print(f"loss after:  {after:.3f}")

# The Trainer's own checkpoints hold the whole model; this is the adapter alone.
adapter.save("trained-by-trainer")
again = fresh_base().eval()
lorakit.attach(again, lorakit.Adapter.load("trained-by-trainer"), trainable=False)
same = Trainer(model=again, args=settings).evaluate(rows)["eval_loss"]
print(f"read back:   {same:.3f}")
assert abs(same - after) < 1e-4
