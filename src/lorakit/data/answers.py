"""Answers in conversations: the tokens of the turns that are learned, for any chat template.

A template may render a turn otherwise once others follow it: thinking is removed, a system prompt
moves. So each answer is found in the rendering of the whole conversation. It begins where its
prompt ends: the rendering of the turns before it, with the start of the assistant's turn. It ends
with what the template writes after it, such as the token that ends a turn. Where these renderings
are not the beginning of the whole, both are compared from the end of the same turn on.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from lorakit.data.layouts.chat import THOUGHTS, has_content
from lorakit.data.templates import (
    Span,
    Tools,
    Turn,
    has_blocks,
    render,
    render_blocks,
)
from lorakit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\ue000"  # a character that stands in no conversation: it is free for private use
FIRST = {"role": "user", "content": "a"}
PIECE = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\s+|[^\s<\[]+|.", re.DOTALL)
NOT_SHOWN = 'Use a template that shows it, or give the turn `"train": false`.'


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
        DataError: the template refuses the conversation, or leaves out what would be learned.
    """
    text, spans = find_answers(tokenizer, turns, tools, trained)
    if not tokenizer.is_fast:
        return _encode_by_beginnings(tokenizer, text, spans)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = [_without_spaces(text, span) for span in encoded.offset_mapping]
    return encoded.input_ids, [_is_inside(place, spans) for place in places]


def _without_spaces(text: str, span: Span) -> Span:
    """Return the span of a token without the white space around it, unless it is nothing else.

    Many tokens begin with a space, which may be the last character of the prompt.
    """
    start, end = span
    token = text[start:end]
    if not token.strip():
        return span
    return end - len(token.lstrip()), start + len(token.rstrip())


def _is_inside(place: Span, spans: Sequence[Span]) -> bool:
    """Return True if the characters of a token are all in one span; a token of none is not."""
    start, end = place
    return start < end and any(first <= start and end <= last for first, last in spans)


