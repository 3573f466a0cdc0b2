"""The loss of a language model's head, for the positions that have a label, a few rows at a time:
no full logits, ever.

Each chunk's gradient is taken in the forward pass, while its logits are there. The head is called
as the module it is, so biases, adapters, a head that trains whole or that is tied count as in the
plain expression. What the model makes of its logits after that (soft-capping, a scale) is known for
the forms below; whether it is that and nothing else is seen on the model's own forward before the
first loss, value by value. Any other model keeps the plain way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.sites.slot import get_slot

WORK = 1 << 26  # bytes that one chunk may take: 64 MiB
LOOKED_AT = 8  # tokens of the first batch that the model's own forward is compared on


@dataclass(frozen=True)
class Head:
    """How a model comes from what its body gives to logits.

    Attributes:
        body: gives the last hidden state.
        layer: the linear layer that reads it.
        after: what is made of the layer's output.
    """

    body: nn.Module
    layer: nn.Linear
    after: Callable[[Tensor], Tensor]


def find_head(model: Any, ids: Tensor) -> Head | None:
    """Return the head of a causal language model where its loss can be taken in chunks, else None.

    Args:
        model: of transformers.
        ids: (batch, tokens) that it is called with; the first few are run, once for each model.
    """
    found = _look(model, ids)
    return found if isinstance(found, Head) else None


def chunking_obstacle(model: Any, ids: Tensor) -> str | None:
    """Return why the loss of a causal language model is not taken in chunks but of all its logits
    at once; None if it is.

    Args:
        model: of transformers.
        ids: (batch, tokens) that it may be called with.
    """
    found = _look(model, ids)
    return found if isinstance(found, str) else None


def _look(model: Any, ids: Tensor) -> Head | str:
    """Return the head, or why it cannot be taken."""
    if torch.compiler.is_compiling():  # recorded operations are left as they are
        return "the model is being compiled"
    if model._forward_hooks or model._forward_pre_hooks:
        return "a hook on the model itself would be passed by"
    if torch.is_autocast_enabled(ids.device.type):
        narrow = torch.get_autocast_dtype(ids.device.type)
    else:
        narrow = next(model.parameters()).dtype
    if narrow == torch.float16:
        return "its gradient in float16 would run out of range, before the scaler of fp16 is known"
    head = _by_structure(model)
    if isinstance(head, str) or isinstance(next(model.parameters()), torch._subclasses.FakeTensor):
        return head  # of values that are not there nothing can be compared
    slot = get_slot(head.layer)
    key = (id(head.layer), id(head.body), tuple(slot._modules) if slot else None)
    if SEEN.get(model, (None, False))[0] != key:
        SEEN[model] = (key, _is_all(model, head, ids))
    return (
        head
        if SEEN[model][1]
        else "its logits are not what its head makes of the last hidden state"
    )


SEEN: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()


def _by_structure(model: Any) -> Head | str:
    body, layer = model.base_model, model.get_output_embeddings()
    children = list(model._modules.values())
    if type(layer) is not nn.Linear:
        return (
            "its head is not known"
            if layer is None
            else f"its head is a {type(layer).__name__}, not a Linear"
        )
    if not any(c is layer for c in children) or not any(c is body for c in children):
        return "its body and its head are not two children of it"
    return Head(body, layer, _after(model))


def _after(model: Any) -> Callable[[Tensor], Tensor]:
    """Return what the configuration says is made of the layer's output."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:  # Gemma 2 and its kin
        return lambda y: torch.tanh(y / cap) * cap
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite
        return lambda y: y / scaling
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        return lambda y: y * scale
    return lambda y: y


def _is_all(model: Any, head: Head, ids: Tensor) -> bool:
    """Tell whether the model's logits are the head's of what the body gives, to the bit, with no
    parameter from elsewhere.
    """
    with torch.inference_mode(
        False
    ):  # a copy that autograd takes, of ids that may have been made in that mode
        few = {"input_ids": ids[:1, :LOOKED_AT].clone()}  # from the left, where nothing is padded
    seen: list[tuple[Tensor, Any]] = []
    handle = head.layer.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    try:
        with torch.inference_mode(False), torch.enable_grad(), _same_draws(ids.device):
            logits = model(**few, use_cache=False).logits
        with torch.inference_mode(False), torch.no_grad(), _same_draws(ids.device):
            hidden = _hidden(head, few)
    finally:
        handle.remove()
    if len(seen) != 1 or hidden.shape != seen[0][0].shape or not torch.equal(hidden, seen[0][0]):
        return False
    x, y = seen[0]
    own = {id(p) for p in head.layer.parameters()}
    same = torch.equal(head.after(y).float(), logits.float())
    return same and all(id(p) in own for p in _leaves(y.grad_fn, x.grad_fn))


def _leaves(node: Any, stop: Any) -> Iterator[Tensor]:
    """Yield the parameters that a result depends on, but for those that its input depends on."""
    left, known = [node], {stop}
    while left:
        node = left.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        left += [following for following, _ in node.next_functions]


@contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _hidden(head: Head, inputs: dict[str, Any]) -> Tensor:
    return head.body(**inputs, use_cache=False)[0]


