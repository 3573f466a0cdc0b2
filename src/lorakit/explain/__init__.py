"""The worked examples of LoRA, each computed on the spot: what `lorakit explain` prints and the
tutorial shows.
"""

from importlib import import_module
from typing import Any

# Name -> what it is about. Each is a module here: numbers() -> dict, tell(numbers) -> text, mostly
# draw(numbers) -> figure.
TOPICS = {
    "example": "the 3 × 3 example: W stays, B A is added",
    "image": "a photograph cut to few directions: the analogy, and its limit",
    "step": "one step of full fine-tuning beside one step of LoRA, with true gradients",
    "counts": "how many parameters that is, and the rank above which it saves none",
    "best": "the best that a rank can do (Eckart and Young)",
    "capacity": "trained LoRA reaches that best, and at full rank it is full fine-tuning",
    "graph": "a matrix as a graph, and through the rank as another",
    "threshold": "a rank from the singular values of W, and why they say little",
    "misconceptions": "what is often said and not so",
}


def topic(name: str) -> Any:
    """Return the module of a topic.

    >>> topic("counts").count(1000, 1000, 10)
    20000
    """
    return import_module(f"lorakit.explain.{name}")
