"""Is a training step faster with a frozen base in bfloat16?

Setting: a step as in `lorakit train` (loss, backward, AdamW on float32 adapters of rank 16 on all
linear layers, no dropout) of stories260K, MiniLM, and Llamas with random weights (2 blocks, a
vocabulary of 1,024 tokens), on 1,024 tokens in rows of 128, one thread. The two dtypes take turns.
Time is CPU time. bfloat16 is the default from the width `lorakit.models.load.BFLOAT16_WIDTH` on.

Criterion: at this width and above, bfloat16 is faster, on a processor that has instructions for
products in bfloat16.

Run: `python benchmarks/base_dtype.py`; `--help` lists its flags; with `--quick` it only shows that
it works.
"""

import sys
import time
from statistics import median
from typing import Any

import torch
from beside_peft import find_model, parse_arguments, write

import lorakit
from lorakit.data.batches import collate
from lorakit.data.encode import Example
from lorakit.evaluate.score import batch_loss
from lorakit.models.load import BFLOAT16_WIDTH, load, multiplies_bfloat16

WIDTHS, LENGTH, TOKENS = (128, 256, 384, 512, 768, 1024), 128, 1024
DTYPES = ("float32", "bfloat16")


def build_llama(width: int, dtype: torch.dtype) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // 64
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=LENGTH,
        pad_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


class Step:
    """A model in one dtype, with what a step needs."""

    def __init__(self, name: str, dtype: str, tokens: int):
        if name.startswith("Llama"):
            self.model, self.task = (
                build_llama(int(name.rpartition(" ")[2]), getattr(torch, dtype)),
                "causal-lm",
            )
        else:
            self.task = "classify" if name == "MiniLM" else "causal-lm"
            where = "builtin:minilm" if name == "MiniLM" else find_model("models/stories260K")
            self.model = load(
                where, self.task, labels=("a", "b") if self.task == "classify" else (), dtype=dtype
            ).model
        spec = lorakit.Spec(rank=16, full_modules=["classifier"] if self.task == "classify" else [])
        adapter = lorakit.attach(self.model.train(), spec)
        self.optimizer = torch.optim.AdamW(list(adapter.parameters()), lr=1e-4)
        draw = torch.Generator().manual_seed(1)
        rows = torch.randint(3, 500, (tokens // LENGTH, LENGTH), generator=draw).tolist()
        self.batch = collate([Example(r, r if self.task == "causal-lm" else []) for r in rows], 0)
        self.times: list[float] = []

    def step(self) -> None:
        begun = time.process_time()
        batch_loss(self.model, self.batch, self.task)[0].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times.append(time.process_time() - begun)


def measure(name: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Return the least time of a step in each dtype."""
    steps = {dtype: Step(name, dtype, tokens) for dtype in DTYPES}
    for _ in range(1 + rounds):
        for step in steps.values():
            step.step()
    width = steps["float32"].model.config.get_text_config().hidden_size
    least = {dtype: min(step.times[1:]) for dtype, step in steps.items()}
    row = {
        "side": name,
        "width": width,
        **least,
        "ratio": least["bfloat16"] / least["float32"],
        "median_ratio": median(steps["bfloat16"].times[1:]) / median(steps["float32"].times[1:]),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    names = ["stories260K", "MiniLM", *(f"Llama {width}" for width in WIDTHS)]
    runs = [
        measure(name, LENGTH if asked.quick else TOKENS, 1 if asked.quick else 7)
        for name in (names[2:4] if asked.quick else names)
    ]
    wide = [row["ratio"] for row in runs if row["width"] >= BFLOAT16_WIDTH]
    slowest = max(wide, default=float("nan"))
    text = f"base of width {BFLOAT16_WIDTH} or more: faster in bfloat16 than in float32"
    criteria = [
        {"text": text, "met": slowest < 1, "measured": f"at most {slowest:.2f} of its time"}
    ]
    write(
        "base_dtype",
        __doc__,
        quick=asked.quick,
        runs=runs,
        criteria=criteria if multiplies_bfloat16() else [],
        one_row_a_run=True,
        measures={
            "width": ["width", "d"],
            "float32": ["CPU seconds, float32", ".3f"],
            "bfloat16": ["CPU seconds, bfloat16", ".3f"],
            "ratio": ["bfloat16 / float32", ".2f"],
            "median_ratio": ["ratio of the medians", ".2f"],
        },
    )


if __name__ == "__main__":
    main()
