"""TRL's SFTTrainer trains an adapter of lorakit, and a callback saves the adapter alone.

TRL's other trainers (DPO, KTO, GRPO, …) take the model and the callback in the same way.
"""

import warnings

import torch
from datasets import Dataset
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

import lorakit
from lorakit.train.callback import SaveAdapter

warnings.simplefilter("ignore", FutureWarning)  # about calls of TRL itself
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def fresh_base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


tokenizer = ByT5Tokenizer()
tokenizer.chat_template = TEMPLATE
words = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
rows = Dataset.from_list(
    [
        {
            "messages": [
                {"role": "user", "content": english},
                {"role": "assistant", "content": german},
            ]
        }
        for english, german in words.items()
    ]
)
model = fresh_base()
adapter = lorakit.attach(model, lorakit.Spec(rank=8, targets="all-linear"))
settings = SFTConfig(
    output_dir="sft",
    max_steps=60,
    per_device_train_batch_size=4,
    learning_rate=1e-2,
    logging_steps=20,
    save_steps=30,
    report_to=[],
    use_cpu=True,
    bf16=False,
    dataloader_pin_memory=False,
    disable_tqdm=True,
)
trainer = SFTTrainer(
    model=model,
    args=settings,
    train_dataset=rows,
    processing_class=tokenizer,
    callbacks=[SaveAdapter(adapter)],
)
trainer.train()

again = fresh_base().eval()
lorakit.attach(again, lorakit.Adapter.load("sft"), trainable=False)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "three"}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
answer = again.generate(**prompt, max_new_tokens=8, do_sample=False)
text = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
print(f"three: {text}")
assert text == "drei"
