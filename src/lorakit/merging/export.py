"""Export of a merged model as a plain Hugging Face folder, which is read back and compared."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.errors import MergeError
from lorakit.evaluate.logits import TEXTS, batch_texts, compare_logits, compute_logits
from lorakit.files import check_new_folder, folder_bytes, replace_folder
from lorakit.inject.attach import attach, detach, enable
from lorakit.merging.quantised import (
    Rounding,
    dequantise,
    dequantised_parameters,
    quantised_form,
)
from lorakit.merging.weights import Undo, merge
from lorakit.models.load import Loaded, load, load_config, quiet
from lorakit.models.open import open_model, resolve_task
from lorakit.sites.quantised import without_packing
from lorakit.text import dtype_name, plural

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Relative to the largest logit: the difference that another order of the same sums may make.
ROUNDING = 1e-4
FAULT = (
    "Nothing was left behind. The cause is the disk, the loading of the model, or lorakit itself."
)

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Subject:
    """A base with the adapter attached, and the form of the weights on disk.

    Attributes:
        loaded: the base with the adapter.
        dtype: of the weights on disk that are not quantised.
        base_form: storage of the base in int8 or 4 bits; "" where it is not quantised.
        form: that of the merged model; "" where it is not quantised.
    """

    loaded: Loaded
    dtype: torch.dtype
    base_form: str
    form: str

    @property
    def storage(self) -> str:
        """Name of the quantised form, or of the dtype."""
        return self.form or dtype_name(self.dtype)


@dataclass(frozen=True)
class Merged:
    """A merged model in memory, and the logits before and after.

    Attributes:
        attached: logits of base + adapter.
        base: logits of the base alone.
        merged: logits of the merged model before its weights are rounded to the dtype on disk.
        changed: number of values that will differ from the base's on disk.
        rounding: effect of rounding to int8 or 4 bits, by the name of the weight.
    """

    attached: list[Tensor]
    base: list[Tensor]
    merged: list[Tensor]
    changed: int
    rounding: Mapping[str, Rounding]


@dataclass(frozen=True)
class Comparison:
    """Comparison of base + adapter with the merged model that was read back from disk.

    Attributes:
        max_logit_difference: the largest difference, rounding to the dtype on disk included.
        kl: mean divergence in nats a position.
        top1_agreement: share of positions with the same most probable output.
        adapter_moves: the largest difference that the adapter makes to the base.
        merging: the largest difference before weights are rounded or written; in int8 or 4 bits the
            largest difference that writing and reading make.
        allowed: the largest `merging` that is accepted.
    """

    max_logit_difference: float
    kl: float
    top1_agreement: float
    adapter_moves: float
    merging: float
    allowed: float


class WeightRounding(TypedDict):
    """Relative movement of a quantised weight by rounding, and by the adapter."""

    rounding: float
    adapter: float


class ExportReport(TypedDict):
    """The result of an export, as `lorakit merge --json` prints it."""

    max_logit_difference: float
    kl: float
    top1_agreement: float
    differs_from_base: int
    dtype: str
    output: str
    adapter_moves: float
    bytes: int
    rounding: NotRequired[dict[str, WeightRounding]]


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
    trust_remote_code: bool = False,
) -> ExportReport:
    """Merge an adapter into its base, summed in float32, and write a plain model without lorakit.

    A base in int8 or 4 bits stays so where `dtype` is "auto"; any other dtype makes a plain copy of
    the values it holds.

    The merged folder is written under another name and loaded again; its weights must be those that
    were written, bit for bit, and its logits are compared with those of base + adapter. Only then
    does it get its name.

    Args:
        model: the base: a folder, a hub id or `builtin:NAME`.
        adapter: the adapter to merge.
        output: a folder that does not exist yet, or is empty.
        dtype: of the weights on disk; "auto" is that of the base's checkpoint, or its int8 or 4
            bits.
        device: device of the computation.
        texts: input of both models for the comparison; four built-in texts where empty.
        any_base: take another base than the adapter was trained on.
        allow_loss: write it even where rounding moves the output more than the adapter does.
        trust_remote_code: True to run Python code that the base's folder brings along.

    Returns:
        max_logit_difference, kl (nats a position, mean), top1_agreement (share of positions),
        differs_from_base (number of weights whose bits changed), dtype, output, and the largest
        movement of the logits by the adapter; for a base in int8 or 4 bits, `rounding` has the
        relative movement of each weight by rounding and by the adapter.

    Raises:
        OutputError: the folder is not empty.
        MergeError: transformers cannot write this form; the merged model equals the base, or
            differs from base + adapter before it is rounded; a tensor came back from disk
            otherwise; or rounding moves more than the adapter does. Nothing is left behind.
    """
    output = Path(output)
    check_new_folder(output, "a merged model", "Nothing was written.")
    task = resolve_task(adapter)
    open_base = partial(
        open_model,
        model,
        adapter,
        task,
        device=device,
        any_base=any_base,
        trust_remote_code=trust_remote_code,
    )
    config = load_config(model, trust_remote_code=trust_remote_code)
    subject = _load_subject(open_base, config, adapter, dtype)
    batches = batch_texts(subject.loaded, list(texts) or TEXTS)
    merged = _merge(subject, batches, allow_loss=allow_loss)
    with replace_folder(output) as folder:
        _write(subject, folder)
        again = load(
            str(folder),
            task,
            labels=subject.loaded.labels,
            dtype=dtype_name(subject.dtype),
            device=device,
            trust_remote_code=trust_remote_code,
        )
        logits = _read_back(subject, again, batches)
        comparison = _compare(merged, logits, is_quantised=subject.form != "")
        _judge(comparison, subject.storage, allow_loss=allow_loss)
        check_new_folder(output, "a merged model", "Nothing was written.")
        if output.is_dir():
            # Unlike the removal of a tree, it fails if a file was written there since the check.
            output.rmdir()
    return _report(subject, merged, comparison, output)


def _load_subject(
    open_base: Callable[..., Loaded], config: "PretrainedConfig", adapter: Adapter, dtype: str
) -> Subject:
    """Load the base with the adapter, in float32 or in the quantised form that it keeps.

    Args:
        open_base: `open_model` with all its arguments but the dtype.
        config: of the base on disk.
        adapter: the adapter.
        dtype: as in `export`.
    """
    loaded = open_base(dtype="float32")
    base_form = quantised_form(loaded.model)
    if dtype != "auto":
        if base_form:
            _dequantise_base(loaded, adapter)
        return Subject(loaded, getattr(torch, dtype), base_form, "")
    stored_dtype = _stored_dtype(config)
    if base_form:
        _check_writable(loaded.model, base_form)
    if base_form and stored_dtype != torch.float32:
        # The weights that are not quantised keep their dtype.
        detach(loaded.model)
        loaded = open_base(dtype=dtype_name(stored_dtype))
    return Subject(loaded, stored_dtype, base_form, base_form)


def _stored_dtype(config: "PretrainedConfig") -> torch.dtype:
    """Return the dtype of a checkpoint on disk by its config; float32 if the config has none."""
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        return getattr(torch, dtype)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _dequantise_base(loaded: Loaded, adapter: Adapter) -> None:
    """Replace the base by one in full precision, with the adapter on it."""
    detach(loaded.model)
    dequantise(loaded.model)
    # That the adapter fits was checked on the quantised base.
    attach(loaded.model, adapter, trainable=False, any_base=True)
    loaded.model.eval()


def _check_writable(model: "PreTrainedModel", form: str) -> None:
    quantizer: Any = model.hf_quantizer
    if not quantizer.is_serializable():
        raise MergeError(
            f"transformers cannot write a model in {form}.",
            advice="Write a plain copy (--dtype bfloat16), or merge in memory. Nothing was "
            "written.",
        )


def _merge(subject: Subject, batches: Batches, *, allow_loss: bool) -> Merged:
    """Merge in memory, and detach.

    Raises:
        MergeError: no weight would change on disk, or `merge` refuses.
    """
    model = subject.loaded.model
    attached = compute_logits(model, batches)
    enable(model, None)
    base = compute_logits(model, batches)
    enable(model, "default")
    undo = merge(model, allow_loss=allow_loss)
    merged = compute_logits(model, batches)
    changed = _count_changed(model, undo, subject.dtype)
    detach(model)
    if not changed:
        raise MergeError(
            f"The merged model equals the base in {subject.storage}: no weight changes.",
            advice="The adapter was never trained, or its change is smaller than the rounding. "
            "Nothing was written.",
        )
    return Merged(attached, base, merged, changed, undo.rounding)


def _count_changed(model: nn.Module, undo: Undo, dtype: torch.dtype) -> int:
    """Return the number of values that the merge changed, rounded to the dtype on disk."""
    count = sum(moved.changed for moved in undo.rounding.values())
    for path, before in undo.before.items():
        differs = model.get_parameter(path).to(dtype) != before.to(dtype)
        count += int(differs.sum())
    return count


def _write(subject: Subject, folder: Path) -> None:
    """Write the merged model and its tokenizer."""
    model = subject.loaded.model
    if not subject.form:
        model.to(subject.dtype)  # type: ignore[arg-type]
    model.config.dtype = subject.dtype
    try:
        with quiet():
            # transformers cannot undo its conversions of a quantised folder, and need not: the
            # weights are stored as the model holds them.
            model.save_pretrained(folder, save_original_format=not subject.base_form)
            subject.loaded.tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # mostly a full disk
        raise OSError(f"The merged model cannot be written: {error}") from error
    # safetensors makes files that only their owner can read.
    for path in folder.iterdir():
        shutil.copymode(folder / "config.json", path)


def _read_back(subject: Subject, again: Loaded, batches: Batches) -> list[Tensor]:
    """Check the weights of the model that was read back, and return its logits."""
    check_same_weights(subject.loaded.model, again.model)
    with without_packing(again.model):
        return compute_logits(again.model, batches)


def check_same_weights(written: nn.Module, read: nn.Module) -> None:
    """Refuse a model whose weights are not those that were written, bit for bit.

    Raises:
        MergeError: it names the tensors that differ.
    """
    present = dequantised_parameters(read)
    faults = [
        name
        for name, parameter in dequantised_parameters(written).items()
        if name not in present or not torch.equal(present[name], parameter)
    ]
    if not faults:
        return
    tied = set(getattr(written, "_tied_weights_keys", None) or ()).intersection(faults)
    if len(tied) == len(faults):
        raise MergeError(
            f"{type(written).__name__} ties {', '.join(sorted(tied))} again when it is loaded: a "
            "merge that changed them apart from the embedding cannot be kept in its folder.",
            faults,
            "Use the adapter unmerged, or train one that leaves the tied weights out. Nothing was "
            "left behind.",
        )
    raise MergeError(
        f"{plural(len(faults), 'tensor')} of the merged model came back from disk changed.",
        faults,
        FAULT,
    )


def _compare(merged: Merged, logits: list[Tensor], *, is_quantised: bool) -> Comparison:
    """Compare the logits of the model that was read back with those before."""
    largest = max(float(values.abs().max()) for values in merged.attached)
    kl, agreement = compare_logits(merged.attached, logits)
    # Where the sum was rounded as it was merged, the model on disk is compared with the merged one
    # in memory instead.
    exact = logits if is_quantised else merged.attached
    return Comparison(
        max_logit_difference=_max_difference(merged.attached, logits),
        kl=kl,
        top1_agreement=agreement,
        adapter_moves=_max_difference(merged.attached, merged.base),
        merging=_max_difference(exact, merged.merged),
        allowed=ROUNDING * largest,
    )


def _max_difference(first: list[Tensor], second: list[Tensor]) -> float:
    pairs = zip(first, second, strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def _judge(comparison: Comparison, storage: str, *, allow_loss: bool) -> None:
    """Refuse a merged model that differs by more than rounding, or by more than the adapter."""
    difference = comparison.merging
    if storage == "float32":
        difference = max(difference, comparison.max_logit_difference)
    if difference > comparison.allowed:
        raise MergeError(
            f"The merged model differs from base + adapter by {difference:.4g} in its logits; sums "
            f"in another order explain {comparison.allowed:.4g}.",
            advice=FAULT,
        )
    if comparison.max_logit_difference > comparison.adapter_moves and not allow_loss:
        raise MergeError(
            f"Rounding the sum to {storage} moves the logits by "
            f"{comparison.max_logit_difference:.4g}, more than the adapter itself does "
            f"({comparison.adapter_moves:.4g}).",
            advice="Merge into a wider copy (--dtype float32), use the adapter unmerged, or pass "
            "--allow-loss. Nothing was left behind.",
        )


def _report(subject: Subject, merged: Merged, comparison: Comparison, output: Path) -> ExportReport:
    report: ExportReport = {
        "max_logit_difference": comparison.max_logit_difference,
        "kl": comparison.kl,
        "top1_agreement": comparison.top1_agreement,
        "differs_from_base": merged.changed,
        "dtype": subject.storage,
        "output": str(output),
        "adapter_moves": comparison.adapter_moves,
        "bytes": folder_bytes(output),
    }
    if subject.form:
        report["rounding"] = {
            path: {"rounding": moved.rounding, "adapter": moved.adapter}
            for path, moved in merged.rounding.items()
        }
    return report
