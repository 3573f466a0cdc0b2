"""sentence-transformers trains an adapter of an encoder of sentences."""

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import lorakit
from lorakit.models.locate import locate
from lorakit.train.callback import SaveAdapter

FOLDER, _ = locate("builtin:minilm")

# A question and the sentence that answers it: all-MiniLM does not know these made-up words.
facts = {
    "What does a brillig do?": "It bakes bread at four in the afternoon.",
    "What does a tove do?": "It repairs clocks in the town hall.",
    "What does a borogove do?": "It paints boats in the harbour.",
    "What does a rath do?": "It teaches children how to swim.",
}


def rank_first(encoder: SentenceTransformer) -> float:
    """Return the share of questions whose own answer is the nearest."""
    questions = encoder.encode([*facts], convert_to_tensor=True)
    answers = encoder.encode([*facts.values()], convert_to_tensor=True)
    nearest = (questions @ answers.T).argmax(dim=1)
    return (nearest == torch.arange(len(facts))).float().mean().item()


encoder = SentenceTransformer(FOLDER, device="cpu")
adapter = lorakit.attach(encoder, lorakit.Spec(rank=4, targets="qv"))
print(lorakit.coverage(encoder))
print(f"answers found before: {rank_first(encoder):.2f}")
settings = SentenceTransformerTrainingArguments(
    output_dir="embeddings",
    max_steps=30,
    per_device_train_batch_size=4,
    learning_rate=5e-3,
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
    dataloader_pin_memory=False,
    seed=0,
)
rows = Dataset.from_dict({"anchor": [*facts], "positive": [*facts.values()]})
SentenceTransformerTrainer(
    model=encoder,
    args=settings,
    train_dataset=rows,
    loss=MultipleNegativesRankingLoss(encoder),
    callbacks=[SaveAdapter(adapter)],
).train()

again = SentenceTransformer(FOLDER, device="cpu")
lorakit.attach(again, lorakit.Adapter.load("embeddings"), trainable=False)
after = rank_first(again)
print(f"answers found after:  {after:.2f}")
assert after == 1.0
