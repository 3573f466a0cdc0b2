"""Configs, tokenizers and settings of models, read without their weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from logging import ERROR, getLogger
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError

from lorakit.data.hub import similar_names
from lorakit.data.template_files import TOKENIZER_CONFIG, set_template
from lorakit.errors import ModelError
from lorakit.models.locate import locate
from lorakit.text import first_line

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

Read = TypeVar("Read")
TRUST_ADVICE = (
    "Its own code is not run unless you ask for it: read it, then pass --trust-remote-code "
    "(trust_remote_code=True in Python). Nothing of it was run."
)
TOKENIZER_FILES = (
    "tokenizer",
    "vocab",
    "merges",
    "tekken",
    "bpe",
    "added_tokens",
    "special_tokens",
)
TOKENIZER_ADVICE = (
    "Copy the tokenizer's files, such as tokenizer.json and tokenizer_config.json, into the folder."
)
TALKATIVE = ("torchao", "torch.utils._pytree")  # loggers
# Errors of transformers for a folder that is damaged, or whose values have other types.
READ_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    ImportError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    UnpicklingError,
    SafetensorError,
)


def load_config(
    name: str, advice: str = "", *, trust_remote_code: bool = False
) -> "PretrainedConfig":
    """Load the config of a model by folder, hub id or `builtin:NAME`; no weights are read.

    Args:
        name: of the model.
        advice: of the error, where the config cannot be read.
        trust_remote_code: as in `load`.

    Raises:
        ModelError: there is none, transformers cannot read it, or it needs code that is not
            trusted.
    """
    from transformers import AutoConfig

    where, _ = locate(name)
    if not Path(where).exists():
        # The hub may know no such name either.
        advice = f"{similar_names(Path(where))} {advice}".strip()
    read = partial(AutoConfig.from_pretrained, where, trust_remote_code=trust_remote_code)
    config = _read(f"The config of {name}", read, advice)
    if not trust_remote_code:
        _check_kernels(name, config)
    _check_alone(name, where)
    return config


def _check_alone(name: str, where: str) -> None:
    """Refuse a model with an adapter of PEFT beside it, which transformers would load as well.

    A repository of the hub would even be replaced by the base that the adapter names.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(where) is not None:
        raise ModelError(
            f"{name} is a model with an adapter in its folder: there is an adapter_config.json.",
            advice="Move the adapter's files to a folder of their own, and name it as --adapter.",
        )


def _check_kernels(name: str, config: "PretrainedConfig") -> None:
    """Refuse a config that names attention code of a repository, which transformers would fetch."""
    kernels = {str(part._attn_implementation) for part in _list_configs(config)}
    named = sorted(kernel for kernel in kernels if "/" in kernel)
    if named:
        raise ModelError(
            f"The config of {name} asks for attention code of a repository: {', '.join(named)}.",
            advice=TRUST_ADVICE,
        )


def _list_configs(config: "PretrainedConfig") -> "Iterator[PretrainedConfig]":
    """Yield a config and those of its parts, such as a vision tower, at every depth."""
    from transformers import PretrainedConfig

    yield config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield from _list_configs(part)


def build_without_weights(
    config: "PretrainedConfig", *, trust_remote_code: bool = False
) -> "PreTrainedModel | None":
    """Return the model of a config on the meta device; None if transformers cannot build it."""
    from transformers import AutoModel

    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
            return AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except READ_ERRORS:
        return None


def load_tokenizer(
    name: str, advice: str = "", *, trust_remote_code: bool = False, template: str | None = None
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model by folder, hub id or `builtin:NAME`.

    Args:
        name: of the model.
        advice: of the error, where the tokenizer cannot be read.
        trust_remote_code: as in `load`.
        template: as in `load`.

    Raises:
        ModelError: there is none, transformers cannot read it, or it needs code that is not
            trusted.
        SpecError: the template cannot be read.
    """
    from transformers import AutoTokenizer

    # A folder of a tokenizer alone, such as an adapter's, is no model folder.
    has_own = (Path(name) / TOKENIZER_CONFIG).is_file()
    where = name if has_own else locate(name)[0]
    if Path(where).is_dir() and not _has_tokenizer_files(Path(where)):
        raise ModelError(f"{name} has no tokenizer.", advice=TOKENIZER_ADVICE)
    read = partial(AutoTokenizer.from_pretrained, where, trust_remote_code=trust_remote_code)
    tokenizer = _read(f"The tokenizer of {name}", read, advice)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ModelError(f"The tokenizer of {name} has no vocabulary.", advice=TOKENIZER_ADVICE)
    if template is not None:
        set_template(tokenizer, template)
    return tokenizer


def load_generation_config(
    name: str, config: "PretrainedConfig", *, trust_remote_code: bool = False
) -> "GenerationConfig":
    """Return the settings by which a model generates; those of its config if it has no others."""
    from transformers import GenerationConfig

    where, _ = locate(name)
    try:
        with quiet():
            return GenerationConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
    except READ_ERRORS:
        return GenerationConfig.from_model_config(config)


def _has_tokenizer_files(folder: Path) -> bool:
    """Return True if a file of a folder belongs to a tokenizer, by its name."""
    return any(
        file.name.startswith(TOKENIZER_FILES) or file.suffix == ".model"
        for file in folder.iterdir()
    )


def _read(subject: str, read: Callable[[], Read], advice: str) -> Read:
    try:
        with quiet():
            return read()
    except READ_ERRORS as error:
        message = f"{subject} cannot be read: {first_line(error)}"
        raise ModelError(message, advice=advise(error, advice)) from error


def advise(error: Exception, advice: str) -> str:
    """Return the advice for an error of transformers: the given one, unless code is not trusted."""
    return TRUST_ADVICE if "trust_remote_code" in str(error) else advice


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing reports and progress bars to the terminal in this block.

    Messages of torchao, which transformers imports where it is installed, are not shown either.
    lorakit itself reports what matters of them.
    """
    from transformers.utils import logging

    levels = {logger: logger.level for logger in map(getLogger, TALKATIVE)}
    verbosity = logging.get_verbosity()
    had_bar = logging.is_progress_bar_enabled()
    for logger in levels:
        logger.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
