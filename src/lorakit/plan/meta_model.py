"""Models without their weights, on the meta device: from a config, headers, or a publication."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from lorakit.errors import ModelError
from lorakit.models.load import check_new_modules, choose_auto_class, find_positions
from lorakit.models.locate import locate
from lorakit.models.read import load_config, quiet
from lorakit.models.tasks import TASKS, task_of_config
from lorakit.plan.headers import build_from_shapes, find_weight_files, read_shapes
from lorakit.plan.published import PREFIX, PUBLISHED
from lorakit.text import add_hint, first_line, near_misses

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class MetaModel:
    """A model whose tensors have shapes and no values.

    Attributes:
        model: on the meta device.
        name: the name that the user gave.
        task: its name.
        new_modules: modules that its checkpoint does not hold: a new head.
        max_length: tokens that the model can read at most; 0 if that is not known.
        runs: True if its forward is known; headers alone give shapes, not what is done with them.
        trust_remote_code: True if Python code of its folder may run.
    """

    model: nn.Module
    name: str
    task: str
    new_modules: tuple[str, ...]
    max_length: int
    runs: bool = True
    trust_remote_code: bool = False

    @property
    def transformer(self) -> "PreTrainedModel":
        """The model as one of transformers; only if `runs`."""
        return cast("PreTrainedModel", self.model)

    @property
    def text_config(self) -> "PretrainedConfig | None":
        """The config of its language model, or None if only headers are known."""
        return self.transformer.config.get_text_config() if self.runs else None


def load_meta_model(
    name: str, task: str = "auto", labels: int = 2, *, trust_remote_code: bool = False
) -> MetaModel:
    """Return a model of this name without its weights; from the hub only its config is fetched.

    Args:
        name: a folder, a hub id, `builtin:NAME`, `card:NAME` of a publication, or a safetensors
            file (or a folder of them without a config).
        task: its name, or auto: taken from the config.
        labels: number of classes, where the task has any.
        trust_remote_code: True to run Python code that the folder or repository brings along.

    Raises:
        ModelError: there is no such model, or none that can be built for the task.
    """
    if name.startswith(PREFIX):
        return _load_published(name, task, labels)
    files = find_weight_files(Path(name))
    if files and not (Path(name) / "config.json").is_file():
        model = build_from_shapes(read_shapes(files))
        return MetaModel(model, name, "causal-lm", (), 0, runs=False)
    where, _ = locate(name)
    cards = ", ".join(PREFIX + card for card in PUBLISHED)
    config = load_config(
        where,
        advice=f"Name a folder, a hub id within reach, or a card: {cards}.",
        trust_remote_code=trust_remote_code,
    )
    stored = set(read_shapes(find_weight_files(Path(where))))
    return _from_config(
        config, name, task, labels, stored or None, trust_remote_code=trust_remote_code
    )


def _load_published(name: str, task: str, labels: int) -> MetaModel:
    short = name.removeprefix(PREFIX)
    if short not in PUBLISHED:
        raise ModelError(
            add_hint(f"There is no {name!r}.", near_misses(short, PUBLISHED)),
            advice=f"Cards: {', '.join(PUBLISHED)}.",
        )
    card = PUBLISHED[short]
    wanted = card.task if task == "auto" else task
    return _from_config(card.config(), name, wanted, labels, None)


def _from_config(
    config: "PretrainedConfig",
    name: str,
    task: str,
    labels: int,
    stored: Collection[str] | None,
    *,
    trust_remote_code: bool = False,
) -> MetaModel:
    """Return a model of this config.

    Args:
        config: config of transformers; the number of labels is set in it.
        name: the name that the user gave.
        task: as in `load_meta_model`.
        labels: as in `load_meta_model`.
        stored: names of the tensors of its checkpoint, if they are known.
        trust_remote_code: as in `load_meta_model`.
    """
    task = task_of_config(config) if task == "auto" else task
    text = config.get_text_config()
    names = TASKS[task]
    if names.has_head:
        config.num_labels = labels if names.has_classes else 1
        if text.pad_token_id is None:
            # Any id will do: no token is read.
            config.pad_token_id = text.pad_token_id = 0
    model = _build(config, name, task, trust_remote_code=trust_remote_code)
    has_new_head = stored is not None or names.has_head
    new = _new_modules(model, stored) if has_new_head else ()
    check_new_modules(name, task, new)
    longest = find_positions(config, model)
    return MetaModel(model, name, task, new, longest, trust_remote_code=trust_remote_code)


def _build(
    config: "PretrainedConfig", name: str, task: str, *, trust_remote_code: bool
) -> "PreTrainedModel":
    kind = choose_auto_class(name, config, task, trust_remote_code=trust_remote_code)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
            return kind.from_config(
                config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ModelError(f"{name} cannot be loaded for {task}: {first_line(error)}") from error


def _new_modules(model: "PreTrainedModel", stored: Collection[str] | None) -> tuple[str, ...]:
    """Return the modules of the head that a checkpoint does not hold; all if none is known."""
    # A head that is the embedding has no tensor of its own.
    shared = {id(parameter) for parameter in model.base_model.parameters()}
    new = []
    for name, child in model.named_children():
        if name == model.base_model_prefix:
            continue
        if any(id(parameter) not in shared for parameter in child.parameters()):
            new.append(name)
    new = _not_among(new, stored or ())
    return tuple(_not_among(new, _rename(model, stored or ())) if new else new)


def _not_among(modules: Collection[str], keys: Iterable[str]) -> list[str]:
    """Return the modules of which no tensor has one of these names."""
    stored: set[str] = set()
    for key in keys:
        stored.update(key.split(".")[:-1])
    return [name for name in modules if name not in stored]


def _rename(model: "PreTrainedModel", stored: Collection[str]) -> Iterator[str]:
    """Yield the names of a checkpoint as transformers changes them: GPT-NeoX's head has two."""
    if not type(model).__module__.startswith("transformers."):
        return
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    for key in stored:
        yield apply_renamings(key, renamings)
