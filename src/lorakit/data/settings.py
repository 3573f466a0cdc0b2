"""Settings that say how rows are read and what of them is trained. Torch is not imported."""

from dataclasses import dataclass

from lorakit.spec import option


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """Settings of rows that runs, plans and other commands have in common."""

    columns: tuple[str, ...] = option(
        (),
        "names of columns that differ from the expected ones, e.g. text=review label=stars",
        several=True,
        metavar="KEY=COLUMN",
    )
    quotes: bool | None = option(
        None,
        "read quotation marks around the fields of a table as csv writes them (default: where "
        "the file shows that they are)",
        type=bool,
    )
    separator: str = option(
        "auto",
        "separator of the fields of a table; auto is comma for .csv and tab for .tsv, unless the "
        "columns are known with another one",
        choices=("auto", "comma", "tab", "semicolon", "bar"),
    )
    categories: str = option(
        "all",
        "WebNLG only: use the categories that its training data have, or the others",
        choices=("all", "seen", "unseen"),
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
