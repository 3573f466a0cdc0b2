"""Real tasks as jobs of lorakit's training loop, for which_rank.py, stability.py, transfer.py and
others. This module measures nothing itself.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import e2e
import oz_books
import sst2
import torch
from beside_peft import ROOT, Setting, draw_indices, find_data, find_model

import lorakit
from lorakit.data.encode import Example
from lorakit.data.rows import Rows
from lorakit.evaluate.score import evaluate
from lorakit.models.load import Loaded, load, pad_id
from lorakit.tasks.rows import encode_rows
from lorakit.train.config import TrainSpec
from lorakit.train.job import Job
from lorakit.train.log import METRICS, Log
from lorakit.train.loop import fit

PICTURES = ROOT / "docs" / "pictures"
STORIES = replace(oz_books.SETTING, lr=1e-2, steps=120, batch_size=12, max_length=128)


@dataclass(frozen=True)
class Task:
    """A real task: how it is trained, what its rows are, and what decides."""

    setting: Setting
    rows: Any  # () -> {"train": Rows, "test": Rows}
    metric: str = "loss"


def _read_books() -> dict[str, Rows]:
    rows = oz_books.read_passages()
    apart = draw_indices(2 * oz_books.HELD_OUT, len(rows))
    return {
        "train": rows.take(i for i in range(len(rows)) if i not in apart),
        "test": rows.take(apart),
    }


def _read_shakespeare() -> dict[str, Rows]:
    """Return speeches, a thousand characters together; every tenth piece is held out."""
    text = (find_data() / "sets/tinyshakespeare/input.txt").read_text("utf-8")
    pieces, now = [], ""
    for speech in text.split("\n\n"):
        now += speech + "\n\n"
        if len(now) > 1000:
            pieces, now = [*pieces, now.strip()], ""
    return {
        "train": _make_rows([p for i, p in enumerate(pieces) if i % 10]),
        "test": _make_rows(pieces[::10]),
    }


def _make_rows(texts: Sequence[str]) -> Rows:
    return Rows("text", [{"text": t} for t in texts], [""] * len(texts), "text")


def _read_restaurants() -> dict[str, Rows]:
    test = e2e.read_part("testset_w_refs")
    return {"train": e2e.read_part("devset"), "test": test.take(draw_indices(400, len(test)))}


def _read_tables() -> dict[str, Rows]:
    """Return DART's triples with their sentences; items of every tenth place are held out."""
    items = json.loads((find_data() / "sets/dart-dev/dart-v1.1.1-full-dev.json").read_text("utf-8"))
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for i, item in enumerate(items):
        prompt = " | ".join(" : ".join(triple) for triple in item["tripleset"])
        parts["train" if i % 10 else "test"].append(
            {"prompt": prompt, "completion": item["annotations"][0]["text"]}
        )
    return {
        name: Rows("completion", rows, [""] * len(rows), "dart") for name, rows in parts.items()
    }


def _read_sentences() -> dict[str, Rows]:
    train = sst2.read_part("train")
    return {"train": train.take(draw_indices(3000, len(train))), "test": sst2.read_part("test")}


TASKS = {
    "oz-books": Task(STORIES, _read_books),
    "tinyshakespeare": Task(STORIES, _read_shakespeare),
    "e2e": Task(replace(e2e.SETTING, steps=300, max_length=256), _read_restaurants),
    "dart": Task(replace(e2e.SETTING, steps=300, max_length=256), _read_tables),
    "sst2": Task(
        replace(sst2.SETTING, lr=2e-3, steps=188, batch_size=16, threads=1),
        _read_sentences,
        "accuracy",
    ),
}


def open_task(
    name: str, *, quick: bool = False
) -> tuple[Loaded, dict[str, list[Example]], Setting]:
    """Return the base of a task, its examples and how it is trained; with `quick` a handful of
    each, for two steps.
    """
    task = TASKS[name]
    setting = replace(task.setting, steps=4, batch_size=2) if quick else task.setting
    torch.set_num_threads(1)
    loaded = load(find_model(setting.model), setting.task, labels=setting.labels)
    rows = {
        part: some.take(range(min(12, len(some)))) if quick else some
        for part, some in task.rows().items()
    }
    return (
        loaded,
        {part: encode_rows(some, loaded, setting.max_length) for part, some in rows.items()},
        setting,
    )


def make_job(
    loaded: Loaded,
    parts: dict[str, list[Example]],
    setting: Setting,
    to: Path,
    *,
    seed: int = 0,
    rule: str = "alpha/rank",
    dropout: float = 0.0,
    start: lorakit.Adapter | None = None,
    whole: bool = True,
    **more: Any,
) -> Job:
    """Return a run of lorakit's own loop on a copy of the base, from a fresh adapter or from
    `start`.

    Args:
        loaded: the base; stays as it is.
        parts: its examples; "test" is measured while it runs, where `whole`.
        setting: how it is trained.
        to: a new folder for what it writes.
        seed: of the initial A and of the order.
        rule: of the scale.
        dropout: on the input of A.
        start: an adapter to go on from.
        whole: whether the held-out examples are measured on the way.
        **more: fields of TrainSpec.
    """
    to.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(loaded.model)
    spec = lorakit.Spec(
        rank=setting.rank,
        alpha=setting.alpha,
        scale_rule=rule,
        dropout=dropout,
        targets=setting.targets,
        full_modules=loaded.new_modules,
    )
    adapter = lorakit.attach(model, start.copy() if start else spec, seed=seed, any_base=True)
    if not adapter.provenance.get("task"):
        adapter.provenance |= {"task": setting.task, "labels": list(setting.labels)}
    settings = TrainSpec(
        model=setting.model,
        data="examples",
        output=str(to),
        steps=setting.steps,
        seed=seed,
        lr=setting.lr,
        batch_size=setting.batch_size,
        threads=1,
        final="last",
        **{"eval_every": setting.steps, **more},
    )
    return Job(
        model,
        adapter,
        setting.task,
        parts["train"],
        parts["test"] if whole else [],
        pad_id(loaded.tokenizer),
        len(setting.labels),
        settings,
        setting.lr,
        to,
    )


def train_job(job: Job) -> list[float]:
    """Run a job; return the loss of every step, also of a run that stopped itself."""
    fit(job, lambda start: Log(job.output / METRICS, start, job.steps, quiet=True))
    job.model.eval()
    return [json.loads(line)["loss"] for line in (job.output / METRICS).read_text().splitlines()]


def score(job: Job, examples: Sequence[Example], metric: str) -> float:
    """Return one metric of what a job's model makes of examples."""
    return evaluate(job.model, examples, job.task, pad=job.pad, labels=job.labels).metrics[metric]


@contextmanager
def make_folders() -> Iterator[Any]:
    """Yield a function that returns a new folder at each call; all of them go away."""
    with tempfile.TemporaryDirectory(prefix="lorakit-bench-") as place:
        count = iter(range(1 << 30))
        yield lambda: Path(place) / str(next(count))


def save_picture(drawn_figure: Any, name: str, *, quick: bool) -> str:
    """Write a picture for the docs, unless the run is quick; return the link to it."""
    if not quick:
        from lorakit import plots

        PICTURES.mkdir(exist_ok=True)
        plots.save_figure(drawn_figure, PICTURES / f"{name}.svg")
    return f"![{name.replace('_', ' ')}](pictures/{name}.svg)"


if __name__ == "__main__":
    print(
        "real_tasks.py is code that other benchmarks share; it measures nothing itself.",
        file=sys.stderr,
    )
