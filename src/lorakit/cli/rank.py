"""`lorakit rank`."""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.tables import print_table
from lorakit.rank_search.config import HIGHEST, UNUSED, RankSearchSpec
from lorakit.spec import Spec
from lorakit.text import format_bytes, print_message
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.cli.results import RankResult
    from lorakit.rank_search.candidate import ByModule
    from lorakit.rank_search.report import SearchReport, ThresholdReport


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    flags.add_fields(parser, RankSearchSpec, "the search")
    run = {one.name for one in fields(TrainSpec)} - UNUSED.keys()
    title = "the run (without --output, a new folder, nothing is kept)"
    flags.add_fields(parser, TrainSpec, title, only=run, optional=("data", "output"))
    adapter = {one.name for one in fields(Spec)} - {"rank"}
    flags.add_fields(parser, Spec, "the adapter", only=adapter)


def run(args: argparse.Namespace) -> "RankResult":
    search_values, run, spec_values = flags.read_settings(args, RankSearchSpec, TrainSpec, Spec)
    # `--adapter` is of the search: that of a run is no flag here.
    run = {name: value for name, value in run.items() if name not in search_values}
    search = RankSearchSpec(**search_values)
    spec = Spec(**{"rank": HIGHEST, **spec_values})
    from lorakit.rank_search.search import search_rank

    return search_rank(run, spec, search, say=print_message)


def show(result: "RankResult") -> None:
    if "threshold" in result:
        _show_threshold(result)
    elif "reasons" in result:
        for reason in result["reasons"]:
            print(f"- {reason}")
    else:
        _show_curve(result)
    rank = result["recommended_rank"]
    print(f"Recommended: {'no rank' if rank is None else f'rank {rank}'}.")
    if "reasons" not in result:
        print(result["reason"])


def _show_threshold(result: "ThresholdReport") -> None:
    heads = ["module", "most", "of W"]
    if result["adapter"]:
        heads.append("of the change")
    rows = [list(row.values()) for row in result["modules"]]
    title = f"rank that holds {result['threshold']:g} of the {result['energy']}s"
    print_table(heads, rows, title=title)


def _show_curve(result: "SearchReport") -> None:
    metric = result["metric_name"]
    with_train = "train" in result["curve"][0]
    rows = []
    for point in result["curve"]:
        row: list[object] = [
            point["rank"],
            point["parameters"],
            point["metric"],
            f"{point['low']:.4f} to {point['high']:.4f}",
            point["behind"],
        ]
        if with_train:
            row.append(point.get("train"))
        rows.append([*row, _mark(point["rank"], result)])
    heads = ["rank", "parameters", metric, "95 % interval", "behind the best"]
    heads += ["on rows trained on"] if with_train else []
    title = f"\n{result['model']}, held-out {metric} by rank"
    print_table([*heads, ""], rows, title=title)
    by_module = result.get("by_module")
    if by_module is not None:
        _show_by_module(by_module, metric)
    if "cost" in result:
        print(f"{result['seconds']:.1f} s, {result['cost']:.2f} times as long as the one run.")
    if result["output"]:
        size = format_bytes(result.get("bytes", 0))
        count = f"{result['trainable_parameters']:,} parameters"
        print(f"Adapter: {result['output']} ({count}, {size})")


def _mark(rank: int, result: "SearchReport") -> str:
    if rank == result["recommended_rank"]:
        return "recommended"
    return "best" if rank == result["best_rank"] else ""


def _show_by_module(other: "ByModule", metric: str) -> None:
    low, high = min(other["ranks"].values()), max(other["ranks"].values())
    verdict = "taken" if other["taken"] else "not better"
    print(
        f"The same number of parameters with ranks {low} to {high} by module: "
        f"{metric} {other['metric']:.4f}, {verdict}."
    )
