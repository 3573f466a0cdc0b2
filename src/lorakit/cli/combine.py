"""`lorakit combine`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.outcome import load_base, save_outcome, show_outcome
from lorakit.cli.request import require
from lorakit.errors import SpecError
from lorakit.files import check_new_folder
from lorakit.spec import DTYPES, option, option_like
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from torch import nn

    from lorakit.adapter import Adapter
    from lorakit.cli.results import CombineResult

ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class CombineRequest:
    """The method of the sum, and its folder."""

    output: str = option("", "new folder for the sum", required=True)
    method: str = option(
        "exact",
        "exact adds the changes as they are; ties trims, dare thins and magnitude prunes them "
        "first",
        choices=("exact", "ties", "dare", "magnitude"),
    )
    rank: int | None = option(
        None,
        "largest rank of a module (default: the sum of the ranks, which is exact)",
        type=int,
    )
    energy: float | None = option(
        None, "or the share of each module's squared norm to keep", type=float
    )
    density: float | None = option(
        None, "share of the weights of each change that ties, dare and magnitude keep", type=float
    )
    seed: int = option(0, "seed of dare")
    whole: str = option(
        "sum",
        "heads and biases trained in full: add up their changes, take the first adapter's, or "
        "leave them out",
        choices=("sum", "first", "drop"),
    )
    model: str | None = option(
        None,
        "base model; needed for DoRA, and for heads whose weights do not add up to 1",
        type=str,
    )
    trust_remote_code: bool = option_like(TrainSpec, "trust_remote_code")
    dtype: str | None = option(
        None,
        "dtype of the sum (default: the widest dtype of the adapters)",
        type=str,
        choices=DTYPES,
    )
    any_base: bool = option(False, "accept adapters of different base weights")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters",
        metavar="ADAPTER:WEIGHT",
        nargs="+",
        help="folders of adapters, each with its weight (default: 1)",
    )
    flags.add_fields(parser, CombineRequest, "the sum")


def parse_weight(word: str) -> tuple[str, float]:
    """Return the folder and the weight of one word.

    >>> parse_weight("out/style:0.5"), parse_weight("style"), parse_weight("style:-1")
    (('out/style', 0.5), ('style', 1.0), ('style', -1.0))
    """
    folder, colon, number = word.rpartition(":")
    if not colon or Path(word).is_dir():
        return word, 1.0
    try:
        return folder, float(number)
    except ValueError as error:
        raise SpecError(
            f"{word!r}: {number!r} is no number; a weight follows the last colon, as in "
            f"{folder}:0.5.",
            advice="Nothing was made.",
        ) from error


def run(args: argparse.Namespace) -> "CombineResult":
    (values,) = flags.read_settings(args, CombineRequest)
    require(values, CombineRequest)
    request = CombineRequest(**values)
    output = Path(request.output)
    check_new_folder(output, "an adapter", "Nothing was written.")
    weights = [parse_weight(word) for word in args.adapters]
    import torch

    from lorakit.adapter import Adapter
    from lorakit.algebra import combine

    adapters = [(Adapter.load(folder), weight) for folder, weight in weights]
    outcome = combine(
        adapters,
        rank=request.rank,
        energy=request.energy,
        method=request.method,
        density=request.density,
        seed=request.seed,
        whole=request.whole,
        base=_load_base(request, adapters) if request.model else None,
        any_base=request.any_base,
        dtype=getattr(torch, request.dtype) if request.dtype else None,
    )
    result = save_outcome(outcome, output)
    return {**result, "method": request.method, "of": weights}


def _load_base(request: CombineRequest, adapters: Sequence[tuple["Adapter", float]]) -> "nn.Module":
    """Return the base; a new head of random weights is no base for a sum of heads."""
    with_heads = [adapter for adapter, _ in adapters if adapter.full_parameters]
    model = request.model or ""
    loaded = load_base(
        model,
        with_heads[0] if with_heads else adapters[0][0],
        trust_remote_code=request.trust_remote_code,
    )
    totals: dict[str, float] = {}
    for adapter, weight in adapters:
        for path in adapter.full_parameters:
            totals[path] = totals.get(path, 0.0) + weight
    for path, total in totals.items():
        is_new = any(path.startswith(f"{module}.") for module in loaded.new_modules)
        if is_new and abs(total - 1) > ROUNDING:
            raise SpecError(
                f"{path} is trained in full at weights that add up to {total:g}, and {model} has "
                "only random weights for it.",
                advice="Weights that add up to 1 need no base; or decide with --whole. Nothing was "
                "made.",
            )
    return loaded.model


def show(result: "CombineResult") -> None:
    terms = [f"{weight:g} × {folder}" for folder, weight in result["of"]]
    print(f"{' + '.join(terms)}, {result['method']}")
    show_outcome(result, "energy of the sum")
