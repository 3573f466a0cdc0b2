"""Is an adapter shared by all tasks better than separate ones?

Setting: stories260K (260,032 parameters) is trained on three kinds of text at once: prose (the
Wizard of Oz), plays (Tiny Shakespeare) and sums in words (GSM8K, question and answer). Each batch
contains 2 sequences of 128 tokens of each kind, and `route` sends each row to its adapters. Three
sides have the same number of parameters, on all linear layers, with alpha 32:

- separate: one adapter of rank 8 per task;
- shared: one adapter of rank 24 for all tasks;
- shared + specific: one adapter of rank 12 for all tasks, and one of rank 4 per task.

32 steps of AdamW, one thread, two seeds. "few" has 8 sequences per task, each seen 8 times; "many"
has 64, each seen once. The learning rate of each side was chosen from 0.001 and 0.003 on 20 other
sequences per task, with a seed that is not reported. The figures are perplexities on 40 held-out
sequences per task; `mean` is the geometric mean over the tasks.

Criterion: with 8 sequences per task, shared + specific is not worse than the better of shared and
separate by more than the spread over seeds.

Predicted: with 8 sequences, sharing helps a little, because English is common to all tasks; with
64, separate adapters are as good.

Run: `python benchmarks/shared_and_specific.py`; `--help` lists its flags; with `--quick` it only
shows that it works.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from statistics import mean

import torch
from beside_peft import SEEDS, find_data, find_model, measure_spread, parse_arguments, write

import lorakit
from lorakit.models.load import load
from lorakit.train.optim import lr_factor, set_lr

LENGTH, ROWS, STEPS, LRS = 128, 2, 32, (1e-3, 3e-3)
SIZES = {"few": 8, "many": 64}
TEST, CHOOSE = 40, 20
TASKS = ("prose", "plays", "sums")
Specs = dict[str, lorakit.Spec]


def make_spec(rank: int, targets: str = "all-linear") -> lorakit.Spec:
    return lorakit.Spec(rank=rank, alpha=32, targets=targets)


# What is attached, and which of it a row of a task gets.
SIDES: dict[str, tuple[Specs, Callable[[str], list[str]]]] = {
    "separate": ({task: make_spec(8) for task in TASKS}, lambda task: [task]),
    "shared": ({"shared": make_spec(24)}, lambda task: ["shared"]),
    "shared + specific": (
        {"shared": make_spec(12), **{task: make_spec(4) for task in TASKS}},
        lambda task: ["shared", task],
    ),
}


def read_texts() -> dict[str, str]:
    """Return the text of each task."""
    rows = (find_data() / "sets/gsm8k/train.jsonl").read_text("utf-8").splitlines()[:700]
    return {
        "prose": (find_data() / "sets/oz-books/wizard_of_oz.txt").read_text("utf-8"),
        "plays": (find_data() / "sets/tinyshakespeare/input.txt").read_text("utf-8")[:250_000],
        "sums": "\n\n".join("{question}\n{answer}".format(**json.loads(row)) for row in rows),
    }


def make_sequences(tokenizer: object) -> dict[str, dict[str, torch.Tensor]]:
    """Return what trains, chooses and tests of each task: (count, 128) token ids; the test is the
    end of the text.
    """
    found = {}
    for task, text in read_texts().items():
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)  # type: ignore[operator]
        whole = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        found[task] = {
            "train": whole[: max(SIZES.values())],
            "choose": whole[-TEST - CHOOSE : -TEST],
            "test": whole[-TEST:],
        }
        if len(whole) < max(SIZES.values()) + CHOOSE + TEST:
            raise SystemExit(f"{task}: {len(whole)} sequences are too few.")
    return found


def compute_losses(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of every row."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), ids[:, 1:], reduction="none"
    ).mean(1)


def train(side: str, parts: dict, count: int, lr: float, seed: int, steps: int) -> torch.nn.Module:
    """Train one side on all tasks at once."""
    model = load(find_model("models/stories260K"), "causal-lm").model.eval()
    specs, ways = SIDES[side]
    adapters = [lorakit.attach(model, each, name=name, seed=seed) for name, each in specs.items()]
    optimizer = torch.optim.AdamW(
        [p for adapter in adapters for p in adapter.parameters()], lr=lr, weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(seed)
    orders = {
        task: torch.cat(
            [torch.randperm(count, generator=generator) for _ in range(-(-steps * ROWS // count))]
        )
        for task in TASKS
    }
    rows = [ways(task) for task in TASKS for _ in range(ROWS)]
    for step in range(steps):
        set_lr(optimizer, lr * lr_factor(step, steps, 0.05, "cosine"))
        ids = torch.cat(
            [parts[task]["train"][orders[task][step * ROWS : (step + 1) * ROWS]] for task in TASKS]
        )
        with lorakit.route(model, rows):
            compute_losses(model, ids).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def score(
    model: torch.nn.Module, ways: Callable[[str], list[str]] | None, parts: dict, part: str
) -> dict[str, float]:
    """Return the perplexity of each task, and their geometric mean."""
    found = {}
    for task in TASKS:
        if ways:
            lorakit.enable(model, ways(task))
        with torch.no_grad():
            found[task] = compute_losses(model, parts[task][part]).mean().item()
    return {
        **{task: math.exp(loss) for task, loss in found.items()},
        "mean": math.exp(mean(found.values())),
    }


def main() -> None:
    quick = parse_arguments(__doc__).quick
    torch.set_num_threads(1)
    steps, sizes = (2, {"few": 12}) if quick else (STEPS, SIZES)
    loaded = load(find_model("models/stories260K"), "causal-lm")
    parts = make_sequences(loaded.tokenizer)
    runs = [{"side": "base", **score(loaded.model.eval(), None, parts, "test")}]
    criteria = []
    for size, count in sizes.items():
        for side, (_, ways) in SIDES.items():
            tried = {
                lr: score(train(side, parts, count, lr, 100, steps), ways, parts, "choose")["mean"]
                for lr in LRS
            }
            lr = min(tried, key=lambda lr: tried[lr])
            for seed in SEEDS[: 1 if quick else 2]:
                begun = time.process_time()
                model = train(side, parts, count, lr, seed, steps)
                seconds = time.process_time() - begun
                trained = sum(a.parameters_count for a in lorakit.attached(model).values())
                runs.append(
                    {
                        "side": f"{size}: {side}",
                        "seed": seed,
                        "lr": lr,
                        "trainable_parameters": trained,
                        "cpu_seconds": round(seconds, 1),
                        **score(model, ways, parts, "test"),
                    }
                )
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)

    def of(side: str) -> list[float]:
        return [r["mean"] for r in runs if r["side"] == side]

    both, best = (
        of("few: shared + specific"),
        min((of("few: separate"), of("few: shared")), key=mean),
    )
    allowed = max(measure_spread(both), measure_spread(best))
    criteria.append(
        {
            "text": "8 sequences per task: shared + specific is not worse than the better of "
            "shared and separate",
            "met": mean(both) <= mean(best) + allowed,
            "measured": f"better by {mean(best) - mean(both):+.4g}, spread {allowed:.4g}",
        }
    )
    write(
        "shared_and_specific",
        __doc__,
        quick=quick,
        runs=runs,
        criteria=criteria,
        measures={
            **{task: [task, ".2f"] for task in (*TASKS, "mean")},
            "lr": ["learning rate", "g"],
            "trainable_parameters": ["parameters trained", ",.0f"],
            "cpu_seconds": ["CPU seconds of training", ".0f"],
        },
    )


if __name__ == "__main__":
    main()
