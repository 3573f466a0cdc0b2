"""Spec, the description of an adapter. It imports no torch, so that `--help` is fast."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeGuard, TypeVar, cast, overload

from lorakit.errors import SpecError, refuse_unknown_names
from lorakit.patterns import PatternTable
from lorakit.text import add_hint, near_misses, plural

SCALES: dict[str, Callable[[float, int], float]] = {
    "alpha/rank": lambda alpha, rank: alpha / rank,
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / rank**0.5,
}
KINDS = ("lora", "dora", "vera", "loha", "lokr", "adalora")
INITS = ("kaiming", "gaussian", "orthogonal", "pissa", "pissa-fast", "olora", "eva", "lora-ga")
BIASES = ("none", "all", "adapted")
DTYPES = ("float32", "bfloat16", "float16", "float64")
LARGEST = 3.4028234663852886e38  # of float32
PATTERN_FIELDS = ("targets", "exclude", "full_modules")

Value = TypeVar("Value")
Fault = tuple[str, str]  # the name of a field, and what is wrong with its value


def alpha_for_scale(scale: float, rank: int, rule: str) -> float:
    """Return the alpha that gives a scale at a rank.

    Args:
        scale: the factor of B A.
        rank: of B A.
        rule: a name from `SCALES`.

    >>> alpha_for_scale(2.0, 8, "alpha/rank"), SCALES["alpha/rank"](16.0, 8)
    (16.0, 2.0)
    """
    return scale * (rank if rule == "alpha/rank" else rank**0.5)


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Return True if a value is a whole number, not a bool, and not below `least`.

    >>> is_whole(3, least=1), is_whole(True), is_whole(0, least=1)
    (True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return least is None or value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Return True if a value is a finite number in float32 too, and not a bool.

    >>> is_number(0.5), is_number(float("nan")), is_number("1"), is_number(1e308)
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= LARGEST


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one layer, with its override applied.

    Parallel pairs of factors are one pair with their rows and columns side by side, of the same
    scale: rank and alpha are those of all pairs together.
    """

    rank: int
    alpha: float
    scale_rule: str
    dropout: float
    init: str
    init_std: float | None
    pairs: int = 1

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return SCALES[self.scale_rule](self.alpha, self.rank)

    def join_pairs(self) -> "Settings":
        """Return the settings of all pairs together, if these are of each pair.

        >>> each = Spec(rank=4, alpha=8, overrides={"a": {"pairs": 3}}).settings("a")
        >>> each.rank, each.alpha, each.scale
        (12, 24, 2.0)
        """
        alpha = alpha_for_scale(self.alpha, self.pairs, self.scale_rule)
        std = self.init_std
        if self.init == "gaussian" and std is None:
            std = 1 / self.rank
        return replace(self, rank=self.pairs * self.rank, alpha=alpha, init_std=std)


# Settings that a spec has for all layers; `pairs` is given for single layers alone.
SETTING_NAMES = tuple(setting.name for setting in fields(Settings) if setting.name != "pairs")
PAIRED = ("lora", "dora")  # deltas of which several pairs are one with a larger rank
RANDOM_INITS = ("kaiming", "gaussian", "orthogonal")


@overload
def option(default: Callable[[], Value], text: str, **metadata: object) -> Value: ...


@overload
def option(default: Value, text: str, **metadata: object) -> Value: ...


