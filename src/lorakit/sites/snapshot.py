"""Snapshot: objects and parameters at one moment, so that what fails half-way is taken back.

No copy of a tensor is made: an operation that changes values gives the parameter another tensor.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

CONTAINERS = (dict, list, set)  # a tuple: isinstance of a union takes twice as long


class Snapshot:
    """The attributes of objects, with the contents of their dicts, lists and sets, and parameters.

    Args:
        objects: modules, and any other objects with attributes.
        parameters: parameters whose tensor and `requires_grad` are kept.
    """

    def __init__(self, objects: Iterable[object], parameters: Iterable[nn.Parameter] = ()):
        attributes = [vars(item) for item in objects]
        self.containers: list[tuple[Any, Any]] = []
        for held in attributes:
            self.containers.append((held, dict(held)))
            # Nearly all of a module's are empty; a copy of each would be most of the time.
            self.containers += [
                (value, value.copy() if value else ())
                for value in held.values()
                if isinstance(value, CONTAINERS)
            ]
        self.parameters = [(own, own.data, own.requires_grad) for own in parameters]

    def restore(self) -> None:
        """Give every object and parameter back what it had."""
        for container, contents in self.containers:
            if isinstance(container, list):
                container[:] = contents
            else:
                container.clear()
                container.update(contents)
        for parameter, data, requires_grad in self.parameters:
            parameter.data = data
            parameter.requires_grad_(requires_grad)


@contextmanager
def all_or_nothing(
    objects: Iterable[object], parameters: Iterable[nn.Parameter] = ()
) -> Iterator[None]:
    """Restore objects and parameters if the block raises anything, KeyboardInterrupt included.

    Args:
        objects: as in Snapshot.
        parameters: as in Snapshot.

    >>> layer = nn.Linear(1, 1)
    >>> try:
    ...     with all_or_nothing([layer], layer.parameters()):
    ...         del layer.bias
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt:
    ...     print(layer.bias is not None)
    True
    """
    before = Snapshot(objects, parameters)
    try:
        yield
    except BaseException:
        try:
            before.restore()
        except KeyboardInterrupt:  # Ctrl-C once more
            before.restore()
        raise
