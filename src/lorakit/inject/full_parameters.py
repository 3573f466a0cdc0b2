"""Parameters that train in full: biases, and all parameters of the modules that a spec names."""

from collections.abc import Collection, Iterable

from torch import nn

from lorakit.errors import TargetError
from lorakit.inject.places import suggest_names
from lorakit.inject.targets import short_names
from lorakit.patterns import matches
from lorakit.sites.slot import SLOT, base_modules, base_parameters
from lorakit.spec import is_inside


def find_full_modules(
    model: nn.Module, patterns: Iterable[str], *, require_match: bool = True
) -> dict[str, nn.Module]:
    """Return the outermost modules that `full_modules` names, by name.

    Args:
        model: any module.
        patterns: names or name patterns.
        require_match: whether a pattern that matches no module is refused. PEFT's files may list
            names that a model does not have.

    Raises:
        TargetError: a pattern matches no module, a module without parameters, or one with buffers.
    """
    patterns = tuple(patterns)
    modules = dict(base_modules(model)) if patterns else {}
    chosen: dict[str, nn.Module] = {}
    faults: list[str] = []
    for pattern in patterns:
        names = [name for name in modules if name and matches(pattern, name)]
        if not names and require_match:
            faults.append(f"{pattern!r}   no module   {suggest_names(pattern, modules)}".rstrip())
        for name in names:
            chosen[name] = modules[name]
            fault = _module_fault(modules[name])
            if fault:
                faults.append(f"{name!r}   {fault}")
    if faults:
        raise TargetError(
            f"full_modules does not fit {type(model).__name__}.", faults, "Nothing was attached."
        )
    inside = tuple(f"{name}." for name in chosen)
    return {name: module for name, module in chosen.items() if not name.startswith(inside)}


def _module_fault(module: nn.Module) -> str:
    """Return the reason why a module cannot train in full, or an empty string."""
    if next(module.parameters(), None) is None:
        return "has no parameters to train"
    buffers = [name for name, _ in module.named_buffers()]
    if buffers:
        return f"holds buffers ({', '.join(buffers)}), which training would change in the base"
    return ""


def expand_norms(model: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return `full_modules` with the names of the normalisation layers in the place of "norms".

    A normalisation layer is a module of a class named …Norm that holds a scale, and at most a bias
    beside it. In a model that has a module named "norms", the word keeps its meaning as a name.

    Raises:
        TargetError: the model has no such layer.

    >>> expand_norms(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ("norms",))
    ('1',)
    """
    modules = dict(base_modules(model)) if "norms" in patterns else {}
    if not modules or any(matches("norms", name) for name in modules):
        return patterns
    norms = [name for name, module in modules.items() if name and _is_norm(module)]
    if not norms:
        raise TargetError(
            "full_modules='norms' finds no normalisation layer with a scale in "
            f"{type(model).__name__}.",
            advice="Nothing was attached.",
        )
    short = short_names(norms, modules)
    names = short if isinstance(short, tuple) else tuple(norms)
    expanded: list[str] = []
    for pattern in patterns:
        expanded += names if pattern == "norms" else (pattern,)
    return tuple(expanded)


def _is_norm(module: nn.Module) -> bool:
    if "norm" not in type(module).__name__.lower():
        return False
    parameters = {key for key, value in module._parameters.items() if value is not None}
    children = module._modules.keys() - {SLOT}
    has_scale = "weight" in parameters and parameters <= {"weight", "bias"}
    return has_scale and not module._buffers and not children


def copy_full_parameters(
    model: nn.Module, modules: Collection[str], bias: str, adapted: Collection[str]
) -> dict[str, nn.Parameter]:
    """Return copies of the base's parameters that train in full, by name.

    Args:
        model: any module.
        modules: names of the modules that train in full.
        bias: `Spec.bias`.
        adapted: names of the adapted layers, whose biases train with bias="adapted".
    """
    if bias == "none" and not modules:
        return {}
    copies: dict[str, nn.Parameter] = {}
    for name, parameter in base_parameters(model):
        trains = is_inside(name, modules) or _is_trained_bias(name, bias, adapted)
        if trains and parameter.is_floating_point():
            copies[name] = nn.Parameter(parameter.detach().clone())
    return copies


def _is_trained_bias(name: str, bias: str, adapted: Collection[str]) -> bool:
    layer, _, key = name.rpartition(".")
    if bias == "all":
        return "bias" in key
    return bias == "adapted" and key == "bias" and layer in adapted
