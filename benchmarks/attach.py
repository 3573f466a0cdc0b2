"""How long does attaching to a model of 1,000 linear layers take, beside PEFT; and how long do command and import?

Setting: a Llama of random weights with 143 blocks (1,001 linear layers, width 64), rank 8 on all of them but the head, one
thread. Each side gets a new copy of the model each round, in turn; CPU seconds. The command and the import are started as
processes of their own; CPU seconds of these, and whether torch was loaded.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import lorakit

RESULT = Path(__file__).parent / "results" / "attach.json"
STARTED = {
    "import lorakit": "import lorakit",
    "lorakit --help": "import sys; sys.argv = ['lorakit', '--help']\nfrom lorakit.cli.__main__ import main\nmain()",
}


def model(blocks: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=blocks,
                                        num_attention_heads=4, num_key_value_heads=4))  # fmt: skip


def ours(base: Any) -> None:
    lorakit.attach(base, lorakit.Spec(rank=8))


def peft(base: Any) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))


def started(code: str) -> tuple[float, bool]:
    """Return the CPU seconds of a process that runs this, and whether it loaded torch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n{code}"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, env=os.environ, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, done.stderr.strip().endswith("True")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, nothing written")
    parser.add_argument("--blocks", type=int, default=143)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base, rounds = model(asked.blocks), 2 if asked.quick else 9
    sides: dict[str, Callable[[Any], None]] = {"PEFT": peft, "lorakit": ours}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # what is imported on the way is not counted
        side(model(1))
    for _ in range(rounds):
        for name, side in sides.items():
            fresh = copy.deepcopy(base)
            begun = time.process_time()
            side(fresh)
            times[name].append(time.process_time() - begun)
    rows: list[dict[str, Any]] = [
        {"what": name, "min": min(taken), "median": median(taken), "ratio": min(taken) / min(times["PEFT"])}
        for name, taken in times.items()
    ]
    for name, code in STARTED.items():
        runs = [started(code) for _ in range(rounds)]
        taken = [seconds for seconds, _ in runs]
        rows.append({"what": name, "min": min(taken), "median": median(taken), "torch": any(loaded for _, loaded in runs)})
    for row in rows:
        print(json.dumps(row), file=sys.stderr)
    if not asked.quick:
        RESULT.write_text(json.dumps({"rows": rows, "blocks": asked.blocks, "threads": 1}, indent=2) + "\n")


if __name__ == "__main__":
    main()
