"""Where A and B start: this is where a name in Spec.init becomes a function. `initial_factors` and `observe`
are what attach calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import SpecError
from lorakit.inits.classic import initial_A
from lorakit.inits.from_data import as_batch_list, eva, lora_ga, observe_gradients, observe_inputs
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
        needs: at "inputs" of the layer, or "gradients" of its matrix, in batches; empty for
            neither.
        vectors_per_rank: how many singular vectors it takes, times the rank.
        moves_B: whether B starts as something else than zero too.
    """

    make: Callable[[Tensor, Settings, torch.Generator, Any], tuple[Tensor, Tensor | None]]
    deltas: tuple[str, ...] = ()
    needs: str = ""
    vectors_per_rank: int = 1
    moves_B: bool = True


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
        moves_B=False,
    ),
    "lora-ga": Start(
        lambda M, settings, generator, seen: lora_ga(seen, settings), ("lora",), "gradients", 2
    ),
}


def needed_data(init: str) -> str:
    """Return what a start looks at in batches: "inputs", "gradients", or nothing."""
    chosen = STARTS[init]
    return chosen.needs if chosen else ""


def needs_batches(spec: Spec) -> bool:
    """Tell whether any layer of this spec starts from data, so that `attach` needs batches."""
    return any(
        needed_data(init)
        for init in [
            spec.init,
            *(change.get("init", spec.init) for change in spec.overrides.values()),
        ]
    )


def start_faults(delta: str, settings: Settings, place: Any) -> list[str]:
    """Return why a layer cannot start in this way."""
    chosen, found = STARTS[settings.init], []
    if chosen is None:
        return []
    if chosen.deltas and delta not in chosen.deltas:
        found.append(
            f"init {settings.init!r} is no start for delta {delta!r}, only for {' and '.join(map(repr, chosen.deltas))}"
        )
    if chosen.vectors_per_rank > 1 and settings.rank * chosen.vectors_per_rank > min(place.shape):
        found.append(
            f"init {settings.init!r} takes {chosen.vectors_per_rank} x rank = {chosen.vectors_per_rank * settings.rank} singular vectors, "
            f"min(in, out) is {min(place.shape)}"
        )
    if chosen.needs == "inputs" and place.site.swaps_weight:
        found.append(
            f"init {settings.init!r} looks at the layer's input: {type(place.layer).__name__} reads this weight itself"
        )
    M = place.site.read(place.layer)
    if not chosen.needs and not M.is_meta and not torch.isfinite(M).all():
        found.append(f"init {settings.init!r} takes the matrix apart, which is not finite")
    return found


def observe(
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
    wanted = {n: needed_data(s.init) for n, s in settings.items() if needed_data(s.init)}
    names = " and ".join(
        sorted(
            {
                repr(s.init)
                for s in settings.values()
                if bool(needed_data(s.init)) == (batches is None)
            }
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
    batches, seen = as_batch_list(batches), {}
    inputs, gradients = (
        {n: places[n] for n, what in wanted.items() if what == kind}
        for kind in ("inputs", "gradients")
    )
    if inputs:
        seen |= observe_inputs(model, inputs, {n: settings[n].rank for n in inputs}, batches)
    if gradients:
        seen |= observe_gradients(model, gradients, batches)
    return seen


def initial_factors(
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
