"""Activation checkpointing: activations computed again in the backward pass, to need less memory.

Nothing is computed again, or the cheap operations, or all of each block.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Matrix products and attention, which take most of a step; torch's list lacks the kernel of a CPU.
PRODUCTS = {*flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}


def checkpoint_blocks(model: "PreTrainedModel", mode: str) -> None:
    """Let each block of a model keep its input, and compute the rest again for its gradient.

    The numbers stay the same: the random state is restored for what is computed again.

    Args:
        model: of transformers; it is changed in place.
        mode: "full" computes all of a block again. "light" keeps the outputs of matrix products and
            of attention; norms, activation functions, sums and casts are computed again, which
            costs little. "" keeps everything.

    Raises:
        ValueError: by transformers, for a model that does not support it.
    """
    if not mode:
        _method(model, "disable")()
        return
    # The reentrant kind gives no gradient to adapters behind a frozen input, unless a gradient of
    # the input is computed too.
    settings: dict[str, object] = {"use_reentrant": False}
    if mode == "light":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    _method(model, "enable")(settings)
    model.disable_input_require_grads()


def _method(model: "PreTrainedModel", ending: str) -> Callable[..., None]:
    """Return a method of checkpointing by either of its names: transformers 6 renames them."""
    renamed = getattr(model, f"activation_checkpointing_{ending}", None)
    return renamed or getattr(model, f"gradient_checkpointing_{ending}")


def _policy(
    context: object,
    operation: OpOverload,
    *args: object,
    **kwargs: object,
) -> CheckpointPolicy:
    """Return MUST_SAVE for an operation whose output is kept."""
    is_product = operation._overloadpacket in PRODUCTS
    if is_product and not _draws_random_numbers(operation, args, kwargs):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _draws_random_numbers(
    operation: OpOverload, args: tuple[object, ...], kwargs: dict[str, object]
) -> bool:
    """Return True for attention with dropout.

    If its output were kept, later operations would find another random state than at first.
    """
    names = [argument.name for argument in operation._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get("dropout_p", 0.0))
