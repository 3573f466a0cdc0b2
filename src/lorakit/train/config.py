"""TrainSpec: every setting of a run but the adapter's. Torch is not imported here, so `--help` can
read the fields.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lorakit.errors import SpecError
from lorakit.models.tasks import CHOICES
from lorakit.spec import option
from lorakit.text import near_misses, plural

RANKS = (
    "even",
    "bottom-heavy",
    "top-heavy",
    "linear",
    "linear-falling",
    "explained-variance",
    "suggested",
)
# What a resumed run may change: none of these alters the weights that come out.
FREE = {
    "output",
    "resume",
    "overwrite",
    "checkpoint_every",
    "keep",
    "threads",
    "device",
    "beyond_memory",
}


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """What is trained on what, and how; checks itself, and names every fault at once.

    Raises:
        SpecError: any field out of its range.
    """

    model: str = option("", "a folder, a hub id, or builtin:minilm", required=True)
    data: str = option("", "a file, a hub id, or builtin:stdlib-docs", required=True)
    output: str = option("", "folder for the adapter, its report and checkpoints", required=True)
    task: str = option("auto", "what is learned; auto tells by the rows", choices=CHOICES)
    eval_data: str | None = option(
        None, "data to evaluate on (default: a share of --data is held out)", type=str
    )
    eval_fraction: float = option(
        0.1, "share of --data that is held out where there is no --eval-data (at most 2,000 rows)"
    )
    columns: tuple[str, ...] = option(
        (), "names of columns, as key=column, e.g. text=review label=stars", several=True
    )
    quotes: bool | None = option(
        None, "quotation marks wrap fields of a .csv (default yes) or .tsv (default no)", type=bool
    )
    loss_on: str = option(
        "completion",
        "train completions and assistant turns alone, or all tokens",
        choices=("completion", "all"),
    )
    max_length: int | None = option(
        None, "tokens of a sequence (default: 512, or what the model takes)", type=int
    )
    epochs: float = option(3.0, "passes over the data")
    steps: int | None = option(None, "optimizer steps, instead of epochs", type=int)
    batch_size: int = option(16, "sequences of one forward pass")
    packing: str = option(
        "auto",
        "rows of a batch one after the other, without padding, each for itself (causal-lm): auto where the model is "
        "seen to keep them apart",
        choices=("auto", "on", "off"),
    )
    batch_tokens: int | None = option(
        None,
        "about so many tokens of packed rows in one forward pass, instead of batch_size sequences",
        type=int,
    )
    accumulate: int = option(1, "forward passes of one optimizer step")
    lr: float | None = option(
        None, "peak learning rate (default: 5e-4 x sqrt(2000 / width of the model))", type=float
    )
    schedule: str = option(
        "cosine",
        "how the learning rate goes on after warm-up",
        choices=("constant", "linear", "cosine"),
    )
    warmup: float = option(0.05, "warm-up: a share of the steps below 1, a number of steps from 1")
    weight_decay: float = option(0.0, "weight decay of A and B")
    clip: float = option(1.0, "largest norm of the gradient; 0 does not clip")
    ranks: str = option(
        "even",
        "how rank is spread over the layers at one count of values; suggested: half of it, on some layers",
        choices=RANKS,
    )
    rank_budget: int | None = option(
        None, "values of A and B that --ranks spreads (default: those of --rank)", type=int
    )
    base_dtype: str = option(
        "auto",
        "dtype of the frozen base; a head that is trained whole has it too. auto: bfloat16 on a GPU that has it, and on a "
        "CPU with AMX or AVX-512 BF16 for causal-lm at least 256 wide of which nothing trains whole; else float32",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    target_rank: int | None = option(
        None, "AdaLoRA: average rank at the end (default: half of --rank)", type=int
    )
    budget_warmup: float = option(
        0.1, "AdaLoRA: share of the steps before the budget of ranks begins to fall"
    )
    budget_final: float = option(
        0.3, "AdaLoRA: share of the steps, at the end, in which no rank moves any more"
    )
    budget_every: int = option(10, "AdaLoRA: steps between two decisions which ranks stay")
    orthogonality: float = option(
        0.1, "AdaLoRA: weight of the term that keeps its directions orthogonal"
    )
    mixed_precision: str = option("no", "autocast while training", choices=("no", "bf16", "fp16"))
    gradient_checkpointing: bool = option(
        False, "compute activations again in the backward pass: less memory, more time"
    )
    light_checkpointing: bool = option(
        False,
        "compute norms, activation functions and sums again, but no matrix product: some of the memory, little time",
    )
    eval_every: int | None = option(
        None,
        "steps between evaluations on up to 256 held-out sequences (default: ten times a run)",
        type=int,
    )
    eval_batch_size: int = option(32, "sequences at once while evaluating")
    checkpoint_every: int | None = option(
        None, "steps between checkpoints (default: at every evaluation)", type=int
    )
    keep: int = option(2, "newest checkpoints that are kept, beside the best")
    patience: int | None = option(
        None, "stop after so many evaluations without a better loss", type=int
    )
    final: str = option("best", "which weights are written at the end", choices=("best", "last"))
    beyond_memory: bool = option(
        False, "start although the plan says that the largest batch does not fit into memory"
    )
    seed: int = option(0, "of the initial A, a new head, the order of the data, and dropout")
    device: str = option("auto", "cpu, cuda, …")
    threads: int | None = option(None, "threads of torch on the CPU", type=int)
    resume: bool = option(False, "go on from the last checkpoint in --output")
    overwrite: bool = option(False, "delete an earlier run in --output")

    def __post_init__(self) -> None:
        columns: Any = self.columns
        if isinstance(columns, Mapping):  # as YAML writes pairs
            columns = [f"{key}={column}" for key, column in columns.items()]
        object.__setattr__(
            self, "columns", (columns,) if isinstance(columns, str) else tuple(columns)
        )
        faults = [f"{name}: {fault}" for name, fault in self._faults()]
        if faults:
            raise SpecError(
                f"{plural(len(faults), 'fault')} in the settings of the run.",
                faults,
                "Nothing was started.",
            )

    def _faults(self):
        for name in ("model", "data", "output"):
            if not getattr(self, name):
                yield name, "is needed"
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata.get("choices")
            kind = f.metadata.get("type") or type(f.default)
            if kind in (str, bool) and value is not None and not isinstance(value, kind):
                yield f.name, f"{'yes or no' if kind is bool else 'text'} is needed, got {value!r}"
                continue
            if choices and value not in choices:
                yield (
                    f.name,
                    f"{value!r} is none of {', '.join(choices)} {near_misses(str(value), choices, 1)}".rstrip(),
                )
        least = {
            "max_length": 2,
            "steps": 1,
            "batch_size": 1,
            "batch_tokens": 2,
            "accumulate": 1,
            "eval_every": 1,
            "eval_batch_size": 1,
            "checkpoint_every": 1,
            "keep": 1,
            "patience": 1,
            "threads": 1,
            "seed": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < bound
            ):
                yield name, f"a whole number of at least {bound} is needed, got {value!r}"
        for name in (
            "epochs",
            "lr",
            "warmup",
            "weight_decay",
            "clip",
            "eval_fraction",
            "budget_warmup",
            "budget_final",
            "orthogonality",
        ):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
            ):
                yield name, f"a number is needed, got {value!r}"
            elif value is not None and (value < 0 or (value == 0 and name in ("epochs", "lr"))):
                yield (
                    name,
                    f"{'a number above 0' if name in ('epochs', 'lr') else '0 or more'} is needed, got {value!r}",
                )
        if isinstance(self.eval_fraction, int | float) and not self.eval_fraction < 1:
            yield (
                "eval_fraction",
                f"a share from 0 to below 1 is needed, got {self.eval_fraction!r}",
            )
        if self.batch_tokens is not None and self.packing == "off":
            yield "batch_tokens", "rows that are padded are counted by batch_size; packing is off"
        if self.gradient_checkpointing and self.light_checkpointing:
            yield (
                "light_checkpointing",
                "is a part of what gradient_checkpointing does; give one of the two",
            )
        if self.resume and self.overwrite:
            yield "resume", "a run is either gone on with or overwritten"

    @property
    def checkpointing(self) -> str:
        """What is computed again in the backward pass: "" for nothing, "light" or "full"."""
        return (
            "full" if self.gradient_checkpointing else "light" if self.light_checkpointing else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """Return what an interrupted run was started with otherwise, a line each; what cannot
        change the outcome is free.
        """
        now = self.to_dict()
        return [
            f"{key}: was {earlier.get(key)!r}, now {now[key]!r}"
            for key in now
            if key not in FREE and now[key] != earlier.get(key)
        ]
