"""Full fine-tuning, as an adapter that trains every parameter whole: so one loop, one report and
one switch serve both.
"""

from collections.abc import Iterator

from torch import nn

from lorakit.errors import SpecError
from lorakit.sites.slot import base_modules
from lorakit.spec import Spec


def full_finetuning_spec(model: nn.Module) -> Spec:
    """Return the Spec that trains all of a model: no factors, every module whole.

    While the adapter is attached, the base's own weights wait beside the trained ones, so a model
    takes its size twice; merge and detach leave the tuned model alone.

    Args:
        model: any module.

    Raises:
        SpecError: parameters that no module names without naming buffers too, which training would
            change.

    >>> full_finetuning_spec(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2))).full_modules
    ('0', '2')
    """
    modules = dict(base_modules(model))
    named = tuple(_named(model, "", modules))
    inside = tuple(f"{name}." for name in named)
    left = [path for path, _ in model.named_parameters() if not path.startswith(inside)]
    if left:
        raise SpecError(
            f"{type(model).__name__} cannot be trained whole.",
            [f"{path}   stands beside buffers, or in no module of its own" for path in left],
        )
    return Spec(targets="none", full_modules=named)


def _named(module: nn.Module, path: str, known: dict[str, nn.Module]) -> Iterator[str]:
    """Yield the outermost modules that hold parameters and no buffers."""
    if next(module.parameters(), None) is None:
        return
    if path and next(module.buffers(), None) is None:
        yield path
        return
    for name, child in module.named_children():
        if (below := f"{path}.{name}" if path else name) in known:
            yield from _named(child, below, known)
