"""The class of a model that an adapter fits: that in its folder, or one with another head."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorakit.adapter import Adapter
from lorakit.errors import ModelError
from lorakit.inject.places import find_places
from lorakit.models.load import (
    NAMING_ADVICE,
    device_of,
    head_options,
    load_weights,
    outermost_modules,
)
from lorakit.models.locate import locate
from lorakit.models.read import READ_ERRORS, advise, quiet
from lorakit.models.tasks import MODEL_CLASSES
from lorakit.text import first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Candidate:
    """A class to load a folder with.

    Attributes:
        model_class: of transformers.
        options: settings of the config that make its head.
        trust_remote_code: True if code of the folder may run.
    """

    model_class: Any
    options: Mapping[str, Any]
    trust_remote_code: bool

    def build(self, config: "PretrainedConfig") -> "PreTrainedModel":
        """Return a model without weights, on the meta device."""
        changed = copy.deepcopy(config)
        for key, value in self.options.items():
            setattr(changed, key, value)
        with torch.device("meta"), torch.random.fork_rng(devices=[]), quiet():
            if not self.model_class.__name__.startswith("Auto"):
                return self.model_class(changed)
            trusted = self.trust_remote_code
            return self.model_class.from_config(changed, trust_remote_code=trusted)

    def load(
        self, name: str, dtype: torch.dtype, device: str
    ) -> tuple["PreTrainedModel", tuple[str, ...]]:
        """Load the weights; return the model, and its modules of random weights.

        Raises:
            ModelError: transformers cannot load it.
        """
        where, _ = locate(name)
        target = device_of(device)
        try:
            model, missing = load_weights(
                self.model_class,
                where,
                self.options,
                dtype,
                trust_remote_code=self.trust_remote_code,
            )
        except READ_ERRORS as error:
            raise ModelError(
                f"{name} cannot be loaded as {self.model_class.__name__}: {first_line(error)}",
                advice=advise(error, NAMING_ADVICE),
            ) from error
        model.to(target)  # type: ignore[arg-type]
        return model.eval(), outermost_modules(model, missing)


def choose_class(
    config: "PretrainedConfig", adapter: Adapter, *, trust_remote_code: bool = False
) -> Candidate:
    """Return the first class that has every layer and parameter of an adapter.

    It is the class in the config, else one with a head for the adapter's task, else any that has
    them. Where none has all, it is the first one, and attaching says what is missing.

    Args:
        config: of the base's folder.
        adapter: the adapter, which is not changed.
        trust_remote_code: True if code of the folder may run.

    Raises:
        ModelError: transformers has no class for the config.
    """
    suitable: list[Candidate] = []
    for model_class, options in _classes(config, adapter, trust_remote_code=trust_remote_code):
        candidate = Candidate(model_class, options, trust_remote_code)
        try:
            model = candidate.build(config)
        except READ_ERRORS:
            continue
        suitable.append(candidate)
        if _has_all(model, adapter):
            return candidate
    if not suitable:
        named = ", ".join(config.architectures or ()) or config.model_type
        raise ModelError(f"transformers has no class for {named}.", advice=NAMING_ADVICE)
    return suitable[0]


def _classes(
    config: "PretrainedConfig", adapter: Adapter, *, trust_remote_code: bool
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the classes to try, each with the settings of its head."""
    import transformers

    remote = getattr(config, "auto_map", None) or {} if trust_remote_code else {}
    own = [name for name in remote if name.startswith("AutoModel")]
    own += [name for name in config.architectures or () if _is_model_class(name)]
    of_task = MODEL_CLASSES.get(adapter.provenance.get("task_type") or "")
    others = [of_task, *MODEL_CLASSES.values()] if of_task else list(MODEL_CLASSES.values())
    named_head = _named_head(adapter)
    for name in own:
        yield getattr(transformers, name), named_head
    for name in dict.fromkeys(others):
        has_labels = name.endswith("Classification")
        options = (named_head or _counted_head(config, adapter)) if has_labels else {}
        yield getattr(transformers, name), options


def _is_model_class(name: str) -> bool:
    """Return True for the name of a model in transformers: a config may name anything."""
    import transformers

    found = getattr(transformers, name, None)
    return isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)


def _named_head(adapter: Adapter) -> dict[str, Any]:
    """Return the settings of a head by the class names and the task in the adapter's file."""
    task = adapter.provenance.get("task")
    return head_options(task or "classify", adapter.provenance.get("labels") or ())


def _counted_head(config: "PretrainedConfig", adapter: Adapter) -> dict[str, Any]:
    """Return the settings of a head by the number of its outputs; the base's names are kept."""
    outputs = adapter.count_outputs()
    if outputs is None or outputs == config.num_labels:
        return {}
    return {"num_labels": outputs}


def _has_all(model: "PreTrainedModel", adapter: Adapter) -> bool:
    """Return True if a model has the layers and parameters of an adapter, by name and shape."""
    places = find_places(model, adapter.spec.parts)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    has_parameters = all(
        name in parameters and parameters[name].shape == tensor.shape
        for name, tensor in adapter.full_parameters.items()
    )
    return has_parameters and all(name in places for name in adapter.deltas)
