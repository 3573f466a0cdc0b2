"""A drop-in replacement for microsoft/LoRA's package: `import lorakit.loralib as lora`.

Signatures, parameter names, state-dict keys and random draws are loralib's. As its users expect,
`eval()` merges the layers of this module and `train()` takes the merge back. But the merged weight
is a separate tensor: the weight itself is never written. So state dicts, copies and casts hold the
base's exact weight, and a weight that is loaded or trained while merged is used.

Differences to loralib, on purpose: all kinds of convolution and kernels work, with dropout; what
trains depends on the layer and not on parts of names; layers can be pickled; adapters may have
another dtype than the base; a printed layer shows r and lora_alpha; `layer.weight` is the base's
in eval mode too, and `layer.merged_weight()` is the sum. For models that you do not want to edit,
use `lorakit.attach`.

Source: github.com/microsoft/LoRA, loralib 0.1.2.
"""

from lorakit.loralib.convolution import Conv1d, Conv2d, Conv3d, ConvLoRA
from lorakit.loralib.embedding import Embedding
from lorakit.loralib.layer import LoRALayer
from lorakit.loralib.linear import Linear, MergedLinear
from lorakit.loralib.selection import lora_state_dict, mark_only_lora_as_trainable

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvLoRA",
    "Embedding",
    "Linear",
    "LoRALayer",
    "MergedLinear",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
]
