"""Chat templates by name: ChatML, and templates in files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data.layouts.layout import Row
from lorakit.data.limits import BYTES, SECONDS, limited
from lorakit.data.rows import Rows
from lorakit.errors import NOT_STARTED, SpecError
from lorakit.text import first_line, format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML_NAME = "chatml"
CHATML_END = "<|im_end|>"
# END stands for the text that ends a turn.
CHATML = r"""
{%- macro write_tools() %}
{{- '# Tools\n\nYou may call one or more of these functions:\n<tools>' }}
{%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}
{{- '\n</tools>\nTo call a function, write its name and its arguments as JSON:\n' }}
{{- '<tool_call>\n{"name": …, "arguments": …}\n</tool_call>' }}
{%- endmacro %}
{%- if tools and messages[0].role != 'system' %}
{{- '<|im_start|>system\n' + write_tools() + END + '\n' }}
{%- endif %}
{%- for turn in messages %}
{{- '<|im_start|>' + turn.role + '\n' }}
{%- if turn.reasoning_content %}
{{- '<think>\n' + turn.reasoning_content + '\n</think>\n\n' }}
{%- endif %}
{{- turn.content or '' }}
{%- if tools and loop.first and turn.role == 'system' %}{{ '\n\n' + write_tools() }}{% endif %}
{%- for call in turn.tool_calls or () %}
{%- set function = call.function %}
{%- set named = {'name': function.name, 'arguments': function.arguments} %}
{{- '\n' if turn.content or not loop.first }}
{{- '<tool_call>\n' + named | tojson + '\n</tool_call>' }}
{%- endfor %}
{{- END + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
CONVERSATIONS = ("messages", "instruction")  # kinds of rows
LARGEST = 1 << 20  # bytes of a file with a template
TOKENIZER_CONFIG = "tokenizer_config.json"  # may hold a vocabulary too


def set_template(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Give a tokenizer another chat template.

    Args:
        tokenizer: of transformers.
        name: chatml, or a file with a jinja template.

    Raises:
        SpecError: there is no such file, or its content is no template.
    """
    if name != CHATML_NAME:
        tokenizer.chat_template = read_template(Path(name))
        return
    # A tokenizer without the token of ChatML ends a turn by the token that ends its texts.
    has_end = CHATML_END in tokenizer.get_vocab()
    end = repr(CHATML_END) if has_end else "eos_token"
    tokenizer.chat_template = CHATML.strip().replace("END", end)


def check_template(name: str | None) -> None:
    """Refuse a chat template that cannot be used, before anything is loaded.

    Raises:
        SpecError: as `set_template`.
    """
    if name not in (None, CHATML_NAME):
        read_template(Path(str(name)))


def hold_turns(rows: Rows) -> bool:
    """Return True for conversations, and for prompts and answers that are turns, not texts."""
    if rows.kind in CONVERSATIONS:
        return True
    if rows.kind not in ("preference", "rated"):
        return False
    return any(map(_has_turns, rows.rows))


def _has_turns(row: Row) -> bool:
    parts = [row.get(key) for key in ("prompt", "chosen", "rejected", "completion")]
    return any(isinstance(part, list) for part in parts)


def check_use(rows: Rows, template: str | None) -> None:
    """Refuse a chat template for rows that are no conversations.

    Raises:
        SpecError: the template would change nothing.
    """
    if template is not None and not hold_turns(rows):
        raise SpecError(
            f"template: the rows of {rows.source} are no conversations; a chat template changes "
            "nothing.",
            advice=f"Leave it out, or give rows with messages. {NOT_STARTED}",
        )


def used_template(rows: Rows, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the chat template by which these rows are rendered; None if they are not."""
    template: Any = tokenizer.chat_template  # a dictionary, where there are several
    is_used = isinstance(template, str) and hold_turns(rows)
    return template if is_used else None


def read_template(path: Path) -> str:
    """Return the chat template in a file: a jinja file, or a JSON file with `chat_template`.

    Raises:
        SpecError: there is no such file, it is too large, or its content is no template.
    """
    if not path.is_file():
        raise SpecError(
            f"There is no chat template {path}.",
            advice=f"Give {CHATML_NAME}, or a file with a jinja template. {NOT_STARTED}",
        )
    if path.stat().st_size > LARGEST and path.name != TOKENIZER_CONFIG:
        raise SpecError(
            f"The chat template {path} has more than {format_bytes(LARGEST)}.",
            advice=f"A chat template is a short text. {NOT_STARTED}",
        )
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".json":
            text = _template_of(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(
            f"The chat template {path} cannot be read: {first_line(error)}.", advice=NOT_STARTED
        ) from error
    if not text.strip():
        raise SpecError(f"{path} holds no chat template.", advice=NOT_STARTED)
    _check_syntax(text, path)
    return text


def _template_of(content: object) -> str:
    template = content.get("chat_template") if isinstance(content, Mapping) else None
    return template if isinstance(template, str) else ""


def _check_syntax(text: str, path: Path) -> None:
    """Refuse a template that jinja cannot parse.

    Raises:
        SpecError: the message gives the line.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    probe = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    try:
        with limited(SECONDS, BYTES):
            render_jinja_template(conversations=probe, chat_template=text)
    except TemplateSyntaxError as error:
        raise SpecError(
            f"The chat template {path} is no jinja in line {error.lineno}: {error.message}.",
            advice=NOT_STARTED,
        ) from error
    # It may refuse these turns, or need more than they have: the rows will tell.
    except Exception:
        return
