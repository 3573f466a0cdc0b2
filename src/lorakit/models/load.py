"""Models and tokenizers by folder, hub id or `builtin:NAME`, with the head of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorakit.errors import ModelError
from lorakit.models.locate import NAMING_ADVICE, locate
from lorakit.models.precision import gpu_dtype, has_bfloat16
from lorakit.models.quantised import check_quantised
from lorakit.models.read import READ_ERRORS, advise, load_config, load_tokenizer, quiet
from lorakit.models.stops import find_stops
from lorakit.models.tasks import TASKS
from lorakit.text import first_line

if TYPE_CHECKING:
    from transformers import (
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

# Least width of a model whose steps are faster in bfloat16 on a CPU (benchmarks/base_dtype.py).
BFLOAT16_WIDTH = 256
CPU_INFO = Path("/proc/cpuinfo")
# Models that have their head already, by task.
WRITERS = {
    "causal-lm": "a causal language model",
    "seq2seq": "an encoder-decoder that writes text",
    "preference": "a causal language model",
}
# What transformers calls the tasks of a head for whole texts.
PROBLEMS = {
    "classify": "single_label_classification",
    "multi-label": "multi_label_classification",
}
LONGEST = 1 << 30  # tokens: the limit of a model whose config has none
# Of models that read pictures too: their language model is trained on text.
WITH_PICTURES = "AutoModelForImageTextToText"


@dataclass
class Loaded:
    """A model ready for a task.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: of transformers.
        task: a key of TASKS.
        labels: class names in the order of the outputs; empty otherwise.
        name: the name of the base in files.
        new_modules: modules with random weights, which the checkpoint does not hold: a new head.
        max_length: largest number of tokens that the model can read.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    task: str
    labels: list[str]
    name: str
    new_modules: tuple[str, ...]
    max_length: int

    @property
    def stops(self) -> list[int]:
        """Ids of the tokens at which the model stops; see `find_stops`."""
        return find_stops(self.tokenizer, getattr(self.model, "generation_config", None))


