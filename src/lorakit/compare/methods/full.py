"""Full fine-tuning as an adapter that trains every parameter in full.

So it has the training loop, the report and the switch of all adapters.
"""

from collections.abc import Iterator, Mapping

from torch import nn

from lorakit.errors import SpecError
from lorakit.sites.slot import base_modules
from lorakit.spec import Spec, full_name


def full_finetuning_spec(model: nn.Module) -> Spec:
    """Return the Spec that trains all of a model: no factors, every module in full.

    While the adapter is attached the model also keeps the base's own weights, so it takes twice its
    size; merge and detach leave only the tuned model.

    Args:
        model: any module.

    Raises:
        SpecError: parameters are not within a module without buffers; training a module with
            buffers would change them.

    >>> spec = full_finetuning_spec(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2)))
    >>> spec.full_modules
    ('0', '2')
    """
    modules = dict(base_modules(model))
    names = tuple(_modules_without_buffers(model, "", modules))
    inside = tuple(f"{name}." for name in names)
    outside = [path for path, _ in model.named_parameters() if not path.startswith(inside)]
    if outside:
        raise SpecError(
            f"{type(model).__name__} cannot be trained in full.",
            [f"{path}   is in a module with buffers, or in none" for path in outside],
        )
    return Spec(targets="none", full_modules=names)


def _modules_without_buffers(
    module: nn.Module, path: str, known: Mapping[str, nn.Module]
) -> Iterator[str]:
    """Yield the outermost modules that have parameters and no buffers."""
    if next(module.parameters(), None) is None:
        return
    if path and next(module.buffers(), None) is None:
        yield path
        return
    for name, child in module.named_children():
        child_path = full_name(path, name)
        if child_path in known:
            yield from _modules_without_buffers(child, child_path, known)
