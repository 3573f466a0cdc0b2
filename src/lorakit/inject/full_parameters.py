"""Modules that train in full: the modules a request names, and the normalisation layers "norms" stands for."""

from torch import nn

from lorakit.errors import TargetError
from lorakit.inject.targets import short_names
from lorakit.sites.slot import SLOT, base_modules
from lorakit.spec import matches
from lorakit.text import near_misses


def find_full_modules(
    model: nn.Module, patterns: tuple[str, ...], *, require_match: bool = True
) -> dict[str, nn.Module]:
    """Return the outermost modules that `full_modules` names, by name.

    Args:
        model: any module.
        patterns: names or name patterns.
        require_match: whether a pattern that names nothing is refused; PEFT's files list names that a model
            may not have.

    Raises:
        TargetError: a pattern names nothing, a module without parameters, or one with buffers.
    """
    modules = dict(base_modules(model)) if patterns else {}
    chosen, faults = {}, []
    for pattern in patterns:
        hits = [name for name in modules if name and matches(pattern, name)]
        if not hits and require_match:
            faults.append(
                f"{pattern!r}   no module   {near_misses(pattern, (n.split('.')[-1] for n in modules if n))}".rstrip()
            )
        for name in hits:
            if next(modules[name].parameters(), None) is None:
                faults.append(f"{name!r}   has no parameters to train")
            elif buffers := [b for b, _ in modules[name].named_buffers()]:
                faults.append(
                    f"{name!r}   holds buffers ({', '.join(buffers)}), which training would change in the base"
                )
            chosen[name] = modules[name]
    if faults:
        raise TargetError(
            f"full_modules does not fit {type(model).__name__}.", faults, "Nothing was attached."
        )
    return {
        n: m for n, m in chosen.items() if not any(n.startswith(outer + ".") for outer in chosen)
    }


def expand_norms(model: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return `full_modules` with the names of the model's normalisation layers where it says
    "norms".

    Those are modules called …Norm with nothing but a scale and a bias; a model that has a module of
    the name keeps it.

    Raises:
        TargetError: the model has none.

    >>> expand_norms(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ("norms",))
    ('1',)
    """
    modules = dict(base_modules(model)) if "norms" in patterns else {}
    if not modules or any(matches("norms", name) for name in modules):
        return patterns
    norms = [name for name, module in modules.items() if name and _is_norm(module)]
    if not norms:
        raise TargetError(
            f"full_modules='norms' finds no normalisation layer with a scale in {type(model).__name__}.",
            advice="Nothing was attached.",
        )
    short = short_names(norms, list(modules))
    names = short if isinstance(short, tuple) else tuple(norms)
    return tuple(
        name for pattern in patterns for name in (names if pattern == "norms" else (pattern,))
    )


def _is_norm(module: nn.Module) -> bool:
    held = {key for key, parameter in module._parameters.items() if parameter is not None}
    named = "norm" in type(module).__name__.lower()
    return (
        named
        and "weight" in held
        and held <= {"weight", "bias"}
        and not module._buffers
        and not module._modules.keys() - {SLOT}
    )
