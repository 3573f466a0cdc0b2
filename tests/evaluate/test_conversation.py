"""A conversation keeps its turns, switches adapters, and stops in the middle of an answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit import Adapter, Spec, attach
from lorakit.data.rows import read_rows
from lorakit.errors import AdapterNameError, DataError, SpecError
from lorakit.evaluate.conversation import Conversation, Voice
from lorakit.evaluate.decoding import Decoding
from lorakit.evaluate.generate import generate
from lorakit.models.open import add_adapter, open_model

pytestmark = pytest.mark.slow
SHORT = Decoding(max_new_tokens=8)
ROOM = 256  # tokens of a conversation: the tiny model rotates positions, and can read more


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters whose answers differ from those of the base."""
    saved = {}
    for seed, name in enumerate(("first", "second")):
        loaded = open_model(str(tiny_llama), None, "causal-lm")
        adapter = attach(loaded.model, Spec(rank=4), seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_(std=0.3)
        saved[name] = adapter.save(tmp_path_factory.mktemp("adapters") / name)
    return saved


@pytest.fixture
def conversation(tiny_llama: Path, folders: dict[str, Path]) -> Conversation:
    base = open_model(str(tiny_llama), None, "causal-lm")
    base.max_length = ROOM
    voices = {"none": Voice(base, None)}
    for name, folder in folders.items():
        voices[name] = Voice(add_adapter(base, Adapter.load(folder), name), name)
    return Conversation(voices, SHORT)


def alone(model: Path, folder: Path | None, turns: Any) -> str:
    """Return the answer of the model with one adapter, as `generate` gives it."""
    adapter = Adapter.load(folder) if folder else None
    loaded = open_model(str(model), adapter, "causal-lm")
    loaded.max_length = ROOM
    return generate(loaded, [turns], SHORT)[0]


def test_each_adapter_answers_as_it_does_alone(
    conversation: Conversation, tiny_llama: Path, folders: dict[str, Path]
) -> None:
    turns = [{"role": "user", "content": "the cat?"}]
    texts = {}
    for name, folder in {"none": None, **folders}.items():
        conversation.use(name)
        conversation.reset()
        texts[name] = conversation.answer("the cat?").text
        assert texts[name] == alone(tiny_llama, folder, turns)
    assert len({*texts.values()}) == 3
    assert conversation.compare() == {"none": texts["none"], "second": texts["second"]}
    assert len(conversation.turns) == 2


def test_turns_and_system_prompt_are_read_and_saved(
    conversation: Conversation, tiny_llama: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    conversation.set_system("old")
    first = conversation.answer("cat?").text
    second = conversation.answer("dog?").text
    turns = [
        {"role": "system", "content": "old"},
        {"role": "user", "content": "cat?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "dog?"},
    ]
    assert second == alone(tiny_llama, folders["second"], turns)
    saved = tmp_path / "chat.jsonl"
    saved.write_text("".join(json.dumps(row) + "\n" for row in conversation.to_rows()))
    rows = read_rows(str(saved))
    assert rows.kind == "messages"
    assert rows.rows[0]["messages"] == [*turns, {"role": "assistant", "content": second}]
    conversation.reset()
    assert conversation.to_rows() == []


def test_the_pieces_are_the_answer(conversation: Conversation) -> None:
    pieces: list[str] = []
    answer = conversation.answer("the cat?", pieces.append)
    assert "".join(pieces).strip() == answer.text and answer.is_complete


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(conversation: Conversation) -> None:
    whole = conversation.answer("the cat?").text
    conversation.reset()

    def stop(piece: str) -> None:
        raise KeyboardInterrupt

    answer = conversation.answer("the cat?", stop)
    assert not answer.is_complete and whole.startswith(answer.text)
    assert [turn["content"] for turn in conversation.turns] in (["the cat?", answer.text], [])
    assert conversation.answer("the dog?").is_complete


def test_a_beam_search_is_heard_at_its_end(conversation: Conversation) -> None:
    conversation.decoding = Decoding(max_new_tokens=8, beams=2)
    pieces: list[str] = []
    assert pieces == [] and [conversation.answer("cat?", pieces.append).text] == pieces


def test_sampling_draws_anew_for_each_turn(conversation: Conversation) -> None:
    conversation.decoding = Decoding(max_new_tokens=8, temperature=1.5)
    texts = set()
    for _ in range(2):
        conversation.reset()
        texts.add(conversation.answer("the cat?").text)
    assert len(texts) == 1
    assert conversation.compare("the cat?")["second"] not in texts


def test_a_turn_without_room_is_refused_and_dropped(conversation: Conversation) -> None:
    conversation.answer("cat?")
    before = [*conversation.turns]
    with pytest.raises(DataError, match="too long to leave room for an answer"):
        conversation.answer("the cat sat on a mat " * 40)
    assert conversation.turns == before


def test_unknown_adapters_and_nothing_to_compare_are_refused(conversation: Conversation) -> None:
    with pytest.raises(AdapterNameError, match=r"no adapter 'frist'\. Did you mean 'first'"):
        conversation.use("frist")
    with pytest.raises(SpecError, match="Nothing was said yet"):
        conversation.compare()
    conversation.use("none")
    with pytest.raises(SpecError, match="No adapter is in use"):
        conversation.compare("cat?")


def test_without_a_template_each_line_is_continued_for_itself(tiny_llama: Path) -> None:
    loaded = open_model(str(tiny_llama), None, "causal-lm")
    loaded.tokenizer.chat_template = None
    conversation = Conversation({"none": Voice(loaded, None)}, SHORT)
    assert not conversation.is_chat
    conversation.answer("the dog")
    text = conversation.answer("the cat").text
    assert text == generate(loaded, ["the cat"], SHORT)[0]
    assert conversation.to_rows()[1] == {"prompt": "the cat", "completion": text}
    with pytest.raises(SpecError, match=r"no system prompt\.\nStart with --template chatml"):
        conversation.set_system("old")


def test_a_voice_without_a_template_takes_that_of_another(tiny_llama: Path, tmp_path: Path) -> None:
    base = open_model(str(tiny_llama), None, "causal-lm")
    base.tokenizer.chat_template = None
    adapter = attach(open_model(str(tiny_llama), None, "causal-lm").model, Spec(rank=2))
    folder = adapter.save(tmp_path / "mine")
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    loaded = add_adapter(base, Adapter.load(folder), "mine")
    assert base.tokenizer.chat_template is None
    conversation = Conversation({"none": Voice(base, None), "mine": Voice(loaded, "mine")}, SHORT)
    assert conversation.is_chat
    assert base.tokenizer.chat_template == loaded.tokenizer.chat_template
