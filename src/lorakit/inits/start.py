"""Where A and B start: this is where a name in Spec.init becomes a function. `start` and `look` are
what attach calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import SpecError
from lorakit.inits.classic import generator_for, initial_A
from lorakit.inits.from_data import checked, eva, gradients_of, inputs_of, lora_ga
from lorakit.inits.spectral import olora, pissa, pissa_fast
from lorakit.spec import Settings, Spec


@dataclass(frozen=True)
class Start:
    """One way to start.

    Attributes:
        make: of the matrix (out, in), settings, a generator, and what was seen: A (rank, in), and B
            (out, rank) where the factors start as a part of the base's matrix; None where B is
            zero.
        deltas: names of the parameterisations that can start so; empty for all.
        looks: at "inputs" of the layer, or "gradients" of its matrix, in batches; empty for
            neither.
        ranks: how many singular vectors it takes, times the rank.
        moves: whether B starts as something else than zero too.
    """

    make: Callable[[Tensor, Settings, torch.Generator, Any], tuple[Tensor, Tensor | None]]
    deltas: tuple[str, ...] = ()
    looks: str = ""
    ranks: int = 1
    moves: bool = True


STARTS: dict[str, Start | None] = {
    "kaiming": None,
    "gaussian": None,
    "orthogonal": None,  # look at no weight and no data: see classic.py
    "pissa": Start(lambda M, settings, generator, seen: pissa(M, settings), ("lora",)),
    "pissa-fast": Start(
        lambda M, settings, generator, seen: pissa_fast(M, settings, generator), ("lora",)
    ),
    "olora": Start(lambda M, settings, generator, seen: olora(M, settings), ("lora",)),
    "eva": Start(
        lambda M, settings, generator, seen: (eva(seen, settings), None),
        ("lora", "dora"),
        "inputs",
        moves=False,
    ),
    "lora-ga": Start(
        lambda M, settings, generator, seen: lora_ga(seen, settings), ("lora",), "gradients", 2
    ),
}


def looks_at(init: str) -> str:
    """Return what a start looks at in batches: "inputs", "gradients", or nothing."""
    start = STARTS[init]
    return start.looks if start else ""


def looks_at_data(spec: Spec) -> bool:
    """Tell whether any layer of this spec starts from data, so that `attach` needs batches."""
    return any(
        looks_at(init)
        for init in [
            spec.init,
            *(change.get("init", spec.init) for change in spec.overrides.values()),
        ]
    )


def faults(delta: str, settings: Settings, place: Any) -> list[str]:
    """Return why a layer cannot start in this way."""
    start, found = STARTS[settings.init], []
    if start is None:
        return []
    if start.deltas and delta not in start.deltas:
        found.append(
            f"init {settings.init!r} is no start for delta {delta!r}, only for {' and '.join(map(repr, start.deltas))}"
        )
    if start.ranks > 1 and settings.rank * start.ranks > min(place.shape):
        found.append(
            f"init {settings.init!r} takes {start.ranks} x rank = {start.ranks * settings.rank} singular vectors, "
            f"min(in, out) is {min(place.shape)}"
        )
    if start.looks == "inputs" and place.site.swaps_weight:
        found.append(
            f"init {settings.init!r} looks at the layer's input: {type(place.layer).__name__} reads this weight itself"
        )
    M = place.site.read(place.layer)
    if not start.looks and not M.is_meta and not torch.isfinite(M).all():
        found.append(f"init {settings.init!r} takes the matrix apart, which is not finite")
    return found


def look(
    model: nn.Module, places: Mapping[str, Any], settings: Mapping[str, Settings], batches: Any
) -> dict[str, Any]:
    """Return what the starts of these layers look at in the batches, by name.

    Args:
        model: any module.
        places: what is adapted.
        settings: of each.
        batches: as `attach` got them.

    Raises:
        SpecError: batches are needed and not given, or given and not needed; or they show too
            little.
    """
    wanted = {n: looks_at(s.init) for n, s in settings.items() if looks_at(s.init)}
    names = " and ".join(
        sorted(
            {repr(s.init) for s in settings.values() if bool(looks_at(s.init)) == (batches is None)}
        )
    )
    if (batches is None) is bool(wanted):
        what = (
            f"init {names} looks at data"
            if wanted
            else f"batches are given, but init {names or repr(None)} looks at none"
        )
        raise SpecError(
            f"{what}.",
            advice="Give attach(..., batches=[...]): batches of model inputs. Nothing was attached."
            if wanted
            else "Leave them out, or choose init='eva' or 'lora-ga'. Nothing was attached.",
        )
    if batches is None:
        return {}
    batches, seen = checked(batches), {}
    inputs, gradients = (
        {n: places[n] for n, what in wanted.items() if what == kind}
        for kind in ("inputs", "gradients")
    )
    if inputs:
        seen |= inputs_of(model, inputs, {n: settings[n].rank for n in inputs}, batches)
    if gradients:
        seen |= gradients_of(model, gradients, batches)
    return seen


def start(
    place: Any, settings: Settings, generator: torch.Generator, seen: Any, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Return where the factors of a layer start, of this dtype and on the layer's device.

    Args:
        place: what holds the layer's matrix.
        settings: of the layer.
        generator: all randomness comes from it.
        seen: what `look` gave for the layer.
        dtype: of the factors.

    Returns:
        A (rank, in); and B (out, rank) where it is not zero.
    """
    M, chosen = place.site.read(place.layer), STARTS[settings.init]
    if chosen is None:
        A, B = initial_A(settings, M.shape, place.site.fan_in(place.layer), generator), None
    else:
        A, B = chosen.make(M, settings, generator, seen)
    # Memory of their own: views of larger ones would be kept whole, and lie where kernels may round
    # otherwise.
    A, B = (
        None if t is None else t.to(M.device, dtype).clone(memory_format=torch.contiguous_format)
        for t in (A, B)
    )
    return place.site.mask_padding(place.layer, A), B


__all__ = ["STARTS", "faults", "generator_for", "look", "looks_at", "start"]
