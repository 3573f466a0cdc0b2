"""The loss of training: that of a batch, with label smoothing, R-Drop and cutoff."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lorakit.data.encode import IGNORED
from lorakit.evaluate.score import batch_loss
from lorakit.tasks.base import Task
from lorakit.tasks.find import find_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Regularisation:
    """Terms and changes of the loss of training; an evaluation has none of them.

    Attributes:
        label_smoothing: share of the target that is spread over all classes or tokens.
        r_drop: weight of the divergence of two passes; see `symmetric_divergence`.
        cutoff: share of the tokens whose embeddings are zero in the second of two passes.
        special_tokens: ids of tokens that cutoff leaves as they are.
    """

    label_smoothing: float = 0.0
    r_drop: float = 0.0
    cutoff: float = 0.0
    special_tokens: tuple[int, ...] = ()

    @property
    def passes(self) -> int:
        """Forward passes of a batch."""
        return 2 if self.r_drop or self.cutoff else 1


NONE = Regularisation()


def training_loss(
    model: nn.Module, batch: Batch, task: str | Task, regularisation: Regularisation = NONE
) -> Tensor:
    """Return the summed loss of a batch that training minimises.

    With R-Drop or cutoff it is the sum of two passes, whose dropout differs, and of the weighted
    divergence of their predictions.

    Args:
        model: as for `batch_loss`.
        batch: as for `batch_loss`.
        task: as for `batch_loss`.
        regularisation: what is added to the plain loss.

    Returns:
        The sum, float32 (divide it by the count of trained tokens or rows).

    Source: Liang et al., R-Drop, arXiv 2106.14448, section 2. Shen et al., Cutoff, arXiv
        2009.13818, for the tokens. microsoft/LoRA has both for DeBERTa (reg_loss_wgt,
        masking_prob).
    """
    smoothing = regularisation.label_smoothing
    if regularisation.passes == 1:
        return batch_loss(model, batch, task, label_smoothing=smoothing)[0]
    in_chunks = not regularisation.r_drop
    first, logits = batch_loss(model, batch, task, label_smoothing=smoothing, in_chunks=in_chunks)
    with masked_embeddings(model, batch["input_ids"], regularisation):
        second, others = batch_loss(
            model, batch, task, label_smoothing=smoothing, in_chunks=in_chunks
        )
    loss = first + second
    if regularisation.r_drop and logits is not None and others is not None:
        labels = batch["labels"]
        if find_task(task).name == "causal-lm":
            logits, others, labels = logits[:, :-1], others[:, :-1], labels[:, 1:]
        divergence = symmetric_divergence(logits.float(), others.float(), labels)
        loss = loss + regularisation.r_drop * divergence
    return loss


def symmetric_divergence(logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Return half the sum of KL(p || q) and KL(q || p) of two predictions.

    Args:
        logits: (..., classes), of p.
        others: (..., classes), of q.
        labels: (...); predictions whose label is IGNORED do not count.

    Returns:
        The sum over all predictions that count.

    >>> zero, one = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(symmetric_divergence(zero, one, torch.tensor([0])).item(), 4)
    0.1155
    """
    log_p, log_q = logits.log_softmax(-1), others.log_softmax(-1)
    both = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
    return both.masked_fill(labels == IGNORED, 0.0).sum() / 2


@contextmanager
def masked_embeddings(
    model: nn.Module, ids: Tensor, regularisation: Regularisation
) -> Iterator[list[torch.Size]]:
    """Set the embeddings of a random share of the tokens to zero inside the block.

    Args:
        model: a model of transformers.
        ids: (batch, tokens), those that the model gets.
        regularisation: the share, and the tokens that are left as they are.

    Yields:
        A list that gets the shape of the embeddings each time the model computes them; it stays
        empty if the share is 0.
    """
    calls: list[torch.Size] = []
    if not regularisation.cutoff:
        yield calls
        return
    special = torch.tensor(regularisation.special_tokens, device=ids.device, dtype=ids.dtype)
    chosen = torch.rand(ids.shape, device=ids.device) < regularisation.cutoff
    chosen &= ~torch.isin(ids, special)

    def set_to_zero(_: nn.Module, args: tuple[object, ...], embeddings: Tensor) -> Tensor:
        calls.append(embeddings.shape)
        return embeddings.masked_fill(chosen.unsqueeze(-1), 0.0)

    embedding = cast("PreTrainedModel", model).get_input_embeddings()
    handle = cast(nn.Module, embedding).register_forward_hook(set_to_zero)
    try:
        yield calls
    finally:
        handle.remove()


def find_obstacle(
    model: nn.Module, batch: Batch, task: str | Task, regularisation: Regularisation
) -> str | None:
    """Return the reason why the second pass of a batch would be as the first, or None.

    The model runs twice in training mode; random numbers and buffers may change.

    Args:
        model: as for `batch_loss`.
        batch: as for `batch_loss`.
        task: as for `batch_loss`.
        regularisation: what is to be added to the loss; of two passes.
    """
    was_training = model.training
    model.train()
    try:
        with torch.no_grad():
            first = batch_loss(model, batch, task, in_chunks=False)[1]
            with masked_embeddings(model, batch["input_ids"], regularisation) as calls:
                second = batch_loss(model, batch, task, in_chunks=False)[1]
    finally:
        model.train(was_training)
    if regularisation.cutoff:
        return None if calls else "cutoff: the model does not call its input embeddings"
    if first is not None and second is not None and torch.equal(first, second):
        return "r_drop: two passes are equal, since there is no dropout; give --dropout or --cutoff"
    return None
