"""The loss of a language model, computed in chunks, so that the full logits never exist.

The gradient of a chunk is computed in the forward pass, while its logits exist. The head is called
as a module, so that a bias, adapters, a fully trained head and a tied head count as in the plain
expression. Some models transform the logits after the head (soft-capping, a scale); the transforms
below are known. Before the first loss the result is compared with the model's own forward, value by
value. A model for which they differ keeps the plain way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn import functional as F

from lorakit.sites.slot import get_slot

if TYPE_CHECKING:
    from torch.autograd.graph import Node
    from transformers import PreTrainedModel

CHUNK_BYTES = 1 << 26  # memory for the logits of a chunk: 64 MiB
CHECKED_TOKENS = 8  # of the first batch, on which the model's own forward is compared

Transform = Callable[[Tensor], Tensor]


def _unchanged(y: Tensor) -> Tensor:
    return y


@dataclass(frozen=True)
class Head:
    """The last steps of a language model.

    Attributes:
        body: the module that returns the last hidden state.
        layer: the linear layer whose input that is.
        transform: the function that makes logits of the layer's output.
    """

    body: nn.Module
    layer: nn.Linear
    transform: Transform


def find_head(model: "PreTrainedModel", ids: Tensor) -> Head | None:
    """Return the head of a causal language model, or None if its loss cannot be chunked.

    Args:
        model: of transformers.
        ids: (batch, tokens), a batch; its first tokens are run once for each model.
    """
    found = _examine(model, ids)
    return found if isinstance(found, Head) else None


def chunking_obstacle(model: "PreTrainedModel", ids: Tensor) -> str | None:
    """Return the reason why the loss of a causal language model cannot be chunked, or None.

    Args:
        model: of transformers.
        ids: (batch, tokens), as a batch of the model.
    """
    found = _examine(model, ids)
    return found if isinstance(found, str) else None


def _examine(model: "PreTrainedModel", ids: Tensor) -> Head | str:
    """Return the head, or the reason why the loss cannot be chunked."""
    if torch.compiler.is_compiling():
        return "the model is being compiled"  # the recorded operations stay as they are
    if model._forward_hooks or model._forward_pre_hooks:
        return "a hook on the model itself would be skipped"
    if _compute_dtype(model, ids.device.type) == torch.float16:
        return "its gradient in float16 would overflow, since the loss scale is not known yet"
    head = _find_by_structure(model)
    # Tensors without values cannot be compared.
    if isinstance(head, str) or _is_fake(next(model.parameters())):
        return head
    if not _is_verified(model, head, ids):
        return "its logits are not those of its head on the last hidden state"
    return head


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)


def _compute_dtype(model: "PreTrainedModel", device_type: str) -> torch.dtype:
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return next(model.parameters()).dtype


def _find_by_structure(model: "PreTrainedModel") -> Head | str:
    body, layer = model.base_model, model.get_output_embeddings()
    if layer is None:
        return "it has no output layer"
    if type(layer) is not nn.Linear:
        return f"its head is a {type(layer).__name__}, not a Linear"
    children = {id(child) for child in model.children()}
    if id(layer) not in children or id(body) not in children:
        return "its body and its head are not both its children"
    return Head(body, layer, _find_transform(model))


def _find_transform(model: "PreTrainedModel") -> Transform:
    """Return the transform of the layer's output that the config names."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:  # Gemma 2 and later
        return lambda y: torch.tanh(y / cap) * cap
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:  # Granite
        return lambda y: y / divisor
    factor = getattr(config, "logit_scale", None)
    if factor is not None:  # Cohere
        return lambda y: y * factor
    return _unchanged


@dataclass(frozen=True)
class _Check:
    """The result of one comparison of a model with its head.

    Attributes:
        subject: the modules that were compared, and what is attached to the head.
        equal: True if the logits are the same to the bit.
    """

    subject: tuple[object, ...]
    equal: bool


CHECKS: WeakKeyDictionary[nn.Module, _Check] = WeakKeyDictionary()


def _is_verified(model: "PreTrainedModel", head: Head, ids: Tensor) -> bool:
    """Return True if the head gives the model's own logits; compared once for each model."""
    slot = get_slot(head.layer)
    attached = tuple(slot._modules) if slot else None
    subject = (id(head.layer), id(head.body), attached)
    check = CHECKS.get(model)
    if check is None or check.subject != subject:
        check = _Check(subject, _gives_own_logits(model, head, ids))
        CHECKS[model] = check
    return check.equal