def load(
    name: str,
    task: str,
    *,
    labels: Sequence[str] = (),
    dtype: str = "auto",
    trains_base: bool = False,
    device: str = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
    template: str | None = None,
) -> Loaded:
    """Load a model with the head that the task needs, and its tokenizer.

    Args:
        name: a folder, a hub id or `builtin:NAME`.
        task: a key of TASKS.
        labels: class names, of a task with classes.
        dtype: of the weights; "auto" is that of `auto_dtype`.
        trains_base: True if biases or modules of the base are trained too; see `auto_dtype`.
        device: cpu, cuda, … or "auto".
        seed: of a new head's weights.
        trust_remote_code: True to run Python code that the folder or repository brings along.
        template: chat template that replaces the tokenizer's: chatml, or a file.

    Raises:
        ModelError: it cannot be found, read, or used for the task.
        SpecError: the template cannot be read.
    """
    where, name_in_files = locate(name)
    target = device_of(device)
    config = load_config(where, NAMING_ADVICE, trust_remote_code=trust_remote_code)
    model_class = choose_auto_class(name, config, task, trust_remote_code=trust_remote_code)
    if dtype == "auto":
        weights_dtype = auto_dtype(target, config, task, trains_base=trains_base)
    else:
        weights_dtype = getattr(torch, dtype)
    try:
        model, missing = load_weights(
            model_class,
            where,
            head_options(task, labels),
            weights_dtype,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
    except READ_ERRORS as error:
        raise ModelError(
            f"{name} cannot be loaded for {task}: {first_line(error)}",
            advice=advise(error, NAMING_ADVICE),
        ) from error
    tokenizer = load_tokenizer(
        where, NAMING_ADVICE, trust_remote_code=trust_remote_code, template=template
    )
    new_modules = outermost_modules(model, missing)
    check_new_modules(name, task, new_modules)
    if TASKS[task].has_head and model.config.pad_token_id is None:
        model.config.pad_token_id = pad_id(tokenizer, model)
    model.to(target)  # type: ignore[arg-type]
    model.eval()
    longest = find_max_length(model.config, tokenizer, model)
    return Loaded(model, tokenizer, task, list(labels), name_in_files, new_modules, longest)


def choose_auto_class(
    name: str, config: "PretrainedConfig", task: str, *, trust_remote_code: bool = False
) -> Any:  # noqa: ANN401  an Auto class of transformers
    """Return the class of transformers that loads a model for a task, before its weights are read.

    Raises:
        ModelError: there is none; the message names the model's class, and those that are known.
    """
    import transformers

    names = [TASKS[task].model_class]
    writes_on = TASKS[task].peft_type == "CAUSAL_LM"
    if writes_on:
        names.append(WITH_PICTURES)
    autos = [getattr(transformers, name) for name in names]
    if trust_remote_code and getattr(config, "auto_map", None):
        return autos[0]
    # Of Whisper and the like, transformers would load the decoder alone.
    is_half = writes_on and config.is_encoder_decoder
    for auto in autos:
        if type(config) in auto._model_mapping and not is_half:
            return auto
    named = ", ".join(config.architectures or ()) or type(config).__name__
    raise ModelError(
        f"{name} is a {named}, which lorakit cannot load for {task}.",
        advice=f"The commands take the classes of transformers' {' and '.join(names)}. For others, "
        "attach the adapter in Python (lorakit.attach) and train with your own loop; "
        "`lorakit merge` takes any class.",
    )


def check_new_modules(name: str, task: str, new_modules: Sequence[str]) -> None:
    """Refuse a model for language modelling that has modules without trained weights.

    Raises:
        ModelError: there are some; only a classifier may have a new head.
    """
    if new_modules and not TASKS[task].has_head:
        raise ModelError(
            f"{name} has no weights for {', '.join(new_modules)}: it is not {WRITERS[task]}.",
            advice="Language modelling needs one; a classifier needs rows with labels.",
        )


def load_weights(
    model_class: Any,  # noqa: ANN401  a class of transformers or an Auto class, or of a repository
    where: str,
    options: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    seed: int = 0,
    trust_remote_code: bool,
) -> tuple["PreTrainedModel", list[str]]:
    """Load a model, and return it with the names of the weights that its checkpoint lacks.

    Args:
        model_class: class to load.
        where: folder or hub id.
        options: settings of the config that make its head.
        dtype: of the weights.
        seed: of a new head's weights.
        trust_remote_code: as in `load`.

    Raises:
        ModelError: its config asks for quantised weights, and transformers left them plain.
    """
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model, info = model_class.from_pretrained(
            where,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            # The head of a task may have another shape in the checkpoint.
            ignore_mismatched_sizes=bool(options),
            **options,
        )
    check_quantised(model, where)
    mismatched = [key for key, *_ in info["mismatched_keys"]]
    return model, [*info["missing_keys"], *mismatched]


def head_options(task: str, labels: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a config that make the head of a task."""
    problem = PROBLEMS.get(task, "")
    if TASKS[task].has_classes and labels:
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
            **({"problem_type": problem} if problem else {}),
        }
    if task == "regress":
        return {"num_labels": 1, "problem_type": "regression"}
    return {}


def pad_id(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> int:
    """Return an id to fill batches with, which the model has an embedding for.

    It is the model's own, if its config has one: a classifier finds the last token of a row by it,
    and some models count positions by it. For other models any id will do, as padding is masked.
    """
    candidates: tuple[Any, ...] = (
        model.config.get_text_config().pad_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.eos_token_id,
    )
    rows = count_embeddings(model)
    usable = [one for one in candidates if one is not None and 0 <= one < (rows or LONGEST)]
    return usable[0] if usable else 0


def count_embeddings(model: "PreTrainedModel") -> int | None:
    """Return the number of tokens that a model has embeddings for; None if it has no such table."""
    return getattr(model.get_input_embeddings(), "num_embeddings", None)


def device_of(device: str) -> torch.device:
    """Return the device of this name, or of "auto".

    Raises:
        ModelError: this machine has no such device, or the device cannot compute.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"There is no device {device!r} here: {first_line(error)}") from error
    if torch.device(device).type == "meta":
        raise ModelError("On the device 'meta' a model has no values, so nothing can be computed.")
    return torch.device(device)


def auto_dtype(
    device: torch.device, config: "PretrainedConfig", task: str, *, trains_base: bool = False
) -> torch.dtype:
    """Return the dtype of a base for which none is given.

    On a GPU it is bfloat16 if the GPU computes in it; else float16, or float32 if parameters of the
    base are trained. On a CPU it is bfloat16 if the CPU multiplies in it
    and the model is a causal language model at least BFLOAT16_WIDTH wide of which nothing is
    trained, since trained weights would be rounded to bfloat16 too. Else it is float32.

    Args:
        device: of the model.
        config: of transformers.
        task: its name; a classifier's head is trained.
        trains_base: True if biases or modules of the base are trained too.
    """
    trains_base = trains_base or TASKS[task].has_head
    if device.type == "cuda":
        return gpu_dtype(bfloat16=has_bfloat16(device), trains_base=trains_base)
    if device.type != "cpu" or trains_base:
        return torch.float32
    width = getattr(config.get_text_config(), "hidden_size", None) or 0
    is_faster = width >= BFLOAT16_WIDTH and multiplies_bfloat16()
    return torch.bfloat16 if is_faster else torch.float32


def multiplies_bfloat16() -> bool:
    """Return True if the CPU has instructions for products in bfloat16: AMX, or AVX-512 BF16."""
    flags = CPU_INFO.read_text("utf-8").split() if CPU_INFO.is_file() else ()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def outermost_modules(model: nn.Module, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the largest modules of which every parameter is among `keys`."""
    missing = set(keys)
    new: list[str] = []
    for name, module in model.named_modules():
        parameters = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        if name and parameters and missing.issuperset(parameters):
            new.append(name)
    prefixes = tuple(f"{name}." for name in new)
    return tuple(name for name in new if not name.startswith(prefixes))


def find_positions(config: "PretrainedConfig", model: nn.Module | None = None) -> int:
    """Return the number of positions that a model has; 0 if its config does not say.

    A model whose positions begin after that of the padding, as RoBERTa's do, has fewer than its
    config says; only the model itself tells.
    """
    for name, module in model.named_modules() if model is not None else ():
        if not isinstance(module, nn.Embedding) or not name.endswith("position_embeddings"):
            continue
        if module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return max(0, int(positions or 0))  # XLNet's -1 means any number


def find_max_length(
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    model: nn.Module | None = None,
) -> int:
    """Return the largest number of tokens that a model can read; see `find_positions`."""
    limits = [find_positions(config, model), tokenizer.model_max_length, LONGEST]
    return int(min(limit for limit in limits if limit))
