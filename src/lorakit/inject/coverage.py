"""Coverage of a model: which layers are adapted, which are not, and how many parameters train."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

from torch import nn
from torch.nn.parameter import is_lazy

from lorakit.adapter import Adapter
from lorakit.deltas.base import Delta
from lorakit.inject.obstacles import find_obstacles
from lorakit.inject.places import Place
from lorakit.inject.state import get_places
from lorakit.sites.shared import memory_of
from lorakit.sites.slot import State, base_modules, base_parameters, find_state, get_slot
from lorakit.text import plural

SHOWN_NAMES = 4  # full parameters that the table names
USUAL_SCALES = (0.25, 16)


class Layer(TypedDict):
    """A layer that can be adapted: its name, kind and shape (out, in)."""

    name: str
    kind: str
    shape: list[int]


class AdapterEntry(TypedDict):
    """One adapter of a layer.

    `tokens` counts the rows if single rows train; `delta` names a change whose rank is not that of
    a product B @ A.
    """

    rank: int
    alpha: float
    scale: float
    tokens: NotRequired[int]
    delta: NotRequired[str]


class AdaptedLayer(Layer):
    """A layer with its adapters by name."""

    adapters: dict[str, AdapterEntry]


@dataclass(frozen=True)
class Coverage:
    """Counts of one model; `print` shows them as a table, `to_dict` returns them for JSON.

    Attributes:
        model: class of the model.
        modules: adapted layers.
        full_parameters: names of the parameters that are fully trained (biases, heads).
        skipped: layers of a kind that can be adapted, and that are neither adapted nor fully
            trained.
        unreachable: modules with a matrix that no site supports, by class name: number of modules,
            and of values.
        trainable_parameters: number of values that require a gradient.
        total_parameters: number of all values, those of adapters included.
        obstacles: the reason for each layer of a known class that cannot be adapted, by name.
        left_out: the reason for each module that the preset "all-linear" left out, by name.
        renamed: names of adapters that were mapped to those of the model, by adapter.
    """

    model: str
    modules: list[AdaptedLayer]
    full_parameters: list[str]
    skipped: list[Layer]
    unreachable: dict[str, tuple[int, int]]
    trainable_parameters: int
    total_parameters: int
    obstacles: dict[str, str]
    left_out: dict[str, str]
    renamed: dict[str, dict[str, str]]

    @property
    def percent(self) -> float:
        """The share of the values that train, in percent."""
        return 100 * self.trainable_parameters / max(self.total_parameters, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return lists, numbers and strings, as JSON stores them."""
        return {
            "model": self.model,
            "modules": self.modules,
            "whole": self.full_parameters,
            "skipped": self.skipped,
            "unreachable": self.unreachable,
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "obstacles": self.obstacles,
            "left_out": self.left_out,
            "renamed": self.renamed,
            "percent": self.percent,
        }

    def __str__(self) -> str:
        total = len(self.modules) + len(self.skipped)
        lines = [f"{self.model}: {len(self.modules)} of {total} layers adapted"]
        for group in _group(self.modules):
            lines.append(f"  adapted      {group.names:<44} {group.kind}   {group.adapters}")
        if self.full_parameters:
            lines.append(f"  fully trained {_list_names(self.full_parameters)}")
        for group in _group(self.skipped):
            lines.append(f"  not adapted  {group.names:<44} {group.kind}")
        for name, (count, values) in self.unreachable.items():
            modules = f"{name} ({count} modules)"
            form = f"{values:,} values in a form that no site supports"
            lines.append(f"  out of reach {modules:<44} {form}")
        lines += _note_ranks(self.modules)
        lines += _note_scales(self.modules)
        lines += _note_reasons({**self.obstacles, **self.left_out})
        lines += _note_names(self.renamed)
        trainable, every = self.trainable_parameters, self.total_parameters
        share = f"{trainable:,} of {every:,} = {self.percent:.4f} %"
        lines.append(f"trainable parameters: {share}")
        return "\n".join(lines)