def chunked_loss(head: Head, inputs: dict[str, Any], targets: Tensor, ignored: int) -> Tensor:
    """Return the summed cross-entropy of what comes next, over the positions that have a label.

    Args:
        head: of the model.
        inputs: what it is called with.
        targets: (batch, length), what each position is to predict; `ignored` where it is not
            trained.
        ignored: the label of positions that do not count.

    Returns:
        The sum, float32 (float64 in float64).
    """
    flat = targets.flatten()
    # How many count is not known of tensors without values: all of them then.
    at = (
        None
        if isinstance(flat, torch._subclasses.FakeTensor)
        else (flat != ignored).nonzero().squeeze(1)
    )
    hidden = _hidden(head, inputs).flatten(0, 1)
    return cross_entropy(
        hidden if at is None else hidden[at],
        flat if at is None else flat[at],
        head.layer,
        head.after,
    )


def chunked_loss_by_row(
    head: Head, inputs: dict[str, Tensor], targets: Tensor, ignored: int
) -> Tensor:
    """Return the same for each row, (batch,): for measuring, since a gradient would keep the logits
    of all chunks.

    Args:
        head: of the model.
        inputs: what it is called with.
        targets: (batch, length), what each position is to predict; `ignored` where it is not
            trained.
        ignored: the label of positions that do not count.
    """
    flat = targets.flatten()
    at = (flat != ignored).nonzero().squeeze(1)
    x, size = (
        _hidden(head, inputs).flatten(0, 1),
        chunk_rows(head.layer.out_features, head.layer.weight.dtype),
    )
    total = torch.zeros(
        len(targets),
        dtype=torch.float64 if x.dtype == torch.float64 else torch.float32,
        device=x.device,
    )
    for part in at.split(size):
        losses = F.cross_entropy(
            head.after(head.layer(x[part])).to(total.dtype), flat[part], reduction="none"
        )
        total = total.index_add(0, part // targets.shape[1], losses)
    return total


def cross_entropy(
    x: Tensor, labels: Tensor, layer: nn.Linear, after: Callable[[Tensor], Tensor] = lambda y: y
) -> Tensor:
    """Return the summed cross-entropy of `after(layer(x))`, whose gradient is taken chunk by chunk.

    Args:
        x: (n, in), floating.
        labels: (n,) int64, each below the number of outputs.
        layer: gives (n, out).
        after: what is made of its output, row by row.

    Returns:
        The sum over rows, float32 (float64 in float64); gradients go to x and to the layer's
        parameters, once.

    Cost: 64 MiB for the logits of a chunk and what the loss makes of them, whatever n is.

    >>> layer = nn.Linear(2, 3, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> loss = cross_entropy(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]), layer)
    >>> round(loss.item(), 4)  # 4 log 3
    4.3944
    """
    trained = [p for p in layer.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    return _Chunked.apply(
        x, labels, layer, after, torch.is_grad_enabled() and x.requires_grad, *trained
    )


def chunk_rows(width: int, dtype: torch.dtype) -> int:
    """Return how many rows are taken at once by a head of so many outputs.

    In float32 the loss works in the memory of the logits; in 16 bits it needs a copy in float32 and
    their gradient besides.
    """
    return max(16, WORK // (width * (4 if dtype == torch.float32 else 8)))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        labels: Tensor,
        layer: nn.Linear,
        after: Callable[[Tensor], Tensor],
        to_x: bool,
        *trained: Tensor,
    ) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=x.device)
        gx = torch.empty_like(x) if to_x else None
        # Sums of many chunks are kept in float32.
        sums = [torch.zeros_like(p, dtype=wide) for p in trained]
        rows = chunk_rows(layer.out_features, x.dtype)
        for start in range(0, len(x), rows):
            part = x[start : start + rows].detach().requires_grad_(to_x)
            with torch.set_grad_enabled(to_x or bool(trained)):
                y = after(layer(part))
            loss, gradient = _softmax_less_target(y, labels[start : start + rows], wide)
            total += loss
            if y.requires_grad:
                wanted = [part, *trained] if to_x else list(trained)
                found = list(torch.autograd.grad(y, wanted, gradient, allow_unused=True))
                if gx is not None:
                    gx[start : start + rows] = found.pop(0)
                for kept, grad in zip(sums, found, strict=True):
                    if grad is not None:
                        kept += grad
            del y, gradient
        ctx.save_for_backward(gx, *(s.to(p.dtype) for s, p in zip(sums, trained, strict=True)))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        gx, *others = (None if t is None else t * grads[0].to(t.dtype) for t in ctx.saved_tensors)
        return gx, None, None, None, None, *others


def _softmax_less_target(y: Tensor, labels: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the loss of a chunk and its gradient by the logits, in y's own memory where that is
    wide enough.
    """
    logits, at = y.detach().to(wide), labels.unsqueeze(1)
    logits -= logits.amax(-1, keepdim=True)
    right = logits.gather(-1, at)
    logits.exp_()
    total = logits.sum(-1, keepdim=True)
    loss = (total.log() - right).sum()
    logits /= total
    logits.scatter_add_(-1, at, torch.full_like(right, -1.0))
    return loss, logits.to(y.dtype)
