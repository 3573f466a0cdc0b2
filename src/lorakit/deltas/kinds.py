"""Every parameterisation of a change, by the name that Spec.delta gives it: this is where a name
becomes a class.
"""

from lorakit.deltas.adalora import AdaLoRA
from lorakit.deltas.base import Delta, LowRank
from lorakit.deltas.dora import DoRA
from lorakit.deltas.loha import LoHa
from lorakit.deltas.lokr import LoKr
from lorakit.deltas.vera import VeRA

DELTAS: dict[str, type[Delta]] = {
    known.name: known for known in (LowRank, DoRA, VeRA, LoHa, LoKr, AdaLoRA)
}
