"""The tokenizer and the chat template that lie in an adapter's folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.data.template_files import TOKENIZER_CONFIG, read_template
from lorakit.data.templates import TEMPLATE_FILE
from lorakit.errors import ModelError, SpecError
from lorakit.models.load import count_embeddings
from lorakit.models.read import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

JSON, NAMED = "chat_template.json", "additional_chat_templates"
TEMPLATES = (TEMPLATE_FILE, JSON, NAMED)
TOKENIZER = (
    TOKENIZER_CONFIG,
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)

# What the folder of another adapter gets too.
COPIED = (*TOKENIZER, TEMPLATE_FILE, JSON)


def has_tokenizer(folder: Path) -> bool:
    """Return True if a folder holds a whole tokenizer."""
    names = TOKENIZER[1:]
    return (folder / TOKENIZER_CONFIG).is_file() and any((folder / one).is_file() for one in names)


def list_tokenizer_files(folder: str | Path) -> list[str]:
    """Return the names of the files of a tokenizer and its template in a folder, if it has one."""
    where = Path(folder)
    names = COPIED if has_tokenizer(where) else (TEMPLATE_FILE, JSON)
    return [name for name in names if (where / name).is_file()]


def take_own_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", folder: Path, *, trust_remote_code: bool = False
) -> tuple["PreTrainedTokenizerBase", str]:
    """Return the tokenizer of an adapter's folder, else the base's with the folder's chat template.

    Args:
        tokenizer: of the base; its chat template is used where the folder has none.
        folder: of the adapter.
        trust_remote_code: True to run Python code that the folder brings along.

    Returns:
        The tokenizer, and what of the folder is used, in words; empty if that is nothing.

    Raises:
        ModelError: the folder's tokenizer or chat template cannot be read.
    """
    if has_tokenizer(folder):
        own = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
        if own.chat_template:
            return own, "the tokenizer and the chat template"
        own.chat_template = tokenizer.chat_template
        return own, "the tokenizer"
    template = _read_templates(folder)
    if not template:
        return tokenizer, ""
    tokenizer.chat_template = template
    return tokenizer, "the chat template"


def _read_templates(folder: Path) -> str | dict[str, str]:
    """Return the chat template of a folder, or several by name; empty if it has none."""
    usual = [path for path in (folder / TEMPLATE_FILE, folder / JSON) if path.is_file()]
    try:
        named = {path.stem: read_template(path) for path in (folder / NAMED).glob("*.jinja")}
        default = read_template(usual[0]) if usual else ""
    except SpecError as error:
        raise ModelError(
            error.message, advice="Remove the file, and the base's template is used."
        ) from error
    if default and named:
        named["default"] = default
    return named or default


def check_vocabulary(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", outcome: str
) -> None:
    """Refuse a tokenizer of an adapter's folder that has more ids than the base can embed.

    Args:
        model: the base.
        tokenizer: of the adapter's folder.
        outcome: the end of the message, such as "Nothing was written."

    Raises:
        ModelError: the message names both counts.
    """
    rows, ids = count_embeddings(model), len(tokenizer)
    if rows is not None and ids > rows:
        raise ModelError(
            f"The tokenizer has {ids:,} ids, the embedding {rows:,} rows.",
            advice="The adapter's folder has tokens that the base lacks: make its embedding larger "
            "(model.resize_token_embeddings), or remove the tokenizer from the adapter's folder. "
            f"{outcome}",
        )
