"""Every storage that can be adapted, by kind: those of the core, and those with a file of their own
in this room.
"""

from collections.abc import Iterator
from typing import Any

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
from lorakit.sites.weight_swap import IN_PROJ, OUT_PROJ, SEPARATE_PROJECTIONS

SITES: dict[str, Site] = {
    **QUANTISED,
    **{known.kind: known for known in (*LINEAR_LAYERS, *CONVOLUTIONS)},
}


def register(added: Site) -> None:
    """Let layers of a further kind be adapted; the sites that were added last are asked first.

    Args:
        added: an instance of a class derived from `lorakit.sites.base.Site`, with a `kind` of
            its own and its own `holds`.

    Raises:
        SpecError: it is no such instance, or its kind is taken; nothing is added.
    """
    if not isinstance(added, Site):
        raise SpecError(
            f"A site is an instance of a class derived from lorakit.sites.base.Site, got {added!r}."
        )
    faults = []
    if not added.kind.isidentifier() or added.kind in SITES:
        faults.append(f"kind {added.kind!r} is {'taken' if added.kind in SITES else 'no word'}")
    for known in SITES.values():
        if isinstance(added, type(known)) and type(added) is not type(known):
            faults.append(
                f"{type(known).__name__} is final: what derives from it would take its layers"
            )
    if faults:
        raise SpecError(
            f"{type(added).__name__} cannot be added.",
            faults,
            f"Kinds that are taken: {', '.join(SITES)}.",
        )
    before = dict(SITES)
    SITES.clear()
    SITES.update({added.kind: added}, **before)


def site_of(layer: nn.Module) -> Site | None:
    """Return the site that holds this layer's matrix, or None where no row of SITES does."""
    if isinstance(layer, LazyModuleMixin):
        return None  # it has no shape before its first input
    return next((known for known in SITES.values() if known.supports(layer)), None)


def sites_of(
    name: str, layer: nn.Module, config: Any, given: Layout | None
) -> Iterator[tuple[str, Site]]:
    """Yield what of a layer can be adapted: the rest of its name ("" for the layer itself), and the
    site that holds it.

    Args:
        name: the layer's full name.
        layer: any module.
        config: of the model that it is in, as transformers has it; None elsewhere.
        given: which of its rows are which projection, where the user said so.
    """
    if isinstance(layer, nn.MultiheadAttention):
        yield from _attention(layer)
        return
    yield from recurrent_sites(layer)
    for child, module in find_read_children(layer):
        if (inner := site_of(module)) is not None:
            yield child, ChildWeightSite(child, inner)
    if (whole := site_of(layer)) is None:
        yield from ((stack.name, stack) for stack in expert_sites(layer))
        return
    yield "", whole
    if whole.kind in ("linear", "conv1d"):
        outputs = whole.read(layer).shape[0]
        layout = given or find_layout(name, outputs, config)
        if layout and layout.outputs == outputs:
            yield from ((part, OutputSliceSite(whole, layout, part)) for part in layout.sizes)


def _attention(layer: nn.MultiheadAttention) -> Iterator[tuple[str, Site]]:
    if layer.in_proj_weight is not None:
        yield "in_proj", IN_PROJ
        layout = make_qkv_layout(3 * layer.embed_dim)
        yield from ((part, OutputSliceSite(IN_PROJ, layout, part)) for part in layout.sizes)
    else:
        yield from SEPARATE_PROJECTIONS.items()
    yield "out_proj", OUT_PROJ
