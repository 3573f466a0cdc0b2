"""What a model computes again in the backward pass instead of keeping it: nothing, what is cheap,
or all of its blocks.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

# Of the products that take most of a step, and of attention; its kernel on a CPU is not in torch's
# list.
PRODUCTS = {*flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}


def checkpoint_blocks(model: Any, what: str) -> None:
    """Let each block of a model keep its input and compute the rest again when its gradient is
    asked for.

    The same numbers come out: what is computed again finds the random state as it was.

    Args:
        model: of transformers; it is switched in place.
        what: "full" computes all of a block again. "light" keeps the outputs of matrix products and
            of attention: norms, activation functions, sums and casts are made again from them,
                which costs little. "" keeps everything.

    Raises:
        ValueError: by transformers, of a model that cannot.
    """
    # transformers 6 renames the methods.
    if not what:
        (
            getattr(model, "activation_checkpointing_disable", None)
            or model.gradient_checkpointing_disable
        )()
        return
    more = (
        {"context_fn": partial(create_selective_checkpoint_contexts, _kept)}
        if what == "light"
        else {}
    )
    turn_on = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    # The reentrant kind gives no gradient to adapters behind a frozen input, unless one is asked
    # for down to the input.
    turn_on({"use_reentrant": False, **more})
    model.disable_input_require_grads()


def _kept(context: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Tell what becomes of an operation's output."""
    keep = func._overloadpacket in PRODUCTS and not _drops(func, args, kwargs)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _drops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether attention draws random numbers: if it were not made again, later draws would
    find another random state.
    """
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    return bool(given.get("dropout_p", 0.0))
