"""TrainSpec: every setting of a run but the adapter's.

Torch is not imported here, so that `--help` answers at once.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from lorakit.data.settings import RowSettings
from lorakit.errors import NOT_STARTED, SpecError, refuse_unknown_names
from lorakit.models.tasks import CHOICES, LOSSES, TRUST_HELP
from lorakit.plan.optimizers import DEFAULT, OPTIMIZERS
from lorakit.spec import Fault, is_number, is_whole, option, option_like
from lorakit.text import add_hint, near_misses, plural

RANKS = (
    "even",
    "bottom-heavy",
    "top-heavy",
    "linear",
    "linear-falling",
    "explained-variance",
    "suggested",
)
SCHEDULES = ("constant", "linear", "cosine", "inverse-sqrt", "cyclic")
# Settings that a resumed run may change: none of them changes the weights at the end.
CHANGEABLE = {
    "output",
    # The content of the adapter counts, and is compared by its hash.
    "adapter",
    "any_base",
    "resume",
    "overwrite",
    "checkpoint_every",
    "keep",
    "threads",
    "device",
    "beyond_memory",
    "trust_remote_code",
    "log_to",
}
# The length of a run: a resumed run may be longer, and shorter as long as it has steps left.
LENGTH = {"steps", "epochs"}
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


@refuse_unknown_names
@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Settings of one training run, checked as they are made.

    Raises:
        SpecError: values that a field does not take, or that exclude each other; all are named.
    """

    model: str = option("", "base model: a folder, a hub id, or builtin:minilm", required=True)
    trust_remote_code: bool = option(False, TRUST_HELP)
    data: str | tuple[str, ...] = option(
        "",
        "training data: a file, a folder of files, a hub id, or builtin:stdlib-docs; or several",
        required=True,
        several=True,
        metavar="DATA",
    )
    data_weights: tuple[float, ...] = option(
        (),
        "share of each data set in an epoch, if there are several, e.g. 0.7 0.3: rows of those "
        "with fewer are repeated (default: each row is seen once)",
        several=True,
        type=float,
        above=0,
    )
    output: str = option(
        "", "folder for the adapter, its report and its checkpoints", required=True
    )
    adapter: str | None = option(
        None,
        "folder of an adapter to go on from, with its spec; a head that does not fit the task is "
        "made anew (default: a new adapter)",
        type=str,
    )
    any_base: bool = option(
        False, "accept an --adapter that was trained on other base weights of the same shapes"
    )
    task: str = option(
        "auto", "task to learn; auto chooses it by the keys of the rows", choices=CHOICES
    )
    eval_data: str | None = option(
        None, "evaluation data (default: a part of --data is held out)", type=str
    )
    eval_fraction: float = option(
        0.1,
        "share of --data that is held out if there is no --eval-data; at most 2,000 rows",
        minimum=0,
        below=1,
    )
    columns: tuple[str, ...] = option_like(RowSettings, "columns")
    quotes: bool | None = option_like(RowSettings, "quotes")
    separator: str = option_like(RowSettings, "separator")
    categories: str = option_like(RowSettings, "categories")
    loss_on: str = option_like(RowSettings, "loss_on")
    template: str | None = option_like(RowSettings, "template")
    max_length: int | None = option(
        None,
        "longest sequence in tokens; a longer text is split, other rows are cut (default: 512, "
        "or fewer if the model "
        "can read fewer)",
        type=int,
        minimum=2,
    )
    epochs: float = option(3.0, "passes over the data", above=0)
    steps: int | None = option(None, "optimizer steps; replaces --epochs", type=int, minimum=1)
    batch_size: int = option(16, "sequences in one forward pass", minimum=1)
    packing: str = option(
        "auto",
        "put the rows of a batch one after the other instead of padding them (causal-lm only); "
        "auto does so if the model keeps packed rows apart",
        choices=("auto", "on", "off"),
    )
    batch_tokens: int | None = option(
        None,
        "approximate number of tokens in one forward pass of packed rows; replaces --batch-size",
        type=int,
        minimum=2,
    )
    accumulate: int = option(1, "forward passes for one optimizer step", minimum=1)
    lr: float | None = option(
        None,
        "peak learning rate (default: 5e-4 x sqrt(2000 / width of the model))",
        type=float,
        above=0,
    )
    schedule: str = option(
        "cosine",
        "learning rate after the warm-up",
        choices=SCHEDULES,
    )
    cycles: int | None = option(
        None,
        "falls of the cyclic schedule from the peak rate to a quarter of it; it rises again "
        "between them (default: 3)",
        type=int,
        minimum=1,
    )
    warmup: float = option(
        0.05,
        "length of the warm-up: below 1 a share of the steps, from 1 on a number of steps",
        minimum=0,
    )
    optimizer: str = option(
        DEFAULT,
        "optimizer; lion and those with 8bit or paged in their names are of bitsandbytes "
        "(the extra quantised)",
        choices=tuple(OPTIMIZERS),
    )
    lr_ratio: float = option(
        1.0, "learning rate of B over that of A and all others (LoRA+)", above=0
    )
    weight_decay: float = option(0.0, "weight decay of A and B", minimum=0)
    clip: float = option(1.0, "largest norm of the gradient; 0 turns clipping off", minimum=0)
    label_smoothing: float = option(
        0.0,
        "share of each target that is spread over all classes or tokens; training only",
        minimum=0,
        below=1,
    )
    r_drop: float = option(
        0.0,
        "R-Drop: weight of the divergence of two passes that differ in dropout; a step takes twice "
        "the time",
        minimum=0,
    )
    cutoff: float = option(
        0.0,
        "share of the input tokens whose embeddings are zero in a second pass, whose loss is "
        "added; with --r-drop the divergence too",
        minimum=0,
        below=1,
    )
    loss: str | None = option(
        None,
        "preference: loss, by TRL; orpo needs no reference (default: dpo for pairs of answers, kto "
        "for rated ones)",
        type=str,
        choices=LOSSES,
    )
    beta: float | None = option(
        None,
        "preference: weight of what the base says, in orpo that of the odds ratio (default: 0.1)",
        type=float,
        above=0,
    )
    ranks: str = option(
        "even",
        "distribution of ranks over the layers, with the same number of values in total; "
        "suggested spends half of them, on some of the layers",
        choices=RANKS,
    )
    rank_budget: int | None = option(
        None,
        "number of values of A and B that --ranks distributes (default: that of --rank)",
        type=int,
    )
    base_dtype: str = option(
        "auto",
        "dtype of the base and of modules that are trained in full; auto is bfloat16 on a GPU that "
        "computes in it, and on a CPU with AMX or AVX-512 BF16 for a causal-lm with a width of at "
        "least 256 and no parameters trained in full; float16 on an older GPU (T4, RTX 20xx) if "
        "no parameters are trained in full; otherwise float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    target_rank: int | None = option(
        None, "AdaLoRA: average rank at the end (default: half of --rank)", type=int
    )
    budget_warmup: float = option(
        0.1, "AdaLoRA: share of the steps before the ranks begin to fall", minimum=0
    )
    budget_final: float = option(
        0.3, "AdaLoRA: share of the steps at the end with constant ranks", minimum=0
    )
    budget_every: int = option(10, "AdaLoRA: steps between two updates of the ranks")
    orthogonality: float = option(
        0.1, "AdaLoRA: weight of the loss term that keeps the directions orthogonal", minimum=0
    )
    mixed_precision: str = option(
        "auto",
        "dtype of autocast during training, in fp16 with a scaled loss; auto is fp16 on a GPU that "
        "does not compute in bfloat16, and for a base in float16 on any GPU; otherwise no",
        choices=("auto", "no", "bf16", "fp16"),
    )
    gradient_checkpointing: bool = option(
        False, "recompute all activations in the backward pass: less memory, more time"
    )
    light_checkpointing: bool = option(
        False,
        "recompute norms, activation functions and sums, but no matrix products: saves less "
        "memory, takes little time",
    )
    eval_every: int | None = option(
        None,
        "steps between evaluations on up to 256 held-out sequences (default: ten evaluations in "
        "a run)",
        type=int,
        minimum=1,
    )
    eval_batch_size: int = option(32, "sequences in one forward pass of an evaluation", minimum=1)
    checkpoint_every: int | None = option(
        None, "steps between checkpoints (default: at every evaluation)", type=int, minimum=1
    )
    keep: int = option(
        2, "number of newest checkpoints to keep; the best one is kept too", minimum=1
    )
    patience: int | None = option(
        None, "stop after this number of evaluations without a better loss", type=int, minimum=1
    )
    final: str = option(
        "best",
        "weights to write at the end: those of the best evaluation, or the last ones",
        choices=("best", "last"),
    )
    log_to: tuple[str, ...] = option(
        (),
        "log the metrics of each step and evaluation to these trackers too: tensorboard, trackio, "
        "wandb, mlflow",
        several=True,
        choices=TRACKERS,
        metavar="TRACKER",
    )
    beyond_memory: bool = option(
        False, "start even if the largest batch will not fit into memory according to the plan"
    )
    seed: int = option(
        0,
        "seed of the initial A, of a new head, of the order of the data, and of dropout",
        minimum=0,
    )
    device: str = option("auto", "cpu, cuda, …; auto takes a GPU if there is one")
    threads: int | None = option(None, "CPU threads of torch", type=int, minimum=1)
    resume: bool = option(
        False,
        "continue a run from the last checkpoint in --output; with other --steps or --epochs it "
        "becomes longer or shorter",
    )
    overwrite: bool = option(False, "delete an earlier run in --output first")

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", _as_tuple(self.columns))
        object.__setattr__(self, "data", _one_or_several(self.data))
        object.__setattr__(self, "data_weights", _several(self.data_weights))
        object.__setattr__(self, "log_to", _several(self.log_to))
        faults = [f"{name}: {fault}" for name, fault in self._faults()]
        if faults:
            raise SpecError(
                f"{plural(len(faults), 'fault')} in the settings of the run.",
                faults,
                NOT_STARTED,
            )

    def _faults(self) -> Iterator[Fault]:
        yield from self._missing_values()
        checks = (_kind_faults, _whole_number_faults, _number_faults, _upper_bound_faults)
        for check in checks:
            for field in fields(self):
                yield from check(field, getattr(self, field.name))
        yield from self._conflicts()

    def _missing_values(self) -> Iterator[Fault]:
        for field in fields(self):
            if field.metadata.get("required") and not getattr(self, field.name):
                yield field.name, "is needed"

    def _conflicts(self) -> Iterator[Fault]:
        sources = 1 if isinstance(self.data, str) else len(self.data)
        if self.data_weights and len(self.data_weights) != sources:
            given = plural(len(self.data_weights), "weight")
            yield "data_weights", f"{given} for {plural(sources, 'data set')}; give one for each"
        if self.batch_tokens is not None and self.packing == "off":
            yield "batch_tokens", "counts packed rows, and packing is off; use batch_size"
        if self.cycles is not None and self.schedule != "cyclic":
            yield "cycles", f"the {self.schedule} schedule has none; give schedule cyclic"
        if self.gradient_checkpointing and self.light_checkpointing:
            yield (
                "light_checkpointing",
                "is a part of what gradient_checkpointing does; give one of the two",
            )
        if self.resume and self.overwrite:
            yield "resume", "a run is either resumed or overwritten"
        yield from self._adapter_conflicts()

    def _adapter_conflicts(self) -> Iterator[Fault]:
        if self.adapter is None:
            if self.any_base:
                yield "any_base", "is about the base of an --adapter, and none is given"
            return
        if self.ranks != "even":
            yield "ranks", "are those of --adapter; leave it out"
        if self.rank_budget is not None:
            yield "rank_budget", "the ranks are those of --adapter; leave it out"
        if self.target_rank is not None:
            yield "target_rank", "the ranks are those of --adapter; leave it out"
        folder = Path(self.output).resolve()
        if not self.resume and Path(self.adapter).resolve().is_relative_to(folder):
            yield "output", f"--adapter {self.adapter} is in this folder; name another one"

    @property
    def checkpointing(self) -> str:
        """Kind of activation checkpointing: "" (none), "light" or "full"."""
        if self.gradient_checkpointing:
            return "full"
        return "light" if self.light_checkpointing else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        values = asdict(self)
        values["columns"] = list(self.columns)
        values["log_to"] = list(self.log_to)
        # A run of an earlier version has neither.
        if not isinstance(self.data, str):
            values["data"] = list(self.data)
        values["data_weights"] = list(self.data_weights) or None
        return values

    def differences(self, earlier: Mapping[str, object]) -> list[str]:
        """Return how these settings differ from those of an interrupted run, one line each.

        Settings that cannot change the outcome are left out, and so is the length of the run.
        """
        # A setting that an earlier version did not have was at its default.
        defaults = {field.name: field.default for field in fields(self)}
        before = {**defaults, "data_weights": None, **earlier}
        return [
            f"{name}: was {before[name]!r}, now {value!r}"
            for name, value in self.to_dict().items()
            if name not in CHANGEABLE | LENGTH and value != before[name]
        ]


