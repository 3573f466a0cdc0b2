"""The places of a model that can be adapted: layers, parts of layers, weights read by a module itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorakit.errors import TargetError
from lorakit.sites.base import Site
from lorakit.sites.find import sites_of
from lorakit.sites.fused_parts import Layout
from lorakit.sites.slot import base_modules
from lorakit.spec import full_name, matches
from lorakit.text import near_misses, plural


@dataclass(frozen=True)
class Place:
    """What can be adapted: a layer, a part of one, or a weight that a module reads itself.

    Attributes:
        name: its full name.
        layer: the module.
        site: what holds its matrix.
        layer_name: the layer's full name.
    """

    name: str
    layer: nn.Module
    site: Site
    layer_name: str

    @property
    def slot_suffix(self) -> str:
        """The end of the keys of its deltas in the layer's slot."""
        return (
            ""
            if self.name == self.layer_name
            else f"/{self.name[len(self.layer_name) :].lstrip('.')}"
        )

    @property
    def weight_name(self) -> str:
        """Full name of the stored weight."""
        return full_name(self.layer_name, self.site.weight_name())

    @property
    def module_name(self) -> str:
        """Full name of the module that files name."""
        return (
            full_name(self.layer_name, self.site.child_name)
            if self.site.child_name
            else self.layer_name
        )

    @property
    def is_part(self) -> bool:
        return self.site.full_site is not self.site

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of its matrix."""
        out, inputs = self.site.read(self.layer).shape[-2:]
        return out, inputs


def find_places(
    model: nn.Module, parts: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Place]:
    """Return everything in the model that a site can hold, by name, in the model's order.

    Args:
        model: any module.
        parts: `Spec.parts`: rows of layers that are one projection each, where the model class does
            not tell.

    >>> [*find_places(nn.Sequential(nn.Linear(2, 6)), {"0": {"q": 2, "k": 2, "v": 2}})]
    ['0', '0.q', '0.k', '0.v']
    """
    found: dict[str, Place] = {}
    configs: dict[str, Any] = {"": None}
    for name, module in base_modules(model):
        # The nearest module above that has one: parts of a model can be of other families than the
        # whole.
        above = configs.get(name.rpartition(".")[0])
        configs[name] = module.__dict__.get("config", above)
        given = next(
            (
                make_layout(sizes)
                for pattern, sizes in (parts or {}).items()
                if matches(pattern, name)
            ),
            None,
        )
        for end, site in sites_of(name, module, configs[name], given):
            full = full_name(name, end) if end else name
            # What a module above reads itself is that one's place: it stands there already.
            found.setdefault(full, Place(full, module, site, name))
    return found


def make_layout(sizes: Mapping[str, int]) -> Layout:
    """Return the layout that a row of `Spec.parts` means."""
    return Layout(
        {part: size for part, size in sizes.items() if part != "groups"}, sizes.get("groups", 1)
    )


def check_parts(parts: Mapping[str, Mapping[str, int]], known: Mapping[str, Place]) -> None:
    """Raise TargetError where a row of `Spec.parts` does not fit a layer that it names; the first
    such is told.
    """
    faults = [f"{p!r}   {fault}" for p in parts if (fault := _misfit(p, parts, known))]
    if faults:
        raise TargetError(
            f"{len(faults)} of {len(parts)} parts fit no layer.", faults, "Nothing was attached."
        )


def _misfit(
    pattern: str, parts: Mapping[str, Mapping[str, int]], known: Mapping[str, Place]
) -> str:
    wanted = make_layout(parts[pattern]).outputs
    there = [
        place
        for place in known.values()
        if not place.is_part and matches(pattern, place.layer_name)
    ]
    if not there:
        return f"0 layers   {near_misses(pattern, {n.split('.')[-1] for n in known})}".rstrip()
    mine = [
        place
        for place in there
        if pattern == next(p for p in parts if matches(p, place.layer_name))
    ]
    if not mine:
        return f"{plural(len(there), 'layer')}, each named by a row before it"
    if odd := [place for place in mine if place.site.kind not in ("linear", "conv1d")]:
        return f"{odd[0].layer_name} is of kind {odd[0].site.kind}, which has no parts to give"
    wrong = next((place for place in mine if place.shape[0] != wanted), None)
    return f"gives {wanted} rows, {wrong.layer_name} has {wrong.shape[0]}" if wrong else ""
