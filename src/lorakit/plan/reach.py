"""Modules that no row of text reaches, found by one short step on fake tensors.

A vision tower, cross attention without an encoder, or a weight that is read past its layer gets no
gradient from text: a run leaves it out, unless the user names it.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lorakit.evaluate.score import batch_loss
from lorakit.inject.build import resolve_targets
from lorakit.inject.check import Watch, watch_places
from lorakit.inject.places import Place, find_places
from lorakit.inject.targets import select
from lorakit.plan.meta_model import MetaModel
from lorakit.plan.shape_cache import ShapeCache
from lorakit.plan.trace import NEEDS_VALUES, quiet_fake_tensors, substituted
from lorakit.spec import Spec
from lorakit.tasks.base import Shape
from lorakit.tasks.find import find_task

UNREACHED = "left out of 'all-linear': no row of text reaches it"
READ_PAST = "left out of 'all-linear': its weight is read past the layer"
TOKENS = 4  # of the row that runs


def leave_out_unreached(base: MetaModel, spec: Spec) -> tuple[Spec, dict[str, str]]:
    """Exclude the modules that rows of text do not reach from a spec of the default targets.

    Args:
        base: the model; nothing may be attached to it.
        spec: spec of the adapter.

    Returns:
        The spec, and the reason for each module that is now left out, by name. Targets that the
        user chose are not changed.
    """
    if spec.targets != "all-linear" or not base.runs:
        return spec, {}
    places = resolve_targets(base.model, spec, find_places(base.model, spec.parts)).places
    reasons = _find_reasons(base, places)
    if not reasons or len(reasons) == len(places):
        return spec, {}
    modules = _outermost(reasons, places)
    patterns = [name if name in places else f"{name}.*" for name in modules]
    excluded = spec.exclude
    if isinstance(excluded, str):
        excluded = tuple(select(base.model, excluded, parts=spec.parts))
    return replace(spec, exclude=(*excluded, *patterns)), modules


def _find_reasons(base: MetaModel, places: Mapping[str, Place]) -> dict[str, str]:
    """Return the reason for each place that the loss of a row does not depend on; by name.

    It is empty where shapes alone do not tell.
    """
    model = base.transformer
    fake = FakeTensorMode()
    was_training = model.training
    with quiet_fake_tensors(), substituted(model, torch.float32, fake), ShapeCache(fake):
        watch = watch_places(model, places.values())
        hooks = watch.add_hooks()
        model.eval()
        try:
            for place in places.values():
                _weight(place).requires_grad_(True)
            with torch.enable_grad(), watch:
                task = find_task(base.task).traced
                batch_loss(model, _short_row(base), task)[0].backward()
            reasons = {name: _find_reason(place, watch) for name, place in places.items()}
        except NEEDS_VALUES:
            return {}
        finally:
            model.train(was_training)
            for hook in hooks:
                hook.remove()
    return {name: reason for name, reason in reasons.items() if reason}


def _find_reason(place: Place, watch: Watch) -> str:
    weight = _weight(place)
    if id(weight) in watch.direct_reads:
        return READ_PAST
    is_reached = place.layer in watch.called and weight.grad is not None
    return "" if is_reached else UNREACHED


def _weight(place: Place) -> nn.Parameter:
    return place.layer.get_parameter(place.site.weight_name())


def _short_row(base: MetaModel) -> dict[str, Tensor]:
    ids = torch.ones(1, TOKENS, dtype=torch.long)
    shape = Shape(1, TOKENS, TOKENS)
    labels = find_task(base.task).shape_labels(shape, base.transformer.config.num_labels or 1)
    return {"input_ids": ids, "labels": labels}


def _outermost(reasons: Mapping[str, str], places: Collection[str]) -> dict[str, str]:
    """Return the largest modules in which every place has a reason, each with its first reason.

    >>> _outermost({"a.b.0": "no", "a.b.1": "no", "c.d": "no"}, ["a.b.0", "a.b.1", "a.c", "c.d"])
    {'a.b': 'no', 'c': 'no'}
    """
    reached: set[str] = set()
    for name in places:
        if name not in reasons:
            reached.update(_enclosing(name))
    modules: dict[str, str] = {}
    for name, reason in reasons.items():
        module = next(one for one in _enclosing(name) if one not in reached)
        modules.setdefault(module, reason)
    return modules


def _enclosing(name: str) -> list[str]:
    """Return the names of the modules around a place, the largest first, and its own.

    >>> _enclosing("a.b.0")
    ['a', 'a.b', 'a.b.0']
    """
    return list(accumulate(name.split("."), "{}.{}".format))
