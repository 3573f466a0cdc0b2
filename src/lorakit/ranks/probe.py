"""Selection of the layers that reduce the loss most, by a short training of all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta
from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.errors import SpecError
from lorakit.inits.from_data import as_batch_list, eval_mode, loss_of
from lorakit.inject.attach import attach, detach, enable, enabled
from lorakit.patterns import matches
from lorakit.ranks.allocate import count_rank_costs
from lorakit.spec import Spec

PROBE = "suggestion"  # name of the probe's adapter


def select_layers(
    model: nn.Module,
    spec: Spec,
    batches: Iterable[object],
    *,
    budget: int | None = None,
    lr: float = 1e-3,
) -> Spec:
    """Return the spec with only those layers that reduce the loss most within a budget.

    A probe adapts all layers and takes one step of AdamW on each batch. The gain of a layer is the
    reduction of the loss by its steps, to first order: the sum of -gradient * step over its values.
    Layers are selected by gain while they fit. The probe is detached at the end: neither the model
    nor the global random state changes.

    Args:
        model: the model to adapt; it must return a loss for each batch, as for init="lora-ga".
        spec: the layers to choose from, and the rank of each.
        batches: see `attach`; eight are enough to rank the layers.
        budget: values of all A and B together; None for half of the spec's.
        lr: learning rate of the probe; a third of the training's was measured.

    Raises:
        SpecError: the budget is too small for any layer, or a batch gives no loss.

    Source: first-order sensitivity as in Molchanov et al., arXiv 1906.10771, section 3, summed over
        the steps of the probe.

    >>> model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.eye(4)
    >>> def loss(model):
    ...     return model[1](x).square().sum() + 1e-6 * model[0](x).sum()
    >>> select_layers(model, Spec(rank=1), [loss]).targets
    ('1',)
    """
    places, costs, all_values = count_rank_costs(model, spec, None)
    if budget is None:
        budget = all_values // 2
    gains = _probe_gains(model, spec, as_batch_list(batches), lr)
    sizes = {name: cost * spec.settings(name).rank for name, cost in costs.items()}
    by_gain = sorted(places, key=lambda name: gains[name], reverse=True)
    chosen = _take_while_fitting(by_gain, sizes, budget)
    targets = tuple(name for name in places if name in chosen)
    overrides: dict[str, Mapping[str, object]] = {}
    for pattern, change in spec.overrides.items():
        if any(matches(pattern, name) for name in targets):
            overrides[pattern] = change
    narrowed = replace(spec, targets=targets, exclude=(), overrides=overrides)
    wanted = {name: requested_settings(spec.settings(name)) for name in chosen}
    return write_overrides(narrowed, wanted)


def _take_while_fitting(names: Sequence[str], sizes: Mapping[str, int], budget: int) -> list[str]:
    """Return the names, in order, that fit into what is left of the budget.

    Raises:
        SpecError: none fits.
    """
    chosen: list[str] = []
    left = budget
    for name in names:
        if sizes[name] <= left:
            chosen.append(name)
            left -= sizes[name]
    if not chosen:
        raise SpecError(
            f"No layer fits into a budget of {budget:,} values; the smallest takes "
            f"{min(sizes.values()):,}.",
            advice="Give a larger budget, or a lower rank.",
        )
    return chosen


def _probe_gains(
    model: nn.Module,
    spec: Spec,
    batches: Sequence[object],
    lr: float,
) -> dict[str, float]:
    """Attach a probe, train it, detach it, and return the gain of each layer."""
    previously_enabled = enabled(model)
    probe = attach(model, _probe_spec(spec), name=PROBE)
    try:
        with eval_mode(model), torch.enable_grad():
            return _train_probe(model, probe, batches, lr)
    finally:
        detach(model, PROBE)
        if previously_enabled:
            enable(model, previously_enabled)


def _probe_spec(spec: Spec) -> Spec:
    """Return the spec with only A and B, which start without data."""
    overrides: dict[str, dict[str, object]] = {}
    for pattern, change in spec.overrides.items():
        overrides[pattern] = {
            key: value for key, value in change.items() if not key.startswith("init")
        }
    return replace(
        spec,
        init="kaiming",
        init_std=None,
        bias="none",
        full_modules=(),
        overrides=overrides,
    )


def _train_probe(
    model: nn.Module, probe: Adapter, batches: Sequence[object], lr: float
) -> dict[str, float]:
    """Take one step for each batch, and return the gain of each layer."""
    gains = dict.fromkeys(probe.deltas, 0.0)
    optimizer = torch.optim.AdamW(list(probe.parameters()), lr=lr, weight_decay=0.0)
    for batch in batches:
        loss_of(model, batch).backward()
        before = {name: _copy_parameters(delta) for name, delta in probe.deltas.items()}
        optimizer.step()
        for name, delta in probe.deltas.items():
            gains[name] -= _loss_change(delta, before[name])
        optimizer.zero_grad()
    return gains


def _copy_parameters(delta: Delta) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in delta.parameters()]


def _loss_change(delta: Delta, before: Sequence[Tensor]) -> float:
    """Return the change of the loss by a step of one layer, to first order: gradient * step."""
    change = 0.0
    for parameter, old in zip(delta.parameters(), before, strict=True):
        if parameter.grad is not None:
            step = parameter.detach() - old
            change += float((parameter.grad * step).sum())
    return change
