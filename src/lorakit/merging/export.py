"""A merged model on disk: a plain Hugging Face folder, read back and compared before it is called
done.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.errors import MergeError, OutputError
from lorakit.evaluate.logits import TEXTS, batch_texts, compute_logits, divergence
from lorakit.inject.attach import attach, detach, enable
from lorakit.merging.quantised import dequantise, dequantised_parameters, quantised_form
from lorakit.merging.weights import merge
from lorakit.models.load import load, load_config, quiet
from lorakit.models.open import open_model, resolve_task
from lorakit.sites.quantised import without_packing
from lorakit.text import dtype_name, plural

ROUNDING = 1e-4  # relative to the largest logit: what the same sums in another order may differ by


@dataclass(frozen=True)
class Comparison:
    """Logits of base + adapter (float32) against those of the merged model as it was read back from
    disk.

    Attributes:
        max_logit_difference: the largest, rounding to the dtype on disk included.
        kl: mean divergence in nats a position.
        top1_agreement: share of positions with the same most probable output.
        adapter_moves: the largest difference that the adapter makes to the base.
        merging: the largest difference before anything was rounded or written; in int8 or 4 bits,
            that which writing made.
        allowed: what `merging` may be.
    """

    max_logit_difference: float
    kl: float
    top1_agreement: float
    adapter_moves: float
    merging: float
    allowed: float


def export(
    model: str,
    adapter: Adapter,
    output: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    texts: Sequence[str] = (),
    any_base: bool = False,
    allow_loss: bool = False,
) -> dict[str, Any]:
    """Merge an adapter into its base, summed in float32, and write a plain model that needs no
    lorakit.

    A base in int8 or 4 bits stays so where `dtype` is "auto"; any other dtype makes a plain copy of
    the values it holds.

    The merged folder is written under another name and loaded again; its weights must be those that
    were written, bit for bit, and its logits are compared with those of base + adapter. Only then
    does it get its name.

    Args:
        model: the base: a folder, a hub id or `builtin:NAME`.
        adapter: what is merged.
        output: a folder that does not exist yet, or is empty.
        dtype: of the weights on disk; "auto" is that of the base's checkpoint, or its int8 or 4
            bits.
        device: where it is computed.
        texts: read through both models for the comparison; four texts of our own where empty.
        any_base: take another base than the adapter was trained on.
        allow_loss: write it even where rounding moves the output more than the adapter does.

    Returns:
        max_logit_difference, kl (nats a position, mean), top1_agreement (share of positions),
        differs_from_base (number of weights whose bits changed), dtype, output, and how much the
        adapter itself moves the logits; of a base in int8 or 4 bits, `rounding` tells by weight
        what rounding and the adapter move (relative).

    Raises:
        OutputError: the folder is not empty.
        MergeError: transformers cannot write this form; the merged model equals the base, or
            differs from base + adapter before it is rounded; a tensor came back from disk
            otherwise; or rounding moves more than the adapter does. Nothing is left behind.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise OutputError(
            f"{output} is a file; a merged model is a folder.", advice="Nothing was written."
        )
    if output.exists() and any(output.iterdir()):
        raise OutputError(
            f"{output} is not empty.", advice="Name a new folder. Nothing was written."
        )
    task = resolve_task(adapter)
    loaded = open_model(model, adapter, task, dtype="float32", device=device, any_base=any_base)
    wanted = _stored_dtype(loaded.model) if dtype == "auto" else getattr(torch, dtype)
    form = quantised_form(loaded.model)
    if form and dtype != "auto":
        detach(loaded.model)
        dequantise(loaded.model)
        attach(loaded.model, adapter, trainable=False, any_base=True)  # it fitted the coarse one
        loaded.model.eval()
    elif form:
        _refuse_unwritable(loaded.model, form)
        if wanted != torch.float32:  # its other weights stay as they are
            detach(loaded.model)
            loaded = open_model(
                model, adapter, task, dtype=dtype_name(wanted), device=device, any_base=any_base
            )
    kept = form if dtype == "auto" else ""
    batches = batch_texts(loaded, list(texts) or list(TEXTS))
    with_adapter = compute_logits(loaded.model, batches)
    enable(loaded.model, None)
    base = compute_logits(loaded.model, batches)
    enable(loaded.model, "default")
    undo = merge(loaded.model, allow_loss=allow_loss)
    merged_here = compute_logits(loaded.model, batches)
    changed = sum(told.changed for told in undo.rounding.values()) + sum(
        int((loaded.model.get_parameter(path).to(wanted) != old.to(wanted)).sum())
        for path, old in undo.before.items()
    )
    detach(loaded.model)
    if not changed:
        raise MergeError(
            f"The merged model equals the base in {kept or dtype_name(wanted)}: no weight changes.",
            advice="The adapter was never trained, or its change is smaller than the rounding. Nothing was "
            "written.",
        )
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        merged = loaded.model if kept else loaded.model.to(wanted)
        merged.config.dtype = wanted
        with quiet():
            # What transformers did to load a coarse folder it cannot undo, and need not: it stores
            # what the model holds.
            _save(merged, loaded.tokenizer, part, save_original_format=not form)
        again = load(str(part), task, labels=loaded.labels, dtype=dtype_name(wanted), device=device)
        _check_read(merged, again.model)
        with without_packing(again.model):
            got = compute_logits(again.model, batches)
        # Where the sum was rounded as it was merged, what is on disk is held against the merged
        # model instead.
        result = _compare(
            with_adapter, base, (got, merged_here) if kept else (with_adapter, merged_here), got
        )
        _judge(result, kept or dtype_name(wanted), allow_loss)
        if output.is_dir():
            output.rmdir()
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {
        "max_logit_difference": result.max_logit_difference,
        "kl": result.kl,
        "top1_agreement": result.top1_agreement,
        "differs_from_base": changed,
        "dtype": kept or dtype_name(wanted),
        "output": str(output),
        "adapter_moves": result.adapter_moves,
        "bytes": sum(p.stat().st_size for p in output.iterdir()),
        **(
            {
                "rounding": {
                    path: {"rounding": told.rounding, "adapter": told.adapter}
                    for path, told in undo.rounding.items()
                }
            }
            if kept
            else {}
        ),
    }


