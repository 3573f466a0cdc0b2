"""Every parameterisation of a change, by the name that Spec.delta gives it: this is where a name becomes a class."""

from lorakit.delta import Delta, LowRank
from lorakit.deltas.dora import DoRA

DELTAS: dict[str, type[Delta]] = {"lora": LowRank, "dora": DoRA}
