"""`lorakit resize`."""

import argparse
from dataclasses import dataclass
from typing import Any

from lorakit.cli import flags, writing
from lorakit.cli.evaluate import needed
from lorakit.spec import option


@dataclass(frozen=True, kw_only=True)
class Resizing:
    """How small, and where to."""

    output: str = option("", "a new folder for the smaller adapter", required=True)
    rank: int | None = option(None, "rank of every module at most", type=int)
    energy: float | None = option(
        None, "or the share of each module's squared norm that is kept, such as 0.95", type=float
    )
    parameters: int | None = option(
        None, "or how many parameters all factors may have together", type=int
    )
    model: str | None = option(
        None, "the base: only DoRA needs it, which is then made plain", type=str
    )


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="an adapter folder")
    flags.add_fields(parser, Resizing, "how small, and where to")


def main(args: argparse.Namespace) -> dict[str, Any]:
    (values,) = flags.values(args, Resizing)
    needed(values, "output")
    asked = Resizing(**values)
    output = writing.fresh(asked.output)
    from lorakit.adapter import Adapter
    from lorakit.algebra import resize

    adapter = Adapter.load(args.adapter)
    base = writing.base_of(asked.model, adapter).model if asked.model else None
    told = resize(
        adapter, rank=asked.rank, energy=asked.energy, parameters=asked.parameters, base=base
    )
    before = {name: delta.rank for name, delta in adapter.deltas.items()}
    return {
        **writing.written(told, output),
        "ranks_before": before,
        "parameters_before": adapter.parameters_count,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['parameters_before']:,} parameters before, {result['trainable_parameters']:,} now"
    )
    writing.show(result, "energy kept")