def _refuse_unwritable(model: Any, form: str) -> None:
    if not model.hf_quantizer.is_serializable():
        raise MergeError(
            f"transformers cannot write a model in {form}.",
            advice="Write a plain copy (--dtype bfloat16), or merge in memory. Nothing was written.",
        )


def _save(model: Any, tokenizer: Any, folder: Path, **how: bool) -> None:
    try:
        model.save_pretrained(folder, **how)
        tokenizer.save_pretrained(folder)
        for path in folder.iterdir():  # safetensors lets nobody but the owner read its files
            shutil.copymode(folder / "config.json", path)
    except SafetensorError as error:  # its writer's own kind: the disk is full, mostly
        raise OSError(f"The merged model cannot be written: {error}") from error


FAULT = (
    "Nothing was left behind. This is a fault: of the disk, of the model's loading, or of lorakit."
)


def _check_read(written: nn.Module, read: nn.Module) -> None:
    own = dequantised_parameters(read)
    faults = [
        name
        for name, p in dequantised_parameters(written).items()
        if name not in own or not torch.equal(own[name], p)
    ]
    tied = set(getattr(written, "_tied_weights_keys", None) or ()) & set(faults)
    if tied and len(faults) == len(tied):
        raise MergeError(
            f"{type(written).__name__} ties {', '.join(sorted(tied))} again when it is loaded: a merge that changed them apart "
            "from the embedding cannot be kept in its folder.",
            faults,
            "Use the adapter unmerged, or train one that leaves the tied weights out. Nothing was left behind.",
        )
    if faults:
        raise MergeError(
            f"{plural(len(faults), 'tensor')} of the merged model came back from disk otherwise.",
            faults,
            FAULT,
        )


def _judge(result: Comparison, dtype: str, allow_loss: bool) -> None:
    wrong = max(result.merging, result.max_logit_difference if dtype == "float32" else 0)
    if wrong > result.allowed:
        raise MergeError(
            f"The merged model differs from base + adapter by {wrong:.4g} in its logits; sums in another order "
            f"explain {result.allowed:.4g}.",
            advice=FAULT,
        )
    if result.max_logit_difference > result.adapter_moves and not allow_loss:
        raise MergeError(
            f"Rounding the sum to {dtype} moves the logits by {result.max_logit_difference:.4g}, more than the adapter itself "
            f"does ({result.adapter_moves:.4g}).",
            advice="Merge into a wider copy (--dtype float32), use the adapter unmerged, or pass --allow-loss. Nothing was "
            "left behind.",
        )


def _compare(
    wanted: list[Tensor],
    base: list[Tensor],
    merging: tuple[list[Tensor], list[Tensor]],
    got: list[Tensor],
) -> Comparison:
    def most(pairs: Any) -> float:
        return max(float((x - y).abs().max()) for x, y in pairs)

    largest = max(float(x.abs().max()) for x in wanted)
    kl, same = divergence(wanted, got)
    return Comparison(
        max_logit_difference=most(zip(wanted, got, strict=True)),
        kl=kl,
        top1_agreement=same,
        merging=most(zip(*merging, strict=True)),
        allowed=ROUNDING * largest,
        adapter_moves=most(zip(wanted, base, strict=True)),
    )


def _stored_dtype(model: Any) -> torch.dtype:
    """Return the dtype of the checkpoint on disk, as its config tells; float32 where it does not."""
    told = getattr(load_config(model.config._name_or_path), "dtype", None)
    return (
        told
        if isinstance(told, torch.dtype)
        else getattr(torch, told)
        if isinstance(told, str)
        else torch.float32
    )
