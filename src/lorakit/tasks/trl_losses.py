"""Losses of preferences, as TRL's trainers compute them.

A trainer of TRL computes a loss from log-probabilities of tokens: those of a model, which it calls,
and those of a reference, which it can read from the batch. Here both are known already. The trainer
gets answers of one token, the number of an answer, and in the place of the model a function that
looks up the log-probability of that answer. So the forward is lorakit's own, with its chunks and
with adapters on any layer, and no trainer holds a model: each is made with the smallest one that it
takes.
"""

import io
import random
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from lorakit.errors import NOT_STARTED, MissingExtra, install_line

Trainer: TypeAlias = Any  # of TRL, which may not be installed
KEPT = ("rewards/", "logps/", "kl", "nll_loss", "log_odds")  # beginnings of the metrics that count
WORDS = {"a": 0, "b": 1}  # of the smallest model
PAIRS = [{"prompt": "a", "chosen": "a", "rejected": "b"}] * 2
RATED = [{"prompt": "a", "completion": "a", "label": is_good} for is_good in (True, False)]


def check_trl() -> None:
    """Refuse to go on if TRL is not installed.

    Raises:
        MissingExtra: with the line that installs it.
    """
    if find_spec("trl") is None:
        raise MissingExtra(
            "Preferences need TRL, which is not installed.",
            advice=f"{install_line('preference')}\n{NOT_STARTED}",
        )


@dataclass(frozen=True)
class Answers:
    """The log-probabilities of the answers of a batch, by a model and by its reference.

    Attributes:
        said: (answers,) log-probability of each answer; for ORPO the logits (answers, length,
            vocabulary).
        reference: (answers,) log-probability of each answer without the adapters, if it is needed.
        batch: of the answers.
        others: (n,) positions of answers to other prompts, by which KTO estimates the divergence.
    """

    said: Tensor
    reference: Tensor
    batch: Mapping[str, Tensor]
    others: Tensor


