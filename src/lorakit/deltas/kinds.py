"""The class of every delta, by its name in Spec.delta."""

from lorakit.deltas.adalora import AdaLoRA
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.dora import DoRA
from lorakit.deltas.loha import LoHa
from lorakit.deltas.lokr import LoKr
from lorakit.deltas.vera import VeRA

CLASSES: tuple[type[Delta], ...] = (LowRank, DoRA, VeRA, LoHa, LoKr, AdaLoRA)
DELTAS: dict[str, type[Delta]] = {delta.name: delta for delta in CLASSES}
