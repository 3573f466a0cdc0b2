"""`lorakit extract`."""

import argparse
from dataclasses import dataclass
from typing import Any

from lorakit.cli import flags, writing
from lorakit.cli.evaluate import needed
from lorakit.cli.merge import texts
from lorakit.spec import DTYPES, option


@dataclass(frozen=True, kw_only=True)
class Extracting:
    """Out of what, how small, and where to."""

    base: str = option("", "the model before: a folder or a hub id", required=True)
    tuned: str = option("", "the model afterwards", required=True)
    output: str = option("", "a new folder for the adapter", required=True)
    rank: int | None = option(None, "rank of every matrix at most", type=int)
    energy: float | None = option(
        None, "or the share of each difference's squared norm that is kept, such as 0.9", type=float
    )
    size_bytes: int | None = option(None, "or what all of its tensors may take", type=int)
    leave_out: tuple[str, ...] = option(
        (), "modules or parameters of which the difference is not wanted", several=True
    )
    dtype: str = option("float32", "of the adapter's tensors", choices=DTYPES)
    data: str | None = option(
        None, "texts to compare the models on (default: four of our own)", type=str
    )
    columns: tuple[str, ...] = option((), "names of columns of --data, as key=column", several=True)


def add(parser: argparse.ArgumentParser) -> None:
    flags.add_fields(parser, Extracting, "out of what, how small, and where to")


def main(args: argparse.Namespace) -> dict[str, Any]:
    (values,) = flags.values(args, Extracting)
    needed(values, "base", "tuned", "output")
    asked = Extracting(**values)
    output = writing.fresh(asked.output)
    import torch

    from lorakit.algebra import extract
    from lorakit.evaluate.logits import TEXTS, batch_texts, compute_logits, divergence
    from lorakit.inject.attach import attach

    base, tuned = _pair(asked)
    found = texts(asked.data, asked.columns) if asked.data else list(TEXTS)
    told = extract(
        base.model,
        tuned.model,
        rank=asked.rank,
        energy=asked.energy,
        size_bytes=asked.size_bytes,
        leave_out=tuple(asked.leave_out),
        heads=base.new_modules,
        dtype=getattr(torch, asked.dtype),
    )
    told.adapter.provenance |= {
        "base_model": base.name,
        "task": tuned.task,
        "tuned_model": tuned.name,
    }
    if tuned.labels:
        told.adapter.provenance["labels"] = tuned.labels
    batches = batch_texts(tuned, found)
    wanted, before = compute_logits(tuned.model, batches), compute_logits(base.model, batches)
    attach(base.model, told.adapter.copy(), trainable=False)
    kl, same = divergence(wanted, compute_logits(base.model.eval(), batches))
    return {
        **writing.written(told, output),
        "kl": kl,
        "top1_agreement": same,
        "base_kl": divergence(wanted, before)[0],
    }


def _pair(asked: Extracting) -> tuple[Any, Any]:
    """Return both models, of the class that the tuned one's config names."""
    from lorakit.errors import ModelError
    from lorakit.models.load import load, load_config

    config = load_config(asked.tuned)
    task, labels = "causal-lm", []
    if any("SequenceClassification" in name for name in config.architectures or ()):
        task = "regress" if config.num_labels == 1 else "classify"
        labels = (
            [name for _, name in sorted((config.id2label or {}).items())]
            if task == "classify"
            else []
        )
    base, tuned = (
        load(name, task, labels=labels, dtype="float32") for name in (asked.base, asked.tuned)
    )
    if tuned.new_modules:
        raise ModelError(
            f"{asked.tuned} has no trained weights for {', '.join(tuned.new_modules)}.",
            advice="Name the folder that the training wrote. Nothing was extracted.",
        )
    return base, tuned


def show(result: dict[str, Any]) -> None:
    writing.show(result, "energy captured")