class Group(NamedTuple):
    """Layers of one kind, shape and last name, in words."""

    kind: str
    names: str
    adapters: str


def _group(layers: Sequence[Layer]) -> list[Group]:
    """Return the groups of layers that differ only in the first parts of their names."""
    members: dict[Group, list[str]] = {}
    for layer in layers:
        out, inputs = layer["shape"]
        last = _last_name(layer["name"])
        kind = f"{layer['kind']} {inputs} -> {out}"
        adapters = _describe_adapters(layer.get("adapters", {}))
        alike = Group(kind, last, adapters)
        members.setdefault(alike, []).append(layer["name"])
    groups: list[Group] = []
    for alike, names in members.items():
        label = names[0] if len(names) == 1 else f"{alike.names} ({len(names)} layers)"
        groups.append(alike._replace(names=label))
    return groups


def _last_name(name: str) -> str:
    """Return the last part of a name that is a word, with the numbers after it.

    >>> _last_name("blocks.0.attn.to_out.0"), _last_name("model.layers.0.q_proj"), _last_name("0.1")
    ('to_out.0', 'q_proj', '0.1')
    """
    parts = name.split(".")
    words = [index for index, part in enumerate(parts) if not part.isdecimal()]
    return ".".join(parts[words[-1] if words else 0 :])


def _describe_adapters(adapters: Mapping[str, AdapterEntry]) -> str:
    descriptions: list[str] = []
    for name, entry in adapters.items():
        if "tokens" in entry:
            descriptions.append(f"{name}: {plural(entry['tokens'], 'row')}")
        else:
            descriptions.append(f"{name}: rank {entry['rank']}, scale {entry['scale']:g}")
    return "; ".join(descriptions)


def _list_names(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN_NAMES])
    hidden = len(names) - SHOWN_NAMES
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def _note_ranks(modules: list[AdaptedLayer]) -> list[str]:
    """Return a note if factors have at least as many values as their matrix."""
    large: list[tuple[AdaptedLayer, int]] = []
    for layer in modules:
        out, inputs = layer["shape"]
        for entry in layer["adapters"].values():
            values = entry["rank"] * (out + inputs)
            is_product = not entry.keys() & {"tokens", "delta"}
            if is_product and values >= out * inputs:
                large.append((layer, entry["rank"]))
    if not large:
        return []
    layer, rank = large[0]
    out, inputs = layer["shape"]
    others = f", and {len(large) - 1} more," if len(large) > 1 else ""
    break_even = out * inputs / (out + inputs)
    return [
        f"  note: rank {rank} of {layer['name']}{others} has no fewer values than the matrix "
        f"itself ({out} x {inputs}; break-even is rank {break_even:.1f})"
    ]


def _note_scales(modules: list[AdaptedLayer]) -> list[str]:
    """Return a note if a scale is outside of the usual range."""
    scales: list[float] = []
    for layer in modules:
        scales += [entry["scale"] for entry in layer["adapters"].values()]
    low, high = USUAL_SCALES
    if all(low <= scale <= high for scale in scales):
        return []
    span = f"scales from {min(scales):g} to {max(scales):g}"
    return [f"  note: {span}; {low} to {high} is what usually trains well"]


def _note_reasons(reasons: Mapping[str, str]) -> list[str]:
    """Return a note for each reason why modules are not adapted, with their names."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"  note: {_list_names(group)} {reason}" for reason, group in names.items()]


def _note_names(renamed: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a note for each adapter with names that were mapped to those of the model."""
    lines: list[str] = []
    for adapter, names in renamed.items():
        old, new = next(iter(names.items()))
        count = plural(len(names), "name")
        lines.append(f"  note: {count} of {adapter!r} mapped to the model's, as {old} to {new}")
    return lines


