"""Which layers deserve an adapter most: those that take most off the loss in a few steps of all of
them together.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lorakit.deltas.overrides import requested_settings, write_overrides
from lorakit.errors import SpecError
from lorakit.inits.from_data import as_batch_list, eval_mode, loss_of
from lorakit.inject.attach import attach, detach, enable, enabled
from lorakit.ranks.allocate import count_rank_costs
from lorakit.spec import Spec, matches

PROBE = "suggestion"  # what the adapter of the probe is called while it is on


def select_layers(
    model: nn.Module,
    spec: Spec,
    batches: Iterable[Any],
    *,
    budget: int | None = None,
    lr: float = 1e-3,
) -> Spec:
    """Return the spec with those of its layers alone that deserve their rank most, by a probe of
    one step a batch.

    All layers are adapted and take a step of AdamW on each batch; a layer is worth what its steps
    took off the loss to first order, the sum of -gradient * step over its values. Layers are taken
    in this order while they fit. The probe is taken off
    again: neither the model nor the global random state changes.

    Args:
        model: what the spec is for; it must give a loss for each batch, as for init="lora-ga".
        spec: what may be adapted, and the rank of each.
        batches: see `attach`; eight are enough to tell layers apart.
        budget: values of all A and B together; half of the spec's where it is not given.
        lr: learning rate of the probe; a third of the training's is what was measured.

    Raises:
        SpecError: the budget is too small for any layer, or a batch gives no loss.

    Source: first-order sensitivity as in Molchanov et al., arXiv 1906.10771, section 3, summed over
        the path of the probe.

    >>> model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.eye(4)
    >>> chosen = select_layers(model, Spec(rank=1), [lambda net: net[1](x).square().sum() + 1e-6 * net[0](x).sum()])
    >>> chosen.targets
    ('1',)
    """
    chosen, costs, full = count_rank_costs(model, spec, None)
    size = {n: cost * spec.settings(n).rank for n, cost in costs.items()}
    worth, left, taken = (
        _gains(model, spec, as_batch_list(batches), lr),
        full // 2 if budget is None else budget,
        list[str](),
    )
    for n in sorted(chosen, key=lambda n: -worth[n]):
        if size[n] <= left:
            taken.append(n)
            left -= size[n]
    if not taken:
        raise SpecError(
            f"No layer fits into a budget of {left:,} values; the smallest takes {min(size.values()):,}.",
            advice="Give a larger budget, or a lower rank.",
        )
    kept = {n: requested_settings(spec.settings(n)) for n in taken}
    targets = tuple(n for n in chosen if n in kept)
    mine = {p: c for p, c in spec.overrides.items() if any(matches(p, n) for n in targets)}
    return write_overrides(replace(spec, targets=targets, exclude=(), overrides=mine), kept)


def _gains(model: nn.Module, spec: Spec, batches: list[Any], lr: float) -> dict[str, float]:
    """Return what each layer's steps take off the loss, to first order."""
    on = enabled(model)
    plain = {
        p: {k: v for k, v in change.items() if not k.startswith("init")}
        for p, change in spec.overrides.items()
    }
    bare = replace(
        spec, init="kaiming", init_std=None, bias="none", full_modules=(), overrides=plain
    )
    probe = attach(model, bare, name=PROBE)
    try:
        gains = dict.fromkeys(probe.deltas, 0.0)
        optimizer = torch.optim.AdamW(list(probe.parameters()), lr=lr, weight_decay=0.0)
        with eval_mode(model), torch.enable_grad():
            for batch in batches:
                loss_of(model, batch).backward()
                before = {
                    n: [(p, p.detach().clone()) for p in d.parameters()]
                    for n, d in probe.deltas.items()
                }
                optimizer.step()
                for n, held in before.items():
                    gains[n] -= sum(
                        float((p.grad * (p.detach() - old)).sum())
                        for p, old in held
                        if p.grad is not None
                    )
                optimizer.zero_grad()
    finally:
        detach(model, PROBE)
        if on:
            enable(model, on)
    return gains
