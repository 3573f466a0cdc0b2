"""Bases whose config asks for quantised weights."""

from torch import nn

from lorakit.errors import ModelError


def check_quantised(model: nn.Module, where: str) -> None:
    """Refuse a model whose layers are those of bitsandbytes and whose weights are plain.

    transformers replaces the layers, and converts no weight where there is no GPU; the forward
    fails then.

    Raises:
        ModelError: such a layer is named.
    """
    for name, module in model.named_modules():
        if not type(module).__module__.startswith("bitsandbytes"):
            continue
        if type(module._parameters.get("weight")) is nn.Parameter:
            raise ModelError(
                f"The config of {where} asks for quantised weights, but {name} was loaded with "
                "plain ones: bitsandbytes converts them on a GPU only.",
                advice="Remove quantization_config from its config.json, or save it quantised.",
            )
