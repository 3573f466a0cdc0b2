"""How good is an adapter extracted from a full fine-tune?

Setting: stories260K is fully fine-tuned on public-domain books (with the split of `oz_books.py`).
Adapters are then extracted from it at several ranks: the difference of each matrix is truncated,
and norms are stored in full. For comparison, LoRA is trained from the same base at some of these
ranks, on the same batches and with the same number of steps. The learning rates were chosen on
other passages (that of LoRA in `oz_books.py`). The perplexity is measured on 45 held-out passages,
and the KL divergence from the tuned model on the same passages. Forgetting is measured by the
perplexity on 60 of the stories that the base was trained on. Rank 64 is the full rank of these
matrices. One thread, one seed.

Two other methods that use a low rank or a small model are measured too. They are not LoRA:

- The tuned model's own matrices W are cut to a lower rank by SVD. This compresses a model and
  learns nothing.
- A student with three of the five layers learns the outputs of the tuned model on the same batches.
  This is distillation: it makes a new, smaller model that needs no base.

Predicted: extraction needs a higher rank than LoRA for the same perplexity, because no training
chose its directions. With W cut to rank 8, the model is worse than the base before any training.
LoRA at full rank (32 for k and v) comes near full fine-tuning and does not reach it, because
embeddings and norms stay frozen.

A limit of this benchmark: the model is so small that LoRA at rank 16 has a third of its number of
parameters.

Run: `python benchmarks/extract.py`; `--help` lists its flags; with `--quick` it only shows that it
works.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import oz_books
import torch
from beside_peft import Setting, Side, find_model, parse_arguments, score, train, write
from markdown import format_table
from real_tasks import save_picture
from torch import Tensor, nn

import lorakit
from lorakit import plots
from lorakit.algebra import extract
from lorakit.analysis.overlap import amplification
from lorakit.analysis.spectra import cumulative_energy, factors_of, rank_for_energy
from lorakit.data.batches import Batches, collate
from lorakit.evaluate.logits import compare_logits, compute_logits
from lorakit.linalg import factorize, singular_values
from lorakit.models.load import load, pad_id
from lorakit.train.optim import lr_factor, set_lr

SETTING = Setting(
    model="models/stories260K",
    task="causal-lm",
    targets="all-linear",
    lr=1e-2,
    steps=60,
    batch_size=16,
    max_length=256,
)
FULL_LR = 4e-3  # of 2e-3 and 4e-3, on the passages for choosing (12.60 and 12.10 after 120 steps)
RANKS, TRAINED, SHARES = (1, 2, 4, 8, 16, 32, 64), (1, 4, 16, 64), (0.5, 0.9)
CUT, KEPT = (8, 16, 32), (0, 2, 4)  # ranks of W; layers of the student
OLD = 60  # stories
QUERY, AMPLIFIED = (
    "model.layers.2.self_attn.q_proj",
    (4, 16),
)  # as in table 7 of the paper: one query, a low and a high rank


def collect_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return W of every linear layer."""
    return {
        name: place.site.read(place.layer)
        for name, place in lorakit.select(model, "all-linear").items()
    }


def count_directions(values: Iterable[Tensor]) -> dict[str, float]:
    """Return what singular values say, on average: the share of the energy in the first 8, and how
    many hold 90 %.
    """
    each = list(values)
    first = sum(float(cumulative_energy(v)[min(7, len(v) - 1)]) for v in each) / len(each)
    return {"first_8": first, "rank_90": sum(rank_for_energy(v, 0.9) for v in each) / len(each)}


def format_table_7(W: Tensor, changes: dict[int, tuple[Tensor, Tensor]]) -> str:
    """Return how strongly W acts along the directions of its changes, its own and random ones, laid
    out as in the paper.
    """
    told = {
        rank: amplification(W, A, B, rank=min(rank, *W.shape)) for rank, (A, B) in changes.items()
    }
    rows = [
        [
            f"rank {rank}",
            f"{t.along_delta:.2f}",
            f"{t.along_W:.2f}",
            f"{t.along_random:.2f}",
            f"{t.delta_norm:.2f}",
            f"{t.factor:.1f}",
        ]
        for rank, t in told.items()
    ]
    heads = ["", "directions of ΔW", "directions of W", "random", "norm of ΔW", "amplification"]
    norm = next(iter(told.values())).W_norm
    title = (
        f"Table 7 of the paper, for `{QUERY}` (norm of W: {norm:.2f}). The first three columns are "
        "the norm of Uᵀ W V in directions U and V."
    )
    return f"{title}\n\n{format_table(heads, rows)}"


