"""A base model with an adapter on it, and the encoded rows of its task."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.adapter import Adapter
from lorakit.data.template_files import check_template, set_template
from lorakit.errors import DataError, ModelError
from lorakit.inject.attach import attach, enable
from lorakit.models.load import Loaded, count_embeddings, find_max_length, load
from lorakit.models.own_tokenizer import check_vocabulary, take_own_tokenizer
from lorakit.models.read import load_config
from lorakit.models.tasks import TASKS
from lorakit.spec import is_inside
from lorakit.text import plural

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNNAMED = "LABEL_"  # transformers' names for classes without one
DEFAULT_LENGTH = 512  # tokens of a sequence, where the model can read as many


def open_model(
    model: str,
    adapter: Adapter | None,
    task: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    any_base: bool = False,
    trust_remote_code: bool = False,
    template: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Loaded:
    """Load a base for a task, and attach the adapter to it.

    The tokenizer and the chat template are those of the adapter's folder, where it has them.

    Args:
        model: a folder, a hub id or `builtin:NAME`.
        adapter: attached and on; None for the base alone.
        task: a key of TASKS.
        dtype: of the base's weights.
        device: cpu, cuda, … or "auto".
        any_base: True to take another base than the adapter was trained on.
        trust_remote_code: True to run Python code that the base's folder brings along.
        template: chat template: chatml, or a file; None for that of the adapter's folder, or of
            the base.
        say: called with what is used of the adapter's folder beside its weights.

    Raises:
        ModelError: the base cannot be loaded, or has a head of random weights; or the adapter's
            folder has a tokenizer that does not fit it.
        SpecError: the template cannot be read.
        AdapterMismatch: the adapter does not fit it.
    """
    labels = find_labels(model, adapter, task, trust_remote_code=trust_remote_code)
    trained = tuple(adapter.full_parameters) if adapter else ()
    check_template(template)
    loaded = load(
        model,
        task,
        labels=labels,
        dtype=dtype,
        trains_base=bool(trained),
        device=device,
        trust_remote_code=trust_remote_code,
    )
    check_trained(model, loaded.new_modules, trained)
    if adapter is not None:
        if adapter.source is not None:
            use_own_tokenizer(loaded, adapter.source, say, trust_remote_code=trust_remote_code)
        attach(loaded.model, adapter, trainable=False, any_base=any_base)
        loaded.model.eval()
    if template is not None:
        set_template(loaded.tokenizer, template)
    return loaded


def add_adapter(
    base: Loaded,
    adapter: Adapter,
    name: str,
    *,
    any_base: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Loaded:
    """Attach one of several adapters to a base, and switch all of them off.

    Args:
        base: the base with its own tokenizer.
        adapter: attached under `name`.
        name: as `attach` takes it.
        any_base: True to take another base than the adapter was trained on.
        trust_remote_code: True to run Python code that the adapter's folder brings along.
        say: called with what is used of the adapter's folder beside its weights.

    Returns:
        The same model, with the tokenizer and the chat template that the adapter was trained with.

    Raises:
        AdapterMismatch: the adapter does not fit the base.
        ModelError: its folder has a tokenizer that does not fit the base.
    """
    loaded = replace(base, tokenizer=copy(base.tokenizer))
    if adapter.source is not None:
        use_own_tokenizer(loaded, adapter.source, say, trust_remote_code=trust_remote_code)
    attach(base.model, adapter, name=name, trainable=False, any_base=any_base)
    enable(base.model, None)
    base.model.eval()
    return loaded


def use_own_tokenizer(
    loaded: Loaded, folder: Path, say: Callable[[str], None], *, trust_remote_code: bool
) -> None:
    """Give a base the tokenizer and the chat template of an adapter's folder, and say so.

    Args:
        loaded: the base; its tokenizer and its `max_length` are replaced.
        folder: of the adapter.
        say: called with what is used of the folder.
        trust_remote_code: True to run Python code that the folder brings along.

    Raises:
        ModelError: the tokenizer cannot be read, or does not fit the base.
    """
    tokenizer, used = take_own_tokenizer(
        loaded.tokenizer, folder, trust_remote_code=trust_remote_code
    )
    if not used:
        return
    check_vocabulary(loaded.model, tokenizer, "Nothing was computed.")
    loaded.tokenizer = tokenizer
    loaded.max_length = find_max_length(loaded.model.config, tokenizer, loaded.model)
    which = "are used, not those" if " and " in used else "is used, not that"
    say(f"note: {used} of {folder} {which} of {loaded.name}")


def check_trained(name: str, new_modules: Iterable[str], trained: Iterable[str]) -> None:
    """Refuse a model with a module that neither its folder nor an adapter has weights for.

    Args:
        name: of the model, for the message.
        new_modules: modules whose weights the folder does not hold.
        trained: names of the parameters that the adapter holds in full.

    Raises:
        ModelError: there are such modules.
    """
    untrained = untrained_modules(new_modules, trained)
    if untrained:
        raise ModelError(
            f"{name} has no trained weights for {', '.join(untrained)}: its answers would be "
            "random.",
            advice="Name an adapter that holds them (--adapter), or train one.",
        )


def untrained_modules(new_modules: Iterable[str], trained: Iterable[str]) -> list[str]:
    """Return the new modules of a model that none of these trained parameters is in."""
    parameters = list(trained)
    return [
        module
        for module in new_modules
        if not any(is_inside(parameter, [module]) for parameter in parameters)
    ]


def find_labels(
    model: str, adapter: Adapter | None, task: str, *, trust_remote_code: bool = False
) -> list[str]:
    """Return the class names of the adapter's training, else those of the model's config.

    Only a task with classes has any.
    """
    if not TASKS[task].has_classes:
        return []
    if adapter is None:
        return config_labels(load_config(model, trust_remote_code=trust_remote_code))
    names = adapter.provenance.get("labels")
    if names:
        return list(names)
    outputs = adapter.count_outputs()
    known = config_labels(load_config(model, trust_remote_code=trust_remote_code))
    has_names = not all(name.startswith(UNNAMED) for name in known)
    if outputs is None or (has_names and outputs == len(known)):
        return known
    return [str(i) for i in range(outputs)]


def config_labels(config: "PretrainedConfig") -> list[str]:
    """Return the class names of a config, in the order of the outputs."""
    names = config.id2label or {}
    return [name for _, name in sorted(names.items())]


def choose_max_length(max_length: int | None, limit: int) -> int:
    """Return the tokens of a sequence: as given, else 512 or the limit of the model.

    Raises:
        DataError: `max_length` is above the limit.

    >>> choose_max_length(None, limit=256), choose_max_length(None, limit=4096)
    (256, 512)
    """
    if max_length is None:
        return min(DEFAULT_LENGTH, limit)
    if max_length > limit:
        raise DataError(
            f"max_length: {max_length} tokens are given, the model takes at most {limit}."
        )
    return max_length


def check_ids(loaded: Loaded, where: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
    """Refuse rows with tokens that the model has no embedding for.

    Args:
        loaded: the model with its tokenizer.
        where: name of each row.
        ids: token ids of each row.

    Raises:
        DataError: each row is named, with such a token.
    """
    known = count_embeddings(loaded.model)
    if known is None:
        return
    faults = []
    for name, row in zip(where, ids, strict=True):
        largest = max(row, default=0)
        if largest >= known:
            token = loaded.tokenizer.convert_ids_to_tokens(largest)
            faults.append(f"{name}   token {token!r} has the id {largest:,}")
    if faults:
        raise DataError(
            f"{plural(len(faults), 'row')} with tokens that {loaded.name} cannot embed: its "
            f"embedding has {known:,} rows, its tokenizer {len(loaded.tokenizer):,} ids.",
            faults,
            "Use the tokenizer that the model was trained with, or make the embedding larger: "
            "model.resize_token_embeddings(len(tokenizer)).",
        )
