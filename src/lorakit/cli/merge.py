"""`lorakit merge`."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.request import ModelRequest, read_texts, require
from lorakit.cli.tables import print_table
from lorakit.spec import option, option_like
from lorakit.text import format_bytes
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.merging.export import ExportReport, WeightRounding


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """The base, the adapter, and the merged model."""

    model: str = option_like(TrainSpec, "model")
    trust_remote_code: bool = option_like(TrainSpec, "trust_remote_code")
    adapter: str = option("", "folder of the adapter", required=True)
    output: str = option("", "new folder for the merged model", required=True)
    dtype: str = option_like(
        TrainSpec,
        "base_dtype",
        help="dtype of the merged model; auto keeps that of the base, also int8 and 4 bits",
    )
    device: str = option("auto", "device of the computation: cpu, cuda, …")
    data: str | None = option(
        None, "texts on which the models are compared (default: four built-in texts)", type=str
    )
    columns: tuple[str, ...] = option_like(
        TrainSpec, "columns", help="names of columns of --data that differ from the expected ones"
    )
    any_base: bool = option_like(ModelRequest, "any_base")
    allow_loss: bool = option(
        False,
        "write the model even if rounding changes its output as much as the adapter does, or more",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, MergeRequest, "the merge")


def run(args: argparse.Namespace) -> "ExportReport":
    (values,) = flags.read_settings(args, MergeRequest)
    require(values, MergeRequest)
    request = MergeRequest(**values)
    from lorakit.adapter import Adapter
    from lorakit.merging.export import export

    texts = read_texts(request.data, request.columns) if request.data else ()
    adapter = Adapter.load(request.adapter)
    print(f"Merging {request.adapter} into {request.model}", file=sys.stderr)
    return export(
        request.model,
        adapter,
        request.output,
        dtype=request.dtype,
        device=request.device,
        texts=texts,
        any_base=request.any_base,
        allow_loss=request.allow_loss,
        trust_remote_code=request.trust_remote_code,
        say=lambda message: print(message, file=sys.stderr),
    )


def show(result: "ExportReport") -> None:
    size = format_bytes(result["bytes"])
    print(
        f"{result['output']}: a plain model in {result['dtype']}, {size}, written, read back, "
        "compared"
    )
    rows = [
        ["largest difference of a logit", result["max_logit_difference"]],
        ["effect of the adapter itself", result["adapter_moves"]],
        ["KL divergence (nats)", result["kl"]],
        ["same most probable output", f"{100 * result['top1_agreement']:.2f} %"],
        ["weights that differ from the base", result["differs_from_base"]],
        *_rounding_rows(result.get("rounding") or {}),
    ]
    print_table(["compared with base + adapter", ""], rows)


def _rounding_rows(rounding: Mapping[str, "WeightRounding"]) -> list[list[object]]:
    """Return the error of rounding to int8 or 4 bits, in the weight where it counts most."""
    if not rounding:
        return []
    worst = max(rounding.values(), key=_share_of_adapter)
    return [
        ["rounding changes a weight by, relative", worst["rounding"]],
        ["the adapter changes that weight by", worst["adapter"]],
    ]


def _share_of_adapter(change: "WeightRounding") -> float:
    return change["rounding"] / max(change["adapter"], 1e-30)
