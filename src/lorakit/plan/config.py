"""PlanRequest: what a plan is made for. Torch is not imported, so that `--help` is fast."""

from dataclasses import dataclass

from lorakit.models.tasks import CHOICES
from lorakit.spec import option


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The model, data and device of a plan."""

    model: str = option(
        "",
        "a folder, a hub id (only its config is fetched), a safetensors file (only its header is "
        "read), builtin:minilm, or a published model: card:gpt3, card:roberta-base, …",
        required=True,
    )
    data: str | None = option(
        None,
        "a file, a hub id, or builtin:stdlib-docs, for the lengths of rows (default: all are the "
        "longest)",
        type=str,
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
    task: str = option(
        "auto", "what is learned; auto tells by the rows, or by the config", choices=CHOICES
    )
    device: str | None = option(
        None,
        "machine of the run: T4, RTX 2080 Ti, RTX 3080, RTX 4090, L4, A100, H100, H200 (default: "
        "this machine)",
        type=str,
    )
    teraflops: float | None = option(
        None,
        "matrix products a second that are reached, in 10^12 (default: this machine's, measured)",
        type=float,
    )
