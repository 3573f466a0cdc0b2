"""The tasks by their names, and the task that rows are for."""

from lorakit.tasks.base import Task
from lorakit.tasks.causal_lm import CausalLM
from lorakit.tasks.classify import Classify
from lorakit.tasks.multi_label import MultiLabel
from lorakit.tasks.preference import Preference
from lorakit.tasks.regress import Regress
from lorakit.tasks.seq2seq import Seq2Seq
from lorakit.tasks.tags import Tokens

ALL: tuple[Task, ...] = (
    CausalLM(),
    Seq2Seq(),
    Classify(),
    Regress(),
    MultiLabel(),
    Preference(),
    Tokens(),
)
BY_NAME = {task.name: task for task in ALL}


def find_task(task: str | Task) -> Task:
    """Return the task of a name, one of `lorakit.models.tasks.TASKS`; a task is returned as it is.

    One that has settings has their defaults if it is given by its name.
    """
    return task if isinstance(task, Task) else BY_NAME[task]
