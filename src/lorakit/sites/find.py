"""The table of all sites, by kind, and the sites of a layer."""

from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from lorakit.errors import SpecError
from lorakit.sites.base import Site
from lorakit.sites.child_weight import ChildWeightSite, find_read_children
from lorakit.sites.conv import CONVOLUTIONS
from lorakit.sites.experts import expert_sites
from lorakit.sites.families import find_layout
from lorakit.sites.fused_parts import Layout, OutputSliceSite, make_qkv_layout
from lorakit.sites.linear import LINEAR_LAYERS
from lorakit.sites.quantised import QUANTISED
from lorakit.sites.recurrent import recurrent_sites
from lorakit.sites.weight_swap import IN_PROJ, OUT_PROJ, OWN_WEIGHT, SEPARATE_PROJECTIONS

FUSED_KINDS = ("linear", "conv1d")
"""Kinds of layers whose matrix may hold several projections."""

SITES: dict[str, Site] = {
    **QUANTISED,
    **{known.kind: known for known in (*LINEAR_LAYERS, *CONVOLUTIONS)},
}
"""Every site of a whole layer; the first one that supports a layer is used."""


def register(added: Site) -> None:
    """Add a site, so that layers of a further kind can be adapted; it goes before all others.

    Args:
        added: an instance of a class derived from `lorakit.sites.base.Site`, with a `kind` of
            its own.

    Raises:
        SpecError: it is no such instance, its class derives from a final one, or its kind is taken;
            nothing is added.
    """
    if not isinstance(added, Site):
        raise SpecError(
            f"A site is an instance of a class derived from lorakit.sites.base.Site, got {added!r}."
        )
    faults: list[str] = []
    if added.kind in SITES:
        faults.append(f"kind {added.kind!r} is taken")
    elif not added.kind.isidentifier():
        faults.append(f"kind {added.kind!r} is no identifier")
    for known in SITES.values():
        is_derived = isinstance(added, type(known))
        if is_derived and type(added) is not type(known):
            final = type(known).__name__
            faults.append(f"{final} is final: a class derived from it would take its layers")
    if faults:
        raise SpecError(
            f"{type(added).__name__} cannot be added.",
            faults,
            f"Kinds that are taken: {', '.join(SITES)}.",
        )
    others = dict(SITES)
    SITES.clear()
    SITES[added.kind] = added
    SITES.update(others)


def site_of(layer: nn.Module) -> Site | None:
    """Return the site that supports this layer; None if there is none."""
    if isinstance(layer, LazyModuleMixin):
        return None  # it has no shape before its first input
    for site in SITES.values():
        if site.supports(layer):
            return site
    return None


def sites_of(
    name: str, layer: nn.Module, config: object, given: Layout | None
) -> Iterator[tuple[str, Site]]:
    """Yield everything in a layer that can be adapted: the rest of the place's name, and its site.

    The rest of the name is empty for the layer itself.

    Args:
        name: full name of the layer.
        layer: any module.
        config: transformers' config of the model around it; None for other models.
        given: the layout of its parts if the user gave one.
    """
    if isinstance(layer, nn.MultiheadAttention):
        yield from _supported(layer, _attention_sites(layer))
        return
    yield from _supported(layer, recurrent_sites(layer))
    for child_name, child in find_read_children(layer):
        inner = site_of(child)
        if inner is not None:
            yield child_name, ChildWeightSite(child_name, inner)
    site = site_of(layer)
    if site is None:
        for stack in expert_sites(layer):
            yield stack.name, stack
        yield from _supported(layer, [("", OWN_WEIGHT)])
        return
    yield "", site
    if site.kind not in FUSED_KINDS:
        return
    outputs = site.read(layer).shape[0]
    layout = given or find_layout(name, outputs, config)
    if layout and layout.outputs == outputs:
        yield from _part_sites(site, layout)


def _supported(layer: nn.Module, sites: Iterable[tuple[str, Site]]) -> Iterator[tuple[str, Site]]:
    """Yield the sites whose weight is a parameter, not computed from others (pruned, normed)."""
    for name, site in sites:
        if site.supports(layer):
            yield name, site


def _part_sites(site: Site, layout: Layout) -> Iterator[tuple[str, Site]]:
    for part in layout.sizes:
        yield part, OutputSliceSite(site, layout, part)


def _attention_sites(layer: nn.MultiheadAttention) -> Iterator[tuple[str, Site]]:
    if layer.in_proj_weight is None:
        yield from SEPARATE_PROJECTIONS.items()
    else:
        yield "in_proj", IN_PROJ
        yield from _part_sites(IN_PROJ, make_qkv_layout(3 * layer.embed_dim))
    yield "out_proj", OUT_PROJ
