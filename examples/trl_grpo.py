"""TRL's GRPOTrainer trains an adapter of lorakit with a reward that a program verifies.

It is the share of digits in an answer. The model has random weights, so it begins near the share of
digits among all characters.
"""

import warnings

import torch
from datasets import Dataset
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

import lorakit
from lorakit.train.callback import SaveAdapter

warnings.simplefilter("ignore", FutureWarning)  # about calls of TRL itself


def share_of_digits(completions: list[str], **_: object) -> list[float]:
    """Return the reward of each answer: the share of its characters that are digits."""
    counts = [sum(character.isdigit() for character in text) for text in completions]
    return [count / max(1, len(text)) for count, text in zip(counts, completions, strict=True)]


torch.manual_seed(0)
sizes = LlamaConfig(
    vocab_size=384,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.1,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=0,
)
model = LlamaForCausalLM(sizes)
adapter = lorakit.attach(model, lorakit.Spec(rank=8, targets="all-linear"))
settings = GRPOConfig(
    output_dir="grpo",
    max_steps=40,
    per_device_train_batch_size=32,
    num_generations=16,
    max_completion_length=8,
    learning_rate=1e-2,
    logging_steps=5,
    save_steps=20,
    report_to=[],
    use_cpu=True,
    bf16=False,
    dataloader_pin_memory=False,
    disable_tqdm=True,
)
trainer = GRPOTrainer(
    model=model,
    args=settings,
    reward_funcs=share_of_digits,
    train_dataset=Dataset.from_list([{"prompt": text} for text in ("one", "two", "three")] * 8),
    processing_class=ByT5Tokenizer(),
    callbacks=[SaveAdapter(adapter)],
)
trainer.train()

rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
print(f"mean reward of the first steps {rewards[0]:.3f}, of the last {rewards[-1]:.3f}")
assert rewards[-1] > rewards[0] + 0.2
assert lorakit.Adapter.load("grpo").spec.rank == 8