def _as_tuple(columns: object) -> tuple[str, ...]:
    """Return columns as `key=column`; YAML gives one word, a list, or a mapping."""
    if isinstance(columns, Mapping):
        return tuple(f"{key}={column}" for key, column in columns.items())
    if isinstance(columns, str):
        return (columns,)
    return tuple(cast(Iterable[str], columns))


def _several(value: object) -> tuple[Any, ...]:
    """Return the values of a setting of which there may be several; none for None."""
    if value is None:
        return ()
    return tuple(cast("list[Any]", value)) if isinstance(value, list | tuple) else (value,)


def _one_or_several(data: object) -> Any:  # noqa: ANN401  checked later
    """Return one data set as it is, and several as a tuple."""
    named = _several(data)
    if not named:
        return data
    return named[0] if len(named) == 1 else named


def _kind_of(field: Field[Any]) -> type:
    """Return the type of a field's values, None aside."""
    return field.metadata.get("type") or type(field.default)


def _kind_faults(field: Field[Any], value: object) -> Iterator[Fault]:
    """Yield a fault of a text, a switch or a choice."""
    kind, choices = _kind_of(field), field.metadata.get("choices")
    if field.metadata.get("several"):
        for one in _several(value) if choices else ():
            yield from _choice_faults(field, one)
        for one in _several(value) if kind is str else ():
            if not isinstance(one, str) or (not one and isinstance(value, tuple)):
                yield field.name, f"text is needed, got {one!r}"
    elif kind in (str, bool) and value is not None and not isinstance(value, kind):
        needed = "yes or no" if kind is bool else "text"
        yield field.name, f"{needed} is needed, got {value!r}"
    elif choices and value != field.default:
        yield from _choice_faults(field, value)