def _gives_own_logits(model: "PreTrainedModel", head: Head, ids: Tensor) -> bool:
    """Return True if the logits are the head's, to the bit, and no other parameter changes them."""
    calls: list[tuple[Tensor, Tensor]] = []

    def record(_: nn.Module, args: tuple[Tensor], y: Tensor) -> None:
        calls.append((args[0], y))

    with torch.inference_mode(False):
        # A copy, since autograd refuses ids that were made in inference mode. From the left, where
        # nothing is padded.
        inputs = {"input_ids": ids[:1, :CHECKED_TOKENS].clone()}
    handle = head.layer.register_forward_hook(record)
    try:
        with _reproducible(ids.device), torch.enable_grad():
            logits = model(**inputs, use_cache=False).logits
        with _reproducible(ids.device), torch.no_grad():
            hidden = _last_hidden_state(head, inputs)
    finally:
        handle.remove()
    if len(calls) != 1:
        return False
    x, y = calls[0]
    if hidden.shape != x.shape or not torch.equal(hidden, x):
        return False
    if not torch.equal(head.transform(y).float(), logits.float()):
        return False
    own = {id(parameter) for parameter in head.layer.parameters()}
    return all(id(leaf) in own for leaf in _leaves(y.grad_fn, x.grad_fn))


def _leaves(result: "Node | None", stop: "Node | None") -> Iterator[Tensor]:
    """Yield the parameters that a result depends on, except through `stop`."""
    pending, seen = [result], {stop}
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable
        pending += [following for following, _ in node.next_functions]


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers in every such block, outside of inference mode."""
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def _last_hidden_state(head: Head, inputs: dict[str, Any]) -> Tensor:
    return head.body(**inputs, use_cache=False)[0]


def _find_labels(labels: Tensor, ignored: int) -> Tensor:
    """Return the positions that have a label."""
    return (labels != ignored).nonzero().squeeze(1)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunked_loss(
    head: Head, inputs: dict[str, Any], targets: Tensor, ignored: int, smoothing: float = 0.0
) -> Tensor:
    """Return the summed cross-entropy of the next tokens, over the positions that have a label.

    Args:
        head: of the model.
        inputs: arguments of the model.
        targets: (batch, length), the token that each position is to predict; `ignored` where it is
            not trained.
        ignored: the label of positions that do not count.
        smoothing: share of each target that is spread over all tokens.

    Returns:
        The sum, float32 (float64 in float64).
    """
    labels = targets.flatten()
    if _is_fake(labels):
        # The number of labels is not known of tensors without values: all positions count.
        hidden = _last_hidden_state(head, inputs).flatten(0, 1)
        return cross_entropy(hidden, labels, head.layer, head.transform, smoothing)
    positions = _find_labels(labels, ignored)
    hidden = _last_hidden_state(head, inputs).flatten(0, 1)
    trained = hidden[positions]
    return cross_entropy(trained, labels[positions], head.layer, head.transform, smoothing)


def chunked_loss_by_row(
    head: Head, inputs: dict[str, Tensor], targets: Tensor, ignored: int, smoothing: float = 0.0
) -> Tensor:
    """Return the same sum for each row of the batch, (batch,), without gradient.

    A gradient would keep the logits of all chunks.

    Args:
        head: of the model.
        inputs: arguments of the model.
        targets: (batch, length), the token that each position is to predict; `ignored` where it is
            not trained.
        ignored: the label of positions that do not count.
        smoothing: share of each target that is spread over all tokens.
    """
    labels = targets.flatten()
    positions = _find_labels(labels, ignored)
    hidden = _last_hidden_state(head, inputs).flatten(0, 1)
    size = chunk_rows(head.layer.out_features, head.layer.weight.dtype)
    dtype = _sum_dtype(hidden.dtype)
    total = torch.zeros(len(targets), dtype=dtype, device=hidden.device)
    for chunk in positions.split(size):
        logits = head.transform(head.layer(hidden[chunk])).to(dtype)
        losses = F.cross_entropy(logits, labels[chunk], reduction="none", label_smoothing=smoothing)
        rows = chunk // targets.shape[1]
        total = total.index_add(0, rows, losses)
    return total


def cross_entropy(
    x: Tensor,
    labels: Tensor,
    layer: nn.Linear,
    transform: Transform = _unchanged,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the summed cross-entropy of `transform(layer(x))`, computed chunk by chunk.

    Args:
        x: (n, in), floating.
        labels: (n,) int64, each below the number of outputs.
        layer: (n, in) to (n, out).
        transform: of the layer's output; each row depends on that row alone.
        smoothing: share of each label that is spread over all outputs, as torch's label_smoothing.

    Returns:
        The sum over rows, float32 (float64 in float64). Its gradient, which can be computed once,
        is of x and of the layer's parameters.

    Cost: 64 MiB for the logits of a chunk and their gradient, for any n.

    >>> layer = nn.Linear(2, 3, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> loss = cross_entropy(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]), layer)
    >>> round(loss.item(), 4)  # 4 log 3
    4.3944
    """
    trained: list[nn.Parameter] = []
    needs_x = False
    if torch.is_grad_enabled():
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        needs_x = x.requires_grad
    return _ChunkedCrossEntropy.apply(x, labels, layer, transform, smoothing, needs_x, *trained)


