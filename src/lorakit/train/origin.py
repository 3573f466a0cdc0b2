"""The adapter that a run goes on from: its spec, and its head where it fits the task of the run."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypedDict

import torch
from torch import nn

from lorakit.adapter import Adapter
from lorakit.errors import NOT_STARTED, ModelError, SpecError
from lorakit.inject.attach import attach
from lorakit.inject.build import describe_origin
from lorakit.inject.fingerprint import fingerprint
from lorakit.inject.full_parameters import copy_full_parameters, find_full_modules
from lorakit.models.load import Loaded, load
from lorakit.models.open import find_labels
from lorakit.models.own_tokenizer import list_tokenizer_files
from lorakit.models.tasks import TASKS
from lorakit.spec import Spec, is_inside
from lorakit.tasks.rows import resolve_task
from lorakit.text import dtype_name, plural
from lorakit.train.config import TrainSpec
from lorakit.train.log import Say

START = ("init", "init_std")  # settings of a new adapter's start
# Settings to which the run of the adapter has added names of its own.
EXTENDED = ("full_modules", "exclude")


class OriginFacts(TypedDict):
    """The adapter that a run went on from, as run.json, report.json and the adapter's file tell it.

    `files` are those of its tokenizer, which the new adapter's folder gets too.
    """

    path: str
    content_hash: str
    task: str
    labels: list[str]
    files: list[str]


@dataclass(frozen=True)
class Origin:
    """The adapter that a run goes on from.

    Attributes:
        adapter: as its folder holds it; the run trains its tensors.
        facts: what the report tells of it.
    """

    adapter: Adapter
    facts: OriginFacts

    def has_classes_of(self, task: str, labels: Sequence[str]) -> bool:
        """Return True if it was trained for a task with these classes, in whatever order."""
        return self.facts["task"] == task and set(self.facts["labels"]) == set(labels)


def read_origin(settings: TrainSpec, spec: Spec, say: Say) -> Origin | None:
    """Read the adapter that a run goes on from; None if its settings name none.

    Args:
        settings: of the run.
        spec: settings of it that are not the default have to be those of the adapter.
        say: called with each message for the user.

    Raises:
        AdapterFileError: it cannot be read.
        SpecError: the spec contradicts that of the adapter; each setting is named.
    """
    if settings.adapter is None:
        return None
    adapter = Adapter.load(settings.adapter)
    default = Spec()
    names = [one.name for one in fields(Spec)]
    given = [name for name in names if getattr(spec, name) != getattr(default, name)]
    _refuse_changes(settings.adapter, adapter.spec, spec, given)
    trusted = settings.trust_remote_code
    task = resolve_task(adapter, settings.model, trust_remote_code=trusted)
    facts: OriginFacts = {
        "path": settings.adapter,
        "content_hash": adapter.content_hash(),
        "task": task,
        "labels": find_labels(settings.model, adapter, task, trust_remote_code=trusted),
        "files": list_tokenizer_files(settings.adapter),
    }
    say(f"Going on from {settings.adapter}, an adapter for {_describe(task, facts['labels'])}")
    if adapter.spec.dtype == "float16":
        say("note: its parameters are in float16, in which Adam does not work; float32 is used")
        adapter.to(torch.float32)
        adapter.spec = replace(adapter.spec, dtype="float32")
    return Origin(adapter, facts)


def check_given(folder: str, spec: Spec, given: Collection[str]) -> None:
    """Refuse settings of an adapter that contradict the adapter that a run goes on from.

    Args:
        folder: of the adapter.
        spec: holds the values.
        given: names of the fields that the user gave, also those with the default value.

    Raises:
        AdapterFileError: it cannot be read.
        SpecError: each setting is named.
    """
    _refuse_changes(folder, Adapter.load(folder).spec, spec, given, starts=START)


def _refuse_changes(
    folder: str, own: Spec, spec: Spec, given: Collection[str], starts: Collection[str] = ()
) -> None:
    faults = []
    for name in given:
        asked, has = getattr(spec, name), getattr(own, name)
        if name in starts:
            faults.append(f"{name}: is for the start of a new adapter, and this one is not new")
        elif asked != has and not (name in EXTENDED and _names(asked) <= _names(has)):
            faults.append(f"{name}: {asked!r} is asked, the adapter has {has!r}")
    if faults:
        raise SpecError(
            f"A run that goes on from an adapter keeps its spec; {plural(len(faults), 'setting')} "
            f"of this one cannot be used with {folder}.",
            faults,
            f"Leave them out, or train a new adapter without --adapter. {NOT_STARTED}",
        )


def _names(patterns: str | tuple[str, ...]) -> set[str]:
    return {patterns} if isinstance(patterns, str) else set(patterns)


def attach_origin(
    origin: Origin, base: Loaded, settings: TrainSpec, say: Say = lambda message: None
) -> Adapter:
    """Attach the adapter to a base; a head that does not fit the task of the base is made anew.

    Raises:
        AdapterMismatch: it does not fit, or was trained on other base weights.
    """
    adapter, model = origin.adapter, base.model
    any_base = settings.any_base or _is_trained_on(origin, base, settings)
    _renew_head(origin, base, say)
    attach(model, adapter, any_base=any_base)
    full_modules = find_full_modules(model, adapter.spec.full_modules, require_match=False)
    facts = describe_origin(model, adapter, full_modules, settings.seed)
    adapter.provenance = {**facts, "started_from": dict(origin.facts)}
    return adapter


def _is_trained_on(origin: Origin, base: Loaded, settings: TrainSpec) -> bool:
    """Return True if a base with another head has the weights that the adapter was trained on.

    The fingerprint covers a head that was not trained, so that of the base for the task of the
    adapter counts. False leaves the check to `attach`.
    """
    trained_on = origin.adapter.provenance.get("base_fingerprint")
    if not trained_on or origin.has_classes_of(base.task, base.labels):
        return False
    if _fingerprint_for(origin.adapter, base.model) == trained_on:
        return True
    try:
        earlier = load(
            settings.model,
            origin.facts["task"],
            labels=origin.facts["labels"],
            dtype=dtype_name(base.model.dtype),
            device="cpu",
            trust_remote_code=settings.trust_remote_code,
        )
    except ModelError:
        return False
    return _fingerprint_for(origin.adapter, earlier.model) == trained_on


def _fingerprint_for(adapter: Adapter, model: nn.Module) -> str:
    modules = find_full_modules(model, adapter.spec.full_modules, require_match=False)
    return fingerprint(model, without=modules, rows=adapter.trained_tokens)


def _renew_head(origin: Origin, base: Loaded, say: Say) -> None:
    """Give the adapter the head of the base where its own does not fit, or where it has none."""
    adapter = origin.adapter
    task, labels = origin.facts["task"], origin.facts["labels"]
    renewed = [name for name in base.new_modules if not _holds(adapter, base.model, name)]
    heads = _find_heads(base)
    reason = "the adapter holds no weights for it"
    if not origin.has_classes_of(base.task, base.labels):
        trained_for, now = _describe(task, labels), _describe(base.task, base.labels)
        reason = f"the adapter was trained for {trained_for}, this run is for {now}"
        held = [*adapter.full_parameters, *adapter.deltas]
        renewed += [head for head in heads if any(is_inside(name, [head]) for name in held)]
    renewed = _outermost(renewed)
    if not renewed:
        return
    _replace_modules(adapter, base.model, renewed)
    say(
        f"note: the head ({', '.join(renewed)}) is made anew and trained in full: {reason}; the "
        "rest of the adapter is kept"
    )


def _outermost(modules: Iterable[str]) -> list[str]:
    """Return each module once, without those inside of others.

    >>> _outermost(["head.out", "norm", "head", "norm"])
    ['norm', 'head']
    """
    different = dict.fromkeys(modules)
    return [name for name in different if not is_inside(name, different.keys() - {name})]


def _find_heads(base: Loaded) -> list[str]:
    """Return the modules around the body of a model, which make its answer for the task."""
    model, body = base.model, base.model.base_model_prefix
    if not TASKS[base.task].has_head or not hasattr(model, body):
        return []
    return [
        name
        for name, child in model.named_children()
        if name != body and next(child.parameters(), None) is not None
    ]


def _holds(adapter: Adapter, model: nn.Module, module: str) -> bool:
    """Return True if an adapter holds each parameter of a module in full."""
    own = dict(model.get_submodule(module).named_parameters())
    return all(f"{module}.{name}" in adapter.full_parameters for name in own)


def _replace_modules(adapter: Adapter, model: nn.Module, modules: Sequence[str]) -> None:
    """Put the base's parameters of modules into an adapter, to train in full.

    Its own tensors of these modules are dropped.
    """
    for name in [*adapter.full_parameters]:
        if is_inside(name, modules):
            del adapter.full_parameters[name]
    kept = {name: delta for name, delta in adapter.deltas.items() if not is_inside(name, modules)}
    if len(kept) < len(adapter.deltas):
        adapter.deltas, adapter.target_names = kept, tuple(kept)
    known = find_full_modules(model, adapter.spec.full_modules, require_match=False)
    new = [name for name in modules if not is_inside(name, known)]
    adapter.spec = replace(adapter.spec, full_modules=(*adapter.spec.full_modules, *new))
    adapter.full_parameters |= copy_full_parameters(model, modules, "none", ())


def _describe(task: str, labels: Sequence[str]) -> str:
    if not labels:
        return task
    return f"{task} with {len(labels)} classes ({', '.join(labels)})"