def option(default: object, text: str, **metadata: object) -> object:
    """Return a dataclass field with the help text that the command line and the docs show."""
    metadata = {"help": text, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def option_like(cls: type, name: str, **changes: object) -> Any:  # noqa: ANN401  of any type
    """Return an option of another dataclass once more: its default, and its metadata with changes.

    Args:
        cls: the other dataclass.
        name: the field of it.
        **changes: metadata that differs, such as `help`.

    >>> option_like(Spec, "rank", help="rank of the smaller adapter").default
    16
    """
    original = next(one for one in fields(cls) if one.name == name)
    return field(default=original.default, metadata={**original.metadata, **changes})


@refuse_unknown_names
@dataclass(frozen=True, kw_only=True)
class Spec:
    """The layers that are adapted, and how. A Spec checks itself and reports all faults at once.

    Raises:
        SpecError: a field is out of its range, or an override has an unknown field.

    Source: rank, alpha, A and B as in Hu et al., LoRA, arXiv 2106.09685, section 4.1;
        alpha / sqrt(rank) from Kalajdzievski, rsLoRA, arXiv 2312.03732.

    >>> Spec(rank=8).settings("model.layers.0.mlp.up_proj").scale
    4.0
    >>> spec = Spec(rank=8, overrides={"up_proj": {"rank": 64}})
    >>> spec.settings("model.layers.0.mlp.up_proj").rank
    64
    """

    delta: str = option(
        "lora",
        "form of the change of a matrix: B A (lora), or that of another method",
        choices=KINDS,
    )
    rank: int = option(16, "rank of the change of each matrix")
    alpha: float = option(32.0, "strength: the change is B A times alpha / rank (see --scale-rule)")
    scale_rule: str = option("alpha/rank", "rule for the factor of B A", choices=tuple(SCALES))
    targets: str | tuple[str, ...] = option(
        "all-linear",
        "layers to adapt: a preset (all-linear, conv, attention, mlp, q, k, v, o, qv, qkv, "
        "qkvo, none), name patterns, or one regular expression",
        several=True,
    )
    exclude: str | tuple[str, ...] = option(
        (), "name patterns of layers that are not adapted", several=True
    )
    dropout: float = option(0.0, "probability of dropout on the input of A during training")
    init: str = option(
        "kaiming",
        "start of A and B: kaiming, gaussian and orthogonal draw A and set B to zero; the others "
        "compute both from the base's weights or from data",
        choices=INITS,
    )
    init_std: float | None = option(
        None, "standard deviation of A for --init gaussian (default: 1 / rank)", type=float
    )
    bias: str = option(
        "none",
        "biases that are trained: none, all of the model, or those of adapted layers",
        choices=BIASES,
    )
    full_modules: tuple[str, ...] = option(
        (),
        "names of modules that are trained in full and saved with the adapter; the name norms "
        "stands for all normalisation layers",
        several=True,
    )
    token_rows: tuple[int, ...] | Mapping[str, tuple[int, ...]] = option(
        (),
        "ids of tokens whose rows of the input embedding are trained, also in a head that is tied "
        "to it; in Python and YAML also {module: ids}",
        several=True,
        type=int,
    )
    parts: Mapping[str, Mapping[str, int]] = option(
        dict[str, Mapping[str, int]],
        "sizes of the parts of fused layers, if the model class does not define them: "
        "{pattern: {part: outputs, ..., groups: 1}}",
        flag=False,
    )
    tie: bool = option(
        False,
        "train one pair of factors for an embedding and the layers that share its weight, so that "
        "merging keeps them tied",
    )
    dtype: str = option("float32", "dtype of the adapter's parameters", choices=DTYPES)
    overrides: Mapping[str, Mapping[str, Any]] = option(
        dict[str, Mapping[str, Any]],
        "other settings for layers that match a pattern: {pattern: {field: value}}; the first "
        "match counts",
        flag=False,
    )

    def __post_init__(self) -> None:
        for name in PATTERN_FIELDS:
            patterns = _as_patterns(getattr(self, name), keep_text=name != "full_modules")
            object.__setattr__(self, name, patterns)
        object.__setattr__(self, "token_rows", _as_token_rows(self.token_rows))
        faults = [f"{name}: {fault}" for name, fault in _spec_faults(self)]
        if faults:
            message = f"{plural(len(faults), 'fault')} in the spec."
            raise SpecError(message, faults, "Nothing was attached.")
        for name in ("overrides", "parts"):
            copies = {pattern: dict(values) for pattern, values in getattr(self, name).items()}
            object.__setattr__(self, name, copies)

    def override_for(self, name: str) -> dict[str, Any]:
        """Return the first override that matches the layer; an empty one if none does."""
        pattern = self._override_table.find(name)
        return {} if pattern is None else dict(self.overrides[pattern])

    @cached_property
    def _override_table(self) -> PatternTable:
        return PatternTable(self.overrides)

    def settings(self, name: str) -> Settings:
        """Return the settings of the layer called `name`, with its override applied."""
        change = self.override_for(name)
        values = {key: change.get(key, getattr(self, key)) for key in SETTING_NAMES}
        if "pairs" in change:
            return Settings(**values, pairs=change["pairs"]).join_pairs()
        return Settings(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them: tuples become lists."""
        plain: dict[str, Any] = {}
        for name, value in asdict(self).items():
            is_tuple = isinstance(value, tuple)
            plain[name] = list(cast(tuple[object, ...], value)) if is_tuple else value
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spec":
        """Return the Spec that `to_dict` wrote, or refuse an unknown key."""
        return cls(**values)


def _as_patterns(value: object, *, keep_text: bool) -> str | tuple[object, ...]:
    """Return a field of name patterns as a tuple; a single string stays one if `keep_text`."""
    if isinstance(value, str):
        return value if keep_text else (value,)
    if isinstance(value, Iterable):
        return tuple(cast(Iterable[object], value))
    return (value,)


def _as_token_rows(value: object) -> object:
    """Return `Spec.token_rows` with lists and ranges of ids as tuples."""
    if not isinstance(value, Mapping):
        return _as_ids(value)
    by_module = cast(Mapping[object, object], value)
    return {module: _as_ids(ids) for module, ids in by_module.items()}


def _as_ids(value: object) -> object:
    if isinstance(value, list | range):
        return tuple(cast(Sequence[object], value))
    return value


def _spec_faults(spec: Spec) -> Iterator[Fault]:
    settings = {name: getattr(spec, name) for name in SETTING_NAMES}
    yield from setting_faults(settings)
    for name, allowed in (("delta", KINDS), ("bias", BIASES), ("dtype", DTYPES)):
        value = getattr(spec, name)
        if value not in allowed:
            fault = f"{value!r} is none of {', '.join(allowed)}"
            yield name, add_hint(fault, near_misses(str(value), allowed, 1))
    tie: object = spec.tie
    if type(tie) is not bool:
        yield "tie", f"True or False is needed, got {tie!r}"
    for name in PATTERN_FIELDS:
        yield from _pattern_faults(name, getattr(spec, name))
    yield from _part_faults(spec.parts)
    yield from _token_row_faults(spec)
    yield from _override_faults(spec.overrides, {**settings, "pairs": 1, "delta": spec.delta})


def _is_text(value: object) -> TypeGuard[str]:
    """Return True if a value is a string that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def _pattern_faults(name: str, value: str | tuple[object, ...]) -> Iterator[Fault]:
    patterns = (value,) if isinstance(value, str) else value
    for pattern in patterns:
        if not _is_text(pattern):
            yield name, f"{pattern!r} is no name pattern"
    if name == "targets" and not patterns:
        yield name, "empty; targets='none' trains only biases or full modules"


def _part_faults(parts: object) -> Iterator[Fault]:
    if not isinstance(parts, Mapping):
        yield "parts", f"{{pattern: {{part: outputs}}}} is needed, got {parts!r}"
        return
    for pattern, sizes in cast(Mapping[object, object], parts).items():
        if not isinstance(pattern, str) or not _is_layout(sizes):
            yield (
                f"parts[{pattern!r}]",
                f"{{part: outputs}} with words and whole numbers is needed, got {sizes!r}",
            )


def _is_layout(sizes: object) -> bool:
    """Return True if a value has names of parts with their sizes, and nothing else but `groups`."""
    if not isinstance(sizes, Mapping):
        return False
    layout = cast(Mapping[object, object], sizes)
    for part, size in layout.items():
        if not isinstance(part, str) or not part.isidentifier() or not is_whole(size, least=1):
            return False
    return any(part != "groups" for part in layout)


def _token_row_faults(spec: Spec) -> Iterator[Fault]:
    value: object = spec.token_rows
    if isinstance(value, dict):
        for module, ids in cast(dict[object, object], value).items():
            is_module = isinstance(module, str) and bool(module)
            if is_module and isinstance(ids, tuple) and ids:
                name = f"token_rows[{module!r}]"
                yield from _token_id_faults(name, cast(tuple[object, ...], ids))
            else:
                yield f"token_rows[{module!r}]", _token_rows_needed(value)
    elif isinstance(value, tuple):
        yield from _token_id_faults("token_rows", cast(tuple[object, ...], value))
    else:
        yield "token_rows", _token_rows_needed(value)
    if value and spec.delta not in ("lora", "dora"):
        yield (
            "token_rows",
            f"a file of delta {spec.delta!r} cannot hold token rows; use delta 'lora' or 'dora'",
        )


def _token_rows_needed(value: object) -> str:
    return f"ids of tokens, or {{module: ids}}, are needed, got {value!r}"


def _token_id_faults(name: str, ids: tuple[object, ...]) -> Iterator[Fault]:
    wrong = [repr(token) for token in ids if not is_whole(token, least=0)]
    if wrong:
        yield name, f"whole numbers from 0 on are needed, got {', '.join(wrong)}"
        return
    repeated = sorted({token for token in cast(tuple[int, ...], ids) if ids.count(token) > 1})
    if repeated:
        yield name, f"{', '.join(map(str, repeated))} is given more than once"


def _override_faults(overrides: object, settings: Mapping[str, object]) -> Iterator[Fault]:
    if not isinstance(overrides, Mapping):
        yield "overrides", f"{{pattern: {{field: value}}}} is needed, got {overrides!r}"
        return
    for pattern, change in cast(Mapping[object, object], overrides).items():
        if _is_text(pattern) and isinstance(change, Mapping):
            values = cast(Mapping[str, object], change)
            yield from _change_faults(f"overrides[{pattern!r}]", values, settings)
        else:
            found = f"{{{pattern!r}: {change!r}}}"
            yield "overrides", f"{{pattern: {{field: value}}}} is needed, got {found}"


def _change_faults(
    where: str, change: Mapping[str, object], settings: Mapping[str, object]
) -> Iterator[Fault]:
    """Yield the faults of one override, checked together with the settings that it leaves."""
    changed = dict(settings)
    for key, value in change.items():
        if key in settings and key != "delta":
            changed[key] = value
        else:
            hint = near_misses(str(key), settings)
            yield where, add_hint(f"{key!r} cannot be overridden", hint)
    for name, fault in (*setting_faults(changed), *_pair_faults(changed)):
        if name in change:
            yield f"{where}.{name}", fault


def _pair_faults(values: Mapping[str, object]) -> Iterator[Fault]:
    if not is_whole(values["pairs"], least=1):
        yield "pairs", f"a whole number of at least 1 is needed, got {values['pairs']!r}"
    elif values["pairs"] > 1 and values["delta"] not in PAIRED:
        yield "pairs", f"delta {values['delta']!r} has no pairs; {' and '.join(PAIRED)} have"
    elif values["pairs"] > 1 and values["init"] not in RANDOM_INITS:
        yield (
            "pairs",
            f"init {values['init']!r} computes one pair; {', '.join(RANDOM_INITS)} draw several",
        )


def setting_faults(values: Mapping[str, object]) -> Iterator[Fault]:
    """Yield (field, fault) for each value that is not possible for any layer.

    Args:
        values: the fields of Settings, by name.
    """
    if not is_whole(values["rank"], least=1):
        yield "rank", f"a whole number of at least 1 is needed, got {values['rank']!r}"
    if not is_number(values["alpha"]) or values["alpha"] == 0:
        yield "alpha", f"a finite float32 number other than 0 is needed, got {values['alpha']!r}"
    dropout = values["dropout"]
    if not is_number(dropout) or not 0 <= dropout <= 1:
        yield "dropout", f"a probability from 0 to 1 is needed, got {dropout!r}"
    yield from _init_std_faults(values["init_std"], values["init"])
    for name, allowed in (("scale_rule", tuple(SCALES)), ("init", INITS)):
        value = values[name]
        if value not in allowed:
            fault = f"{value!r} is none of {', '.join(allowed)}"
            yield name, add_hint(fault, near_misses(str(value), allowed))


def _init_std_faults(init_std: object, init: object) -> Iterator[Fault]:
    if init_std is None:
        return
    if not is_number(init_std) or init_std <= 0:
        yield "init_std", f"a positive number is needed, got {init_std!r}"
    elif init != "gaussian":
        yield (
            "init_std",
            f"only init='gaussian' has a standard deviation, asked for init={init!r}",
        )


def full_name(path: str, key: str) -> str:
    """Return the full name of an item of a module; the path of the model itself is empty.

    >>> full_name("layers.0", "weight"), full_name("", "weight")
    ('layers.0.weight', 'weight')
    """
    return f"{path}.{key}" if path else key


def is_inside(name: str, modules: Iterable[str]) -> bool:
    """Return True if a name is one of these modules, or of something in one of them.

    >>> is_inside("head.weight", ["head"]), is_inside("header.weight", ["head"])
    (True, False)
    """
    return any(name == module or name.startswith(f"{module}.") for module in modules)
