"""`lorakit extract`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.cli import flags
from lorakit.cli.outcome import save_outcome, show_outcome
from lorakit.cli.request import read_texts, require
from lorakit.files import check_new_folder
from lorakit.spec import DTYPES, option, option_like
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.algebra import Outcome
    from lorakit.cli.results import Comparison, ExtractResult
    from lorakit.models.load import Loaded


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """The two models, the size of the adapter, and its folder."""

    base: str = option("", "model before the fine-tuning: a folder or a hub id", required=True)
    tuned: str = option("", "model after the fine-tuning", required=True)
    trust_remote_code: bool = option_like(TrainSpec, "trust_remote_code")
    output: str = option("", "new folder for the adapter", required=True)
    rank: int | None = option(None, "size by rank: the largest rank of a matrix", type=int)
    energy: float | None = option(
        None,
        "or by energy: the share of each difference's squared norm to keep, such as 0.9",
        type=float,
    )
    size_bytes: int | None = option(
        None, "or by bytes: the largest size of all tensors together", type=int
    )
    leave_out: tuple[str, ...] = option(
        (), "modules or parameters whose difference is ignored", several=True
    )
    dtype: str = option("float32", "dtype of the adapter", choices=DTYPES)
    data: str | None = option(
        None, "texts on which the models are compared (default: four built-in texts)", type=str
    )
    columns: tuple[str, ...] = option_like(
        TrainSpec, "columns", help="names of columns of --data that differ from the expected ones"
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, ExtractRequest, "the models and the adapter")


def run(args: argparse.Namespace) -> "ExtractResult":
    (values,) = flags.read_settings(args, ExtractRequest)
    require(values, ExtractRequest)
    request = ExtractRequest(**values)
    output = Path(request.output)
    check_new_folder(output, "an adapter", "Nothing was written.")
    from lorakit.evaluate.logits import TEXTS

    base, tuned = _load_pair(request)
    texts: Sequence[str] = TEXTS
    if request.data:
        texts = read_texts(request.data, request.columns)
    outcome = _extract(base, tuned, request)
    # Compared before anything is written: a failure leaves no folder.
    comparison = _compare(base, tuned, outcome, texts)
    return {**save_outcome(outcome, output), **comparison}


def _extract(base: "Loaded", tuned: "Loaded", request: ExtractRequest) -> "Outcome":
    import torch

    from lorakit.algebra import extract

    outcome = extract(
        base.model,
        tuned.model,
        rank=request.rank,
        energy=request.energy,
        size_bytes=request.size_bytes,
        leave_out=tuple(request.leave_out),
        heads=base.new_modules,
        dtype=getattr(torch, request.dtype),
    )
    provenance = outcome.adapter.provenance
    provenance["base_model"] = base.name
    provenance["task"] = tuned.task
    provenance["tuned_model"] = tuned.name
    if tuned.labels:
        provenance["labels"] = tuned.labels
    return outcome


def _compare(
    base: "Loaded", tuned: "Loaded", outcome: "Outcome", texts: Sequence[str]
) -> "Comparison":
    """Return the distances of base + adapter, and of the base alone, from the tuned model."""
    from lorakit.evaluate.logits import compare_logits, compute_logits, make_inputs
    from lorakit.inject.attach import attach

    batches = make_inputs(tuned.model, tuned.tokenizer, texts)
    wanted = compute_logits(tuned.model, batches)
    before = compute_logits(base.model, batches)
    attach(base.model, outcome.adapter.copy(), trainable=False)
    kl, agreement = compare_logits(wanted, compute_logits(base.model.eval(), batches))
    base_kl, _ = compare_logits(wanted, before)
    return {"kl": kl, "top1_agreement": agreement, "base_kl": base_kl}


def _load_pair(request: ExtractRequest) -> tuple["Loaded", "Loaded"]:
    """Return both models, of the class in the tuned one's config."""
    from lorakit.errors import ModelError
    from lorakit.models.load import load
    from lorakit.models.open import config_labels
    from lorakit.models.read import load_config
    from lorakit.models.tasks import TASKS, task_of_config

    trusted = request.trust_remote_code
    config = load_config(request.tuned, trust_remote_code=trusted)
    task = task_of_config(config)
    labels = config_labels(config) if TASKS[task].has_classes else []
    base, tuned = (
        load(name, task, labels=labels, dtype="float32", trust_remote_code=trusted)
        for name in (request.base, request.tuned)
    )
    if tuned.new_modules:
        raise ModelError(
            f"{request.tuned} has no trained weights for {', '.join(tuned.new_modules)}.",
            advice="Name the folder that the training wrote. Nothing was extracted.",
        )
    return base, tuned


def show(result: "ExtractResult") -> None:
    rows = [
        ["KL to the tuned model, nats", f"{result['kl']:.4g}"],
        ["KL of the base itself", f"{result['base_kl']:.4g}"],
        ["same first choice as the tuned model", f"{result['top1_agreement']:.4g}"],
    ]
    show_outcome(result, "energy captured", rows)
