"""Settings that several commands share: the model, the rows, and the flags that are required."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from lorakit.cli.flags import flag_name
from lorakit.data.settings import RowSettings
from lorakit.errors import NOT_STARTED, SpecError
from lorakit.spec import option, option_like
from lorakit.text import plural, print_message
from lorakit.train.config import TrainSpec

if TYPE_CHECKING:
    from lorakit.adapter import Adapter
    from lorakit.data.rows import Rows
    from lorakit.models.load import Loaded

COMPARED_ROWS = 16
TEXT_KEYS = ("text", "text_a", "text_b", "prompt", "completion")


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """The model to use, with or without an adapter."""

    model: str = option_like(TrainSpec, "model")
    trust_remote_code: bool = option_like(TrainSpec, "trust_remote_code")
    adapter: str | None = option(
        None, "folder of an adapter to attach (default: the base alone)", type=str
    )
    any_base: bool = option(False, "accept an adapter that was trained on other base weights")
    template: str | None = option_like(
        TrainSpec,
        "template",
        help="chat template for conversations: chatml, or a file with a jinja template (default: "
        "that of the adapter's folder, or of the model)",
    )
    dtype: str = option_like(TrainSpec, "base_dtype", help="dtype of the base")
    device: str = option_like(TrainSpec, "device")
    threads: int | None = option_like(TrainSpec, "threads", least=1)

    def load_adapter(self) -> "Adapter | None":
        """Return the adapter, or None for the base alone; set the number of threads first."""
        import torch

        from lorakit.adapter import Adapter

        if self.threads:
            torch.set_num_threads(self.threads)
        return Adapter.load(self.adapter) if self.adapter else None

    def open(self, adapter: "Adapter | None", task: str) -> "Loaded":
        """Return the base for a task, with the adapter on it."""
        from lorakit.models.open import open_model

        return open_model(
            self.model,
            adapter,
            task,
            dtype=self.dtype,
            device=self.device,
            any_base=self.any_base,
            trust_remote_code=self.trust_remote_code,
            say=print_message,
            template=self.template,
        )


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """The rows to use."""

    data: str | tuple[str, ...] = option(
        "",
        "a file, a folder of files, a hub id, or builtin:stdlib-docs; or several",
        required=True,
        several=True,
        metavar="DATA",
    )
    columns: tuple[str, ...] = option_like(RowSettings, "columns")
    quotes: bool | None = option_like(RowSettings, "quotes")
    separator: str = option_like(RowSettings, "separator")
    categories: str = option_like(RowSettings, "categories")
    split: str = option(
        "test", "split of builtin data, or of data from a hub", choices=("train", "test")
    )
    limit: int | None = option(None, "read only the first N rows", type=int, least=1)

    def read(self) -> "Rows":
        """Return the rows."""
        from lorakit.data.rows import read_for

        rows = read_for(self, self.data, self.split, self.limit)
        print_message(rows.describe())
        return rows


def read_texts(data: str, columns: tuple[str, ...]) -> list[str]:
    """Return the texts of the first rows of a file, to compare models on."""
    from lorakit.data.rows import read_rows

    texts = []
    for row in read_rows(data, columns=columns, split="test", limit=COMPARED_ROWS).rows:
        text = " ".join(row[key] for key in TEXT_KEYS if isinstance(row.get(key), str))
        if not text:
            text = "\n".join(turn["content"] for turn in row.get("messages", ()))
        texts.append(text)
    return texts


def require(values: Mapping[str, object], *classes: type) -> None:
    """Refuse a request without the settings that its classes require.

    Args:
        values: settings by name.
        *classes: dataclasses whose fields are made by `spec.option`.

    Raises:
        SpecError: one is missing; all are named.
    """
    missing = []
    for cls in classes:
        for one in fields(cls):
            if one.metadata.get("required") and not values.get(one.name):
                missing.append(f"{flag_name(one.name)} is needed")
    if missing:
        raise SpecError(f"{plural(len(missing), 'flag')} missing.", missing, NOT_STARTED)
