"""How long do attaching to 1,000 layers and starting lorakit take?

Setting: a Llama with random weights and 143 blocks (1,001 linear layers, width 64), rank 8 on all
of these but not on the head, one thread. In each round, each side gets a new copy of the model; the
sides take turns. "load" reads the adapter's folder and attaches the adapter. Times are CPU seconds.
They include Python's garbage collection, which also runs before each measurement, so that none
includes the collection of earlier objects. The import and the command run in processes of their
own, and the times are the CPU seconds of these processes.

Run: `python benchmarks/attach.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

import copy
import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from beside_peft import parse_arguments, write

import lorakit

BLOCKS = 143
STARTED = {
    "import lorakit": "import lorakit",
    "lorakit --help": "import sys; sys.argv = ['lorakit', '--help']\nfrom lorakit.cli.__main__ "
    "import main\nmain()",
}


def build_model(blocks: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=4,
        )
    )


def prepare_lorakit(base: Any, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what lorakit does, by what it is called; a copy of the base is used for each but
    saving.
    """
    adapter: Any = None

    def attach() -> None:
        nonlocal adapter
        adapter = lorakit.attach(base(), lorakit.Spec(rank=8))

    yield "attach", attach
    yield "save", lambda: adapter.save(folder / "ours")
    yield "load", lambda: lorakit.attach(base(), lorakit.Adapter.load(folder / "ours"))


def prepare_peft(base: Any, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what PEFT does, likewise."""
    from peft import LoraConfig, PeftModel, get_peft_model

    wrapped: Any = None

    def attach() -> None:
        nonlocal wrapped
        wrapped = get_peft_model(base(), LoraConfig(r=8, target_modules="all-linear"))

    yield "attach", attach
    yield "save", lambda: wrapped.save_pretrained(folder / "peft")
    yield "load", lambda: PeftModel.from_pretrained(base(), folder / "peft")


SIDES = {"PEFT": prepare_peft, "lorakit": prepare_lorakit}


def run_round(model: Any) -> Iterator[tuple[str, str, float]]:
    """Yield side, what it did and the CPU seconds of each."""
    for side, steps in SIDES.items():
        with TemporaryDirectory() as folder:
            copies: list[Any] = []
            for what, run in steps(copies.pop, Path(folder)):
                copies[:] = [copy.deepcopy(model)]
                gc.collect()
                begun = time.process_time()
                run()
                yield side, what, time.process_time() - begun


def time_process(code: str) -> float:
    """Return the CPU seconds of a process that runs this, which must not load torch.

    Raises:
        RuntimeError: it failed, or loaded torch.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = (
        "import atexit, sys\natexit.register(lambda: print('torch' in sys.modules, "
        f"file=sys.stderr))\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, env=os.environ, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or not done.stderr.strip().endswith("False"):
        raise RuntimeError(f"{code!r}: {done.stderr[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    base, rounds = build_model(2 if asked.quick else BLOCKS), 2 if asked.quick or asked.short else 5
    list(run_round(build_model(1)))  # what is imported on the way is not counted
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for side, what, seconds in run_round(base):
            times.setdefault((side, what), []).append(seconds)
    rows = [
        {
            "side": f"{what}, {side}",
            "min": min(taken),
            "median": median(taken),
            "of_peft": min(taken) / min(times["PEFT", what]),
        }
        for (side, what), taken in times.items()
    ]
    for name, code in STARTED.items():
        taken = [time_process(code) for _ in range(rounds)]
        rows.append(
            {"side": name, "min": min(taken), "median": median(taken), "of_peft": float("nan")}
        )
    ratio = next(row["of_peft"] for row in rows if row["side"] == "attach, lorakit")
    criteria = [
        {
            "text": "attaching to 1,001 linear layers: at most 0.25 times the time of PEFT",
            "met": ratio <= 0.25,
            "measured": f"{ratio:.3f}",
        }
    ]
    measures = {
        "min": ["CPU seconds, minimum", ".3f"],
        "median": ["median", ".3f"],
        "of_peft": ["ratio to PEFT", ".3f"],
    }
    write(
        "attach",
        __doc__,
        quick=asked.quick or asked.short,
        runs=rows,
        criteria=criteria,
        one_row_a_run=True,
        rounds=rounds,
        measures=measures,
    )


if __name__ == "__main__":
    main()
