"""The flow of many LoRA notebooks: look at a BLOOM, adapt its query_key_value, train it on
questions, save, load, ask.

The model is a tiny one made on the spot; with one from `from_pretrained` and its tokenizer the rest
stays as it is.
One thing differs from most of them: only the answer counts in the loss, not the prompt.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

import lorakit

ROWS = [
    {"context": f"{who} lives in {town} and has a {pet}.", "question": question, "answer": answer}
    for who, town, pet in [
        ("Ann", "Rome", "cat"),
        ("Bob", "Oslo", "dog"),
        ("Eve", "Lima", "owl"),
        ("Tom", "Bonn", "fox"),
    ]
    for question, answer in [
        (f"Where does {who} live?", town),
        (f"What does {who} have?", f"a {pet}"),
    ]
]


def prompt(row: dict) -> str:
    return f"### CONTEXT\n{row['context']}\n\n### QUESTION\n{row['question']}\n\n### ANSWER\n"


words = sorted({word for row in ROWS for word in f"{prompt(row)} {row['answer']}".split()})
vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "\n", *words])}
(
    raw := Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
).pre_tokenizer = pre_tokenizers.Split(" ", "removed")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>")


def ids_of(text: str) -> list[int]:
    return tokenizer(text.replace("\n", " \n ")).input_ids


def fresh_base() -> BloomForCausalLM:
    torch.manual_seed(0)
    return BloomForCausalLM(
        BloomConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            n_layer=2,
            n_head=4,
            eos_token_id=1,
            pad_token_id=0,
            initializer_range=0.2,
        )
    )


model = fresh_base()
print(model)  # its attention is in one matrix: query_key_value
adapter = lorakit.attach(model, lorakit.Spec(rank=8, alpha=32, targets=["query_key_value"]))
print(lorakit.coverage(model))
optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
for step in range(20):
    losses = []
    for row in ROWS:
        asked, answer = ids_of(prompt(row)), [*ids_of(row["answer"]), tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(asked) + answer])
        losses.append(model(input_ids=torch.tensor([asked + answer]), labels=labels).loss)
    loss = torch.stack(losses).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1:2}  loss {loss.item():.3f}")

adapter.save("bloom-adapter")
again = fresh_base().eval()
lorakit.attach(again, lorakit.Adapter.load("bloom-adapter"), trainable=False)
given = torch.tensor([ids_of(prompt(ROWS[1]))])
made = again.generate(input_ids=given, max_new_tokens=4, do_sample=False)[0, given.shape[1] :]
print(ROWS[1]["question"], "->", tokenizer.decode(made, skip_special_tokens=True))