def train_lora(setting: Setting, rank: int) -> Side:
    """Return the base with a LoRA of this rank, or of the highest that k and v can take."""
    loaded = load(find_model(setting.model), setting.task)
    few = {
        name: {"rank": min(W.shape)}
        for name, W in collect_matrices(loaded.model).items()
        if min(W.shape) < rank
    }
    spec = lorakit.Spec(rank=rank, alpha=setting.alpha, targets=setting.targets, overrides=few)
    adapter = lorakit.attach(loaded.model, spec, seed=0)
    return Side(loaded, list(adapter.parameters()), set(adapter.deltas))


def cut(model: nn.Module, rank: int) -> tuple[nn.Module, int]:
    """Return the model with W itself replaced by the nearest product of this rank, and how many
    parameters that leaves.
    """
    small, left = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    for name, W in collect_matrices(model).items():
        A, B = factorize(W, min(rank, *W.shape))
        small.get_submodule(name).weight.data.copy_(B @ A)  # type: ignore[union-attr]
        left -= max(0, W.numel() - rank * sum(W.shape))
    return small, left


def distil(model: Any, base: Any, examples: list[Any], setting: Setting, pad: int) -> nn.Module:
    """Return a student with some of the base's layers that learned the model's answers, token by
    token.
    """
    student = copy.deepcopy(base)
    student.model.layers = nn.ModuleList(
        student.model.layers[i] for i in KEPT[: len(student.model.layers)]
    )
    student.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=FULL_LR, weight_decay=0.0)
    batches = Batches([len(e.ids) for e in examples], setting.batch_size, 0)
    for step in range(setting.steps):
        set_lr(
            optimizer, FULL_LR * lr_factor(step, setting.steps, setting.warmup, setting.schedule)
        )
        batch = collate([examples[i] for i in batches[step]], pad)
        real = batch.pop("labels") != -100
        with torch.no_grad():
            goal = model(**batch, use_cache=False).logits[real].log_softmax(-1)
        got = student(**batch, use_cache=False).logits[real].log_softmax(-1)
        nn.functional.kl_div(got, goal, log_target=True, reduction="batchmean").backward()
        nn.utils.clip_grad_norm_(student.parameters(), setting.clip)
        optimizer.step()
        optimizer.zero_grad()
    return student.eval()


def draw_results(found: dict[str, dict[str, Any]]) -> Any:
    """Return perplexity against rank as one figure."""
    figure = plots.new_figure(8, 4.8)
    ax = figure.subplots()
    ways = {
        "full fine-tuning, extracted": ("extracted, rank {}", RANKS),
        "LoRA trained at this rank": ("LoRA trained at rank {}", TRAINED),
    }
    lines = {
        way: [(r, *[found[name.format(r)]["perplexity"]] * 3) for r in ranks]
        for way, (name, ranks) in ways.items()
    }
    plots.draw_curves(
        ax,
        lines,
        title="stories260K on books: cut after full fine-tuning, or trained at that rank",
        x="rank",
        y="held-out perplexity (less is better)",
        powers=True,
    )
    for side, colour in (("base", "0.6"), ("full fine-tuning", "0.2")):
        value = found[side]["perplexity"]
        ax.axhline(value, color=colour, linestyle=":", zorder=0)
        ax.text(1, value, f"{side}: {value:.1f}", fontsize=9, color=colour, va="bottom")
    ax.legend(fontsize=9, loc="center right")
    return figure


