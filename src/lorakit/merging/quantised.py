"""Models in int8 or 4 bits: sums that go back into them, what that rounding moves, and the same
model in full.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.inject.places import find_places
from lorakit.sites.quantised import dequantise_weight
from lorakit.text import plural

OUT = (
    "Merge into a 16-bit copy (`lorakit merge --dtype bfloat16`; in Python, load the base in full and attach there with "
    "any_base=True), use the adapter unmerged, or accept the loss (`lorakit merge --allow-loss`, "
    "merge(model, allow_loss=True)). Nothing was changed."
)


@dataclass(frozen=True)
class Rounding:
    """What a merge did to a weight that is kept in int8 or 4 bits.

    A movement is the norm of a difference of matrices over that of the base's: for inputs of one
    size in all directions, that of the layer's output.

    Attributes:
        form: in which it is kept, and by which package.
        rounding: how far the stored matrix is from the exact sum.
        adapter: how far the exact sum is from the base's matrix.
        changed: number of values that are not the base's.
    """

    form: str
    rounding: float
    adapter: float
    changed: int


def requantise(
    asked: Iterable[tuple[str, Any, Any, list[Any]]], *, allow_loss: bool
) -> tuple[dict[str, nn.Parameter], dict[str, Rounding]]:
    """Return sums, taken in float32, as their layers store them, and what rounding moved; by the
    name of the weight.

    Args:
        asked: name of a weight, site, layer, and changes as `site.add_changes` takes them.
        allow_loss: take it where rounding moves a matrix as much as the adapter, or more.

    Raises:
        MergeError: it does, or a sum is not finite, or there is no way to store it in this form;
            all are named.
    """
    made, moved, lossy, faults = (
        dict[str, nn.Parameter](),
        dict[str, Rounding](),
        list[str](),
        list[str](),
    )
    for path, site, layer, changes in asked:
        form = site.quantised_form(layer)
        with torch.no_grad():
            M, new = site.read(layer).float(), site.add_changes(layer, changes).float()
            if not torch.isfinite(new).all():
                faults.append(f"{path}   the sum is not finite")
                continue
            weight = site.requantise(layer, new)
            if weight is None:
                faults.append(f"{path}   there is no way here to store a sum as {form}")
                continue
            got = dequantise_weight(weight).float()
            lost, own = (float((x - new).norm() / M.norm()) for x in (got, M))
            made[path], moved[path] = weight, Rounding(form, lost, own, int((got != M).sum()))
        # Where the adapter moves less than half a step, rounding takes back all that it did: they
        # are equal then.
        if lost >= own:
            lossy.append(
                f"{path}   is stored as {form}: rounding would move its output by {lost:.2g} (relative), the adapter "
                f"moves it by {own:.2g}"
            )
    if faults:
        raise MergeError(
            f"{plural(len(faults), 'weight')} cannot be merged.", faults, "Nothing was changed."
        )
    if lossy and not allow_loss:
        raise MergeError(
            f"In {len(lossy)} of {plural(len(moved), 'weight')}, rounding the sum back would move the output by as "
            "much as the adapter does, or more.",
            lossy,
            OUT,
        )
    return made, moved


def quantised_form(model: nn.Module) -> str:
    """Return the form in which a model's layers are kept where that is int8 or 4 bits; "" where
    none is.
    """
    return next(
        (
            form
            for place in find_places(model).values()
            if (form := place.site.quantised_form(place.layer))
        ),
        "",
    )


def dequantised_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters by name, those in int8 or 4 bits as the matrix that they stand for."""
    read = {
        place.weight_name: place.site.read(place.layer)
        for place in find_places(model).values()
        if not place.is_part and place.site.quantised_form(place.layer)
    }
    return {path: read.get(path, parameter) for path, parameter in model.named_parameters()}


def dequantise(model: Any) -> None:
    """Turn every layer in int8 or 4 bits of a transformers model into a plain one of the values
    that it holds, in float32.
    """
    for name, place in find_places(model).items():
        if place.is_part or not place.site.quantised_form(place.layer):
            continue
        matrix, bias = place.site.read(place.layer).float(), place.site.bias(place.layer)
        plain = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None, device="meta")
        plain.weight = nn.Parameter(matrix, requires_grad=False)
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        model.set_submodule(name, plain.train(place.layer.training))
    model.hf_quantizer.remove_quantization_config(model)
