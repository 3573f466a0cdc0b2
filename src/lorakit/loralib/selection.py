"""The parameters of a model that belong to its adapters: to train them, and to save them."""

from torch import Tensor, nn

from lorakit.loralib.layer import LoRALayer
from lorakit.spec import full_name

BIASES = ("none", "all", "lora_only")
FACTORS = ("lora_A", "lora_B")


def _adapter_keys(model: nn.Module, bias: str) -> set[str]:
    """Return the names of the factors, and of the biases that `bias` selects."""
    if bias not in BIASES:
        raise NotImplementedError(f"bias={bias!r} is none of {', '.join(BIASES)}")
    keys: set[str] = set()
    for path, module in model.named_modules(remove_duplicate=False):
        is_adapted = isinstance(module, LoRALayer) and module.has_factors()
        with_bias = bias == "all" or (bias == "lora_only" and is_adapted)
        for key in module._parameters:
            is_factor = is_adapted and key in FACTORS
            is_bias = "bias" in key
            if is_factor or (with_bias and is_bias):
                keys.add(full_name(path, key))
    return keys


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Set requires_grad of the factors and the selected biases, and unset it of all others.

    Args:
        model: any module.
        bias: none, all of the model, or those of adapted layers (lora_only).
    """
    keys = _adapter_keys(model, bias)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # A layer in two places has its parameters under two names.
    trained = {id(parameters[key]) for key in parameters if key in keys}
    for parameter in parameters.values():
        is_trained = id(parameter) in trained
        parameter.requires_grad_(is_trained)


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, Tensor]:
    """Return the part of the state dict that mark_only_lora_as_trainable lets train."""
    keys = _adapter_keys(model, bias)
    state = model.state_dict()
    return {key: state[key] for key in state if key in keys}