def chunk_rows(width: int, dtype: torch.dtype) -> int:
    """Return the number of rows of a chunk, for a head with `width` outputs.

    In float32 the loss is computed in the memory of the logits. In 16 bits a float32 copy and the
    gradient of the logits are needed too.
    """
    bytes_per_logit = 4 if dtype == torch.float32 else 8
    return max(16, CHUNK_BYTES // (width * bytes_per_logit))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        labels: Tensor,
        layer: nn.Linear,
        transform: Transform,
        smoothing: float,
        needs_x: bool,
        *trained: Tensor,
    ) -> Tensor:
        dtype = _sum_dtype(x.dtype)
        total = torch.zeros((), dtype=dtype, device=x.device)
        x_gradient = torch.empty_like(x) if needs_x else None
        # Sums over many chunks need more than 16 bits.
        sums = [torch.zeros_like(parameter, dtype=dtype) for parameter in trained]
        size = chunk_rows(layer.out_features, x.dtype)
        for start in range(0, len(x), size):
            chunk = slice(start, start + size)
            part = x[chunk].detach().requires_grad_(needs_x)
            with torch.set_grad_enabled(needs_x or bool(trained)):
                logits = transform(layer(part))
            loss, gradient = _loss_and_gradient(logits, labels[chunk], dtype, smoothing)
            total += loss
            if logits.requires_grad:
                leaves = [part, *trained] if needs_x else list(trained)
                gradients = list(torch.autograd.grad(logits, leaves, gradient, allow_unused=True))
                if x_gradient is not None:
                    x_gradient[chunk] = gradients.pop(0)
                _add(sums, gradients)
            del logits, gradient  # before the next chunk needs their memory
        pairs = zip(sums, trained, strict=True)
        rounded = [summed.to(parameter.dtype) for summed, parameter in pairs]
        ctx.save_for_backward(x_gradient, *rounded)  # type: ignore[arg-type]  None is allowed
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: BackwardCFunction, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        factor = grads[0]
        scaled = [
            None if saved is None else saved * factor.to(saved.dtype) for saved in ctx.saved_tensors
        ]
        # Of labels, layer, transform, smoothing and needs_x there is no gradient.
        return scaled[0], None, None, None, None, None, *scaled[1:]


def _add(sums: list[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for total, gradient in zip(sums, gradients, strict=True):
        if gradient is not None:
            total += gradient


def _loss_and_gradient(
    y: Tensor, labels: Tensor, dtype: torch.dtype, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a chunk, and its gradient: the softmax less the target.

    Both are computed in the memory of the logits `y` if these have `dtype`.
    """
    logits = y.detach().to(dtype)
    columns = labels.unsqueeze(1)
    logits -= logits.amax(-1, keepdim=True)
    expected = logits.gather(-1, columns)
    on_label = torch.full_like(expected, smoothing - 1.0)
    if smoothing:
        mean = logits.mean(-1, keepdim=True)
        expected = (1 - smoothing) * expected + smoothing * mean
    logits.exp_()
    total = logits.sum(-1, keepdim=True)
    loss = (total.log() - expected).sum()
    logits /= total
    if smoothing:
        logits -= smoothing / logits.shape[-1]
    logits.scatter_add_(-1, columns, on_label)
    return loss, logits.to(y.dtype)
