"""Every parameterisation of a change, by the name that Spec.delta gives it: this is where a name becomes a class."""

from lorakit.delta import LowRank
from lorakit.deltas.dora import DoRA

DELTAS: dict[str, type[LowRank]] = {"lora": LowRank, "dora": DoRA}
