"""How much memory and time does a large data set take, until the first step and with a limit?

Setting: a file of JSON Lines with 184 bytes a row, a model of two small blocks with a tokenizer of
whole words. Each case runs in a process of its own: `lorakit.train.prepare.prepare_run` (all that
a run does before its first step and its first evaluation) on ten rows, and on all; and reading
with and without a limit. Memory is the peak beyond that of the imports, time is CPU time; those of
ten rows are what the model takes by itself.

Run: `python benchmarks/large_data.py`, with a million rows; `--short` takes 120,000; with `--quick`
it only shows that it works.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from beside_peft import parse_arguments, write

ROWS, SHORT, QUICK, FEW, LIMIT = 1_000_000, 120_000, 1_000, 10, 64
TEXT = 171  # characters: 184 bytes a row
SENTENCE = "the cat that was on the mat of this house is not the one for which he had come to us"
WORDS = sorted(set(SENTENCE.split()))


def write_rows(path: Path, count: int) -> None:
    """Write rows of 184 bytes."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            text = " ".join([str(number), *draw.choices(WORDS, k=2 * TEXT // 5)])
            file.write(json.dumps({"text": text.ljust(TEXT)[:TEXT]}) + "\n")


def build_model(folder: Path) -> None:
    """Write a small model with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(case: str, folder: Path, data: str) -> dict[str, Any]:
    """Return the CPU seconds and the additional memory of a case, in this process."""
    from lorakit.data.rows import read_rows
    from lorakit.spec import Spec
    from lorakit.train.config import TrainSpec
    from lorakit.train.prepare import prepare_run

    before, begun = peak_memory(), time.process_time()
    if case.startswith("until"):
        settings = TrainSpec(model=str(folder), data=data, output=str(folder / "o"), steps=2)
        prepare_run(settings, Spec())
    else:
        read_rows(data, limit=LIMIT if "first" in case else None)
    return {"seconds": time.process_time() - begun, "memory": peak_memory() - before}


def peak_memory() -> int:
    """Return the largest memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run_apart(*arguments: object) -> dict[str, Any]:
    """Return what `measure` returns in a process of its own."""
    command = [sys.executable, __file__, "--case", *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    asked = parse_arguments(__doc__)
    rows = QUICK if asked.quick else SHORT if asked.short else ROWS
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder)
        files = {count: folder / f"{count}.jsonl" for count in (FEW, rows)}
        for count, path in files.items():
            write_rows(path, count)
        cases = [
            ("until the first step", FEW),
            ("until the first step", rows),
            ("all rows read", rows),
            (f"the first {LIMIT} rows read", rows),
        ]
        for case, count in cases:
            found = run_apart(case, folder, files[count])
            runs.append({"side": f"{case} of {count:,}", **found})
            print(runs[-1], flush=True)
    write(
        "large_data",
        __doc__,
        quick=asked.quick or asked.short,
        runs=runs,
        one_row_a_run=True,
        notes=[],
        measures={"seconds": ["CPU time, s", ".2f"], "memory": ["memory, MB", ",.0f"]},
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        case, folder, data = sys.argv[2:]
        print(json.dumps(measure(case, Path(folder), data)))
    else:
        main()
