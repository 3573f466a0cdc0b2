"""The base of an export with the adapter attached, and the form that its weights get on disk."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorakit.adapter import Adapter
from lorakit.errors import MergeError, ModelError
from lorakit.inject.attach import attach, detach
from lorakit.merging.folder import BaseFolder, find_base_folder, stored_dtypes
from lorakit.merging.quantised import dequantise, quantised_form
from lorakit.models.locate import locate
from lorakit.models.open import check_trained
from lorakit.models.own_class import Candidate, choose_class
from lorakit.models.own_tokenizer import check_vocabulary, has_tokenizer
from lorakit.models.read import load_config, load_tokenizer
from lorakit.text import dtype_name

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """A base with the adapter attached.

    Attributes:
        name: the base's name, as the user gave it.
        base: its folder.
        candidate: the class that it is loaded with.
        device: device of the computation.
        model: the base with the adapter.
        new_modules: modules whose weights the base's files do not hold.
        tokenizer: of the adapter's folder, else of the base's; None where there is none.
        dtype: of all floating weights on disk; None where each keeps that of the base's.
        stored_dtypes: those of the floating weights in the base's files.
        read_dtype: the dtype in which the merged model and the one read back are compared.
        base_form: storage of the base in int8 or 4 bits; "" where it is not quantised.
        form: that of the merged model; "" where it is not quantised.
    """

    name: str
    base: BaseFolder
    candidate: Candidate
    device: str
    model: "PreTrainedModel"
    new_modules: tuple[str, ...]
    tokenizer: "PreTrainedTokenizerBase | None"
    dtype: torch.dtype | None
    stored_dtypes: tuple[torch.dtype, ...]
    read_dtype: torch.dtype
    base_form: str = ""
    form: str = ""

    @property
    def storage(self) -> str:
        """Name of the quantised form, or names of the dtypes."""
        dtypes = [self.dtype] if self.dtype else self.stored_dtypes
        return self.form or " and ".join(dtype_name(dtype) for dtype in dtypes)


def open_subject(
    name: str,
    adapter: Adapter,
    *,
    dtype: str,
    device: str,
    any_base: bool,
    trust_remote_code: bool,
) -> Subject:
    """Load the base with the adapter, in float32 or in the quantised form that it keeps.

    The arguments are those of `export`.

    Raises:
        ModelError: the base cannot be loaded, or has no weights for a head.
        MergeError: transformers cannot write the base's quantised form.
    """
    where, _ = locate(name)
    config = load_config(name, trust_remote_code=trust_remote_code)
    base = find_base_folder(where)
    candidate = choose_class(config, adapter, trust_remote_code=trust_remote_code)
    tokenizer = _find_tokenizer(where, adapter.source, trust_remote_code=trust_remote_code)
    model, new_modules = candidate.load(name, torch.float32, device)
    if adapter.source is not None and has_tokenizer(adapter.source) and tokenizer is not None:
        check_vocabulary(model, tokenizer, "Nothing was written.")
    if model.base_model is not model:  # it has a head
        check_trained(name, new_modules, adapter.full_parameters)
    attach(model, adapter, trainable=False, any_base=any_base)
    form = quantised_form(model)
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    stored = _floating_dtypes(base)
    # What is stored in several dtypes is compared in the widest.
    read_dtype = chosen or (stored[0] if len(stored) == 1 else torch.float32)
    subject = Subject(
        name,
        base,
        candidate,
        device,
        model.eval(),
        new_modules,
        tokenizer,
        chosen,
        stored,
        read_dtype,
        form,
        form if chosen is None else "",
    )
    if form:
        return _open_quantised(subject, config, adapter)
    return subject


def _find_tokenizer(
    where: str, adapter: Path | None, *, trust_remote_code: bool
) -> "PreTrainedTokenizerBase | None":
    """Return the tokenizer of the adapter's folder, else that of the base's."""
    if adapter is not None and has_tokenizer(adapter):
        return load_tokenizer(str(adapter), trust_remote_code=trust_remote_code)
    try:
        return load_tokenizer(where, trust_remote_code=trust_remote_code)
    except ModelError:
        return None


def _floating_dtypes(base: BaseFolder) -> tuple[torch.dtype, ...]:
    """Return the dtypes of the floating tensors in the base's files."""
    dtypes = {dtype for dtype in stored_dtypes(base).values() if dtype.is_floating_point}
    return tuple(sorted(dtypes, key=str))


def _open_quantised(subject: Subject, config: "PretrainedConfig", adapter: Adapter) -> Subject:
    """Replace a quantised base by one in full precision, or by one in the dtype of its file."""
    model = subject.model
    if not subject.form:
        detach(model)
        dequantise(model)
        # That the adapter fits was checked on the quantised base.
        attach(model, adapter, trainable=False, any_base=True)
        model.eval()
        return subject
    _check_writable(model, subject.form)
    stored_dtype = _stored_dtype(config)
    if stored_dtype != torch.float32:
        # The weights that are not quantised keep their dtype.
        detach(model)
        model, _ = subject.candidate.load(subject.name, stored_dtype, subject.device)
        attach(model, adapter, trainable=False, any_base=True)
        model.eval()
    return replace(subject, model=model, read_dtype=stored_dtype)


def _stored_dtype(config: "PretrainedConfig") -> torch.dtype:
    """Return the dtype of a checkpoint on disk by its config; float32 if the config has none."""
    dtype = getattr(config, "dtype", None)
    if isinstance(dtype, str):
        return getattr(torch, dtype)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _check_writable(model: "PreTrainedModel", form: str) -> None:
    quantizer: Any = model.hf_quantizer
    if not quantizer.is_serializable():
        raise MergeError(
            f"transformers cannot write a model in {form}.",
            advice="Write a plain copy (--dtype bfloat16), or merge in memory. Nothing was "
            "written.",
        )
