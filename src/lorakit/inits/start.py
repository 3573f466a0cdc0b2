"""The table of all starts, and the functions with which attach starts A and B."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lorakit.errors import SpecError
from lorakit.inits.classic import initial_A
from lorakit.inits.from_data import (
    InputDirections,
    as_batch_list,
    eva,
    lora_ga,
    observe_gradients,
    observe_inputs,
)
from lorakit.inits.place import PlaceLike
from lorakit.inits.spectral import olora, pissa, pissa_fast
from lorakit.spec import Settings, Spec

# Of the inputs of a layer, or the gradient of its matrix.
Observation: TypeAlias = InputDirections | Tensor
# A (rank, in) and B (out, rank), or None for a B of zeros, from the matrix (out, in), the settings,
# a generator, and the observation that the start needs.
MakeFactors: TypeAlias = Callable[
    [Tensor, Settings, torch.Generator, Any], tuple[Tensor, Tensor | None]
]


@dataclass(frozen=True)
class Start:
    """A start of A and B; without arguments a random one, which uses neither weights nor data.

    Attributes:
        make: the function that computes A and B; None for a random start.
        deltas: names of the deltas that can start in this way; empty for all.
        needs: "inputs" of the layer, or "gradients" of its matrix, from batches; empty if it needs
            no data.
        vectors_per_rank: number of singular vectors that it uses for each rank.
        moves_B: whether B does not start at zero.
    """

    make: MakeFactors | None = None
    deltas: tuple[str, ...] = ()
    needs: str = ""
    vectors_per_rank: int = 1
    moves_B: bool = False

    @property
    def is_random(self) -> bool:
        """True if A is drawn at random, and B is zero: see classic.py."""
        return self.make is None


STARTS: dict[str, Start] = {
    "kaiming": Start(),
    "gaussian": Start(),
    "orthogonal": Start(),
    "pissa": Start(
        lambda M, settings, generator, observation: pissa(M, settings),
        deltas=("lora",),
        moves_B=True,
    ),
    "pissa-fast": Start(
        lambda M, settings, generator, observation: pissa_fast(M, settings, generator),
        deltas=("lora",),
        moves_B=True,
    ),
    "olora": Start(
        lambda M, settings, generator, observation: olora(M, settings),
        deltas=("lora",),
        moves_B=True,
    ),
    "eva": Start(
        lambda M, settings, generator, observation: (eva(observation, settings), None),
        deltas=("lora", "dora"),
        needs="inputs",
    ),
    "lora-ga": Start(
        lambda M, settings, generator, observation: lora_ga(observation, settings),
        deltas=("lora",),
        needs="gradients",
        vectors_per_rank=2,
        moves_B=True,
    ),
}


def needs_batches(spec: Spec) -> bool:
    """Return True if any layer of this spec starts from data, so that `attach` needs batches."""
    inits = [spec.init]
    inits += [change.get("init", spec.init) for change in spec.overrides.values()]
    return any(STARTS[init].needs for init in inits)


def start_faults(delta: str, settings: Settings, place: PlaceLike) -> list[str]:
    """Return the reasons why a layer cannot start in this way."""
    start = STARTS[settings.init]
    if start.is_random:
        return []
    faults: list[str] = []
    if start.deltas and delta not in start.deltas:
        served = " and ".join(map(repr, start.deltas))
        faults.append(f"cannot start delta {delta!r}, only {served}")
    vectors = settings.rank * start.vectors_per_rank
    if start.vectors_per_rank > 1 and vectors > min(place.shape):
        needed = f"{start.vectors_per_rank} x rank = {vectors} singular vectors"
        faults.append(f"needs {needed}, min(in, out) is {min(place.shape)}")
    if start.needs == "inputs" and place.site.swaps_weight:
        layer = type(place.layer).__name__
        faults.append(f"needs the layer's input, but {layer} reads this weight itself")
    M = place.matrix
    if not start.needs and not M.is_meta and not torch.isfinite(M).all():
        faults.append("needs a finite matrix, this one has NaN or infinity")
    return [f"init {settings.init!r} {fault}" for fault in faults]


def observe(
    model: nn.Module,
    places: Mapping[str, PlaceLike],
    settings: Mapping[str, Settings],
    batches: Iterable[object] | None,
) -> dict[str, Observation]:
    """Return the observations that the starts of these layers need, by layer name.

    Args:
        model: any module.
        places: the layers that are adapted.
        settings: of each layer.
        batches: as given to `attach`.

    Raises:
        SpecError: batches are needed and not given, or given and not needed; or they are not
            enough.
    """
    _check_batches(settings, batches)
    if batches is None:
        return {}
    batch_list = as_batch_list(batches)
    observations: dict[str, Observation] = {}
    by_inputs = _select(places, settings, "inputs")
    if by_inputs:
        ranks = {name: settings[name].rank for name in by_inputs}
        observations |= observe_inputs(model, by_inputs, ranks, batch_list)
    by_gradients = _select(places, settings, "gradients")
    if by_gradients:
        observations |= observe_gradients(model, by_gradients, batch_list)
    return observations


def _select(
    places: Mapping[str, PlaceLike], settings: Mapping[str, Settings], need: str
) -> dict[str, PlaceLike]:
    """Return the places whose start needs this data."""
    selected: dict[str, PlaceLike] = {}
    for name, of_layer in settings.items():
        if STARTS[of_layer.init].needs == need:
            selected[name] = places[name]
    return selected


def _check_batches(settings: Mapping[str, Settings], batches: object | None) -> None:
    """Raise SpecError if batches are needed and not given, or given and not needed."""
    inits = sorted({of_layer.init for of_layer in settings.values()})
    with_data = [init for init in inits if STARTS[init].needs]
    if with_data and batches is None:
        raise SpecError(
            f"init {' and '.join(map(repr, with_data))} needs data.",
            advice="Give attach(..., batches=[...]): batches of model inputs. "
            "Nothing was attached.",
        )
    if batches is not None and not with_data:
        names = " and ".join(map(repr, inits)) or repr(None)
        raise SpecError(
            f"batches are given, but init {names} needs none.",
            advice="Leave them out, or choose init='eva' or 'lora-ga'. Nothing was attached.",
        )


def initial_factors(
    place: PlaceLike,
    settings: Settings,
    generator: torch.Generator,
    observation: Observation | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Return the initial factors of a layer, on the layer's device.

    Args:
        place: of the layer's matrix.
        settings: of the layer.
        generator: source of all randomness.
        observation: of the layer, from `observe`.
        dtype: of the factors.

    Returns:
        A (rank, in), and B (out, rank); None for a B of zeros.
    """
    M = place.matrix
    make = STARTS[settings.init].make
    if make is None:
        fan_in = place.site.fan_in(place.layer)
        A = initial_A(settings, M.shape, fan_in, generator)
        B = None
    else:
        A, B = make(M, settings, generator, observation)
    A = _own_memory(A, M.device, dtype)
    if B is not None:
        B = _own_memory(B, M.device, dtype)
    return place.site.mask_padding(place.layer, A), B


def _own_memory(factor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a factor in memory of its own.

    A view would keep the larger tensor alive, and kernels may round otherwise for its layout.
    """
    return factor.to(device, dtype).clone(memory_format=torch.contiguous_format)
