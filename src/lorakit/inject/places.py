"""Places of a model that can be adapted: layers, parts of fused layers, weights a module reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lorakit.errors import TargetError
from lorakit.patterns import first_match, matches
from lorakit.sites.base import Site
from lorakit.sites.find import FUSED_KINDS, sites_of
from lorakit.sites.fused_parts import Layout
from lorakit.sites.slot import base_modules
from lorakit.spec import full_name
from lorakit.text import near_misses, plural


@dataclass(frozen=True)
class Place:
    """A matrix of a model that can be adapted.

    Attributes:
        name: full name of the place; that of its layer, or one below it.
        layer: the module that owns the matrix.
        site: access to the matrix in the layer.
        layer_name: full name of the layer.
    """

    name: str
    layer: nn.Module
    site: Site
    layer_name: str

    @property
    def slot_suffix(self) -> str:
        """End of the keys of its deltas in the layer's slot: "" for the whole layer, or "/part"."""
        if self.name == self.layer_name:
            return ""
        part = self.name.removeprefix(self.layer_name).lstrip(".")
        return f"/{part}"

    @property
    def weight_name(self) -> str:
        """Full name of the stored weight."""
        return full_name(self.layer_name, self.site.weight_name())

    @property
    def module_name(self) -> str:
        """Full name of the module under which files list it."""
        if not self.site.child_name:
            return self.layer_name
        return full_name(self.layer_name, self.site.child_name)

    @property
    def is_part(self) -> bool:
        """True for a part of a matrix that holds several projections."""
        return self.site.full_site is not self.site

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix, or of each matrix of a stack."""
        outputs, inputs = self.matrix.shape[-2:]
        return outputs, inputs

    @property
    def matrix(self) -> Tensor:
        """The matrix (out, in), or the stack of matrices of experts."""
        return self.site.read(self.layer)

    @property
    def values_per_rank(self) -> int:
        """Number of values of one rank: a row of A and a column of B, for each matrix."""
        return sum(self.shape) * self.matrix.shape[:-2].numel()


def find_places(
    model: nn.Module, parts: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Place]:
    """Return all places of the model that can be adapted, by name, in the model's order.

    Args:
        model: any module.
        parts: `Spec.parts`: the projections in fused layers of unknown model classes.

    >>> [*find_places(nn.Sequential(nn.Linear(2, 6)), {"0": {"q": 2, "k": 2, "v": 2}})]
    ['0', '0.q', '0.k', '0.v']
    """
    layouts = {pattern: make_layout(sizes) for pattern, sizes in (parts or {}).items()}
    places: dict[str, Place] = {}
    configs: dict[str, object] = {}
    for layer_name, layer in base_modules(model):
        # Parts of a model can be of other families: the nearest config above the layer counts.
        config_above = configs.get(layer_name.rpartition(".")[0])
        config = layer.__dict__.get("config", config_above)
        configs[layer_name] = config
        pattern = first_match(layouts, layer_name)
        layout = None if pattern is None else layouts[pattern]
        for end, site in sites_of(layer_name, layer, config, layout):
            name = full_name(layer_name, end) if end else layer_name
            # A weight that a module reads itself is a place of that module, found before.
            places.setdefault(name, Place(name, layer, site, layer_name))
    return places


def list_modules(places: Iterable[Place]) -> tuple[str, ...]:
    """Return the modules of places under which files list them, each once.

    Files list experts, and the weight of a module of an unknown class, by tensor.
    """
    by_module = [place for place in places if place.site.kind not in ("experts", "parameter")]
    return tuple(dict.fromkeys(place.module_name for place in by_module))


def make_layout(sizes: Mapping[str, int]) -> Layout:
    """Return the layout for one entry of `Spec.parts`."""
    outputs = {part: size for part, size in sizes.items() if part != "groups"}
    return Layout(outputs, sizes.get("groups", 1))


def suggest_names(pattern: str, names: Iterable[str]) -> str:
    """Return `did you mean …?` with the nearest last parts of some names, or an empty string."""
    return near_misses(pattern, {name.split(".")[-1] for name in names})


def explain_unmatched(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return a line for each pattern that matches no name, with the nearest names."""
    known = list(names)
    lines: list[str] = []
    for pattern in patterns:
        if not any(matches(pattern, name) for name in known):
            lines.append(f"{pattern!r}   0 layers   {suggest_names(str(pattern), known)}".rstrip())
    return lines


def check_parts(parts: Mapping[str, Mapping[str, int]], places: Mapping[str, Place]) -> None:
    """Refuse entries of `Spec.parts` that do not fit the layers they match.

    Raises:
        TargetError: an entry matches no layer, or a layer of another kind or size; the message
            names the first such layer of each entry.
    """
    faults: list[str] = []
    for pattern in parts:
        fault = _part_fault(pattern, parts, places)
        if fault:
            faults.append(f"{pattern!r}   {fault}")
    if faults:
        raise TargetError(
            f"{len(faults)} of {len(parts)} parts fit no layer.", faults, "Nothing was attached."
        )


def _part_fault(
    pattern: str, parts: Mapping[str, Mapping[str, int]], places: Mapping[str, Place]
) -> str:
    layers = [place for place in places.values() if not place.is_part]
    matched = [place for place in layers if matches(pattern, place.layer_name)]
    if not matched:
        return f"0 layers   {suggest_names(pattern, places)}".rstrip()
    own = [place for place in matched if first_match(parts, place.layer_name) == pattern]
    if not own:
        return f"{plural(len(matched), 'layer')}, each matched by an entry before it"
    for place in own:
        if place.site.kind not in FUSED_KINDS:
            return f"{place.layer_name} is of kind {place.site.kind}, which cannot have parts"
    wanted = make_layout(parts[pattern]).outputs
    for place in own:
        outputs, _ = place.shape
        if outputs != wanted:
            return f"its parts have {wanted} outputs, {place.layer_name} has {outputs}"
    return ""
