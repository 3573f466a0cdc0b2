"""`lorakit combine`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.cli import flags, writing
from lorakit.cli.evaluate import needed
from lorakit.errors import SpecError
from lorakit.spec import DTYPES, option


@dataclass(frozen=True, kw_only=True)
class Combining:
    """How they are combined, and where to."""

    output: str = option("", "a new folder for the sum", required=True)
    method: str = option(
        "exact",
        "what is summed: the changes as they are; or trimmed, thinned or pruned",
        choices=("exact", "ties", "dare", "magnitude"),
    )
    rank: int | None = option(
        None,
        "rank of every module at most (default: the sum of the ranks, which is exact)",
        type=int,
    )
    energy: float | None = option(
        None, "or the share of each module's squared norm that is kept", type=float
    )
    density: float | None = option(
        None, "share of the weights of each change that ties, dare and magnitude keep", type=float
    )
    seed: int = option(0, "of DARE's draw")
    whole: str = option(
        "sum",
        "heads and biases trained whole: their changes summed, the first adapter's, or left out",
        choices=("sum", "first", "drop"),
    )
    model: str | None = option(
        None, "the base: for DoRA, and for heads at weights that do not add up to 1", type=str
    )
    dtype: str | None = option(
        None, "of the sum (default: the widest of the adapters')", type=str, choices=DTYPES
    )
    any_base: bool = option(False, "combine adapters of different base weights")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters",
        metavar="ADAPTER:WEIGHT",
        nargs="+",
        help="adapter folders, each with its weight (1 where none is given)",
    )
    flags.add_fields(parser, Combining, "how, and where to")


def weighted(word: str) -> tuple[str, float]:
    """Return the folder and the weight of one word.

    >>> weighted("out/style:0.5"), weighted("style"), weighted("style:-1")
    (('out/style', 0.5), ('style', 1.0), ('style', -1.0))
    """
    folder, colon, number = word.rpartition(":")
    if not colon or Path(word).is_dir():
        return word, 1.0
    try:
        return folder, float(number)
    except ValueError as error:
        raise SpecError(
            f"{word!r}: {number!r} is no number; a weight follows the last colon, as in {folder}:0.5.",
            advice="Nothing was made.",
        ) from error


def main(args: argparse.Namespace) -> dict[str, Any]:
    (values,) = flags.values(args, Combining)
    needed(values, "output")
    asked = Combining(**values)
    output = writing.fresh(asked.output)
    named = [weighted(word) for word in args.adapters]
    import torch

    from lorakit.adapter import Adapter
    from lorakit.algebra import combine

    adapters = [(Adapter.load(folder), weight) for folder, weight in named]
    base = _base(asked.model, adapters) if asked.model else None
    told = combine(
        adapters,
        rank=asked.rank,
        energy=asked.energy,
        method=asked.method,
        density=asked.density,
        seed=asked.seed,
        whole=asked.whole,
        base=base,
        any_base=asked.any_base,
        dtype=getattr(torch, asked.dtype) if asked.dtype else None,
    )
    return {
        **writing.written(told, output),
        "method": asked.method,
        "of": [list(pair) for pair in named],
    }


def _base(model: str, adapters: list[tuple[Any, float]]) -> Any:
    """Return the base; a new head of random weights is no base for a sum of heads."""
    holder = next((adapter for adapter, _ in adapters if adapter.full_parameters), adapters[0][0])
    loaded = writing.base_of(model, holder)
    for path in {path for adapter, _ in adapters for path in adapter.full_parameters}:
        total = sum(weight for adapter, weight in adapters if path in adapter.full_parameters)
        if abs(total - 1) > 1e-9 and any(path.startswith(f"{m}.") for m in loaded.new_modules):
            raise SpecError(
                f"{path} is trained whole at weights that add up to {total:g}, and {model} has only random weights for it.",
                advice="Weights that add up to 1 need none; or decide with --whole. Nothing was made.",
            )
    return loaded.model


def show(result: dict[str, Any]) -> None:
    print(
        " + ".join(f"{weight:g} × {folder}" for folder, weight in result["of"])
        + f", {result['method']}"
    )
    writing.show(result, "energy of the sum")