def _choice_faults(field: Field[Any], value: object) -> Iterator[Fault]:
    choices = field.metadata["choices"]
    if value not in choices:
        hint = near_misses(str(value), choices, 1)
        yield field.name, add_hint(f"{value!r} is none of {', '.join(choices)}", hint)


def _whole_number_faults(field: Field[Any], value: object) -> Iterator[Fault]:
    if _kind_of(field) is not int or "minimum" not in field.metadata or value is None:
        return
    minimum = field.metadata["minimum"]
    if not is_whole(value, minimum):
        yield field.name, f"a whole number of at least {minimum} is needed, got {value!r}"


def _number_faults(field: Field[Any], value: object) -> Iterator[Fault]:
    if _kind_of(field) is not float or value is None:
        return
    above, minimum = field.metadata.get("above"), field.metadata.get("minimum")
    for one in _several(value):
        if not is_number(one):
            yield field.name, f"a number is needed, got {one!r}"
        elif above is not None and one <= above:
            yield field.name, f"a number above {above} is needed, got {one!r}"
        elif minimum is not None and one < minimum:
            yield field.name, f"{minimum} or more is needed, got {one!r}"


def _upper_bound_faults(field: Field[Any], value: object) -> Iterator[Fault]:
    below = field.metadata.get("below")
    if below is None or not isinstance(value, int | float):
        return
    if not value < below:
        yield field.name, f"a share from 0 to below {below} is needed, got {value!r}"
