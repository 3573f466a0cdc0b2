"""Tasks: their names here, in PEFT's files, in transformers and on hubs. Imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class TaskNames:
    """Names of one kind of task, and the head that it needs.

    Attributes:
        name: the name that `--task` and reports use.
        peft_type: `task_type` in PEFT's adapter_config.json.
        model_class: the class of transformers that loads a model with the right head.
        pipeline: the tag of a model card, as hubs know it.
        has_head: True if the model gets a head of its own, which may be new; a language model has
            its head already.
        has_classes: True if the outputs of that head are classes with names.
    """

    name: str
    peft_type: str
    model_class: str
    pipeline: str
    has_head: bool = False
    has_classes: bool = False


def _classifier(name: str, *, has_classes: bool) -> TaskNames:
    """Return the names of a task that labels whole texts."""
    auto = "AutoModelForSequenceClassification"
    return TaskNames(
        name, "SEQ_CLS", auto, "text-classification", has_head=True, has_classes=has_classes
    )


TASKS = {
    "causal-lm": TaskNames("causal-lm", "CAUSAL_LM", "AutoModelForCausalLM", "text-generation"),
    "seq2seq": TaskNames(
        "seq2seq", "SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", "text2text-generation"
    ),
    "classify": _classifier("classify", has_classes=True),
    "regress": _classifier("regress", has_classes=False),
    "multi-label": _classifier("multi-label", has_classes=True),
    "preference": TaskNames("preference", "CAUSAL_LM", "AutoModelForCausalLM", "text-generation"),
    "tokens": TaskNames(
        "tokens",
        "TOKEN_CLS",
        "AutoModelForTokenClassification",
        "token-classification",
        has_head=True,
        has_classes=True,
    ),
}
# The classes of transformers for the types of task that PEFT's files name.
MODEL_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
# Endings of the names of classes that write text.
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
CHOICES = ("auto", *TASKS)
LOSSES = ("dpo", "orpo", "kto")  # of preferences
TRUST_HELP = (
    "run Python code that the model's folder or repository brings along, with all your rights; "
    "without this flag none of it runs"
)


def task_of_peft_type(peft_type: str | None) -> str | None:
    """Return the task that a PEFT file was trained for, or None where its type is not one of ours.

    >>> task_of_peft_type("SEQ_CLS"), task_of_peft_type("FEATURE_EXTRACTION")
    ('classify', None)
    """
    for task in TASKS.values():
        if task.peft_type == peft_type:
            return task.name
    return None


def task_of_config(config: "PretrainedConfig") -> str:
    """Return the task that a model was made for, by the classes that its config names.

    An encoder without a head is for classify.
    """
    names = config.architectures or ()
    if any("TokenClassification" in name for name in names):
        return "tokens"
    if any("SequenceClassification" in name for name in names):
        if config.problem_type == "multi_label_classification":
            return "multi-label"
        return "regress" if config.num_labels == 1 else "classify"
    if config.is_encoder_decoder:
        return "seq2seq"
    if any(name.endswith(WRITERS) for name in names):
        return "causal-lm"
    is_encoder = any("Masked" in name or name.endswith("Model") for name in names)
    return "classify" if is_encoder else "causal-lm"
