"""How long does the plan before a run take?

Setting: a tiny model of each family that `tests/train/families.py` lists, with rows of at most 64
tokens, and models whose rows have 512 tokens: stories260K (a real model), and Mamba and Jamba,
which compute token by token in Python. `lorakit train` plans each run, of two steps: it looks for
modules that no row reaches, and traces one step on shapes alone. Reading the config and tokenising
the rows are not counted.

Criterion: a plan takes at most 2 seconds of CPU time, or a note says that there is none.

Run: `python benchmarks/plan_before_run.py`; `--help` lists its flags; with `--quick` it only shows
that it works.
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from beside_peft import ROOT, find_model, parse_arguments, write
from transformers import AutoTokenizer

sys.path.insert(0, str(ROOT))

from tests.conftest import sentences
from tests.train.families import FAMILIES, ROWS, Family, write_model

from lorakit.spec import Spec
from lorakit.train import planning
from lorakit.train.config import TrainSpec
from lorakit.train.data import read_data

LONG = ("mamba", "jamba")
MOST = 2.0
SLACK = 1.25  # an operation that has begun ends, and so does what is put back


def plan(model: Path, rows: list[dict[str, str]], folder: Path) -> dict[str, Any]:
    """Return the CPU seconds of a plan, and whether there is one."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    settings = TrainSpec(model=str(model), data=str(data), output=str(folder / "out"), steps=2)
    run_data = read_data(settings)
    begun = [0.0]

    def begin(*arguments: Any) -> Any:
        begun[0] = time.process_time()
        return real(*arguments)

    real, planning.leave_out_unreached = planning.leave_out_unreached, begin
    try:
        planned = planning.plan_run(settings, Spec(), run_data, lambda message: None)
    finally:
        planning.leave_out_unreached = real
    return {"seconds": time.process_time() - begun[0], "planned": int(planned.report is not None)}


def plan_family(
    family: Family, rows: list[dict[str, str]], tokens: int | None = None
) -> dict[str, Any]:
    """Return what `plan` returns for a tiny model of a family.

    Args:
        family: of the model.
        rows: to train on.
        tokens: that the model can read; 64 where None.
    """
    if tokens is not None:
        family = replace(family, options={**family.options, "max_position_embeddings": tokens})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(family, folder / "model")
        if tokens is not None:
            tokenizer = AutoTokenizer.from_pretrained(folder / "model", model_max_length=tokens)
            tokenizer.save_pretrained(folder / "model")
        return plan(folder / "model", rows, folder)


def main() -> None:
    asked = parse_arguments(__doc__)
    torch.set_num_threads(1)
    starting = {name: family for name, family in FAMILIES.items() if not family.refused}
    chosen = ("llama", "bert") if asked.quick else tuple(starting)
    long_rows = [{"text": " ".join(sentences(120, seed))} for seed in range(24)]
    plan_family(starting["llama"], ROWS["causal-lm"]())  # imports what PyTorch imports once
    runs = []
    for name in chosen:
        rows = [{**row, "text": 8 * f"{row['text']} "} for row in ROWS[starting[name].task]()]
        runs.append({"side": name, **plan_family(starting[name], rows)})
        print(runs[-1], flush=True)
    for name in () if asked.quick else LONG:
        found = plan_family(starting[name], long_rows, tokens=512)
        runs.append({"side": f"{name}, 512 tokens", **found})
        print(runs[-1], flush=True)
    if not asked.quick:
        with tempfile.TemporaryDirectory() as name:
            found = plan(Path(find_model("models/stories260K")), long_rows, Path(name))
        runs.append({"side": "stories260K, 512 tokens", **found})
        print(runs[-1], flush=True)
    longest = max(run["seconds"] for run in runs)
    write(
        "plan_before_run",
        __doc__,
        quick=asked.quick or asked.short,
        runs=runs,
        one_row_a_run=True,
        notes=[],
        measures={"seconds": ["CPU time, s", ".2f"], "planned": ["plans", "d"]},
        criteria=[
            {
                "text": "a plan takes at most 2 s of CPU time, and what had begun then",
                "met": longest <= MOST * SLACK,
                "measured": f"at most {longest:.2f} s",
            }
        ],
    )


if __name__ == "__main__":
    main()
