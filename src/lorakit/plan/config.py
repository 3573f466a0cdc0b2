"""PlanRequest: the subject of a plan. Torch is not imported, so that `--help` is fast."""

from dataclasses import dataclass

from lorakit.models.tasks import CHOICES, TRUST_HELP
from lorakit.spec import option

METHODS = ("full", "lora", "lora-8bit", "lora-4bit")  # of training, whose sizes are compared


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """The model, data and device of a plan."""

    model: str = option(
        "",
        "base model: a folder, a hub id (only its config is downloaded), a safetensors file (only "
        "its header is read), builtin:minilm, or a published model: card:gpt3, card:roberta-base, "
        "…",
        required=True,
    )
    trust_remote_code: bool = option(False, TRUST_HELP)
    data: str | tuple[str, ...] | None = option(
        None,
        "data whose row lengths are used: a file, a hub id, or builtin:stdlib-docs (default: all "
        "rows have the maximum length)",
        type=str,
        several=True,
        metavar="DATA",
    )
    columns: tuple[str, ...] = option(
        (),
        "names of columns that differ from the expected ones, e.g. text=review label=stars",
        several=True,
        metavar="KEY=COLUMN",
    )
    separator: str = option(
        "auto",
        "between the fields of a table; auto is comma for .csv and tab for .tsv, unless the "
        "columns are known with another one",
        choices=("auto", "comma", "tab", "semicolon", "bar"),
    )
    categories: str = option(
        "all",
        "WebNLG only: use the categories that its training data have, or the others",
        choices=("all", "seen", "unseen"),
    )
    quotes: bool | None = option(
        None,
        "read quotation marks around the fields of a table as csv writes them (default: where "
        "the file shows that they are)",
        type=bool,
    )
    loss_on: str = option(
        "completion",
        "tokens that are trained: only completions and assistant turns, or all",
        choices=("completion", "all"),
    )
    template: str | None = option(
        None,
        "chat template for conversations: chatml, or a file with a jinja template (default: that "
        "of the model)",
        type=str,
    )
    task: str = option(
        "auto",
        "task to learn; auto chooses it by the rows, or by the config of the model",
        choices=CHOICES,
    )
    device: str | None = option(
        None,
        "device of the run: T4, RTX 2080 Ti, RTX 3080, RTX 4090, L4, A100, H100, H200 (default: "
        "this machine)",
        type=str,
    )
    teraflops: float | None = option(
        None,
        "speed of matrix products, in 10^12 operations a second (default: measured on this "
        "machine)",
        type=float,
    )
