"""Selection of the layers to adapt: presets, name patterns and regular expressions."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import chain

from torch import nn

from lorakit.errors import TargetError
from lorakit.inject.obstacles import describe_obstacles, find_obstacles
from lorakit.inject.places import Place, find_places
from lorakit.patterns import matches
from lorakit.sites.conv import CONVOLUTIONS
from lorakit.sites.find import SITES
from lorakit.sites.obstacles import find_obstacle
from lorakit.sites.slot import base_modules
from lorakit.spec import is_inside
from lorakit.text import did_you_mean, nearest, plural

ATTENTION = r"(attn|attention|self_attn|encoder_attn|self_attention|cross_attn)"
# Roles of projections, by the last parts of their names in the model families of transformers.
ROLES = {
    "q": r"q|q_proj|query|query_proj|q_lin|to_q|wq",
    "k": r"k|k_proj|key|key_proj|k_lin|to_k|wk",
    "v": r"v|v_proj|value|value_proj|v_lin|to_v|wv",
    "o": (
        r"o|o_proj|out_lin|to_out\.0|attention\.output\.dense|"
        rf"{ATTENTION}\.(out_proj|c_proj|dense|proj|projection|wo|Wo)"
    ),
    "qkv": rf"c_attn|query_key_value|qkv|qkv_proj|Wqkv|att_proj|{ATTENTION}\.(self\.)?in_proj",
    "mlp": (
        r"gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|fc_in|fc_out|wi|wi_0|wi_1|"
        r"Dense\w*Dense\.wo|c_fc|mlp\.c_proj|intermediate\.dense|(?<!attention\.)output\.dense|"
        r"lin1|lin2|dense_h_to_4h|dense_4h_to_h|w1|w2|w3|Wi|mlp\.Wo|(gate_up_proj|Wi)\.(gate|up)"
    ),
}
ROLE_PATTERNS = {role: re.compile(rf"(.*\.)?({pattern})") for role, pattern in ROLES.items()}
# Roles of the projections of nn.MultiheadAttention, by their kind: its own name may be any.
ROLES_BY_KIND = {"in_proj": "qkv", "out_proj": "o", "q_proj": "q", "k_proj": "k", "v_proj": "v"}
ROLE_PRESETS = {
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
PRESETS = ("all-linear", "conv", "none", *ROLE_PRESETS)
# Kinds of sites that the preset "all-linear" selects.
LINEAR_KINDS = {
    "linear",
    "conv1d",
    "in_proj",
    "out_proj",
    "q_proj",
    "k_proj",
    "v_proj",
    "experts",
}
CONVOLUTION_KINDS = {site.kind for site in CONVOLUTIONS}
LIST_HINT = "`lorakit inspect MODEL --targets` lists what can be named."


def select(
    model: nn.Module,
    targets: str | Iterable[str] = "all-linear",
    exclude: str | Collection[str] = (),
    *,
    without: Iterable[str] = (),
    parts: Mapping[str, Mapping[str, int]] | None = None,
    places: Mapping[str, Place] | None = None,
) -> dict[str, Place]:
    """Return the places that `targets` names and `exclude` does not, in the model's order.

    A part of a fused layer is left out where the whole layer is selected. Excluding a layer
    excludes its parts, and of a layer with an excluded part the other parts are selected.

    Args:
        model: any module.
        targets: a preset of PRESETS, a regular expression (a string that is no preset; it must
            match the full name or its last parts), or a list of name patterns (full name or last
            parts, with `*` and `?`).
        exclude: as `targets`; a pattern may match layers that are not selected, but has to match.
        without: names of modules in which nothing is selected, such as those that train in full.
        parts: as in `find_places`.
        places: result of `find_places` for this model and these parts, to save the search.

    Raises:
        TargetError: a pattern, or a preset, matches nothing; the message counts the matches of
            each.

    >>> list(select(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ["2"]))
    ['2']
    """
    if places is None:
        places = find_places(model, parts)
    without = tuple(without)
    usable = {name: place for name, place in places.items() if not is_inside(name, without)}
    matched = _match_request(model, targets, usable, "targets")
    selected = set[str]().union(*matched.values())
    remaining = selected
    if exclude:
        # A layer that is not selected may be excluded all the same, such as the head.
        excluded = _match_request(model, exclude, places, "exclude")
        remaining = _leave_out(selected, set[str]().union(*excluded.values()), places)
    chosen = {name: place for name, place in usable.items() if name in remaining}
    if selected and not chosen:
        raise TargetError(
            "exclude leaves no layer of those that targets names.",
            [f"{pattern!r}   {plural(len(names), 'layer')}" for pattern, names in matched.items()],
            "Nothing was attached.",
        )
    whole_weights = {place.weight_name for place in chosen.values() if not place.is_part}
    return {
        name: place
        for name, place in chosen.items()
        if not place.is_part or place.weight_name not in whole_weights
    }


def _leave_out(selected: set[str], excluded: set[str], places: Mapping[str, Place]) -> set[str]:
    """Return the names of selected places without the excluded ones, and without their parts."""
    layers = {places[name].weight_name for name in excluded if not places[name].is_part}
    parts = {places[name].weight_name for name in excluded if places[name].is_part}
    whole = {places[name].weight_name for name in selected if not places[name].is_part}
    remaining: set[str] = set()
    for name, place in places.items():
        if name in excluded or place.weight_name in layers:
            continue
        is_split = place.weight_name in parts & whole
        if place.is_part if is_split else name in selected:
            remaining.add(name)
    return remaining


def find_role(name: str) -> str | None:
    """Return the role of a projection (q, k, v, o, qkv or mlp), found by its name.

    >>> names = ("self_attn.q_proj", "h.0.mlp.c_proj", "encoder.layer.0.output.dense")
    >>> [find_role(name) for name in names]
    ['q', 'mlp', 'mlp']
    """
    for role, pattern in ROLE_PATTERNS.items():
        if pattern.fullmatch(name):
            return role
    return None


def find_roles(model: nn.Module, places: Mapping[str, Place]) -> dict[str, str | None]:
    """Return the role of each place: by the kind of its layer where that says it, or by its name.

    >>> model = nn.TransformerEncoderLayer(4, 1, 8)
    >>> list(find_roles(model, find_places(model)).values())
    ['qkv', 'q', 'k', 'v', 'o', 'mlp', 'mlp']
    """
    feed_forward: set[nn.Module] = set()
    for _, module in base_modules(model):
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            feed_forward |= {module.linear1, module.linear2}
    roles: dict[str, str | None] = {}
    for name, place in places.items():
        role = None if place.is_part else ROLES_BY_KIND.get(place.site.kind)
        if place.layer in feed_forward:
            role = "mlp"
        roles[name] = role or find_role(name)
    return roles


def short_names(chosen: Collection[str], names: Collection[str]) -> tuple[str, ...] | str:
    """Return the shortest list of names that selects just `chosen` of `names` by PEFT's rule.

    PEFT selects a module whose name is equal to a listed one, or ends in '.' and a listed one.
    Where every list would select more, the result is a regular expression.

    >>> names = ["a", "a.q", "a.k", "b", "b.q", "b.a", "b.a.k"]
    >>> short_names(["a.q", "b.q"], names), short_names(["b.q"], names)
    (('q',), ('b.q',))
    >>> short_names(["a.k"], names) == re.escape("a.k")
    True
    """
    wanted = set(chosen)
    last_parts = {name.split(".")[-1] for name in chosen}
    if {name for name in names if name.split(".")[-1] in last_parts} == wanted:
        return tuple(sorted(last_parts))
    endings = tuple(f".{name}" for name in chosen)
    if not any(name.endswith(endings) for name in names if name not in wanted):
        return tuple(chosen)
    return "|".join(re.escape(name) for name in chosen)


def _match_request(
    model: nn.Module, request: str | Iterable[str], usable: Mapping[str, Place], field: str
) -> dict[str, set[str]]:
    """Return the names of the places that each pattern of a request matches.

    Raises:
        TargetError: a pattern or preset matches nothing.
    """
    if isinstance(request, str) and request in PRESETS:
        return {request: _match_preset(model, request, usable)}
    if isinstance(request, str):
        patterns = [request]
        regex = _compile(request, field)
        matched = {request: {name for name in usable if regex.fullmatch(name)}}
    else:
        patterns = list(request)
        matched = {
            pattern: {name for name in usable if matches(pattern, name)} for pattern in patterns
        }
    missed = [pattern for pattern in patterns if not matched[pattern]]
    if missed:
        faults = [
            f"{pattern!r}   0 layers   {_explain_miss(model, pattern, usable)}".rstrip()
            for pattern in missed
        ]
        raise TargetError(
            f"{len(missed)} of {len(patterns)} {field} matches nothing in {type(model).__name__} "
            f"({_count_kinds(usable)}).",
            faults,
            f"{_count_matches(matched)}Nothing was attached. {LIST_HINT}",
        )
    return matched


def _compile(expression: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({expression})")
    except re.error as error:
        raise TargetError(
            f"{field}={expression!r} is neither a preset nor a regular expression: {error}.",
            advice=f"Presets: {', '.join(PRESETS)}.",
        ) from error


def _count_kinds(places: Mapping[str, Place]) -> str:
    """Return the numbers of places by kind, as text."""
    kinds = Counter(place.site.kind for place in places.values())
    counts = [plural(count, f"{kind} layer") for kind, count in kinds.items()]
    return ", ".join(counts) or "no layer that can be adapted"


def _count_matches(matched: Mapping[str, set[str]]) -> str:
    """Return a sentence with the numbers of matches of each pattern; empty if there are none."""
    counts = [
        f"{pattern!r} {plural(len(names), 'layer')}" for pattern, names in matched.items() if names
    ]
    return f"Matched: {', '.join(counts)}. " if counts else ""


def _explain_miss(model: nn.Module, pattern: str, usable: Mapping[str, Place]) -> str:
    """Return why a pattern matches nothing, or a near miss; empty if neither is found."""
    for name, module in base_modules(model):
        is_layer = name and "parametrizations" not in name.split(".")
        if is_layer and name not in usable and matches(pattern, name):
            return _describe_container(name, module, usable)
    if pattern in PRESETS:
        return f"in a list it is a name; the preset is targets={pattern!r}"
    last_parts = {name.split(".")[-1] for name in usable}
    near = nearest(pattern, {*last_parts, *usable, *PRESETS}, count=1)
    if not near:
        obstacles = find_obstacles(model, usable.values())
        return "; ".join(f"{name or 'the model'} {reason}" for name, reason in obstacles.items())
    places = [place for name, place in usable.items() if matches(near[0], name)]
    if not places:
        return did_you_mean(near)
    outputs, inputs = places[0].shape
    return f"did you mean {near[0]!r} ({plural(len(places), 'layer')}, {inputs} -> {outputs})?"


def _describe_container(name: str, module: nn.Module, usable: Mapping[str, Place]) -> str:
    """Return the class of a module that is no place, and the first places in it."""
    prefix = f"{name}."
    inside = [place.removeprefix(prefix) for place in usable if place.startswith(prefix)]
    content = f"inside it: {', '.join(inside[:4])}" if inside else "it cannot be adapted"
    obstacle = find_obstacle(module)
    if obstacle and not inside:
        content = f"it {obstacle}"
    return f"{name} is a {type(module).__name__}; {content}"


def _match_preset(model: nn.Module, preset: str, usable: Mapping[str, Place]) -> set[str]:
    """Return the names of the places that a preset selects.

    Raises:
        TargetError: the model has none of them, or lacks one of several roles.
    """
    if preset == "none":
        return set()
    if preset == "all-linear":
        return _match_linear(model, usable)
    if preset == "conv":
        return _match_convolutions(model, usable)
    return _match_roles(model, preset, usable)


def _match_linear(model: nn.Module, usable: Mapping[str, Place]) -> set[str]:
    modules = [module for _, module in base_modules(model)]
    head = {id(layer) for layer in chain.from_iterable(map(_head_layers, modules))}
    chosen = {
        name
        for name, place in usable.items()
        if place.site.kind in LINEAR_KINDS and not place.is_part and id(place.layer) not in head
    }
    if not chosen:
        obstacles = find_obstacles(model, usable.values())
        raise TargetError(
            f"targets='all-linear' finds no linear layer in {type(model).__name__}.",
            describe_obstacles(obstacles),
            advice=f"It can adapt {', '.join(SITES)} layers; targets='none' trains biases or full "
            "modules alone. Nothing was attached.",
        )
    return chosen


def _match_convolutions(model: nn.Module, usable: Mapping[str, Place]) -> set[str]:
    chosen = {name for name, place in usable.items() if place.site.kind in CONVOLUTION_KINDS}
    if not chosen:
        raise TargetError(
            f"targets='conv' finds no convolution in {type(model).__name__}.",
            describe_obstacles(find_obstacles(model, usable.values())),
            advice="Nothing was attached.",
        )
    return chosen


def _match_roles(model: nn.Module, preset: str, usable: Mapping[str, Place]) -> set[str]:
    wanted = ROLE_PRESETS[preset]
    roles = find_roles(model, usable)
    missing = [role for role in wanted if role not in roles.values()]
    # Models have q, k and v either apart or fused; 'attention' takes what is there.
    partly_fits = preset == "attention" and len(missing) < len(wanted)
    if missing and not partly_fits:
        fused = [name for name, role in roles.items() if role == "qkv"]
        advice = f"Nothing was attached. {LIST_HINT}"
        if fused and {"q", "k", "v"}.intersection(missing):
            advice = (
                f"{fused[0]} and {len(fused) - 1} more hold q, k and v in one matrix: "
                "targets='attention' adapts all of it; Spec(parts=…) names the outputs of each. "
                "Nothing was attached."
            )
        raise TargetError(
            f"The preset {preset!r} does not fit {type(model).__name__}.",
            [
                *(f"{role!r}   0 layers" for role in missing),
                *describe_obstacles(find_obstacles(model, usable.values())),
            ],
            advice,
        )
    return {name for name, role in roles.items() if role in wanted}


def _head_layers(module: nn.Module) -> list[nn.Module]:
    """Return the layers of a transformers model's head: its output layer, and all outside its base.

    The result is empty for modules that have no head.
    """
    output = _output_layer(module)
    base = _base_model(module)
    if base is None:
        return [] if output is None else [output]
    inside = {id(part) for part in base.modules()}
    outside = [part for part in module.modules() if id(part) not in inside]
    return outside if output is None else [output, *outside]


def _output_layer(module: nn.Module) -> nn.Module | None:
    get_output_embeddings = getattr(type(module), "get_output_embeddings", None)
    if get_output_embeddings is None:
        return None
    layer = get_output_embeddings(module)
    return layer if isinstance(layer, nn.Module) else None


def _base_model(module: nn.Module) -> nn.Module | None:
    # On the class: looking up a name that a module does not have is slow.
    prefix = getattr(type(module), "base_model_prefix", "")
    base = getattr(module, prefix, None) if prefix else None
    return base if isinstance(base, nn.Module) else None
