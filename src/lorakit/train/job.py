"""A job: everything that one training loop works on."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorakit.adapter import Adapter
from lorakit.data.batches import Batches, collate, pack_examples, split_by_length
from lorakit.data.encode import Example
from lorakit.data.on_demand import count_tokens
from lorakit.evaluate.regularisation import Regularisation
from lorakit.evaluate.score import Scores, evaluate
from lorakit.models.packing import packed_attention
from lorakit.models.padding import leaks_padding
from lorakit.tasks.base import Task
from lorakit.tasks.find import find_task
from lorakit.tasks.preference import Preference
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVAL_EXAMPLES = 256  # held-out sequences used by evaluations during a run
EVALUATIONS = 10  # evaluations of a run, unless `eval_every` is set


@dataclass(frozen=True)
class Job:
    """A checked model, adapter, data and settings; `dataclasses.replace` changes one of them.

    Attributes:
        model: the model with the adapter attached.
        adapter: the parameters that are trained.
        task: its name.
        examples: sequences to train on.
        held_out: sequences to evaluate on; may be empty.
        pad: token id that fills batches.
        labels: names of the classes, where the task has any.
        settings: settings of the run.
        lr: peak learning rate.
        output: folder for checkpoints.
        packed: True if the sequences of a batch are concatenated instead of padded.
        chat_template: the chat template that the sequences were made with, if any.
        special_tokens: ids of the tokenizer's special tokens.
        mixed_precision: dtype of autocast: no, bf16 or fp16.
    """

    model: "PreTrainedModel"
    adapter: Adapter
    task: str
    examples: Sequence[Example]
    held_out: Sequence[Example]
    pad: int
    labels: Sequence[str]
    settings: TrainSpec
    lr: float
    output: Path
    packed: bool = False
    chat_template: str | None = None
    special_tokens: tuple[int, ...] = ()
    mixed_precision: str = "no"

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter."""
        return next(self.model.parameters()).device

    @cached_property
    def method(self) -> Task:
        """The task with its settings."""
        if self.task == Preference.name:
            return Preference(self.settings.loss, self.settings.beta)
        return find_task(self.task)

    @property
    def regularisation(self) -> Regularisation:
        """Changes of the loss of training."""
        return Regularisation(
            label_smoothing=self.settings.label_smoothing,
            r_drop=self.settings.r_drop,
            cutoff=self.settings.cutoff,
            special_tokens=self.special_tokens,
        )

    @cached_property
    def unpadded(self) -> bool:
        """True if a pass takes sequences of one length alone, since padding would change them."""
        if self.packed or self.settings.batch_size == 1:
            return False
        # Examples that are tokenised when they are asked for are looked at last.
        if isinstance(self.examples, list) and not _is_mixed(self.examples):
            return False
        return leaks_padding(self.model, self.pad) and _is_mixed(self.examples)

    @cached_property
    def batches(self) -> Batches:
        """The order of the batches."""
        return Batches(
            count_tokens(self.examples),
            self.settings.batch_size,
            self.settings.seed,
            self.settings.batch_tokens,
            packed=self.packed,
        )

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.settings.steps:
            return self.settings.steps
        passes = self.settings.epochs * self.batches.per_epoch
        return max(1, math.ceil(passes / self.settings.accumulate))

    @cached_property
    def eval_every(self) -> int:
        """Steps between two evaluations."""
        return self.settings.eval_every or max(1, math.ceil(self.steps / EVALUATIONS))

    @cached_property
    def eval_examples(self) -> Sequence[Example]:
        """Evenly spaced held-out sequences for evaluations during the run."""
        stride = max(1, math.ceil(len(self.held_out) / EVAL_EXAMPLES))
        return self.held_out[::stride]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the model's inputs and labels for these examples, on the model's device."""
        if self.packed:
            return pack_examples(examples, self.device)
        return collate(examples, self.pad, self.device)

    def passes(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Return the examples of a batch by the forward passes that they are computed in."""
        return split_by_length(examples) if self.unpadded else [list(examples)]

    def batch(self, index: int) -> list[Example]:
        """Return the examples of a batch of the run."""
        return [self.examples[i] for i in self.batches[index]]

    def evaluate(
        self, examples: Sequence[Example], progress: Callable[[int], None] | None = None
    ) -> Scores:
        """Return the scores of the model on examples, with the adapter as it is now.

        Args:
            examples: sequences, mostly held-out ones.
            progress: called with the number of examples done since the last call.
        """
        return evaluate(
            self.model,
            examples,
            self.method,
            pad=self.pad,
            batch_size=self.settings.eval_batch_size,
            labels=self.labels,
            progress=progress,
        )

    def attention(self) -> AbstractContextManager[None]:
        """Return a context in which the model keeps packed sequences apart."""
        return packed_attention(self.model) if self.packed else nullcontext()


def _is_mixed(examples: Sequence[Example]) -> bool:
    """Return True if two examples differ in length."""
    first = len(examples[0].ids)
    return any(len(example.ids) != first for example in examples)
