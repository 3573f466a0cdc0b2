"""Spec: the only description of an adapter. Torch is not imported here, so `--help` can read the
fields.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, TypeGuard, cast

from lorakit.errors import SpecError
from lorakit.text import near_misses, plural

SCALES: dict[str, Callable[[float, int], float]] = {
    "alpha/rank": lambda alpha, rank: alpha / rank,
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / rank**0.5,
}
KINDS = ("lora", "dora", "vera", "loha", "lokr", "adalora")
INITS = ("kaiming", "gaussian", "orthogonal", "pissa", "pissa-fast", "olora", "eva", "lora-ga")
BIASES = ("none", "all", "adapted")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Tell that a value is a whole number, no bool, and not below `least`.

    >>> is_whole(3, least=1), is_whole(True), is_whole(0, least=1)
    (True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return least is None or value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Tell that a value is a finite number, and no bool.

    >>> is_number(0.5), is_number(float("nan")), is_number("1")
    (True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for one layer once the overrides are resolved."""

    rank: int
    alpha: float
    scale_rule: str
    dropout: float
    init: str
    init_std: float | None

    @property
    def scale(self) -> float:
        """What multiplies B A."""
        return SCALES[self.scale_rule](self.alpha, self.rank)


def option(default: Any, text: str, **more: Any) -> Any:
    """Make a dataclass field whose help text is the one that command line and docs show."""
    meta = {"help": text, **more}
    return (
        field(default_factory=default, metadata=meta)
        if callable(default)
        else field(default=default, metadata=meta)
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Which layers are adapted, and how. Checks itself; every fault is named at once.

    Raises:
        SpecError: any field out of its range, or an override that names no field.

    Source: rank, alpha, A and B as in Hu et al., LoRA, arXiv 2106.09685, section 4.1;
        alpha / sqrt(rank) from Kalajdzievski, rsLoRA, arXiv 2312.03732.

    >>> Spec(rank=8).settings("model.layers.0.mlp.up_proj").scale
    4.0
    >>> Spec(rank=8, overrides={"up_proj": {"rank": 64}}).settings("model.layers.0.mlp.up_proj").rank
    64
    """

    delta: str = option(
        "lora",
        "how the change of a matrix is made: B A, or another parameterisation",
        choices=KINDS,
    )
    rank: int = option(16, "rank of the change of each matrix")
    alpha: float = option(32.0, "strength: B A is multiplied by alpha / rank (see --scale-rule)")
    scale_rule: str = option("alpha/rank", "what multiplies B A", choices=tuple(SCALES))
    targets: str | tuple[str, ...] = option(
        "all-linear",
        "what is adapted: a preset (all-linear, conv, attention, mlp, q, k, v, o, qv, qkv, qkvo, none), "
        "name patterns, or a regular expression",
        several=True,
    )
    exclude: str | tuple[str, ...] = option((), "name patterns that are left out", several=True)
    dropout: float = option(0.0, "dropout on the input of A, while training")
    init: str = option(
        "kaiming",
        "how A starts (B at zero), or A and B as a part of the base's matrix",
        choices=INITS,
    )
    init_std: float | None = option(
        None, "standard deviation of a gaussian A (default 1 / rank)", type=float
    )
    bias: str = option(
        "none",
        "biases that train: none, all of the model, or those of adapted layers",
        choices=BIASES,
    )
    full_modules: tuple[str, ...] = option(
        (),
        "names of modules that are trained whole and saved beside the adapter; norms: all normalisation layers",
        several=True,
    )
    token_rows: tuple[int, ...] | Mapping[str, tuple[int, ...]] = option(
        (),
        "ids of tokens whose rows train, and no others, in the input embedding and a head that is tied to it; in Python and "
        "YAML also {module: ids}",
        several=True,
        type=int,
    )
    parts: Mapping[str, Mapping[str, int]] = option(
        dict,
        "rows of fused layers, where the model class does not tell: {pattern: {part: rows, ..., groups: 1}}",
        flag=False,
    )
    tie: bool = option(
        False,
        "one pair of factors for an embedding and what shares its weight: merging keeps them tied",
    )
    dtype: str = option("float32", "dtype of the adapter's parameters", choices=DTYPES)
    overrides: Mapping[str, Mapping[str, Any]] = option(
        dict,
        "other settings for names matching a pattern: {pattern: {field: value}}, the first match counts",
        flag=False,
    )

    def __post_init__(self) -> None:
        for name in ("targets", "exclude", "full_modules"):
            value: Any = getattr(self, name)
            if not isinstance(value, str) or name == "full_modules":
                several = isinstance(value, Iterable) and not isinstance(value, str)
                object.__setattr__(
                    self, name, tuple(cast(Iterable[Any], value)) if several else (value,)
                )
        rows: Any = self.token_rows
        rows = (
            {n: _ids(ids) for n, ids in cast(Mapping[Any, Any], rows).items()}
            if isinstance(rows, Mapping)
            else _ids(rows)
        )
        object.__setattr__(self, "token_rows", rows)
        faults = [f"{name}: {fault}" for name, fault in self._faults()]
        if faults:
            raise SpecError(
                f"{plural(len(faults), 'fault')} in the spec.", faults, "Nothing was attached."
            )
        for name in ("overrides", "parts"):
            object.__setattr__(
                self, name, {pattern: dict(found) for pattern, found in getattr(self, name).items()}
            )

    def _faults(self) -> Iterator[tuple[str, str]]:
        base = {f.name: getattr(self, f.name) for f in fields(Settings)}
        yield from setting_faults(base)
        for name, allowed in (("delta", KINDS), ("bias", BIASES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                yield name, f"{getattr(self, name)!r} is none of {', '.join(allowed)}"
        if type(self.tie) is not bool:
            yield "tie", f"True or False is needed, got {self.tie!r}"
        for name in ("targets", "exclude", "full_modules"):
            value = getattr(self, name)
            for pattern in (value,) if isinstance(value, str) else value:
                if not isinstance(pattern, str) or not pattern.strip():
                    yield name, f"{pattern!r} is no name pattern"
        if self.targets == ():
            yield "targets", "empty; targets='none' trains biases or whole modules alone"
        yield from self._part_faults()
        yield from self._row_faults()
        overrides: Any = self.overrides
        if not isinstance(overrides, Mapping):
            yield "overrides", f"{{pattern: {{field: value}}}} is needed, got {overrides!r}"
            return
        for pattern, found in cast(Mapping[Any, Any], overrides).items():
            if (
                not isinstance(pattern, str)
                or not pattern.strip()
                or not isinstance(found, Mapping)
            ):
                yield (
                    "overrides",
                    f"{{pattern: {{field: value}}}} is needed, got {{{pattern!r}: {found!r}}}",
                )
                continue
            change = cast(Mapping[str, Any], found)
            for key in (key for key in change if key not in base):
                yield (
                    f"overrides[{pattern!r}]",
                    f"{key!r} cannot be overridden {near_misses(str(key), base)}".rstrip(),
                )
            for name, fault in setting_faults(
                {**base, **{k: v for k, v in change.items() if k in base}}
            ):
                if name in change:
                    yield f"overrides[{pattern!r}].{name}", fault

    def _part_faults(self) -> Iterator[tuple[str, str]]:
        parts: Any = self.parts
        if not isinstance(parts, Mapping):
            yield "parts", f"{{pattern: {{part: rows}}}} is needed, got {parts!r}"
            return
        for pattern, sizes in cast(Mapping[Any, Any], parts).items():
            rows = (
                list(cast(Mapping[Any, Any], sizes).items()) if isinstance(sizes, Mapping) else []
            )
            whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for _, n in rows)
            words = all(isinstance(part, str) and part.isidentifier() for part, _ in rows)
            if (
                not isinstance(pattern, str)
                or not whole
                or not words
                or not [part for part, _ in rows if part != "groups"]
            ):
                yield (
                    f"parts[{pattern!r}]",
                    f"{{part: rows}} with words and whole numbers is needed, got {sizes!r}",
                )

    def _row_faults(self) -> Iterator[tuple[str, str]]:
        rows: Any = self.token_rows
        named = cast(dict[Any, Any], rows) if isinstance(rows, dict) else {"": rows}
        for where, given in named.items():
            name = f"token_rows[{where!r}]" if named is rows else "token_rows"
            if (
                not isinstance(given, tuple)
                or not isinstance(where, str)
                or (named is rows and not (given and where))
            ):
                yield name, f"ids of tokens, or {{module: ids}}, are needed, got {rows!r}"
                continue
            ids = cast(tuple[Any, ...], given)
            if odd := [i for i in ids if isinstance(i, bool) or not isinstance(i, int) or i < 0]:
                yield name, f"whole numbers from 0 on are needed, got {', '.join(map(repr, odd))}"
            elif doubled := sorted({i for i in ids if ids.count(i) > 1}):
                yield name, f"{', '.join(map(str, doubled))} stands there more than once"
        if rows and self.delta not in ("lora", "dora"):
            yield (
                "token_rows",
                f"the files of delta {self.delta!r} have no place for rows of tokens; lora's and dora's have",
            )

    def override_for(self, name: str) -> dict[str, Any]:
        """Return the first override that matches the layer called `name`; empty where none does."""
        empty: dict[str, Any] = {}
        return next(
            (dict(c) for pattern, c in self.overrides.items() if matches(pattern, name)), empty
        )

    def settings(self, name: str) -> Settings:
        """Return what holds for the layer called `name`: its override, over the rest."""
        change = self.override_for(name)
        return Settings(
            **{f.name: change.get(f.name, getattr(self, f.name)) for f in fields(Settings)}
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, as JSON holds them."""
        return {
            k: [*cast(tuple[Any, ...], v)] if isinstance(v, tuple) else v
            for k, v in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spec":
        """Return the Spec that `to_dict` wrote; an unknown key is refused."""
        known = [f.name for f in fields(cls)]
        faults = [
            f"{key!r} is no field of Spec {near_misses(key, known)}".rstrip()
            for key in values
            if key not in known
        ]
        if faults:
            raise SpecError(f"{plural(len(faults), 'unknown field')} in the spec.", faults)
        return cls(**values)


def _ids(given: Any) -> Any:
    return tuple(cast(list[Any], given)) if isinstance(given, list | range) else given


def setting_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (field, fault) for each value that no layer could use."""
    rank, alpha, dropout, std = (values[k] for k in ("rank", "alpha", "dropout", "init_std"))
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        yield "rank", f"a whole number of at least 1 is needed, got {rank!r}"
    if (
        isinstance(alpha, bool)
        or not isinstance(alpha, int | float)
        or not math.isfinite(alpha)
        or alpha == 0
    ):
        yield "alpha", f"a finite number other than 0 is needed, got {alpha!r}"
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        yield "dropout", f"a probability from 0 to 1 is needed, got {dropout!r}"
    if std is not None and (
        isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf
    ):
        yield "init_std", f"a positive number is needed, got {std!r}"
    elif std is not None and values["init"] != "gaussian":
        yield (
            "init_std",
            f"only init='gaussian' has a standard deviation, asked for init={values['init']!r}",
        )
    for name, allowed in (("scale_rule", tuple(SCALES)), ("init", INITS)):
        if values[name] not in allowed:
            yield (
                name,
                f"{values[name]!r} is none of {', '.join(allowed)} {near_misses(str(values[name]), allowed)}".rstrip(),
            )


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name pattern selects a module: its full name, or its last parts; `*` and `?`
    stand for anything.

    >>> matches("q_proj", "layers.0.q_proj"), matches("layers.0.*", "model.layers.0.q_proj"), matches("proj", "q_proj")
    (True, True, False)
    """
    # Equal names first: a name may hold characters that a pattern gives a meaning.
    return (
        name == pattern
        or name.endswith("." + pattern)
        or fnmatchcase(name, pattern)
        or fnmatchcase(name, "*." + pattern)
    )


def full_name(path: str, key: str) -> str:
    """Return the name of what a module holds; the path of a model that is itself a layer is empty."""
    return f"{path}.{key}" if path else key
