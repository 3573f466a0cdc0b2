"""Chat templates: token ids of conversations, and the tokens of the assistant's turns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorakit.data.limits import BYTES, SECONDS, TimeExceeded, limited
from lorakit.errors import DataError
from lorakit.text import first_line, format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, Any]  # role, content, and what else the template reads
Tools = Sequence[Mapping[str, Any]] | None  # that the assistant may call
# Characters that a template may make of a conversation, beside ten for each of its own.
LONGEST = 1 << 18


class TemplateLimitError(DataError):
    """A chat template takes more time or memory than a conversation may."""

    def __init__(self, needed: str):
        super().__init__(
            f"The chat template takes {needed} for one conversation.",
            advice="Look at `chat_template` of the model's tokenizer before you use it.",
        )


def encode_turns(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], tools: Tools = None
) -> list[int]:
    """Return the token ids of a conversation and of the start of the assistant's next turn."""
    text = _apply_template(tokenizer, turns, tools, prompts=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def encode_answers(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[Turn],
    tools: Tools = None,
    trained: Sequence[bool] | None = None,
) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation, and for each True if it is learned.

    Args:
        tokenizer: with a chat template.
        turns: of the conversation.
        tools: that the assistant may call.
        trained: True for each turn that is learned; None for all of the assistant.

    Raises:
        DataError: the template rewrites earlier turns.
    """
    text = _apply_template(tokenizer, turns, tools)
    learned = trained or [turn["role"] == "assistant" for turn in turns]
    spans = list(_assistant_spans(tokenizer, turns, tools, learned, text))
    if not tokenizer.is_fast:
        return _encode_pieces(tokenizer, text, spans)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    is_answer = [_is_inside(start, end, spans) for start, end in encoded.offset_mapping]
    return encoded.input_ids, is_answer


def _encode_pieces(
    tokenizer: "PreTrainedTokenizerBase", text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[bool]]:
    """Tokenise the spans and the text between them each by itself.

    It is for tokenizers that do not say which characters a token stands for, such as ByT5's.

    Raises:
        DataError: the tokens are not those of the whole text.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    at = 0
    for start, end in [*spans, (len(text), len(text))]:
        for piece, answered in ((text[at:start], False), (text[start:end], True)):
            own = tokenizer(piece, add_special_tokens=False).input_ids
            ids += own
            is_answer += [answered] * len(own)
        at = end
    if ids != tokenizer(text, add_special_tokens=False).input_ids:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, so the "
            "tokens of the assistant cannot be found.",
            advice="Use --loss-on all, or a tokenizer with a tokenizer.json.",
        )
    return ids, is_answer


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[Turn], tools: Tools = None
) -> list[int]:
    """Return the token ids of a whole conversation."""
    text = _apply_template(tokenizer, turns, tools)
    return tokenizer(text, add_special_tokens=False).input_ids


def _apply_template(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[Turn],
    tools: Tools = None,
    *,
    prompts: bool = False,
) -> str:
    """Return a conversation as text; `prompts` adds the start of the assistant's next turn.

    Raises:
        DataError: the template refuses the conversation, or takes too much time or memory.
    """
    try:
        with limited(SECONDS, BYTES):
            text = tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tools=[dict(tool) for tool in tools] if tools else None,
                tokenize=False,
                add_generation_prompt=prompts,
            )
    except TimeExceeded as error:
        raise TemplateLimitError(f"more than {SECONDS:g} s of processor time") from error
    except MemoryError as error:
        raise TemplateLimitError(f"more than {format_bytes(BYTES)} of memory") from error
    # A template is a program of its own, whose errors are of any class.
    except Exception as error:
        raise DataError(f"the chat template cannot render it: {first_line(error)}") from error
    longest = LONGEST + 10 * len(str([*turns, tools]))
    if len(text) > longest:
        raise TemplateLimitError(f"{len(text):,} characters, more than {longest:,},")
    return str(text)


def _is_inside(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Return True if the characters of a token are all in one span; a token of none is not."""
    if end <= start:
        return False
    return any(first <= start and end <= last for first, last in spans)


def _assistant_spans(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[Turn],
    tools: Tools,
    learned: Sequence[bool],
    text: str,
) -> Iterator[tuple[int, int]]:
    """Yield the first character of each learned turn, and the first after it.

    A turn is the text that the template adds to its prompt for this turn.
    """
    for number, is_learned in enumerate(learned):
        if not is_learned:
            continue
        earlier = turns[:number]
        before = _apply_template(tokenizer, earlier, tools, prompts=True) if number else ""
        after = _apply_template(tokenizer, turns[: number + 1], tools)
        if not text.startswith(before) or not text.startswith(after):
            raise DataError(
                "the chat template rewrites earlier turns, so the tokens of the assistant "
                "cannot be found",
                advice="Use --loss-on all.",
            )
        yield len(before), len(after)
