"""The tasks by their names, and the task that rows are for."""

from lorakit.tasks.base import Task
from lorakit.tasks.causal_lm import CausalLM
from lorakit.tasks.classify import Classify
from lorakit.tasks.multi_label import MultiLabel
from lorakit.tasks.regress import Regress
from lorakit.tasks.seq2seq import Seq2Seq
from lorakit.tasks.tags import Tokens

ALL: tuple[Task, ...] = (CausalLM(), Seq2Seq(), Classify(), Regress(), MultiLabel(), Tokens())
BY_NAME = {task.name: task for task in ALL}


def find_task(name: str) -> Task:
    """Return the task of this name, one of `lorakit.models.tasks.TASKS`."""
    return BY_NAME[name]
