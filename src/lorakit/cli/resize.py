"""`lorakit resize`."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.outcome import load_base, save_outcome, show_outcome
from lorakit.cli.request import require
from lorakit.files import check_new_folder
from lorakit.spec import option, option_like
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.cli.results import ResizeResult


@dataclass(frozen=True, kw_only=True)
class ResizeRequest:
    """The size of the smaller adapter, and its folder."""

    output: str = option("", "new folder for the smaller adapter", required=True)
    rank: int | None = option(None, "size by rank: the largest rank of a module", type=int)
    energy: float | None = option(
        None,
        "or by energy: the share of each module's squared norm to keep, such as 0.95",
        type=float,
    )
    parameters: int | None = option(
        None, "or by parameters: the largest number of values of all factors together", type=int
    )
    model: str | None = option(
        None, "base model; only needed for DoRA, which is converted to plain LoRA", type=str
    )
    trust_remote_code: bool = option_like(TrainSpec, "trust_remote_code")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of an adapter")
    flags.add_fields(parser, ResizeRequest, "the smaller adapter")


def run(args: argparse.Namespace) -> "ResizeResult":
    (values,) = flags.read_settings(args, ResizeRequest)
    require(values, ResizeRequest)
    request = ResizeRequest(**values)
    output = Path(request.output)
    check_new_folder(output, "an adapter", "Nothing was written.")
    from lorakit.adapter import Adapter
    from lorakit.algebra import resize

    adapter = Adapter.load(args.adapter)
    base = None
    if request.model:
        trusted = request.trust_remote_code
        base = load_base(request.model, adapter, trust_remote_code=trusted).model
    outcome = resize(
        adapter,
        rank=request.rank,
        energy=request.energy,
        parameters=request.parameters,
        base=base,
    )
    return {
        **save_outcome(outcome, output),
        "ranks_before": {name: delta.rank for name, delta in adapter.deltas.items()},
        "parameters_before": adapter.parameters_count,
    }


def show(result: "ResizeResult") -> None:
    before, now = result["parameters_before"], result["trainable_parameters"]
    print(f"{before:,} parameters before, {now:,} now")
    show_outcome(result, "energy kept")