def main() -> None:
    asked = parse_arguments(__doc__ or "")
    setting = replace(SETTING, steps=2, batch_size=2) if asked.quick else SETTING
    torch.set_num_threads(1)
    base = load(find_model(setting.model), setting.task)
    parts = oz_books.encode_examples(base)
    if asked.quick:
        parts = {name: some[:4] for name, some in parts.items()}
    pad = pad_id(base.tokenizer, base.model)
    batches = [
        {k: v for k, v in collate(parts["test"][i : i + 8], pad).items() if k != "labels"}
        for i in range(0, len(parts["test"]), 8)
    ]

    tuned = replace(base, model=copy.deepcopy(base.model))
    tuned.model.requires_grad_(True)
    full = Side(tuned, list(tuned.model.parameters()), set())
    train(full, parts["train"], replace(setting, lr=FULL_LR), seed=0)
    goal = compute_logits(tuned.model, batches)

    def perplexity(loaded: object) -> float:
        return score(loaded, parts["test"])["perplexity"]  # type: ignore[arg-type]

    old = oz_books.encode_stories(base)[: 4 if asked.quick else OLD]

    def forgotten(loaded: object) -> float:
        return score(loaded, old)["perplexity"]  # type: ignore[arg-type]

    whole = sum(p.numel() for p in tuned.model.parameters())
    runs = [
        {
            "side": "base",
            "perplexity": perplexity(base),
            "kl": compare_logits(goal, compute_logits(base.model, batches))[0],
            "stories": forgotten(base),
        },
        {
            "side": "full fine-tuning",
            "perplexity": perplexity(tuned),
            "parameters": whole,
            "stories": forgotten(tuned),
        },
    ]
    sizes = [("rank", rank) for rank in RANKS] + [("energy", share) for share in SHARES]
    for what, size in sizes:
        told = extract(base.model, tuned.model, **{what: size})  # type: ignore[arg-type]
        model = copy.deepcopy(base.model)
        lorakit.attach(model, told.adapter.copy(), trainable=False)
        model.eval()
        runs.append(
            {
                "side": f"extracted, {what} {size}",
                "perplexity": perplexity(replace(base, model=model)),
                "kl": compare_logits(goal, compute_logits(model, batches))[0],
                "energy": told.energy,
                "residual": told.residual,
                "parameters": told.adapter.parameters_count,
            }
        )
        print(runs[-1], flush=True)
    learned: list[Tensor] = []
    changes: dict[int, tuple[Tensor, Tensor]] = {}
    for rank in TRAINED:
        side = train_lora(setting, rank)
        train(side, parts["train"], replace(setting, rank=rank), seed=0)
        runs.append(
            {
                "side": f"LoRA trained at rank {rank}",
                "perplexity": perplexity(side.loaded),
                "stories": forgotten(side.loaded),
                "parameters": sum(p.numel() for p in side.parameters),
            }
        )
        mine = lorakit.attached(side.loaded.model)["default"].deltas
        learned = [singular_values(*factors_of(name, delta)) for name, delta in mine.items()]
        if rank in AMPLIFIED:
            changes[rank] = factors_of(QUERY, mine[QUERY])
        print(runs[-1], flush=True)
    for rank in CUT:
        model, left = cut(tuned.model, rank)
        runs.append(
            {
                "side": f"W of the tuned model cut to rank {rank}",
                "perplexity": perplexity(replace(base, model=model)),
                "kl": compare_logits(goal, compute_logits(model, batches))[0],
                "parameters": left,
            }
        )
    student = distil(tuned.model, base.model, parts["train"], setting, pad)
    runs.append(
        {
            "side": f"student of {len(KEPT)} layers, distilled",
            "perplexity": perplexity(replace(base, model=student)),
            "kl": compare_logits(goal, compute_logits(student, batches))[0],
            "parameters": sum(p.numel() for p in student.parameters()),
        }
    )
    print(*runs[-len(CUT) - 1 :], sep="\n", flush=True)
    W, V = collect_matrices(base.model), collect_matrices(tuned.model)
    spectra = {
        "W": count_directions(torch.linalg.svdvals(m.double()) for m in W.values()),
        "ΔW of full fine-tuning": count_directions(
            torch.linalg.svdvals((V[n] - m).double()) for n, m in W.items()
        ),
        f"ΔW of LoRA at rank {TRAINED[-1]}": count_directions(learned),
    }
    found = {run["side"]: run for run in runs}
    gap = abs(
        found["extracted, rank 64"]["perplexity"] / found["full fine-tuning"]["perplexity"] - 1
    )
    shares = [found[f"extracted, rank {rank}"]["energy"] for rank in RANKS]
    write(
        "extract",
        __doc__ or "",
        quick=asked.quick,
        runs=runs,
        spectra=spectra,
        measures={
            "perplexity": ["held-out perplexity", ".2f"],
            "kl": ["KL to the tuned model", ".4f"],
            "energy": ["energy captured", ".3f"],
            "residual": ["residual in ΔW", ".3f"],
            "stories": ["perplexity on stories", ".2f"],
            "parameters": ["parameters", ",.0f"],
        },
        notes=[
            f"Learning rates: {FULL_LR:g} for full fine-tuning, {setting.lr:g} for LoRA. Both: "
            f"{setting.steps} steps of {setting.batch_size} sequences of at most "
            f"{setting.max_length} tokens.",
            "Distribution of the energy (squared norm) of a matrix, on average over all linear "
            "layers. "
            + "; ".join(
                f"{what}: {100 * s['first_8']:.0f} % in the first 8 directions, 90 % in "
                f"{s['rank_90']:.0f}"
                for what, s in spectra.items()
            )
            + ".",
            format_table_7(W[QUERY], changes),
            save_picture(draw_results(found), "extract", quick=asked.quick),
        ],
        criteria=[
            {
                "text": "extraction at full rank restores the tuned model: perplexity within 0.1 %",
                "met": gap < 1e-3,
                "measured": f"{100 * gap:.4f} %",
            },
            {
                "text": "the captured energy grows with the rank",
                "met": shares == sorted(shares),
                "measured": ", ".join(f"{s:.2f}" for s in shares),
            },
        ],
    )


if __name__ == "__main__":
    main()
