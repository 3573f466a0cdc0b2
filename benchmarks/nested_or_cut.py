"""Is nested training better than one run that is cut?

Setting: two ways to get an adapter of every lower rank from one run, compared with one run per
rank.

- Nested: at each step a rank is drawn, and only that many of the first directions are trained, with
  one scale for all ranks. So each prefix of the directions is an adapter of its own.
- Cut: a plain run at the highest rank, and then the truncated SVD of each change. "cut, then
  trained" adds a few training steps to each cut (3 % of the run for each rank, at half the learning
  rate).

All have the same steps, batches, learning rate and seed. oz-books on stories260K (loss) and sst2 on
MiniLM (accuracy, 400 rows), as in `which_rank.py` but shorter. One thread, one seed.

Criterion: the method of `lorakit rank` (cut, then trained) is closer to one run per rank than
nested training is, on average over the ranks.

Run: `python benchmarks/nested_or_cut.py`; `--help` lists its flags; with `--quick` it only shows
that it works.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import mean

import torch
from beside_peft import parse_arguments, write
from real_tasks import TASKS, make_folders, make_job, open_task, score
from torch import nn

import lorakit
from lorakit.algebra import resize
from lorakit.data.batches import Batches, collate
from lorakit.evaluate.score import batch_loss
from lorakit.train.job import Job
from lorakit.train.optim import lr_factor, set_lr

RANKS, LENGTHS, SHARE = (1, 2, 4, 8, 16), {"oz-books": 60, "sst2": 90}, 0.03


@contextmanager
def use_first_directions(adapter: lorakit.Adapter, rank: int) -> Iterator[None]:
    """Let every change use its first directions alone while the block lasts; the scale stays."""
    whole = {name: (delta.A, delta.B) for name, delta in adapter.deltas.items()}
    for name, delta in adapter.deltas.items():
        A, B = whole[name]
        # Plain tensors in the places of parameters: gradients go to the whole ones.
        delta._parameters["A"], delta._parameters["B"] = A[:rank], B[:, :rank]  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, delta in adapter.deltas.items():
            delta._parameters["A"], delta._parameters["B"] = whole[name]


def learn(job: Job, *, nested: bool = False, gentle: bool = False) -> None:
    """Train plainly, or with a rank drawn at each step; gently: with a rate that falls from half
    the usual.
    """
    optimizer, draw = (
        torch.optim.AdamW(list(job.adapter.parameters()), lr=1.0, weight_decay=0.0),
        torch.Generator().manual_seed(7),
    )
    batches = Batches(
        [len(e.ids) for e in job.examples], job.settings.batch_size, job.settings.seed + gentle
    )
    job.model.train()
    torch.manual_seed(job.settings.seed)
    for step in range(job.steps):
        factor = (
            (job.steps - step) / job.steps / 2
            if gentle
            else lr_factor(step, job.steps, 0.05, "cosine")
        )
        set_lr(optimizer, job.lr * factor)
        chosen = [job.examples[i] for i in batches[step]]
        rank = RANKS[int(torch.randint(len(RANKS), (1,), generator=draw))] if nested else RANKS[-1]
        with use_first_directions(job.adapter, rank):
            loss = batch_loss(job.model, collate(chosen, job.pad), job.task)[0] / sum(
                e.trained for e in chosen
            )
            loss.backward()
        nn.utils.clip_grad_norm_(list(job.adapter.parameters()), job.settings.clip)
        optimizer.step()
        optimizer.zero_grad()
    job.model.eval()


def measure_curves(name: str, new, *, quick: bool) -> dict[str, list[float]]:
    """Return the metric at each rank, by way."""
    loaded, parts, setting = open_task(name, quick=quick)
    metric, test = TASKS[name].metric, parts["test"][:400]
    setting = replace(setting, rank=RANKS[-1], steps=setting.steps if quick else LENGTHS[name])

    def job(**more) -> Job:
        return make_job(
            loaded, parts, replace(setting, **more.pop("setting", {})), new(), whole=False, **more
        )

    def shown(way: str, values: list[float]) -> list[float]:
        print(name, way, [round(v, 4) for v in values], flush=True)
        return values

    plain, out = job(), {}
    learn(plain)
    top = score(plain, test, metric)
    small = {rank: resize(plain.adapter, rank=rank).adapter for rank in RANKS[:-1]}
    out["cut"] = shown("cut", [*(score(job(start=a), test, metric) for a in small.values()), top])
    on = {
        rank: job(start=a, setting={"steps": max(1, round(SHARE * setting.steps))})
        for rank, a in small.items()
    }
    for going_on in on.values():
        learn(going_on, gentle=True)
    out["cut, then trained"] = shown(
        "cut, then trained", [*(score(j, test, metric) for j in on.values()), top]
    )
    nested = job()
    learn(nested, nested=True)
    values = []
    for rank in RANKS:
        with use_first_directions(nested.adapter, rank):
            values.append(score(nested, test, metric))
    out["nested"] = shown("nested", values)
    each = []
    for rank in RANKS[:-1]:
        alone = job(setting={"rank": rank})
        learn(alone)
        each.append(score(alone, test, metric))
    out["one run per rank"] = shown("one run per rank", [*each, top])
    return out


def main() -> None:
    asked = parse_arguments(__doc__ or "")
    with make_folders() as new:
        found = {name: measure_curves(name, new, quick=asked.quick) for name in LENGTHS}
    rows = [
        {"side": f"{name}: {way}", **{str(r): v for r, v in zip(RANKS, values, strict=True)}}
        for name, ways in found.items()
        for way, values in ways.items()
    ]
    criteria = []
    for name, ways in found.items():
        sign = 1 if TASKS[name].metric == "loss" else -1
        honest = ways["one run per rank"]
        worse = {
            way: mean(sign * (v - h) for v, h in zip(ways[way], honest, strict=True))
            for way in ("cut, then trained", "nested")
        }
        criteria.append(
            {
                "text": f"{name}: cut, then trained is closer to one run per rank than nested, or "
                "better than one run per rank",
                "met": worse["cut, then trained"] < worse["nested"],
                "measured": ", ".join(f"{way}: {v:+.4f}" for way, v in worse.items()) + " worse",
            }
        )
    write(
        "nested_or_cut",
        __doc__ or "",
        quick=asked.quick,
        runs=rows,
        criteria=criteria,
        one_row_a_run=True,
        measures={str(r): [f"rank {r}", ".4f"] for r in RANKS},
    )


if __name__ == "__main__":
    main()
