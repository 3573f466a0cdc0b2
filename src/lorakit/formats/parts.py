"""AdapterParts: the contents of an adapter, as file formats read and write them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from lorakit.deltas.base import Delta
from lorakit.spec import Spec


class AdapterParts(NamedTuple):
    """The contents of an adapter, in the order of `Adapter`'s arguments: `Adapter(*parts)`.

    Attributes:
        spec: the adapter's spec.
        deltas: deltas by full module name.
        full_parameters: fully trained parameters by name.
        provenance: JSON-like facts about the training.
        target_names: module names as a PEFT config lists them, or a regular expression.
    """

    spec: Spec
    deltas: Mapping[str, Delta]
    full_parameters: Mapping[str, nn.Parameter]
    provenance: Mapping[str, Any]
    target_names: tuple[str, ...] | str
