"""PlanRequest: the subject of a plan. Torch is not imported, so that `--help` is fast."""

from dataclasses import dataclass

from lorakit.data.settings import RowSettings
from lorakit.models.tasks import CHOICES, TRUST_HELP
from lorakit.spec import option, option_like

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
    columns: tuple[str, ...] = option_like(RowSettings, "columns")
    separator: str = option_like(RowSettings, "separator")
    categories: str = option_like(RowSettings, "categories")
    quotes: bool | None = option_like(RowSettings, "quotes")
    loss_on: str = option_like(RowSettings, "loss_on")
    template: str | None = option_like(RowSettings, "template")
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