def _encode_by_beginnings(
    tokenizer: "PreTrainedTokenizerBase", text: str, spans: Sequence[Span]
) -> tuple[list[int], list[bool]]:
    """Find the tokens of the spans by the number of tokens before their ends.

    It is for tokenizers that do not say which characters a token stands for, such as ByT5's.

    Raises:
        DataError: the tokens of a beginning of the text are not those of the whole text.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    is_answer = [False] * len(ids)
    for span in spans:
        first, last = (_count_tokens(tokenizer, text[:place], ids) for place in span)
        is_answer[first:last] = [True] * (last - first)
    return ids, is_answer


def _count_tokens(tokenizer: "PreTrainedTokenizerBase", text: str, ids: Sequence[int]) -> int:
    """Count the tokens of a beginning of a text, whose own tokens are `ids`."""
    own = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if own != ids[: len(own)]:
        raise DataError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, so the "
            "tokens of the assistant cannot be found.",
            advice="Use --loss-on all, or a tokenizer with a tokenizer.json.",
        )
    return len(own)


def find_answers(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[Turn],
    tools: Tools = None,
    trained: Sequence[bool] | None = None,
) -> tuple[str, list[Span]]:
    """Return a conversation as text, and the span of each turn that is learned.

    The spans are the template's own `{% generation %}` blocks, if it has any. The arguments are
    those of `encode_answers`.

    Raises:
        DataError: the template refuses the conversation, or leaves out what would be learned.
    """
    chat = Conversation(tokenizer, turns, tools, render(tokenizer, turns, tools))
    answers = [turn["role"] == "assistant" and has_content(turn) for turn in turns]
    learned = list(trained or answers)
    chat.check_calls(learned)
    if not has_blocks(tokenizer, tools):
        if learned[-1]:
            chat = replace(chat, text=chat.text + chat.find_handover())
        return chat.text, chat.find_spans(learned)
    blocks = render_blocks(tokenizer, turns, tools)
    if learned != [turn["role"] == "assistant" for turn in turns]:
        spans = chat.find_spans(learned)
        blocks = [block for block in blocks if any(_overlap(block, span) for span in spans)]
    if not blocks:
        raise DataError("the {% generation %} blocks of the chat template hold nothing of it")
    return chat.text, blocks


def _overlap(first: Span, second: Span) -> bool:
    return first[0] < second[1] and second[0] < first[1]


@dataclass(frozen=True)
class Conversation:
    """A conversation with its rendering.

    Attributes:
        tokenizer: with a chat template.
        turns: all turns.
        tools: that the assistant may call.
        text: the rendering of all turns.
    """

    tokenizer: "PreTrainedTokenizerBase"
    turns: Sequence[Turn]
    tools: Tools
    text: str

    def check_calls(self, learned: Sequence[bool]) -> None:
        """Refuse a conversation with calls of tools that the template does not write.

        Raises:
            DataError: the message names the turns.
        """
        for number, turn in enumerate(self.turns):
            if not learned[number] or not turn.get("tool_calls"):
                continue
            changed = _replace(self.turns, number, _mark_call(turn))
            if self._render(changed) == self.text:
                raise DataError(
                    f"the chat template does not write the tool calls of turn {number + 1}",
                    advice="Use a model or a template (--template) that knows tools.",
                )

    def find_spans(self, learned: Sequence[bool]) -> list[Span]:
        """Return the span of each turn that is learned.

        Raises:
            DataError: the template leaves one out, or does not write them in their order.
        """
        spans: list[Span] = []
        at = 0
        for number, is_learned in enumerate(learned):
            if not is_learned:
                continue
            start = self._find_start(number)
            end = self._find_end(number, start)
            if not at <= start < end or self._leaves_out(number, self.text[start:end]):
                raise self._not_found(number)
            spans += self._without_results(number, (start, end))
            at = end
        return spans

    def find_handover(self) -> str:
        """Return the token by which the model would hand over to the next turn.

        It is empty if the template ends the last turn by a special token of its own, or begins the
        next one by none. In GLM's, an answer ends where `<|user|>` or `<|observation|>` follows.
        """
        if self._ends_in_special_token(self.text):
            return ""
        calls = {key: self.turns[-1][key] for key in ("tool_calls",) if key in self.turns[-1]}
        # Without thinking, which a template may remove once another turn follows.
        turns = [FIRST, {"role": "assistant", "content": "b", **calls}]
        role = "tool" if calls else "user"
        try:
            text = self._render(turns)
            longer = self._render([*turns, {"role": role, "content": "c"}])
        except DataError:
            return ""
        return self._special_token_at(longer, len(text)) if longer.startswith(text) else ""

    @cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        return list_special_tokens(self.tokenizer, len(self.tokenizer))

    def _ends_in_special_token(self, text: str) -> bool:
        return text.rstrip().endswith(self._special_tokens)

    def _special_token_at(self, text: str, place: int) -> str:
        if not text.startswith(self._special_tokens, place):
            return ""
        return next(token for token in self._special_tokens if text.startswith(token, place))

    def _without_results(self, number: int, span: Span) -> list[Span]:
        """Return the parts of a turn around the results of its calls.

        Gemma 4's template writes them into the turn that calls, before what the turn says.
        """
        start, end = span
        first = last = number + 1
        while last < len(self.turns) and self.turns[last]["role"] == "tool":
            last += 1
        if first == last:
            return [span]
        marked = self._render(_replace(self.turns, first, next(_mark(self.turns[first]))))
        if not start < count_alike(self.text, marked) < end:
            return [span]
        others = [*self.turns[:first], *self.turns[last:]]
        cut = count_alike(self.text, self._render(others))
        cut = max(cut, cut + len(self._special_token_at(self.text, cut)))
        said = self.turns[number]["content"].strip()
        again = self.text.rfind(said, cut, end) if said else end
        return [part for part in ((start, cut), (again, end)) if part[0] < part[1]]

    def _leaves_out(self, number: int, answer: str) -> bool:
        """Return True if the content of a turn without calls is nowhere in the text."""
        turn = self.turns[number]
        words = turn["content"].split()
        if turn.get("tool_calls") or not words or words[-1] in answer:
            return False
        changed = _replace(self.turns, number, next(_mark(turn)))
        return self._render(changed) == self.text

    def _not_found(self, number: int) -> DataError:
        return DataError(
            f"the chat template leaves out turn {number + 1}, or writes it in another place",
            advice=NOT_SHOWN,
        )

    def _render(self, turns: Sequence[Turn], *, prompts: bool = False) -> str:
        return render(self.tokenizer, turns, self.tools, prompts=prompts)

    def _find_start(self, number: int) -> int:
        """Return the end of the prompt of a turn, or of as much of it as the text has.

        The prompt may begin the thinking, which the text does not have for every turn.
        """
        if number == 0:
            return self._find_first_start()
        earlier = self.turns[:number]
        prompt = self._render(earlier, prompts=True)
        if self.text.startswith(prompt):
            return len(prompt)
        at, rest = 0, prompt
        for turn in reversed(range(number)):
            found = self._align(turn, earlier, prompt, prompts=True)
            if found is not None:
                at, rest = found
                break
        opening = self._find_opening(number)
        shared = count_common(rest, self.text[at:])
        if not opening or shared >= len(rest) - len(opening):
            return at + shared
        place = self.text.find(opening, at) if opening else -1
        if place < 0:
            raise self._not_found(number)
        return place + len(opening)

    def _find_first_start(self) -> int:
        """Return the start of an answer that is the first turn of a conversation."""
        opening = self._find_opening(1)
        place = self.text.find(opening) if opening else -1
        return max(0, place + len(opening)) if place >= 0 else 0

    def _find_opening(self, number: int) -> str:
        """Return the text by which the template begins an answer to the first turns."""
        before = self._render(self.turns[:number])
        prompt = self._render(self.turns[:number], prompts=True)
        return prompt[len(before) :] if prompt.startswith(before) else ""

    def _find_end(self, number: int, start: int) -> int:
        """Return the end of a turn, with the text that the template writes after it."""
        end = len(self.text)
        if number < len(self.turns) - 1:
            own = self.turns[: number + 1]
            after = self._render(own)
            is_beginning = self.text.startswith(after)
            end = len(after) if is_beginning else self._compare_ends(number, own, after)
        span = self.text[start:end].rstrip()
        words = self.turns[number]["content"].split()
        next_token = self._special_token_at(self.text, end)
        if next_token and not self._ends_in_special_token(span):
            opening = self._find_opening(number)  # of an answer, which goes on the one before
            goes_on = opening and self.text.startswith(opening, end)
            return end if goes_on else end + len(next_token)
        has_closing = not words or not span.endswith(words[-1])
        return start + len(span) if has_closing and span else end

    def _compare_ends(self, number: int, own: Sequence[Turn], after: str) -> int:
        """Return the end of a turn that the template ends otherwise if it is the last one."""
        found = self._align(number, own, after)
        if found is None:
            raise self._not_found(number)
        at, rest = found
        end = at + count_common(rest, self.text[at:])
        if end == at + len(rest):
            return end
        # Another end may be written where the conversation goes on.
        prompt = self._render(own, prompts=True)
        found = self._align(number, own, prompt, prompts=True)
        if found is None:
            return end
        at, rest = found
        rest = rest.removesuffix(self._find_opening(number))
        return max(end, at + count_common(rest, self.text[at:]))

    def _align(
        self, number: int, own: Sequence[Turn], rendered: str, *, prompts: bool = False
    ) -> tuple[int, str] | None:
        """Return the end of a turn in the text, and what follows it in another rendering.

        Args:
            number: of the turn.
            own: the turns of the other rendering.
            rendered: the other rendering.
            prompts: True if it ends with the start of an assistant's turn.

        Returns:
            None if nothing of the turn is in both.
        """
        for marked in _mark(self.turns[number]):
            whole = self._render(_replace(self.turns, number, marked))
            part = self._render(_replace(own, number, marked), prompts=prompts)
            if whole != self.text and part != rendered:
                at = count_alike(self.text, whole)
                return at, rendered[count_alike(rendered, part) :]
        return None


@lru_cache(maxsize=2)
def list_special_tokens(tokenizer: "PreTrainedTokenizerBase", size: int) -> tuple[str, ...]:
    """Return the special tokens that may end a turn, the longest first.

    Args:
        tokenizer: of transformers.
        size: number of its tokens, which may become more.
    """
    added = tokenizer.added_tokens_decoder.values()
    names: Any = tokenizer  # its special tokens are texts
    tokens = {names.eos_token, *(token.content for token in added if token.special)}
    return tuple(sorted(tokens - {names.bos_token, None}, key=len, reverse=True))


def _replace(turns: Sequence[Turn], number: int, turn: Turn) -> list[Turn]:
    return [*turns[:number], turn, *turns[number + 1 :]]


def _mark(turn: Turn) -> Iterator[dict[str, Any]]:
    """Yield a turn with a mark at the end of each of its parts, one after the other."""
    yield {**turn, "content": turn["content"] + MARK}
    if turn.get("tool_calls"):
        yield _mark_call(turn)
    for key in THOUGHTS:
        if turn.get(key):
            yield {**turn, key: str(turn[key]) + MARK}


def _mark_call(turn: Turn) -> dict[str, Any]:
    """Return a turn with a mark at the end of the name of the last tool that it calls."""
    *others, call = turn["tool_calls"]
    function: Mapping[str, Any] = call["function"]
    named = {**function, "name": function["name"] + MARK}
    return {**turn, "tool_calls": [*others, {**call, "function": named}]}


def count_common(expected: str, text: str) -> int:
    """Count the characters that a text begins with as expected, in whole words and tags.

    >>> count_common("assistant <think>", "assistant <b>yes</b>")
    10
    """
    shared = count_alike(expected, text)
    if shared == len(expected):
        return shared
    ends = (piece.end() for piece in PIECE.finditer(expected))
    return max((end for end in ends if end <= shared), default=0)


def count_alike(first: str, second: str) -> int:
    """Count the characters that two texts begin with alike.

    >>> count_alike("the cat sat", "the car")
    6
    """
    pairs = enumerate(zip(first, second, strict=False))
    shorter = min(len(first), len(second))
    return next((place for place, (one, other) in pairs if one != other), shorter)
