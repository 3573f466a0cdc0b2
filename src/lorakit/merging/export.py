"""Export of a merged model as a plain Hugging Face folder, which is read back and compared."""

import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.errors import NOT_STARTED, MergeError, OutputError
from lorakit.evaluate.logits import TEXTS, compare_logits, compute_logits, make_inputs
from lorakit.files import check_can_be_made, check_new_folder, create_folder, folder_bytes
from lorakit.inject.attach import detach, enable
from lorakit.merging.changes import Change, find_changes
from lorakit.merging.folder import (
    copy_files,
    stored_dtypes,
    stored_tensors,
    write_config,
    write_weights,
)
from lorakit.merging.quantised import Rounding, dequantised_parameters
from lorakit.merging.subject import Subject, open_subject
from lorakit.merging.weights import Undo, merge
from lorakit.models.load import pad_id
from lorakit.models.read import quiet
from lorakit.sites.quantised import without_packing
from lorakit.spec import is_inside
from lorakit.text import dtype_name, plural

# Relative to the largest logit: the difference that another order of the same sums may make.
ROUNDING = 1e-4
FAULT = (
    "Nothing was left behind. The cause is the disk, the loading of the model, or lorakit itself."
)
HEAD_KEYS = ("id2label", "label2id", "problem_type")  # of a config

Batches = Sequence[Mapping[str, Tensor]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Merged:
    """A merged model in memory, and the logits before and after.

    Attributes:
        attached: logits of base + adapter.
        base: logits of the base alone.
        merged: logits of the merged model before its weights are rounded to the dtype on disk.
        changed: number of values that will differ from the base's on disk.
        changes: the stored tensors that change; None where the whole model is written anew.
        undo: of the merge.
    """

    attached: list[Tensor]
    base: list[Tensor]
    merged: list[Tensor]
    changed: int
    changes: Sequence[Change] | None
    undo: Undo

    @property
    def rounding(self) -> Mapping[str, Rounding]:
        """Effect of rounding to int8 or 4 bits, by the name of the weight."""
        return self.undo.rounding


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
    left_out: list[str]
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
    say: Say = lambda message: None,
) -> ExportReport:
    """Merge an adapter into its base, summed in float32, and write a plain model without lorakit.

    The folder is a copy of the base's with the merged tensors in their places: a tensor that does
    not change keeps its bits, dtype, name and file, and a file beside the weights is carried along.
    A tokenizer or a chat template in the adapter's folder replaces the base's. A base in int8 or 4
    bits stays so where `dtype` is "auto"; any other dtype makes a plain copy of the values it
    holds.

    The folder is written under another name and loaded again; its weights must be those that were
    written, bit for bit, and its logits are compared with those of base + adapter. Only then does
    it get its name.

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
        say: called with each message for the user, such as what is not carried along.

    Returns:
        max_logit_difference, kl (nats a position, mean), top1_agreement (share of positions),
        differs_from_base (number of weights whose bits changed), dtype, output, left_out (files
        that are not carried along), and the largest movement of the logits by the adapter; for a
        base in int8 or 4 bits, `rounding` has the relative movement of each weight by rounding and
        by the adapter.

    Raises:
        OutputError: the folder is not empty, or cannot be made.
        MergeError: transformers cannot write this form, or a tensor cannot be carried; the merged
            model equals the base, or differs from base + adapter before it is rounded; a tensor
            came back from disk otherwise; or rounding moves more than the adapter does. Nothing is
            left behind.
    """
    output = Path(output)
    check_can_be_made(output)
    _check_name(output)
    check_new_folder(output, "a merged model", "Nothing was written.")
    subject = open_subject(
        model,
        adapter.copy(),  # it is frozen, and moved to the model
        dtype=dtype,
        device=device,
        any_base=any_base,
        trust_remote_code=trust_remote_code,
    )
    if subject.base.left_out:
        say(f"note: not carried along, as it holds weights: {', '.join(subject.base.left_out)}")
    batches = make_inputs(subject.model, subject.tokenizer, list(texts) or TEXTS)
    merged = _merge(subject, batches, allow_loss=allow_loss)
    output.parent.mkdir(parents=True, exist_ok=True)
    with create_folder(output) as folder:
        _write(subject, merged, folder, adapter)
        logits = _read_back(subject, folder, batches)
        comparison = _compare(merged, logits, is_quantised=subject.form != "")
        _judge(comparison, subject.storage, allow_loss=allow_loss)
    return _report(subject, merged, comparison, output)


def _check_name(output: Path) -> None:
    """Refuse the working directory and a root: the finished folder gets its name by a move."""
    absolute = output.resolve()
    if absolute in (Path.cwd(), Path(absolute.anchor)):
        raise OutputError(
            f"{output} is the working directory or a root.",
            advice=f"Name a new folder. {NOT_STARTED}",
        )


def _merge(subject: Subject, batches: Batches, *, allow_loss: bool) -> Merged:
    """Merge in memory, and detach.

    Raises:
        MergeError: no weight would change on disk, a tensor cannot be carried, or `merge` refuses.
    """
    model = subject.model
    attached = compute_logits(model, batches)
    enable(model, None)
    base = compute_logits(model, batches)
    enable(model, "default")
    undo = merge(model, allow_loss=allow_loss)
    merged = compute_logits(model, batches)
    detach(model)
    changes = None
    if subject.base_form:
        _check_whole(subject)
        changed = _count_changed(model, undo, subject.read_dtype)
    else:
        stored = dict(stored_tensors(subject.base))
        added = (*subject.new_modules, *undo.untied)
        changes = find_changes(model, undo.before, stored, added)
        changed = sum(change.count(subject.dtype) for change in changes)
    if not changed:
        raise MergeError(
            f"The merged model equals the base in {subject.storage}: no weight changes.",
            advice="The adapter was never trained, or its change is smaller than the rounding. "
            "Nothing was written.",
        )
    return Merged(attached, base, merged, changed, changes, undo)


