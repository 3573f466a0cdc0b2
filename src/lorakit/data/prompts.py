"""Prompts of rows, for generation, and the references that their answers are compared with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorakit.data.rows import Rows
from lorakit.data.templates import Turn, has_template
from lorakit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Kinds that hold prompts.
PROMPTED = ("prompt", "completion", "instruction", "messages", "text", "preference", "rated")
ANSWERED = ("completion", "instruction")  # kinds with a reference for each prompt


@dataclass(frozen=True)
class Chat:
    """Turns that an answer is wanted to, and the tools that it may call."""

    turns: Sequence[Turn]
    tools: Sequence[Turn] = ()


Prompt = str | Chat | Sequence[Turn]


def check_prompts(rows: Rows) -> None:
    """Refuse rows that hold no prompts.

    Raises:
        DataError: they are of another kind.
    """
    if rows.kind not in PROMPTED:
        raise DataError(
            f"The rows of {rows.source} hold no prompts.",
            advice="Name the column: --columns prompt=…",
        )


def list_prompts(rows: Rows, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """Return the prompt of each row: a text, or the turns before the last answer.

    Args:
        rows: of a kind in PROMPTED.
        tokenizer: an instruction is a conversation if it has a chat template.
    """
    if rows.kind == "messages" or (rows.kind == "instruction" and has_template(tokenizer)):
        return [_before_last_answer(row["messages"], row.get("tools", ())) for row in rows.rows]
    key = "text" if rows.kind == "text" else "prompt"
    return [_with_tools(row[key], row.get("tools", ())) for row in rows.rows]


def _with_tools(prompt: Prompt, tools: Sequence[Turn]) -> Prompt:
    if isinstance(prompt, str | Chat) or not tools:
        return prompt
    return Chat(prompt, tools)


def _before_last_answer(turns: Sequence[Turn], tools: Sequence[Turn]) -> Chat:
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    return Chat(turns[: answers[-1]], tools)


def group_references(
    rows: Rows, tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[Prompt, list[str]]]:
    """Return each different prompt with all its references, in the order of the rows."""
    groups: dict[str, tuple[Prompt, list[str]]] = {}
    for prompt, row in zip(list_prompts(rows, tokenizer), rows.rows, strict=True):
        found = groups.setdefault(prompt_key(prompt), (prompt, []))
        found[1].append(row["completion"].strip())
    return list(groups.values())


def unique_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts without repetitions, in their order."""
    return list({prompt_key(prompt): prompt for prompt in prompts}.values())


def prompt_key(prompt: Prompt) -> str:
    """Return a text that is the same for equal prompts."""
    return json.dumps(show_prompt(prompt), sort_keys=True)


def show_prompt(prompt: Prompt) -> str | list[Turn]:
    """Return a prompt as it is written beside its answer: a text, or a list of turns."""
    if isinstance(prompt, str):
        return prompt
    return list(prompt.turns if isinstance(prompt, Chat) else prompt)
