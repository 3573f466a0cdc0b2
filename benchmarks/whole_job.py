"""How fast is a whole training job, compared with PEFT?

Setting: a Llama with random weights (4 blocks, width 512, a vocabulary of 32,768 tokens), and rows
of random tokens whose lengths are distributed like those of instruction data: prompts with a median
of 60 tokens, which are masked, and answers with a median of 40 tokens. Both lengths are log-normal,
and a row has at most 512 tokens. One pass over 160 rows in batches of 16, AdamW, rank 16 on all
linear layers, one thread.

- "PEFT with Trainer" follows PEFT's documentation: `get_peft_model`, transformers' `Trainer`, and
  `DataCollatorForSeq2Seq`, which pads each batch to its longest row. The base is bfloat16, the
  dropout 0.05.
- "lorakit" has the same dtype, dropout, rank and batches; it packs rows without padding. "lorakit,
  padded" pads them instead, and "lorakit, 2,048 tokens per batch" fills batches by tokens.
- "lorakit's defaults" leaves everything except the rows to lorakit, including the dtype.

The sides take turns, each time with a new model. The time is the CPU time of the whole training
call. For lorakit, it includes the rehearsal of the longest batch and the last checkpoint. Only
tokens with a label are counted.

Criteria: at least 2.5 times as many labelled tokens per second as PEFT, with the same settings and
with lorakit's defaults.

Run: `python benchmarks/whole_job.py`; `--help` lists its flags; with `--quick` it only shows that
it works.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from beside_peft import parse_arguments, write

import lorakit
from lorakit.data.encode import IGNORED, Example
from lorakit.models.load import auto_dtype
from lorakit.train.config import TrainSpec
from lorakit.train.job import Job
from lorakit.train.log import Log
from lorakit.train.loop import fit

VOCABULARY, WIDTH, BLOCKS, LONGEST, BATCH, RANK = 32768, 512, 4, 512, 16, 16
DTYPE, DROPOUT = torch.bfloat16, 0.05


def make_rows(count: int) -> list[Example]:
    """Return examples of random tokens, a prompt that is masked and an answer each."""
    draw = torch.Generator().manual_seed(0)

    def length(middle: float, spread: float) -> int:
        return max(2, round(middle * float(torch.randn((), generator=draw).mul(spread).exp())))

    out = []
    for _ in range(count):
        prompt, answer = min(length(60, 0.9), LONGEST - 32), length(40, 1.0)
        ids = torch.randint(
            3, VOCABULARY, (min(prompt + answer, LONGEST),), generator=draw
        ).tolist()
        out.append(Example(ids, [IGNORED] * prompt + ids[prompt:]))
    return out


def build_model(dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=1408,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        use_cache=False,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


def train_peft(examples: list[Example]) -> float:
    """Train as PEFT's documentation shows it; return CPU seconds."""
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import (
        DataCollatorForSeq2Seq,
        PreTrainedTokenizerFast,
        Trainer,
        TrainingArguments,
    )

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="<pad>")
    config = LoraConfig(
        r=RANK,
        lora_alpha=32,
        target_modules="all-linear",
        lora_dropout=DROPOUT,
        task_type="CAUSAL_LM",
    )
    data: Any = [
        {"input_ids": e.ids, "labels": e.labels, "attention_mask": [1] * len(e.ids)}
        for e in examples
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            use_cpu=True,
            learning_rate=1e-4,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = Trainer(
            model=get_peft_model(build_model(DTYPE), config),
            args=asked,
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        begun = time.process_time()
        trainer.train()
        return time.process_time() - begun


def train_lorakit(
    examples: list[Example], dtype: torch.dtype, spec: lorakit.Spec, **more: Any
) -> float:
    """Train with lorakit's loop; return CPU seconds, with its rehearsal and last checkpoint."""
    base = build_model(dtype)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSpec(
            model="made here", data="made here", output=folder, epochs=1.0, batch_size=BATCH, **more
        )
        adapter = lorakit.attach(base, spec)
        packed = settings.packing != "off"
        job = Job(
            base,
            adapter,
            "causal-lm",
            examples,
            [],
            0,
            0,
            settings,
            1e-4,
            Path(folder),
            packed=packed,
        )
        begun = time.process_time()
        fit(job, lambda start: Log(Path(folder) / "metrics.jsonl", start, job.steps, quiet=True))
        return time.process_time() - begun


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    examples = make_rows(16 if asked.quick else 160)
    counted, tokens = sum(e.trained for e in examples), sum(len(e.ids) for e in examples)
    usual = auto_dtype(torch.device("cpu"), build_model(DTYPE).config, "causal-lm")
    same = lorakit.Spec(rank=RANK, alpha=32, dropout=DROPOUT)
    sides: dict[str, Callable[[], float]] = {
        "PEFT with Trainer": lambda: train_peft(examples),
        "lorakit, padded": lambda: train_lorakit(examples, DTYPE, same, packing="off"),
        "lorakit": lambda: train_lorakit(examples, DTYPE, same),
        "lorakit, 2,048 tokens per batch": lambda: train_lorakit(
            examples, DTYPE, same, batch_tokens=2048
        ),
        f"lorakit's defaults ({str(usual).removeprefix('torch.')})": lambda: train_lorakit(
            examples, usual, lorakit.Spec()
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 if asked.quick else 3):
        for name, side in sides.items():
            times[name].append(side())
            print(name, round(times[name][-1], 2), file=sys.stderr, flush=True)
    first = min(times["PEFT with Trainer"])
    runs = [
        {
            "side": name,
            "min": min(taken),
            "median": median(taken),
            "per_second": counted / min(taken),
            "ratio": first / min(taken),
        }
        for name, taken in times.items()
    ]
    criteria = [
        {
            "text": f"{text}: at least 2.5 times as many labelled tokens per second as PEFT",
            "met": row["ratio"] >= 2.5,
            "measured": f"{row['ratio']:.2f}",
        }
        for text, row in (("same settings", runs[2]), ("defaults", runs[-1]))
    ]
    write(
        "whole_job",
        __doc__,
        quick=asked.quick,
        runs=runs,
        criteria=criteria,
        one_row_a_run=True,
        notes=[f"{len(examples)} rows, {tokens:,} tokens, of which {counted:,} have a label."],
        measures={
            "per_second": ["labelled tokens per CPU second", ",.0f"],
            "ratio": ["ratio to PEFT", ".2f"],
            "min": ["CPU seconds, minimum", ".1f"],
            "median": ["median", ".1f"],
        },
    )


if __name__ == "__main__":
    main()
