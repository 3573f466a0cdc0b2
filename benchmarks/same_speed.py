"""Compare the speed of two source trees: import, the start of the command, attach, load and a step.

    python benchmarks/same_speed.py OLD/src NEW/src [--rounds N] [--quick]

The two trees take turns, a process each, on one thread. Times are CPU seconds: of whole processes
for import and command, inside a process for the rest, where each process takes the minimum of
several repetitions. The table shows the minimum over the rounds and its ratio, new to old.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

STARTS = {
    "import lorakit": "import lorakit",
    "lorakit --help": "import sys; sys.argv = ['lorakit', '--help']\n"
    "from lorakit.cli.__main__ import main\nmain()",
}
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(measure_inside(given.quick)))
        return
    times: dict[str, Times] = {"old": defaultdict(list), "new": defaultdict(list)}
    for _ in range(1 if given.quick else given.rounds):
        for side, source in (("old", given.old), ("new", given.new)):
            for what, seconds in measure_tree(source, given.quick).items():
                times[side][what].append(seconds)
    print_table(times["old"], times["new"])


def measure_tree(source: Path, quick: bool) -> dict[str, float]:
    """Return the CPU seconds of one source tree, by what was done."""
    environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    found = {what: time_process(code, environment) for what, code in STARTS.items()}
    command = [sys.executable, __file__, str(source), str(source), "--inside"]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return found | json.loads(done.stdout.splitlines()[-1])


def time_process(code: str, environment: dict[str, str]) -> float:
    """Return the CPU seconds of a process that runs this code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_inside(quick: bool) -> dict[str, float]:
    """Return the least CPU seconds of attaching, loading and stepping in this process."""
    import torch

    import lorakit

    torch.set_num_threads(1)
    repeats = 1 if quick else 5
    found: dict[str, float] = {}
    many = build_model(4 if quick else 250, width=32)
    spec = lorakit.Spec(rank=8, targets="all-linear")

    def attach() -> None:
        lorakit.attach(many, spec)

    def detach() -> None:
        lorakit.detach(many)

    def load() -> None:
        lorakit.attach(many, lorakit.Adapter.load(folder))

    found["attach 1,000 layers"] = time_least(attach, repeats, detach)
    with TemporaryDirectory() as folder:
        adapter = lorakit.attach(many, spec)
        adapter.save(folder)
        detach()
        found["load and attach them"] = time_least(load, repeats, detach)
    for dropout in (0.0, 0.05):
        step = make_step(64 if quick else 512, dropout)
        found[f"step, dropout {dropout:g}"] = time_least(step, 2 * repeats)
    return found


def build_block(width: int) -> "nn.Sequential":
    """Return four linear layers."""
    from torch import nn

    wide = 4 * width
    inner = (nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))
    return nn.Sequential(nn.Linear(width, width), *inner, nn.Linear(width, width))


def build_model(blocks: int, width: int) -> "nn.Sequential":
    """Return blocks of four linear layers."""
    from torch import nn

    return nn.Sequential(*(build_block(width) for _ in range(blocks)))


def make_step(width: int, dropout: float) -> Callable[[], None]:
    """Return a training step of an adapter of rank 16 on two blocks: forward and backward."""
    import torch

    import lorakit

    model = build_model(2, width)
    lorakit.attach(model, lorakit.Spec(rank=16, dropout=dropout, targets="all-linear"))
    model.train()
    x = torch.randn(8, 64, width)

    def step() -> None:
        model(x).square().mean().backward()

    return step


def time_least(
    run: Callable[[], object], repeats: int, undo: Callable[[], object] | None = None
) -> float:
    """Return the least CPU seconds of some runs, each undone outside the time."""
    least = float("inf")
    for _ in range(repeats + 1):  # the first is not warm
        begun = time.process_time()
        run()
        least = min(least, time.process_time() - begun)
        if undo is not None:
            undo()
    return least


def print_table(old: Times, new: Times) -> None:
    print(f"{'CPU seconds':24} {'old':>9} {'new':>9} {'ratio':>7} {'of medians':>11}")
    for what, before in old.items():
        after = new[what]
        ratio, medians = min(after) / min(before), median(after) / median(before)
        least = f"{min(before):9.4f} {min(after):9.4f}"
        print(f"{what:24} {least} {ratio:7.3f} {medians:11.3f}")


if __name__ == "__main__":
    main()