def _check_whole(subject: Subject) -> None:
    """Refuse a quantised base whose files hold tensors that its class does not read.

    Raises:
        MergeError: all such tensors are named: they would be lost.
    """
    ignored = getattr(subject.model, "_keys_to_ignore_on_load_unexpected", None) or ()
    lost = [
        name
        for name in stored_dtypes(subject.base)
        if any(re.search(pattern, name) for pattern in ignored)
    ]
    if lost:
        raise MergeError(
            f"{plural(len(lost), 'tensor')} of {subject.name} cannot be carried into the merged "
            f"model: {type(subject.model).__name__} does not read them.",
            lost,
            "Merge in memory, with lorakit.merge. Nothing was written.",
        )


def _count_changed(model: nn.Module, undo: Undo, dtype: torch.dtype) -> int:
    """Return the number of values that the merge changed, rounded to the dtype on disk."""
    count = sum(moved.changed for moved in undo.rounding.values())
    for path, before in undo.before.items():
        differs = model.get_parameter(path).to(dtype) != before.to(dtype)
        count += int(differs.sum())
    return count


def _write(subject: Subject, merged: Merged, folder: Path, adapter: Adapter) -> None:
    """Write the files beside the weights, and the weights."""
    copy_files(subject.base, folder, adapter.source)
    try:
        if merged.changes is None:
            _write_whole(subject, folder)
            return
        write_config(subject.base, folder, _config_changes(subject, merged))
        new = {change.name: change.at(_dtype_of(change, subject)) for change in merged.changes}
        write_weights(subject.base, folder, new, subject.dtype)
    except SafetensorError as error:  # mostly a full disk
        raise OSError(f"The merged model cannot be written: {error}") from error
    subject.model.to(subject.read_dtype)  # type: ignore[arg-type]


def _dtype_of(change: Change, subject: Subject) -> torch.dtype | None:
    """Return the dtype of a new tensor on disk; None for that of the base's tensor."""
    return subject.dtype or (subject.read_dtype if change.stored is None else None)


def _write_whole(subject: Subject, folder: Path) -> None:
    """Write a model that is or was quantised with transformers' own function."""
    model = subject.model
    if not subject.form:
        model.to(subject.read_dtype)  # type: ignore[arg-type]
    model.config.dtype = subject.read_dtype
    with quiet():
        # transformers cannot undo its conversions of a quantised folder, and need not: the weights
        # are stored as the model holds them.
        model.save_pretrained(folder, save_original_format=False)
    # safetensors makes files that only their owner can read.
    for path in folder.iterdir():
        if path.is_file():
            shutil.copymode(folder / "config.json", path)


def _config_changes(subject: Subject, merged: Merged) -> dict[str, object]:
    """Return what the merged model's config.json has otherwise than the base's."""
    config = subject.model.config
    changes: dict[str, object] = {}
    if subject.dtype:
        changes |= {"dtype": dtype_name(subject.dtype), "torch_dtype": None}
    changed = merged.changes or ()
    if any(one.stored is None and is_inside(one.name, subject.new_modules) for one in changed):
        changes["architectures"] = [type(subject.model).__name__]
    if subject.candidate.options:
        changes |= {key: getattr(config, key) for key in HEAD_KEYS}
        if config.pad_token_id is None and subject.tokenizer is not None:
            changes["pad_token_id"] = pad_id(subject.tokenizer, subject.model)
    if merged.undo.configs:
        changes["tie_word_embeddings"] = False
    return changes


def _read_back(subject: Subject, folder: Path, batches: Batches) -> list[Tensor]:
    """Load the written model, check its weights, and return its logits."""
    again, _ = subject.candidate.load(str(folder), subject.read_dtype, subject.device)
    check_same_weights(subject.model, again, subject.stored_dtypes if not subject.dtype else ())
    with without_packing(again):
        return compute_logits(again, batches)


def check_same_weights(
    written: nn.Module, read: nn.Module, dtypes: Collection[torch.dtype] = ()
) -> None:
    """Refuse a model whose weights are not those that were written, bit for bit.

    Args:
        written: the merged model in memory.
        read: the one that was read back.
        dtypes: those to which a weight may have been rounded on disk.

    Raises:
        MergeError: it names the tensors that differ.
    """
    present = dequantised_parameters(read)
    faults = [
        name
        for name, parameter in dequantised_parameters(written).items()
        if name not in present or not _equals_rounded(present[name], parameter, dtypes)
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


def _equals_rounded(read: Tensor, written: Tensor, dtypes: Collection[torch.dtype]) -> bool:
    """Return True if a tensor is one that was written, or what one of the dtypes keeps of it."""
    return torch.equal(read, written) or any(
        torch.equal(read, written.to(dtype).to(read.dtype)) for dtype in dtypes
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
        "left_out": list(subject.base.left_out),
    }
    if subject.form:
        report["rounding"] = {
            path: {"rounding": moved.rounding, "adapter": moved.adapter}
            for path, moved in merged.rounding.items()
        }
    return report
