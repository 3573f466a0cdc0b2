"""The worked examples of LoRA, each computed when it is shown.

Each topic is a module with `numbers()`, the JSON object of its result, `describe(numbers)`, the
text that `lorakit explain` prints, and mostly `draw(numbers)`, a figure.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOPICS = {
    "example": "the 3 × 3 example: W stays, B A is added",
    "image": "a photograph cut to few directions: the analogy, and its limit",
    "step": "one step of full fine-tuning compared with one step of LoRA, with true gradients",
    "counts": "the number of parameters, and the rank above which nothing is saved",
    "best": "the best approximation of a rank (Eckart and Young)",
    "capacity": "trained LoRA reaches that best, and at full rank it is full fine-tuning",
    "graph": "a matrix as a graph, and through the rank as another",
    "threshold": "a rank from the singular values of W, and why they say little",
    "misconceptions": "frequent statements about LoRA that are wrong",
}


class Topic(Protocol):
    """The functions of a topic's module; `draw` is missing in some.

    Each module declares the keys of its numbers in a TypedDict.
    """

    numbers: Callable[[], Mapping[str, Any]]
    describe: Callable[[Mapping[str, Any]], str]
    draw: "Callable[[Mapping[str, Any]], Figure]"


def load_topic(name: str) -> Topic:
    """Return the module of a topic.

    >>> load_topic("counts").numbers()["examples"][0]["lora"]
    20000
    """
    return cast(Topic, import_module(f"lorakit.explain.{name}"))
