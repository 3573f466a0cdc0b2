"""The table of docs/claims.md: claims about LoRA, each with what was measured here.

This script measures nothing itself.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import exp
from statistics import mean
from typing import Any

from markdown import format_table

import lorakit
from lorakit.plan.estimate import Plan, Work
from lorakit.plan.meta_model import load_meta_model

Found = dict[str, Any]  # the results of benchmarks/, by name
HOLDS, PARTLY, NOT, UNPROVEN = "holds here", "holds in part", "does not hold here", "unproven here"
MINILM, STORIES = 22_713_216, 260_032  # parameters of the two models
GPT3_PUBLISHED = 175_255_800_000  # parameters of GPT-3, as the paper rounds them


@dataclass(frozen=True)
class Claim:
    """A claim, its source, and a function that returns the verdict and the figures.

    `told` raises an error if a result is missing; the claim is then unproven.
    """

    text: str
    said_by: str
    told: Callable[[Found], tuple[str, str]]


def get_figure(found: Found, name: str, side: str, key: str) -> float:
    """Return the mean of a measure over the runs of a side."""
    return mean(run[key] for run in found[name]["runs"] if run["side"] == side and key in run)


@cache
def count_gpt3() -> tuple[int, int]:
    """Return the parameters of GPT-3, and of LoRA at rank 4 on its queries and values."""
    spec = lorakit.Spec(rank=4, targets="qv")
    plan = Plan(load_meta_model("card:gpt3"), spec, Work())
    return plan.base_parameters, plan.adapter.parameters_count


def check_fewer(found: Found) -> tuple[str, str]:
    total, trained = count_gpt3()
    ours, books = (
        get_figure(found, name, "lorakit", "trainable_parameters") for name in ("sst2", "oz_books")
    )
    return PARTLY, (
        f"GPT-3 at rank 4 on query and value, counted from its shape: {total / trained:,.0f} times "
        f"({GPT3_PUBLISHED / trained:,.0f} times for the published total). Trained here: MiniLM "
        f"with its new head {MINILM / ours:,.0f} times, stories260K on all linear layers "
        f"{STORIES / books:.1f} times. The ratio is about width / (2 · rank), divided by the share "
        "of the weights that is adapted. So it is high only for large models."
    )


def check_memory(found: Found) -> tuple[str, str]:
    runs = {run["side"]: run["saved_mib"] for run in found["step"]["runs"]}
    full, ours, peft = (runs[f"{side}, dropout 0"] for side in ("full", "lorakit", "PEFT"))
    trained = get_figure(found, "sst2", "lorakit", "trainable_parameters")
    return PARTLY, (
        "Gradients and AdamW's moments of MiniLM, counted (12 bytes for each trained value): "
        f"{12 * trained / 2**20:.1f} MiB instead of {12 * MINILM / 2**20:.0f} MiB. Activations "
        f"saved for the backward pass of another model, measured: lorakit {ours:.0f} MiB, full "
        f"fine-tuning {full:.0f} MiB, PEFT {peft:.0f} MiB. The total saving depends on which of "
        "the two is larger."
    )


def check_faster(found: Found) -> tuple[str, str]:
    runs = {run["side"]: run["median"] for run in found["step"]["runs"]}
    ours, peft = (
        runs["full, dropout 0"] / runs[f"{side}, dropout 0"] - 1 for side in ("lorakit", "PEFT")
    )
    return HOLDS if ours >= 0.25 else PARTLY, (
        f"{100 * ours:+.0f} % steps a second compared with full fine-tuning, on a CPU; PEFT on the "
        f"same model {100 * peft:+.0f} %. On GPUs: unproven here."
    )


def check_latency(found: Found) -> tuple[str, str]:
    models, sides = ("minilm", "stories260K"), ("merged, detached", "base again", "attached")
    ratio = {
        (m, s): get_figure(found, "merged_latency", f"{m}: {s}", "ratio")
        for m in models
        for s in sides
    }
    within = all(abs(ratio[m, sides[0]] - 1) < 0.02 for m in models)
    told = ", ".join(
        f"{m} {ratio[m, sides[0]]:.3f} (a second copy of the base {ratio[m, sides[1]]:.3f})"
        for m in models
    )
    left_on = " and ".join(f"{ratio[m, sides[2]]:.2f}" for m in models)
    return (
        HOLDS if within else NOT,
        f"Time of the merged and detached model, relative to the base: {told}. An adapter that is "
        f"not merged costs time: {left_on} times that of the base.",
    )


def check_small_files(found: Found) -> tuple[str, str]:
    lora = get_figure(found, "variants_sst2", "lora", "file_kib")
    return HOLDS, (
        f"MiniLM on sst2 at rank 4, head included: the file has {lora:.0f} KiB. The model has "
        f"{4 * MINILM / 2**20:.0f} MiB, {4 * MINILM / 2**10 / lora:,.0f} times as much."
    )


def check_switching(found: Found) -> tuple[str, str]:
    note = next(n for n in found["rows"]["notes"] if n.startswith("Switching"))
    bits = next(c for c in found["rows"]["criteria"] if "switching" in c["text"])
    return HOLDS if bits["met"] else NOT, (
        f"{note} Equal bits after switching to another adapter and back: {bits['measured']}."
    )


def read_trained_ranks(found: Found, key: str) -> dict[str, float]:
    """Return a measure of LoRA by the rank it was trained at."""
    start = "LoRA trained at "
    return {
        r["side"].removeprefix(start): r[key]
        for r in found["extract"]["runs"]
        if r["side"].startswith(start)
    }


def check_as_good_as_full(found: Found) -> tuple[str, str]:
    full, lora = (
        get_figure(found, "extract", "full fine-tuning", "perplexity"),
        read_trained_ranks(found, "perplexity"),
    )
    return HOLDS if min(lora.values()) <= 1.02 * full else NOT, (
        "stories260K on books, with equally many steps and a learning rate chosen for each "
        f"method: perplexity {full:.2f} with full fine-tuning; with LoRA "
        + ", ".join(f"{v:.2f} at {rank}" for rank, v in lora.items())
        + ". The model is tiny and the books are unlike its training data. On large models: "
        "unproven here."
    )


def check_as_good_as_peft(found: Found) -> tuple[str, str]:
    rows = (("sst2", "accuracy", ".3f"), ("oz_books", "perplexity", ".2f"), ("e2e", "bleu", ".1f"))
    met = all(c["met"] for name, *_ in rows for c in found[name]["criteria"])
    told = (
        f"{name.replace('_', '-')} {key} "
        + " and ".join(format(get_figure(found, name, s, key), f) for s in ("lorakit", "peft"))
        for name, key, f in rows
    )
    return (
        HOLDS if met else PARTLY,
        f"lorakit and PEFT: {'; '.join(told)}. Each difference is within the spread over seeds.",
    )


def check_rank_one(found: Found) -> tuple[str, str]:
    said, enough = [], []
    for search in found["which_rank"]["searches"]:
        runs = [r for r in found["which_rank"]["honest"] if r["task"] == search["task"]]
        means = {
            rank: mean(r["metric"] for r in runs if r["rank"] == rank)
            for rank in sorted({r["rank"] for r in runs})
        }
        sign = -1 if search["metric"] == "accuracy" else 1
        _, best = min((sign * value, rank) for rank, value in means.items())
        error = mean(r["error"] for r in runs if r["rank"] == best)
        enough.append(sign * (means[1] - means[best]) <= error)
        said.append(
            f"{search['task']} {search['metric']} {means[1]:.3f} at rank 1, {means[best]:.3f} at "
            f"rank {best} (standard error {error:.3f})"
        )
    verdict = HOLDS if all(enough) else PARTLY if any(enough) else NOT
    return verdict, f"Means of three seeds: {'; '.join(said)}."


def check_which_matrices(found: Found) -> tuple[str, str]:
    each, said, best = found["which_matrices"]["each"], [], []
    for task, key in (("sst2", "accuracy"), ("oz-books", "loss")):
        choices = dict.fromkeys(r["choice"] for r in each)
        means = {
            c: mean(r["metric"] for r in each if (r["task"], r["choice"]) == (task, c))
            for c in choices
        }
        best.append((max if key == "accuracy" else min)((v, c) for c, v in means.items())[1])
        said.append(f"{task} {key}: " + ", ".join(f"{c} {v:.3f}" for c, v in means.items()))
    verdict = HOLDS if set(best) == {"qv"} else PARTLY if "qv" in best else NOT
    return verdict, f"With equally many trained values: {'; '.join(said)}."


def check_low_rank(found: Found) -> tuple[str, str]:
    spectra = found["extract"]["spectra"]
    W, full, lora = (
        next(s["rank_90"] for name, s in spectra.items() if name.startswith(start))
        for start in ("W", "ΔW of full", "ΔW of LoRA")
    )
    return HOLDS if full < 0.5 * W else PARTLY, (
        "Mean number of directions that hold 90 % of the energy, in layers of width 64: "
        f"{full:.0f} for the change by full fine-tuning, {W:.0f} for W itself, {lora:.0f} for the "
        "change by LoRA at rank 64. In the adapter that the authors of the paper published "
        "(RoBERTa, MNLI, rank 8) it is 3.7 of 8 for the query; a test checks this."
    )


def check_forgets_less(found: Found) -> tuple[str, str]:
    before, full = (
        get_figure(found, "extract", side, "stories") for side in ("base", "full fine-tuning")
    )
    lora = read_trained_ranks(found, "stories")
    return HOLDS if max(lora.values()) < full else PARTLY if min(lora.values()) < full else NOT, (
        f"Perplexity on the base's own stories: {before:.1f} before training, {full:.1f} after "
        "full fine-tuning on books, after LoRA on books "
        + ", ".join(f"{v:.1f} at {rank}" for rank, v in lora.items())
        + ". Where LoRA forgets less, it has also learned less. `detach` restores the base bit for "
        "bit."
    )


def check_combined(found: Found) -> tuple[str, str]:
    criterion = found["combine_beside_peft"]["criteria"][0]
    verdict = HOLDS if criterion["met"] else NOT
    return verdict, f"Error in the sum of two adapters: {criterion['measured']}."


def check_general(found: Found) -> tuple[str, str]:
    def way(name: str, key: str, form: str, base: str = "base") -> str:
        return " to ".join(
            format(get_figure(found, name, side, key), form) for side in (base, "lorakit")
        )

    return HOLDS, (
        "Real tasks: classification of sentences (sst2 accuracy "
        f"{get_figure(found, 'sst2', 'lorakit', 'accuracy'):.3f}), prose (oz-books perplexity "
        f"{way('oz_books', 'perplexity', '.1f')}), text from attributes (e2e BLEU "
        f"{way('e2e', 'bleu', '.1f')}), images (ResNet-20 accuracy "
        f"{way('resnet20', 'accuracy', '.3f', 'the base alone')}). Tests cover some forty "
        "families of models, tiny and untrained."
    )


def check_personal(found: Found) -> tuple[str, str]:
    told = []
    for text in ("oz-books", "tinyshakespeare"):
        before, after = (
            exp(get_figure(found, "transfer", side, text))
            for side in ("the base alone", f"adapter of {text}")
        )
        told.append(f"{text} {before:.0f} to {after:.0f}")
    return (
        HOLDS,
        "Perplexity of held-out text before and after 120 steps on text of the same kind: "
        f"{', '.join(told)}.",
    )


def check_transfers_badly(found: Found) -> tuple[str, str]:
    near, far = (100 * found["transfer"]["share"][k] for k in ("near", "far"))
    return HOLDS if far < near < 100 else PARTLY, (
        "Gain from the adapter of another task, relative to the gain from the task's own adapter: "
        f"{near:.0f} % if the other task is of the same kind, {far:.0f} % if it is of another kind "
        "(below 0 is harm). Means over four tasks."
    )


def check_unstable(found: Found) -> tuple[str, str]:
    spread = {r["side"]: r["loss"] for r in found["stability"]["runs"] if "spread" in r["side"]}
    runs = [
        (r["times"], bool(r["stopped"] or r["jumps"] or r["worse"]))
        for r in found["stability"]["instability"]
    ]
    rates = {times: [bad for t, bad in runs if t == times] for times, _ in runs}
    caught = ", ".join(
        f"{sum(bad)} of {len(bad)} at {times:g} times the usual rate"
        for times, bad in rates.items()
    )
    ranks = " and ".join(
        f"{v:.3f} with {k.partition('scale ')[2].partition(':')[0]}" for k, v in spread.items()
    )
    return PARTLY, (
        "Learning rate: runs that diverged, jumped, or ended above their initial loss: "
        f"{caught}. Rank: with one learning rate, the standard deviation of the losses of ranks 2, "
        f"8 and 32 is {ranks}, and no run diverged. {describe_large_scale(found)}"
    )


def describe_large_scale(found: Found) -> str:
    """Return the accuracy of a low rank with a large and with a small scale, as a sentence."""
    part = found["which_matrices"]
    usual = [
        r["metric"]
        for r in part["each"]
        if (r["task"], r["choice"], r["rank"]) == ("sst2", "qkvo", 2)
    ]
    wild, calm = (
        " and ".join(f"{value:.3f}" for value in values)
        for values in (usual, [r["metric"] for r in part["gentle"]])
    )
    return (
        f"Scale: rank 2 on q, k, v and o, sst2, two seeds: accuracy {wild} with a scale of 16, "
        f"{calm} with a scale of 4. So the cause is the scale, not the rank."
    )


def check_limited(found: Found) -> tuple[str, str]:
    sst2, e2e = (get_figure(found, name, "lorakit", "cpu_seconds") for name in ("sst2", "e2e"))
    return PARTLY, (
        "Everything in [results](results.md) was measured on two CPU cores: sst2 takes "
        f"{sst2:.0f} CPU seconds, e2e {e2e:.0f}. Whether a model that is too large for full "
        "fine-tuning can be adapted: unproven here."
    )


def measure_nothing(text: str) -> Callable[[Found], tuple[str, str]]:
    """Return the function of a claim that no benchmark measures."""
    return lambda found: (UNPROVEN, text)


CLAIMS = {
    "Efficiency": (
        Claim("10,000 times fewer trainable parameters", "the paper", check_fewer),
        Claim("a third of the memory", "the paper, for GPT-3", check_memory),
        Claim("25 % faster training", "the paper, for GPT-3", check_faster),
        Claim("no additional inference latency", "the paper, loralib", check_latency),
        Claim(
            "small files: 100 tasks need little more storage than one model",
            "the paper",
            check_small_files,
        ),
        Claim("large models become feasible on limited hardware", "tutorials", check_limited),
    ),
    "Performance": (
        Claim(
            "on par with full fine-tuning, or better", "the paper, loralib", check_as_good_as_full
        ),
        Claim("as good as PEFT", "this project", check_as_good_as_peft),
        Claim("a rank as low as one is enough", "the paper, section 7.2", check_rank_one),
        Claim(
            "with a fixed number of trained values, adapting query and value is best",
            "the paper, section 7.1",
            check_which_matrices,
        ),
        Claim("the update has a low rank", "the paper, section 7", check_low_rank),
        Claim("less prone to forgetting", "tutorials", check_forgets_less),
        Claim(
            "state of the art on GLUE, SuperGLUE, SQuAD, COCO and ImageNet",
            "an article",
            measure_nothing(
                "The paper does not claim this. It has GLUE with RoBERTa and DeBERTa, E2E with "
                "GPT-2, three tasks with GPT-3, and no images."
            ),
        ),
    ),
    "Flexibility": (
        Claim("tasks are switched quickly", "the paper, loralib", check_switching),
        Claim("adapters can be combined", "PEFT, tutorials", check_combined),
        Claim(
            "can be combined with prefix tuning",
            "the paper",
            measure_nothing("No prefix was trained together with an adapter."),
        ),
    ),
    "Generality": (
        Claim("any kind of model and task", "articles", check_general),
        Claim("adapts a model to a person's own text", "an article", check_personal),
        Claim(
            "does not transfer well to other tasks", "an article, as a limit", check_transfers_badly
        ),
        Claim("unstable, especially at a low rank", "an article, as a limit", check_unstable),
    ),
    "Scalability": (
        Claim(
            "scales to the largest models",
            "the paper, articles",
            measure_nothing(
                f"No model of more than {MINILM / 1e6:.1f} million parameters was trained. "
                "Parameters and memory of larger models are computed from shapes; tests compare "
                "them with the published counts."
            ),
        ),
    ),
}


def answer(claim: Claim, found: Found) -> tuple[str, str]:
    """Return the verdict and the figures; a claim without results is unproven."""
    try:
        return claim.told(found)
    except (KeyError, StopIteration, ValueError) as error:
        if isinstance(error, ValueError) and "at least one data point" not in str(error):
            raise
        return UNPROVEN, "Its benchmark has not been run."


def format_tables(found: Found) -> str:
    """Return all claims as Markdown: a table for each kind."""
    out = []
    for kind, claims in CLAIMS.items():
        rows = [[claim.text, claim.said_by, *answer(claim, found)] for claim in claims]
        out += [
            f"## {kind}",
            "",
            format_table(["claim", "source", "verdict", "measured here"], rows, "llll"),
        ]
    return "\n".join(out)


if __name__ == "__main__":
    print(
        "claims.py writes a table from what other benchmarks measured; it measures nothing itself.",
        file=sys.stderr,
    )