def coverage(model: nn.Module) -> Coverage:
    """Return the layers that are adapted, those of the same kinds that are not, and counts.

    >>> print(coverage(nn.Sequential(nn.Linear(4, 3))))
    Sequential: 0 of 1 layers adapted
      not adapted  0                                            linear 4 -> 3
    trainable parameters: 15 of 15 = 100.0000 %
    """
    state = find_state(model) or State()
    places = get_places(model, state)
    full_parameters: set[str] = set()
    for adapter in state.adapters.values():
        full_parameters |= adapter.full_parameters.keys()
    deltas = {name: adapter.deltas_by_place for name, adapter in state.adapters.items()}
    adapted: dict[str, AdaptedLayer] = {}
    others: dict[str, Layer] = {}
    for name, place in places.items():
        layer = Layer(name=name, kind=place.site.kind, shape=list(place.shape))
        adapters = _find_adapters(name, deltas)
        if adapters:
            adapted[name] = {**layer, "adapters": adapters}
        else:
            others[name] = layer
    trained = {places[name].weight_name for name in adapted} | full_parameters
    skipped = [layer for name, layer in others.items() if _is_skipped(places[name], trained)]
    return Coverage(
        model=type(model).__name__,
        modules=list(adapted.values()),
        full_parameters=sorted(full_parameters),
        skipped=skipped,
        unreachable=_count_unreachable(model, places.values()),
        trainable_parameters=_count(_trainable(model)),
        total_parameters=_count_all(model, state),
        obstacles=find_obstacles(model, places.values()),
        left_out=_collect_left_out(state.adapters.values()),
        renamed={name: own.renamed for name, own in state.adapters.items() if own.renamed},
    )


def _collect_left_out(adapters: Iterable[Adapter]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for adapter in adapters:
        reasons |= adapter.left_out
    return reasons


def _find_adapters(
    place_name: str, deltas: Mapping[str, Mapping[str, Delta]]
) -> dict[str, AdapterEntry]:
    """Return the adapters of a place by name.

    Args:
        place_name: of the place.
        deltas: by adapter and place.
    """
    adapters: dict[str, AdapterEntry] = {}
    for name, by_place in deltas.items():
        delta = by_place.get(place_name)
        if delta is None:
            continue
        entry = AdapterEntry(rank=delta.rank, alpha=delta.alpha, scale=delta.scale)
        if delta.by_token:
            entry["tokens"] = delta.rank
        if not delta.has_matrix_rank:
            entry["delta"] = delta.name
        adapters[name] = entry
    return adapters


def _is_skipped(place: Place, trained: set[str]) -> bool:
    """Return True for a whole layer with a weight that no adapter changes or replaces."""
    return place.weight_name not in trained and not place.is_part


def _count_unreachable(model: nn.Module, places: Iterable[Place]) -> dict[str, tuple[int, int]]:
    """Return the numbers of modules and values outside of all places, by class name."""
    owners = {place.weight_name.rpartition(".")[0] for place in places}
    unreachable: dict[str, tuple[int, int]] = {}
    for name, module in base_modules(model):
        values = _count(_matrices(module))
        if values and name not in owners:
            kind = type(module).__name__
            modules, values_before = unreachable.get(kind, (0, 0))
            unreachable[kind] = (modules + 1, values_before + values)
    return unreachable


def _count_all(model: nn.Module, state: State) -> int:
    """Return the number of values of the base and of all deltas.

    A full parameter replaces one of the base's, and is not counted again.
    """
    base = {memory_of(parameter): parameter for _, parameter in base_parameters(model)}
    total = _count(base.values())
    for adapter in state.adapters.values():
        for delta in adapter.deltas.values():
            total += _count(delta.parameters())
    return total


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the module's own parameters that are no vectors."""
    for parameter in module._parameters.values():
        if parameter is not None and not is_lazy(parameter) and parameter.ndim > 1:
            yield parameter


def _trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    trainable: dict[int, nn.Parameter] = {}
    for _, module in base_modules(model):
        slot = get_slot(module)
        for parameter in (*module._parameters.values(), *(slot.parameters() if slot else ())):
            if parameter is not None and parameter.requires_grad:
                trainable[id(parameter)] = parameter
    yield from trainable.values()


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(0 if is_lazy(parameter) else parameter.numel() for parameter in parameters)
