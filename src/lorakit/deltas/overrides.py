"""Overrides of a Spec by full layer name, for layers that differ in rank, alpha or scale."""

import glob
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from lorakit.deltas.base import Delta
from lorakit.spec import Settings, Spec


@dataclass(frozen=True, kw_only=True)
class RequestedSettings:
    """The settings of one layer that can be read off its delta."""

    rank: int
    alpha: float
    scale_rule: str
    dropout: float


def requested_settings(layer: Delta | Settings) -> RequestedSettings:
    """Return the settings that a layer was made with; of AdaLoRA the rank before pruning.

    Args:
        layer: the delta of a layer, or its resolved settings.
    """
    return RequestedSettings(
        rank=layer.initial_rank if isinstance(layer, Delta) else layer.rank,
        alpha=layer.alpha,
        scale_rule=layer.scale_rule,
        dropout=layer.dropout,
    )


def write_overrides(spec: Spec, wanted: Mapping[str, RequestedSettings]) -> Spec:
    """Return the spec with an override for each layer that it would give other settings.

    Args:
        spec: the spec to start from; its own overrides stay, behind the new ones.
        wanted: settings by full layer name.

    >>> spec = Spec(rank=4, alpha=8)
    >>> wanted = RequestedSettings(rank=2, alpha=8, scale_rule="alpha/rank", dropout=0.0)
    >>> write_overrides(spec, {"a": wanted}).settings("a").rank
    2
    """
    added: dict[str, dict[str, object]] = {}
    complete = spec
    while True:
        differing = [
            name
            for name, settings in wanted.items()
            if requested_settings(complete.settings(name)) != settings
        ]
        if not differing:
            return complete
        for name in differing:
            added[name] = {**spec.override_for(name), **asdict(wanted[name])}
            added[name].pop("pairs", None)  # the rank is that of all of them
        # The longest names first: a full name also matches names that end in it.
        longest_first = sorted(added, key=len, reverse=True)
        overrides = {glob.escape(name): added[name] for name in longest_first}
        for pattern, change in spec.overrides.items():
            overrides.setdefault(pattern, dict(change))
        complete = replace(spec, overrides=overrides)
