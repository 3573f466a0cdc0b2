"""lorakit: train, inspect, evaluate and merge low-rank adapters (LoRA) of any PyTorch model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorakit.adapter import Adapter
    from lorakit.deltas.base import LowRank
    from lorakit.errors import LorakitError
    from lorakit.inject.attach import attach, attached, detach, enable, enabled
    from lorakit.inject.check import check
    from lorakit.inject.coverage import Coverage, coverage
    from lorakit.inject.fingerprint import fingerprint
    from lorakit.inject.routing import route
    from lorakit.inject.targets import select
    from lorakit.linalg import factorize
    from lorakit.merging.weights import Undo, merge, unmerge
    from lorakit.ranks.allocate import allocate_ranks
    from lorakit.ranks.probe import select_layers
    from lorakit.spec import Spec

__version__ = "0.1.0"

# Names are imported when they are first used, so that `import lorakit` does not import torch.
_HOME = {
    "Adapter": "adapter",
    "Coverage": "inject.coverage",
    "LorakitError": "errors",
    "LowRank": "deltas.base",
    "Spec": "spec",
    "Undo": "merging.weights",
    "allocate_ranks": "ranks.allocate",
    "attach": "inject.attach",
    "attached": "inject.attach",
    "check": "inject.check",
    "coverage": "inject.coverage",
    "detach": "inject.attach",
    "enable": "inject.attach",
    "enabled": "inject.attach",
    "factorize": "linalg",
    "fingerprint": "inject.fingerprint",
    "merge": "merging.weights",
    "route": "inject.routing",
    "select": "inject.targets",
    "select_layers": "ranks.probe",
    "unmerge": "merging.weights",
}
__all__ = [
    "Adapter",
    "Coverage",
    "LorakitError",
    "LowRank",
    "Spec",
    "Undo",
    "allocate_ranks",
    "attach",
    "attached",
    "check",
    "coverage",
    "detach",
    "enable",
    "enabled",
    "factorize",
    "fingerprint",
    "merge",
    "route",
    "select",
    "select_layers",
    "unmerge",
]


def __getattr__(name: str) -> object:
    """Import a public name at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}")
    value = getattr(import_module(f"lorakit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all names of the package, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
