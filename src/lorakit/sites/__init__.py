"""Every storage that can be adapted, by kind: those of the core, and those with a file of their own in this room."""

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from lorakit import site
from lorakit.sites.conv import CONVOLUTIONS

SITES = {**site.SITES, **{known.kind: known for known in CONVOLUTIONS}}


def site_of(layer: nn.Module) -> site.Linear | None:
    """Return the site that holds this layer's matrix, or None where no row of SITES does."""
    if isinstance(layer, LazyModuleMixin):
        return None  # it has no shape before its first input
    return next((known for known in SITES.values() if known.holds(layer)), None)
