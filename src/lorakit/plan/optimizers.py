"""Optimizers by name, and the size of their state. Torch is not imported, so `--help` is fast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

# bitsandbytes holds smaller tensors in float32, and the others with one float32 scale a block.
LEAST_VALUES, BLOCK = 4096, 256
SCALE_BYTES = 4


@dataclass(frozen=True)
class Optimizer:
    """An optimizer that `optimizer` names.

    Attributes:
        path: its class, with the module.
        moments: tensors of the size of a parameter that it keeps.
        options: arguments that differ from the defaults of the class.
        factored: True if a matrix has one moment for each row and each column instead.
        bits: of a value of a moment; 0 for those of the parameter.
    """

    path: str
    moments: int
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    factored: bool = False
    bits: int = 0

    @property
    def package(self) -> str:
        """The package of its class."""
        return self.path.partition(".")[0]

    @property
    def is_paged(self) -> bool:
        """True if its state moves to main memory where a GPU's runs out."""
        return ".Paged" in self.path

    def state_bytes(self, shape: Sequence[int], value_bytes: int) -> int:
        """Return the bytes of its state for a parameter.

        Args:
            shape: of the parameter.
            value_bytes: bytes of a value of the parameter.

        >>> OPTIMIZERS["adamw"].state_bytes((16, 1000), value_bytes=4)
        128000
        >>> OPTIMIZERS["adafactor"].state_bytes((16, 1000), value_bytes=4)
        4064
        """
        count = prod(shape)
        if self.factored and len(shape) > 1:
            return value_bytes * (count // shape[-1] + count // shape[-2])
        if not self.bits:
            return self.moments * count * value_bytes
        if self.bits == 32 or count < LEAST_VALUES:
            return self.moments * count * 4
        blocks = -(-count // BLOCK)
        return self.moments * (count + SCALE_BYTES * blocks)


DEFAULT = "adamw"
OPTIMIZERS = {
    "adamw": Optimizer("torch.optim.AdamW", 2),
    "adamw-uncorrected": Optimizer("lorakit.train.optim.UncorrectedAdamW", 2),
    "adam": Optimizer("torch.optim.Adam", 2),
    "nadam": Optimizer("torch.optim.NAdam", 2),
    "radam": Optimizer("torch.optim.RAdam", 2),
    "adamax": Optimizer("torch.optim.Adamax", 2),
    "adagrad": Optimizer("torch.optim.Adagrad", 1),
    "adadelta": Optimizer("torch.optim.Adadelta", 2),
    "rmsprop": Optimizer("torch.optim.RMSprop", 1),
    "sgd": Optimizer("torch.optim.SGD", 1, {"momentum": 0.9}),
    # Steps scaled by the size of a parameter would keep B at its start, zero: at least 1 counts.
    "adafactor": Optimizer("torch.optim.Adafactor", 1, {"eps": (None, 1.0)}, factored=True),
    "lion": Optimizer("bitsandbytes.optim.Lion", 1, bits=32),
    "adam8bit": Optimizer("bitsandbytes.optim.Adam8bit", 2, bits=8),
    "adamw8bit": Optimizer("bitsandbytes.optim.AdamW8bit", 2, bits=8),
    "lion8bit": Optimizer("bitsandbytes.optim.Lion8bit", 1, bits=8),
    "rmsprop8bit": Optimizer("bitsandbytes.optim.RMSprop8bit", 1, bits=8),
    "paged-adamw": Optimizer("bitsandbytes.optim.PagedAdamW", 2, bits=32),
    "paged-adamw8bit": Optimizer("bitsandbytes.optim.PagedAdamW8bit", 2, bits=8),
    "paged-lion8bit": Optimizer("bitsandbytes.optim.PagedLion8bit", 1, bits=8),
}
