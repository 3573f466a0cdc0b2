"""A whole job on instruction data: how many tokens that count are trained a second, beside PEFT with transformers' Trainer?

Setting: a Llama of random weights (4 blocks, width 512, 32,768 tokens of vocabulary) and rows of random tokens whose lengths
are spread like those of instruction data: prompts, which are masked, of 60 tokens in the median, answers of 40, both
log-normal, cut at 512 together. One pass over all rows in batches of 16, AdamW, rank 16 on all linear layers, one thread.
"PEFT" is what its documentation shows: `get_peft_model`, `Trainer`, `DataCollatorForSeq2Seq`, which pads each batch to its
longest. "lorakit" has the same dtype, dropout and rank; "lorakit's defaults" leaves all but the rows to lorakit. Sides take
turns, each time on a new model; the time is CPU time of the whole training call, and only tokens with a label count.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import lorakit
from lorakit.data.encode import IGNORED, Example
from lorakit.models import auto_dtype
from lorakit.train.config import TrainSpec
from lorakit.train.log import Log
from lorakit.train.loop import Job, fit

RESULT = Path(__file__).parent / "results" / "whole_job.json"
VOCABULARY, WIDTH, BLOCKS, LONGEST, BATCH, RANK = 32768, 512, 4, 512, 16, 16


def rows(count: int) -> list[Example]:
    """Return examples of random tokens, a prompt that is masked and an answer each."""
    draw = torch.Generator().manual_seed(0)

    def length(middle: float, spread: float) -> int:
        return max(2, round(middle * float(torch.randn((), generator=draw).mul(spread).exp())))

    out = []
    for _ in range(count):
        prompt, answer = min(length(60, 0.9), LONGEST - 32), length(40, 1.0)
        ids = torch.randint(3, VOCABULARY, (min(prompt + answer, LONGEST),), generator=draw).tolist()
        out.append(Example(ids, [IGNORED] * prompt + ids[prompt:]))
    return out


def model(dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=1408, num_hidden_layers=BLOCKS,
                         num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=2048, use_cache=False,
                         pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


def peft(examples: list[Example], dtype: torch.dtype, dropout: float) -> float:
    """Train as PEFT's documentation shows it; return CPU seconds."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, Trainer, TrainingArguments

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="<pad>")
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM")
    data: Any = [{"input_ids": e.ids, "labels": e.labels, "attention_mask": [1] * len(e.ids)} for e in examples]
    with tempfile.TemporaryDirectory() as folder:
        asked = TrainingArguments(output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, use_cpu=True,
                                  learning_rate=1e-4, report_to="none", disable_tqdm=True, save_strategy="no",
                                  logging_strategy="no")  # fmt: skip
        trainer = Trainer(model=get_peft_model(model(dtype), config), args=asked, train_dataset=data,
                          data_collator=DataCollatorForSeq2Seq(tokenizer))  # fmt: skip
        begun = time.process_time()
        trainer.train()
        return time.process_time() - begun


def ours(examples: list[Example], dtype: torch.dtype, dropout: float, spec: lorakit.Spec | None = None, **more: Any) -> float:
    """Train with lorakit's loop; return CPU seconds, its rehearsal and last checkpoint counted in."""
    base = model(dtype)
    spec = spec or lorakit.Spec(rank=RANK, alpha=32, dropout=dropout)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSpec(model="made here", data="made here", output=folder, epochs=1.0, **({"batch_size": BATCH} | more))
        adapter = lorakit.attach(base, spec)
        packed = settings.packing != "off"
        job = Job(base, adapter, "causal-lm", examples, [], 0, 0, settings, 1e-4, Path(folder), packed=packed)
        begun = time.process_time()
        fit(job, lambda start: Log(Path(folder) / "metrics.jsonl", start, job.steps))
        return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, one round, nothing written")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--only", nargs="+", help="sides to run")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    examples = rows(64 if asked.quick else 480)
    counted, dtype = sum(e.trained for e in examples), getattr(torch, asked.dtype)
    sides: dict[str, Callable[[], float]] = {
        "PEFT": lambda: peft(examples, dtype, asked.dropout),
        "lorakit, padded": lambda: ours(examples, dtype, asked.dropout, packing="off"),
        "lorakit": lambda: ours(examples, dtype, asked.dropout),
        "lorakit, 2,048 tokens a batch": lambda: ours(examples, dtype, asked.dropout, batch_tokens=2048),
        "lorakit's defaults": lambda: ours(examples, auto_dtype(torch.device("cpu")), 0.0, lorakit.Spec()),
    }
    sides = {name: side for name, side in sides.items() if not asked.only or name in asked.only}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 if asked.quick else 5):
        for name, side in sides.items():
            times[name].append(side())
            print(name, times[name][-1], file=sys.stderr)
    first = counted / min(next(iter(times.values())))
    tokens = sum(len(e.ids) for e in examples)
    out = [{"side": name, "dtype": asked.dtype, "dropout": asked.dropout, "rows": len(examples), "counted": counted,
            "tokens": tokens, "min": min(taken), "median": median(taken), "per_second": counted / min(taken),
            "ratio": counted / min(taken) / first} for name, taken in times.items()]  # fmt: skip
    for row in out:
        print(json.dumps(row), file=sys.stderr)
    if not asked.quick:
        RESULT.write_text(json.dumps({"rows": out, "torch": torch.__version__, "threads": 1}, indent=2) + "\n")


if __name__ == "__main__":
    main()
