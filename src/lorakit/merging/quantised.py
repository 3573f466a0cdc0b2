"""Merging into weights in int8 or 4 bits, and quantised models in full precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.inject.places import find_places
from lorakit.merging.sums import WeightSum
from lorakit.sites.quantised import dequantise_weight
from lorakit.text import plural

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADVICE = (
    "Merge into a 16-bit copy (`lorakit merge --dtype bfloat16`; in Python, load the base in full "
    "precision and attach there with any_base=True), use the adapter unmerged, or accept the loss "
    "(`lorakit merge --allow-loss`, merge(model, allow_loss=True)). Nothing was changed."
)


@dataclass(frozen=True)
class Rounding:
    """The effect of a merge on a weight in int8 or 4 bits.

    A movement is the norm of a difference of matrices, relative to the norm of the base's matrix:
    for inputs of equal size in all directions, the movement of the layer's output.

    Attributes:
        form: the quantised storage, and the package that it is from.
        rounding: distance of the stored matrix from the exact sum.
        adapter: distance of the exact sum from the base's matrix.
        changed: number of values that differ from the base's.
    """

    form: str
    rounding: float
    adapter: float
    changed: int

    @property
    def is_lossy(self) -> bool:
        """True if rounding moves the matrix as much as the adapter, or more.

        Both are equal for an adapter that moves less than half a step: rounding cancels it.
        """
        return self.rounding >= self.adapter


def requantise(
    sums: Mapping[str, WeightSum], *, allow_loss: bool
) -> tuple[dict[str, nn.Parameter], dict[str, Rounding]]:
    """Quantise sums like the weights of their layers.

    Args:
        sums: by the name of the weight.
        allow_loss: True to accept rounding that moves a matrix as much as the adapter, or more.

    Returns:
        The new weights and the effect of rounding, by the name of the weight.

    Raises:
        MergeError: rounding moves a matrix too much, a sum is not finite, or it cannot be stored in
            this form; all such weights are named.
    """
    weights: dict[str, nn.Parameter] = {}
    roundings: dict[str, Rounding] = {}
    faults: list[str] = []
    for path, total in sums.items():
        result = _requantise_one(total)
        if isinstance(result, str):
            faults.append(f"{path}   {result}")
        else:
            weights[path], roundings[path] = result
    if faults:
        raise MergeError(
            f"{plural(len(faults), 'weight')} cannot be merged.", faults, "Nothing was changed."
        )
    if not allow_loss:
        _refuse_loss(roundings)
    return weights, roundings


@torch.no_grad()
def _requantise_one(total: WeightSum) -> tuple[nn.Parameter, Rounding] | str:
    """Return the new weight and the effect of rounding, or the reason why there is none."""
    layer, site = total.layer, total.site
    form = site.quantised_form(layer)
    base = site.read(layer).float()
    exact = total.matrix().float()
    if not torch.isfinite(exact).all():
        return "the sum is not finite"
    weight = site.requantise(layer, exact)
    if weight is None:
        return f"a sum cannot be stored as {form} here"
    stored = dequantise_weight(weight).float()
    norm = base.norm()
    rounding = float((stored - exact).norm() / norm)
    adapter = float((base - exact).norm() / norm)
    changed = int((stored != base).sum())
    return weight, Rounding(form, rounding, adapter, changed)


def _refuse_loss(roundings: Mapping[str, Rounding]) -> None:
    """Refuse rounding that moves a matrix as much as the adapter does."""
    faults = [
        f"{path}   is stored as {moved.form}: rounding would move its output by "
        f"{moved.rounding:.2g} (relative), the adapter moves it by {moved.adapter:.2g}"
        for path, moved in roundings.items()
        if moved.is_lossy
    ]
    if faults:
        raise MergeError(
            f"In {len(faults)} of {plural(len(roundings), 'weight')}, rounding the sum would move "
            "the output as much as the adapter does, or more.",
            faults,
            ADVICE,
        )


def quantised_form(model: nn.Module) -> str:
    """Return the storage of a model's layers in int8 or 4 bits; "" if none is quantised."""
    for place in find_places(model).values():
        if place.site.is_quantised:
            return place.site.quantised_form(place.layer)
    return ""


def dequantised_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters by name, those in int8 or 4 bits as the matrix that they stand for."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    for place in find_places(model).values():
        if place.site.is_quantised and not place.is_part and place.weight_name in parameters:
            parameters[place.weight_name] = place.matrix
    return parameters


def dequantise(model: "PreTrainedModel") -> None:
    """Replace every layer in int8 or 4 bits by a plain one with the same values, in float32."""
    for name, place in find_places(model).items():
        if place.is_part or not place.site.is_quantised:
            continue
        M, bias = place.matrix.float(), place.site.bias(place.layer)
        outputs, inputs = M.shape
        plain = nn.Linear(inputs, outputs, bias is not None, device="meta")
        plain.weight = nn.Parameter(M, requires_grad=False)
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        model.set_submodule(name, plain.train(place.layer.training))
    quantizer: Any = model.hf_quantizer
    quantizer.remove_quantization_config(model)
