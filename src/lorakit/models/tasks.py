"""Tasks: their names here, in PEFT's files, in transformers and on hubs. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One kind of task that a model can be loaded for.

    Attributes:
        name: the name that `--task` and reports use.
        peft_type: `task_type` in PEFT's adapter_config.json.
        model_class: the class of transformers that loads a model with the right head.
        pipeline: the tag of a model card, as hubs know it.
    """

    name: str
    peft_type: str
    model_class: str
    pipeline: str


TASKS = {
    "causal-lm": Task("causal-lm", "CAUSAL_LM", "AutoModelForCausalLM", "text-generation"),
    "classify": Task(
        "classify", "SEQ_CLS", "AutoModelForSequenceClassification", "text-classification"
    ),
    "regress": Task(
        "regress", "SEQ_CLS", "AutoModelForSequenceClassification", "text-classification"
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
CHOICES = ("auto", *TASKS)
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
