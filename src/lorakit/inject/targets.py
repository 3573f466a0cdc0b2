"""Which layers a request names: presets, name patterns, regular expressions. Nothing matched is
refused.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from lorakit.errors import TargetError
from lorakit.inject.places import Place, find_places
from lorakit.sites.conv import CONVOLUTIONS
from lorakit.sites.find import SITES
from lorakit.sites.slot import base_modules
from lorakit.spec import matches
from lorakit.text import near_misses, plural

ATTENTION = r"(attn|attention|self_attn|encoder_attn|self_attention|cross_attn)"
# What a projection does in its block, told by the last parts of its name in the model families of
# transformers.
ROLES = {
    "q": r"q|q_proj|query|query_proj|q_lin|to_q|wq",
    "k": r"k|k_proj|key|key_proj|k_lin|to_k|wk",
    "v": r"v|v_proj|value|value_proj|v_lin|to_v|wv",
    "o": rf"o|o_proj|out_lin|to_out\.0|attention\.output\.dense|{ATTENTION}\.(out_proj|c_proj|dense|proj|projection|wo|Wo)",
    "qkv": rf"c_attn|query_key_value|qkv|qkv_proj|Wqkv|att_proj|{ATTENTION}\.(self\.)?in_proj",
    "mlp": r"gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|fc_in|fc_out|wi|wi_0|wi_1|Dense\w*Dense\.wo|c_fc|"
    r"mlp\.c_proj|intermediate\.dense|(?<!attention\.)output\.dense|lin1|lin2|dense_h_to_4h|dense_4h_to_h|w1|w2|w3|"
    r"Wi|mlp\.Wo|(gate_up_proj|Wi)\.(gate|up)",
}
LINEAR = (
    "linear",
    "conv1d",
    "in_proj",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "experts",
)  # kinds that all-linear means
KERNELS = {site.kind for site in CONVOLUTIONS}
PRESETS = {
    "all-linear": (),
    "conv": (),
    "none": (),
    "q": ("q",),
    "k": ("k",),
    "v": ("v",),
    "o": ("o",),
    "qv": ("q", "v"),
    "qkv": ("q", "k", "v"),
    "qkvo": ("q", "k", "v", "o"),
    "attention": ("q", "k", "v", "o", "qkv"),
    "mlp": ("mlp",),
}


def find_role(name: str) -> str | None:
    """Return what a projection does (q, k, v, o, qkv, mlp), told by its name.

    >>> names = ("self_attn.q_proj", "h.0.mlp.c_proj", "encoder.layer.0.output.dense")
    >>> [find_role(name) for name in names]
    ['q', 'mlp', 'mlp']
    """
    return next(
        (r for r, pattern in ROLES.items() if re.fullmatch(rf"(.*\.)?({pattern})", name)), None
    )


def select(
    model: nn.Module,
    targets: Any = "all-linear",
    exclude: Any = (),
    *,
    without: Any = (),
    parts: Any = None,
    places: Mapping[str, Place] | None = None,
) -> dict[str, Place]:
    """Return the layers that `targets` names and `exclude` does not, in the model's order.

    Args:
        model: any module.
        targets: a preset of PRESETS, a regular expression (a string that is no preset; it must
            match the full name or its last parts), or a list of name patterns (full name or last
            parts, with `*` and `?`).
        exclude: likewise.
        without: names of modules whose inside is never selected (those that are trained whole).
        parts: as `find_places` takes it. A part is not selected where the layer that it is of is.
        places: what `find_places` returned for this model and these parts, where it was asked before.

    Raises:
        TargetError: a pattern, or all of a preset, matches nothing; the message counts what each
            matched.

    >>> list(select(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ["2"]))
    ['2']
    """
    places = find_places(model, parts) if places is None else places
    usable = {
        n: p for n, p in places.items() if not any(n == w or n.startswith(w + ".") for w in without)
    }
    chosen, counts = _resolve(model, targets, usable, "targets")
    dropped, _ = (
        _resolve(model, exclude, {n: usable[n] for n in chosen}, "exclude")
        if exclude
        else (set(), {})
    )
    left = {n: p for n, p in usable.items() if n in chosen - dropped}
    entire = {p.weight_name for p in left.values() if not p.is_part}
    left = {n: p for n, p in left.items() if not (p.is_part and p.weight_name in entire)}
    if chosen and not left:
        raise TargetError(
            "exclude leaves no layer of those that targets names.",
            [f"{p!r}   {plural(c, 'layer')}" for p, c in counts.items()],
            "Nothing was attached.",
        )
    return left


def short_names(chosen: Collection[str], names: Collection[str]) -> tuple[str, ...] | str:
    """Return the shortest list of names that selects just `chosen` of `names` by PEFT's rule:
    equal, or ending in '.name'.

    Where a list would select more, it is a regular expression.

    >>> names = ["a", "a.q", "a.k", "b", "b.q", "b.a", "b.a.k"]
    >>> short_names(["a.q", "b.q"], names), short_names(["b.q"], names), short_names(["a.k"], names) == re.escape("a.k")
    (('q',), ('b.q',), True)
    """
    ends = {n.split(".")[-1] for n in chosen}
    if {n for n in names if n.split(".")[-1] in ends} == set(chosen):
        return tuple(sorted(ends))
    if not any(n.endswith(tuple(f".{c}" for c in chosen)) for n in names if n not in chosen):
        return tuple(chosen)
    return "|".join(re.escape(n) for n in chosen)


def _resolve(
    model: nn.Module, request: Any, usable: dict[str, Place], what: str
) -> tuple[set[str], dict[str, int]]:
    if isinstance(request, str) and request in PRESETS:
        chosen = _preset(model, request, usable)
        return chosen, {request: len(chosen)}
    patterns = (request,) if isinstance(request, str) else tuple(request)
    hits: dict[str, set[str]] = {}
    for pattern in patterns:
        if isinstance(request, str):
            try:
                regex = re.compile(rf"(.*\.)?({pattern})")
            except re.error as error:
                raise TargetError(
                    f"{what}={pattern!r} is neither a preset nor a regular expression: {error}.",
                    advice=f"Presets: {', '.join(PRESETS)}.",
                ) from error
            hits[pattern] = {name for name in usable if regex.fullmatch(name)}
        else:
            hits[pattern] = {name for name in usable if matches(pattern, name)}
    missed = [p for p in patterns if not hits[p]]
    if missed:
        kinds = Counter(place.site.kind for place in usable.values())
        held = (
            ", ".join(plural(n, f"{kind} layer") for kind, n in kinds.items())
            or "no layer that can be adapted"
        )
        rest = ", ".join(f"{p!r} {plural(len(h), 'layer')}" for p, h in hits.items() if h)
        raise TargetError(
            f"{len(missed)} of {len(patterns)} {what} matches nothing in {type(model).__name__} ({held}).",
            [f"{p!r}   0 layers   {_hint(model, p, usable)}".rstrip() for p in missed],
            (f"Matched: {rest}. " if rest else "") + "Nothing was attached. "
            "`lorakit inspect MODEL --targets` lists what can be named.",
        )
    return set().union(*hits.values()), {p: len(h) for p, h in hits.items()}


def _preset(model: nn.Module, name: str, usable: dict[str, Place]) -> set[str]:
    if name == "none":
        return set()
    if name == "all-linear":
        heads = {id(layer) for module in model.modules() for layer in _head(module)}
        chosen = {
            n
            for n, p in usable.items()
            if p.site.kind in LINEAR and not p.is_part and id(p.layer) not in heads
        }
        if not chosen:
            raise TargetError(
                f"targets='all-linear' finds no linear layer in {type(model).__name__}.",
                advice=f"It can adapt {', '.join(SITES)} layers; targets='none' trains biases or whole "
                "modules alone. Nothing was attached.",
            )
        return chosen
    if name == "conv":
        chosen = {n for n, p in usable.items() if p.site.kind in KERNELS}
        if not chosen:
            raise TargetError(
                f"targets='conv' finds no convolution in {type(model).__name__}.",
                advice="Nothing was attached.",
            )
        return chosen
    roles = {n: find_role(n) for n in usable}
    missing = [r for r in PRESETS[name] if r not in roles.values()]
    fused = [n for n, r in roles.items() if r == "qkv"]
    # 'attention' takes what the model has: q, k, v apart, or fused.
    if missing and not (name == "attention" and len(missing) < len(PRESETS[name])):
        faults = [f"{r!r}   0 layers" for r in missing]
        advice = "Nothing was attached. `lorakit inspect MODEL --targets` lists what can be named."
        if fused:
            advice = (
                f"{fused[0]} and {len(fused) - 1} more hold q, k and v in one matrix: targets='attention' adapts it "
                "whole; Spec(parts=…) says which of its rows are whose. Nothing was attached."
            )
        raise TargetError(
            f"The preset {name!r} does not fit {type(model).__name__}.", faults, advice
        )
    return {n for n, r in roles.items() if r in PRESETS[name]}


def _head(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a transformers model's head, which a preset leaves alone: what stands
    beside its base model.
    """
    method = getattr(type(module), "get_output_embeddings", None)
    output = [head] if method is not None and isinstance(head := method(module), nn.Module) else []
    prefix = getattr(
        type(module), "base_model_prefix", ""
    )  # of the class: asking a module for what it lacks takes long
    base = getattr(module, prefix, None) if prefix else None
    if not output and not isinstance(base, nn.Module):
        return []
    inside = {
        id(part) for part in (base.modules() if isinstance(base, nn.Module) else module.modules())
    }
    return output + [part for part in module.modules() if id(part) not in inside]


def _hint(model: nn.Module, pattern: str, usable: dict[str, Place]) -> str:
    """Say why a pattern matched nothing, or what it may have meant."""
    for name, module in base_modules(model):
        if name and name not in usable and matches(pattern, name):
            inside = [n[len(name) + 1 :] for n in usable if n.startswith(name + ".")]
            what = f"inside it: {', '.join(inside[:4])}" if inside else "it cannot be adapted"
            return f"{name} is a {type(module).__name__}; {what}"
    if pattern in PRESETS:
        return f"in a list it is a name; the preset is targets={pattern!r}"
    words = {name.split(".")[-1] for name in usable} | set(usable) | set(PRESETS)
    hint = near_misses(pattern, words, count=1)
    if not hint:
        return ""
    meant = hint.split("'")[1]
    hits = [p for n, p in usable.items() if matches(meant, n)]
    if not hits:
        return hint
    out, inputs = hits[0].shape
    return f"{hint[:-1]} ({plural(len(hits), 'layer')}, {inputs} -> {out})?"
