"""lorakit: inject, train, evaluate, look inside and merge low-rank adapters (LoRA) of any PyTorch model."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.adapter import Adapter
    from lorakit.attach import attach, attached, detach, enable, enabled
    from lorakit.check import check
    from lorakit.coverage import Coverage, coverage
    from lorakit.delta import LowRank
    from lorakit.errors import LorakitError
    from lorakit.fingerprint import fingerprint
    from lorakit.merging import Undo, merge, unmerge
    from lorakit.ranks import schedule
    from lorakit.rows import route
    from lorakit.spec import Spec
    from lorakit.spectra import factorize
    from lorakit.suggestion import suggest
    from lorakit.targets import select

__version__ = "0.1.0"

# Names are imported when they are first used, so that `import lorakit` does not import torch.
_HOME = {
    "Adapter": "adapter", "Coverage": "coverage", "LorakitError": "errors", "LowRank": "delta", "Spec": "spec",
    "Undo": "merging", "attach": "attach", "attached": "attach", "check": "check", "coverage": "coverage", "detach": "attach",
    "enable": "attach", "enabled": "attach", "factorize": "spectra", "fingerprint": "fingerprint", "merge": "merging",
    "route": "rows", "schedule": "ranks", "select": "targets", "suggest": "suggestion", "unmerge": "merging",
}  # fmt: skip
__all__ = [
    "Adapter", "Coverage", "LorakitError", "LowRank", "Spec", "Undo", "attach", "attached", "check", "coverage", "detach",
    "enable", "enabled", "factorize", "fingerprint", "merge", "route", "schedule", "select", "suggest", "unmerge",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lorakit' has no attribute {name!r}")
    value = getattr(import_module(f"lorakit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the module `lorakit.attach` binds it here under its name; the name stands for its function."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name) if name in _HOME and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
