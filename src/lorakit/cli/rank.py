"""`lorakit rank`."""

import argparse
import sys
from dataclasses import fields
from typing import Any

from lorakit.cli import flags
from lorakit.rank_search.config import HIGHEST, RankSearchSpec
from lorakit.spec import Spec
from lorakit.text import format_bytes
from lorakit.train.config import TrainSpec


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file with any of these settings, and `overrides`; flags win",
    )
    flags.add_fields(parser, RankSearchSpec, "the search")
    training = {f.name for f in fields(TrainSpec)} - {"resume", "overwrite", "ranks", "rank_budget"}
    flags.add_fields(
        parser,
        TrainSpec,
        "the run (--output: a new folder for the small adapter; without it nothing is kept)",
        only=training,
    )
    flags.add_fields(parser, Spec, "the adapter", only={f.name for f in fields(Spec)} - {"rank"})


def main(args: argparse.Namespace) -> dict[str, Any]:
    asked_values, run_values, spec_values = flags.values(args, RankSearchSpec, TrainSpec, Spec)
    asked, spec = RankSearchSpec(**asked_values), Spec(**{"rank": HIGHEST, **spec_values})
    from lorakit.rank_search.search import search_rank

    return search_rank(run_values, spec, asked, say=lambda text: print(text, file=sys.stderr))


def show(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    if result["way"] == "threshold":
        heads = ["module", "most", "of W", *(["of the change"] if result["adapter"] else [])]
        rows = [list(row.values()) for row in result["modules"]]
        shown.table(
            heads, rows, title=f"rank that holds {result['threshold']:g} of the {result['energy']}s"
        )
    elif result["way"] == "advice":
        for reason in result["reasons"]:
            print(f"- {reason}")
    else:
        _curve(result)
    rank = result["recommended_rank"]
    print(f"Recommended: {'no rank' if rank is None else f'rank {rank}'}.")
    if result["way"] != "advice":
        print(result["reason"])


def _curve(result: dict[str, Any]) -> None:
    from lorakit.cli import show as shown

    name, rows = result["metric_name"], []
    for p in result["curve"]:
        mark = (
            "recommended"
            if p["rank"] == result["recommended_rank"]
            else "best"
            if p["rank"] == result["best_rank"]
            else ""
        )
        rows.append(
            [
                p["rank"],
                p["parameters"],
                p["metric"],
                f"{p['low']:.4f} to {p['high']:.4f}",
                p["behind"],
                *([p["train"]] if "train" in p else []),
                mark,
            ]
        )
    heads = ["rank", "parameters", name, "95 % interval", "behind the best"]
    heads += ["on rows trained on"] if "train" in result["curve"][0] else []
    shown.table([*heads, ""], rows, title=f"\n{result['model']}, held-out {name} by rank")
    if (other := result.get("by_module")) is not None:
        low, high = min(other["ranks"].values()), max(other["ranks"].values())
        print(
            f"The same number of parameters with ranks {low} to {high} by module: {name} {other['metric']:.4f}, "
            f"{'taken' if other['taken'] else 'not better'}."
        )
    if "cost" in result:
        print(f"{result['seconds']:.1f} s, {result['cost']:.2f} times the one run.")
    if result["output"]:
        print(
            f"Adapter: {result['output']} ({result['trainable_parameters']:,} parameters, {format_bytes(result['bytes'])})"
        )
