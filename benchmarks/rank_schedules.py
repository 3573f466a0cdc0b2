"""Should rank go to lower, upper or gradient-selected layers?

Setting: stories260K on the passages of oz_books.py, three seeds, one thread. The budget is the
number of values at rank 8 on all linear layers. `even`, `bottom-heavy` and `top-heavy` spend all of
it on all layers (lorakit.allocate_ranks; the heavy half of the layers has three times the rank).
`suggested` and `random` spend half of it, at rank 8: `suggested` on the layers that
lorakit.select_layers selects by their gradients in a probe of eight batches, `random` on layers in
random order (by the seed) while they fit. The learning rate is that of oz_books.py. The runs are
short (40 steps of 8 sequences), so the differences are those at the start of a training.

Criterion: the suggested layers give a lower held-out perplexity than the random ones, on average
and with each seed.

Predicted: even is the best or within the spread of the best; suggested is better than random by
more than the spread over seeds.

Run: `python benchmarks/rank_schedules.py`; `--help` lists its flags; with `--quick` it only shows
that it works.
"""

from dataclasses import replace
from typing import Any

import torch
from beside_peft import SEEDS, Side, collect_values, find_model, parse_arguments, run, score, write
from oz_books import SETTING as BOOKS
from oz_books import encode_examples

import lorakit
from lorakit.data.batches import Batches, collate
from lorakit.models.load import load, pad_id

SETTING = replace(BOOKS, steps=40, batch_size=8)
WHOLE, HALF = ("even", "bottom-heavy", "top-heavy"), ("suggested", "random")
BATCHES = 8  # that the suggestion looks at


def make_spec(side: str, model: Any, batches: list[Any], seed: int) -> lorakit.Spec:
    """Return the spec of one way to spend the budget."""
    spec = lorakit.Spec(rank=SETTING.rank, alpha=SETTING.alpha, targets=SETTING.targets)
    if side in WHOLE:
        return lorakit.allocate_ranks(model, spec, shape=side)
    if side == "suggested":
        return lorakit.select_layers(model, spec, batches, lr=SETTING.lr * 0.3)
    sizes = {
        n: SETTING.rank * sum(place.shape)
        for n, place in lorakit.select(model, spec.targets).items()
    }
    names, left, taken = list(sizes), sum(sizes.values()) // 2, []
    for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        if sizes[names[i]] <= left:
            taken.append(names[i])
            left -= sizes[names[i]]
    return replace(spec, targets=tuple(taken))


def main() -> None:
    asked = parse_arguments(__doc__)
    setting = replace(SETTING, steps=2, batch_size=2) if asked.quick else SETTING
    base = load(find_model(setting.model), setting.task)
    parts = {
        name: some[:8] if asked.quick else some for name, some in encode_examples(base).items()
    }

    def adapt(side: str, setting: Any, seed: int) -> Side:
        torch.set_num_threads(setting.threads)
        loaded = load(find_model(setting.model), setting.task, seed=seed)
        order = Batches([len(e.ids) for e in parts["train"]], setting.batch_size, seed)
        batches = [
            collate([parts["train"][i] for i in order[k]], pad_id(loaded.tokenizer, loaded.model))
            for k in range(BATCHES)
        ]
        adapter = lorakit.attach(
            loaded.model, make_spec(side, loaded.model, batches, seed), seed=seed
        )
        return Side(loaded, list(adapter.parameters()), set(adapter.deltas))

    def measure(side: Side) -> dict[str, float]:
        return {"perplexity": score(side, parts["test"])["perplexity"]}

    seeds = SEEDS[: 1 if asked.quick else None]
    runs = [
        run(side, setting, seed, parts["train"], measure, adapt)
        for seed in seeds
        for side in (*WHOLE, *HALF)
    ]
    suggested, random = (collect_values(runs, side, "perplexity") for side in HALF)
    gaps = [r - s for s, r in zip(suggested, random, strict=True)]
    criteria = [
        {
            "text": "suggested layers are better than random ones with the same budget, for "
            "each seed",
            "met": min(gaps) > 0,
            "measured": "lower by " + ", ".join(f"{gap:.2f}" for gap in gaps),
        }
    ]
    write(
        "rank_schedules",
        __doc__,
        quick=asked.quick,
        setting=setting,
        runs=runs,
        criteria=criteria,
        measures={
            "perplexity": ["held-out perplexity", ".2f"],
            "trainable_parameters": ["parameters trained", ",.0f"],
            "adapted_modules": ["adapted layers", ".1f"],
            "cpu_seconds": ["CPU seconds of training", ".0f"],
        },
    )


if __name__ == "__main__":
    main()
