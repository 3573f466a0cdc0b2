"""Conversations with a model: turn by turn, with one of several adapters or none."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lorakit.data.prompts import Prompt
from lorakit.data.templates import has_template
from lorakit.errors import AdapterNameError, SpecError
from lorakit.evaluate.decoding import Decoding
from lorakit.evaluate.generate import generate
from lorakit.inject.attach import enable
from lorakit.models.load import Loaded
from lorakit.text import add_hint, near_misses

BASE = "none"  # the name under which no adapter is on
Listen = Callable[[str], None]
Turn = dict[str, str]


class Voice(NamedTuple):
    """A model as it answers: the base alone, or with an adapter.

    Attributes:
        loaded: the model, with the tokenizer and the chat template that the adapter needs.
        adapter: the name under which the adapter is attached; None for the base alone.
    """

    loaded: Loaded
    adapter: str | None


class Answer(NamedTuple):
    """The text of an answer, and whether the model came to its end."""

    text: str
    is_complete: bool


class Conversation:
    """A conversation. Without a chat template, each line is continued for itself instead.

    Args:
        voices: by the name of the adapter; `BASE` is the base alone. A voice without a chat
            template gets that of another one.
        decoding: greedy, sampling or beam search.
        seed: seed of sampling; each answer has the next one.
    """

    def __init__(self, voices: Mapping[str, Voice], decoding: Decoding, seed: int = 0):
        self.voices, self.decoding, self.seed = dict(voices), decoding, seed
        self.is_chat = _share_template([voice.loaded for voice in self.voices.values()])
        self.system = ""
        self.turns: list[Turn] = []
        self.name = [*self.voices][-1]

    def use(self, name: str) -> None:
        """Answer with another adapter from now on; the turns so far stay.

        Raises:
            AdapterNameError: no adapter has this name.
        """
        if name not in self.voices:
            message = add_hint(f"There is no adapter {name!r}.", near_misses(name, self.voices))
            raise AdapterNameError(message, advice=f"Known: {', '.join(self.voices)}.")
        self.name = name

    def set_system(self, text: str) -> None:
        """Set the system prompt; an empty text removes it.

        Raises:
            SpecError: there is no chat template, which would write it.
        """
        if not self.is_chat:
            raise SpecError(
                "Without a chat template there is no system prompt.",
                advice="Start with --template chatml, or a file.",
            )
        self.system = text

    def reset(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns = []

    def answer(self, text: str, listen: Listen = lambda piece: None) -> Answer:
        """Answer a turn of the user, and keep both turns.

        Ctrl-C stops the answer, and what was said until then is kept. If nothing was, or if the
        turn is refused, it is dropped.

        Args:
            text: of the user.
            listen: called with each piece of the answer.

        Raises:
            DataError: the chat template refuses the turns, or they leave no room for an answer.
        """
        answer = self._ask(self.name, text, listen)
        if answer.text or answer.is_complete:
            self.turns += [
                {"role": "user", "content": text},
                {"role": "assistant", "content": answer.text},
            ]
        return answer

    def compare(self, text: str = "") -> dict[str, str]:
        """Return the answers of the base alone and of the adapter in use; neither is kept.

        Args:
            text: of the user; the last turn of the user by default.

        Raises:
            SpecError: no adapter is in use, or the user has said nothing yet.
            DataError: as `answer`.
        """
        if self.name == BASE:
            raise SpecError("No adapter is in use.", advice=f"Known: {', '.join(self.voices)}.")
        before = self.turns
        if not text:
            if not before:
                raise SpecError("Nothing was said yet.", advice="Give a text: /compare TEXT.")
            text = before[-2]["content"]
            before = before[:-2]
        answers = {}
        for name in (BASE, self.name):
            answers[name] = self._ask(name, text, lambda piece: None, before).text
        return answers

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the conversation as rows that training takes: messages, or prompts."""
        if self.is_chat:
            return [{"messages": self._messages(self.turns)}] if self.turns else []
        rows = []
        for user, assistant in zip(self.turns[::2], self.turns[1::2], strict=True):
            rows.append({"prompt": user["content"], "completion": assistant["content"]})
        return rows

    def _messages(self, turns: list[Turn]) -> list[Turn]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *turns]

    def _ask(
        self, name: str, text: str, listen: Listen, before: list[Turn] | None = None
    ) -> Answer:
        turns = self.turns if before is None else before
        voice = self.voices[name]
        prompt: Prompt = text
        if self.is_chat:
            prompt = self._messages([*turns, {"role": "user", "content": text}])
        if len(self.voices) > 1:
            enable(voice.loaded.model, voice.adapter)
        pieces: list[str] = []

        def hear(piece: str) -> None:
            pieces.append(piece)
            listen(piece)

        seed = self.seed + len(turns)
        try:
            (said,) = generate(voice.loaded, [prompt], self.decoding, seed=seed, listen=hear)
        except KeyboardInterrupt:
            return Answer("".join(pieces).strip(), is_complete=False)
        return Answer(said, is_complete=True)


def _share_template(voices: list[Loaded]) -> bool:
    """Give a voice without a chat template that of another one, and return if there is any."""
    templates = [one.tokenizer.chat_template for one in voices if has_template(one.tokenizer)]
    for one in voices:
        if templates and not has_template(one.tokenizer):
            one.tokenizer.chat_template = templates[0]
    return bool(templates)