class Objective(ABC):
    """A loss with its trainer.

    Args:
        beta: of the loss.

    Attributes:
        name: as `--loss` has it.
    """

    name: str

    def __init__(self, beta: float):
        self.beta = beta

    @cached_property
    def trainer(self) -> Trainer:
        """The trainer, made with the smallest model that it takes."""
        check_trl()
        with _left_as_it_was():
            from transformers.trainer_callback import PrinterCallback

            made = self.make_trainer()
            made.remove_callback(PrinterCallback)
        return made

    @abstractmethod
    def make_trainer(self) -> Trainer:
        """Return a new trainer."""

    @abstractmethod
    def make_inputs(self, answers: Answers, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
        """Return the batch of the trainer, for the positions of good and of bad answers."""

    def speak(self, answers: Answers, rows: Tensor) -> Callable[..., object]:
        """Return a stand-in for the model: it looks up the log-probabilities of these answers."""

        def look_up(*, labels: Tensor, **_: object) -> SimpleNamespace:
            found = answers.said[labels[:, 1:]]
            none = torch.zeros_like(found)
            return SimpleNamespace(
                log_probs=found, entropy=none, mean_logits=none, is_top1=none.bool()
            )

        return look_up

    def compute(self, answers: Answers, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Return the mean loss of answers, from their positions in the batch."""
        self.trainer.accelerator = _OneProcess(answers.said.device)
        inputs = self.make_inputs(answers, chosen, rejected)
        model = self.speak(answers, torch.cat([chosen, rejected]))
        loss: Tensor = self.trainer.compute_loss(model, inputs)
        return loss.to(answers.said.device)

    def take_metrics(self) -> dict[str, float]:
        """Return the trainer's metrics, as means over the losses since the last call."""
        logs = {"loss": 0.0}
        self.trainer.log(logs)
        self.trainer.state.log_history.clear()
        return {name: value for name, value in logs.items() if name.startswith(KEPT)}


class DPO(Objective):
    """Direct preference optimisation.

    Source: Rafailov et al., arXiv 2305.18290, equation 7; trl.DPOTrainer.
    """

    name = "dpo"

    def make_trainer(self) -> Trainer:
        """Return a DPOTrainer that reads what the reference says from the batch."""
        trl = import_module("trl")
        return _make(
            trl.DPOTrainer, trl.DPOConfig, PAIRS, beta=self.beta, precompute_ref_log_probs=True
        )

    def make_inputs(self, answers: Answers, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
        """Return the numbers of the answers, with what the reference says of them."""
        return {
            **_number_answers(torch.cat([chosen, rejected])),
            "ref_chosen_logps": answers.reference[chosen],
            "ref_rejected_logps": answers.reference[rejected],
        }


class KTO(Objective):
    """Kahneman-Tversky optimisation.

    Source: Ethayarajh et al., arXiv 2402.01306, equation 7; trl.KTOTrainer.
    """

    name = "kto"

    def make_trainer(self) -> Trainer:
        """Return a KTOTrainer that reads what the reference says from the batch."""
        trl = import_module("trl")
        return _make(
            trl.KTOTrainer, trl.KTOConfig, RATED, beta=self.beta, precompute_ref_log_probs=True
        )

    def make_inputs(self, answers: Answers, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
        """Return the numbers of the answers and of those to other prompts."""
        rows = torch.cat([chosen, rejected])
        others = _number_answers(answers.others)
        return {
            **_number_answers(rows),
            **{f"KL_{name}": value for name, value in others.items()},
            "label": torch.arange(len(rows), device=rows.device) < len(chosen),
            "ref_logps": answers.reference[rows],
            "ref_KL_logps": answers.reference[answers.others],
        }


class ORPO(Objective):
    """Odds ratio preference optimisation, which has no reference.

    Its likelihood is that of prompt and answer, as TRL has it.

    Source: Hong et al., arXiv 2403.07691, equation 6; trl.experimental.orpo.ORPOTrainer.
    """

    name = "orpo"

    def make_trainer(self) -> Trainer:
        """Return an ORPOTrainer."""
        orpo = import_module("trl.experimental.orpo")
        return _make(orpo.ORPOTrainer, orpo.ORPOConfig, PAIRS, beta=self.beta, max_length=8)

    def speak(self, answers: Answers, rows: Tensor) -> Callable[..., object]:
        """Return a stand-in for the model: it looks up the logits of these answers."""
        return lambda *_, **__: SimpleNamespace(logits=answers.said[rows])

    def make_inputs(self, answers: Answers, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
        """Return the tokens of the answers."""
        inputs: dict[str, Tensor] = {}
        for name, rows in (("chosen", chosen), ("rejected", rejected)):
            for key in ("input_ids", "attention_mask", "labels"):
                inputs[f"{name}_{key}"] = answers.batch[key][rows]
        return inputs


OBJECTIVES: dict[str, type[Objective]] = {loss.name: loss for loss in (DPO, ORPO, KTO)}


def _number_answers(rows: Tensor) -> dict[str, Tensor]:
    """Return answers of one token after a prompt of one: the numbers of these rows."""
    ids = torch.stack([torch.zeros_like(rows), rows], dim=1)
    answered = torch.zeros_like(ids)
    answered[:, 1] = 1
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": answered,
    }


class _OneProcess:
    """A stand-in for the accelerator of a trainer: one process, which gathers nothing."""

    def __init__(self, device: torch.device):
        self.device = device

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


def _make(
    trainer: Callable[..., Any],
    config: Callable[..., Any],
    rows: list[dict[str, Any]],
    **settings: object,
) -> Trainer:
    """Return a trainer of TRL with the smallest model, in a folder that is deleted."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(WORDS, unk_token="a"))
    sizes = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=2,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        plain = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
        return trainer(
            model=LlamaForCausalLM(sizes),
            args=config(output_dir=folder, **plain, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=words, eos_token="b", pad_token="b"
            ),
        )


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Keep random numbers and accelerate's global states, and print nothing, in the block."""
    states = (AcceleratorState, GradientState, PartialState)
    before = [dict(state._shared_state) for state in states]
    numbers = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(redirect_stderr(io.StringIO()))
        try:
            yield
        finally:
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])
            for state, values in zip(states, before, strict=True):
                state._shared_state.clear()
                state._shared_state.update(values)
