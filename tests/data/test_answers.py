"""The tokens of the assistant's turns, for the chat templates of many models."""

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorakit.data.answers import encode_answers, find_answers
from lorakit.data.encode import encode_causal
from lorakit.data.rows import Rows
from lorakit.data.templates import render
from lorakit.errors import DataError

from . import chat_templates as templates


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> Any:
    """A tokenizer with the tokens of all templates, whose tests set the template."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_special_tokens({"additional_special_tokens": templates.TOKENS})
    return tokenizer


def turns(*contents: str | dict, system: str = "") -> list[dict]:
    """Return turns of a user and an assistant, one after the other."""
    found = [{"role": "system", "content": system}] if system else []
    for number, content in enumerate(contents):
        role = "assistant" if number % 2 else "user"
        own = content if isinstance(content, dict) else {"content": content}
        found.append({"role": role, **own})
    return found


def call(content: str = "", **more: object) -> dict:
    function = {"name": "look", "arguments": {"at": "mat"}}
    calls = [{"type": "function", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def answers(tokenizer: Any, template: str, chat: list[dict], tools: Any = None) -> list[str]:
    """Return the text of each run of tokens that is trained."""
    tokenizer.chat_template = template
    ids, learned = encode_answers(tokenizer, chat, tools)
    runs: list[list[int]] = [[]]
    for token, is_learned in zip(ids, learned, strict=True):
        if is_learned:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALLED = [
    {"role": "user", "content": "where?"},
    call(),
    {"role": "tool", "content": "on a mat"},
    {"role": "assistant", "content": "on a mat"},
]
ARGUMENTS = '{"at": "mat"}'
JSON = f'{{"name": "look", "arguments": {ARGUMENTS}}}'
GLM_CALL = "\n<tool_call>look\n<arg_key>at</arg_key>\n<arg_value>mat</arg_value>\n</tool_call>"
WRITTEN_CALL = f"<tool_call>\n{JSON}\n</tool_call>"
TWO = turns("a cat", " sat ", "sat", "sat")
PROMPTED = turns("a cat", "sat", "a dog", "ran", system="be small")
THOUGHT = turns(
    "a cat",
    "<think>\nit sat\n</think>\n\nsat",
    "a dog",
    {"content": "ran", "reasoning_content": "it ran"},
)

CASES = {
    "llama 3": (templates.LLAMA_3, TWO, ["sat<|eot|>", "sat<|eot|>"]),
    "llama 3, system": (templates.LLAMA_3, PROMPTED, ["sat<|eot|>", "ran<|eot|>"]),
    "chatml": (templates.CHATML, TWO, [" sat <|im_end|>", "sat<|im_end|>"]),
    "chatml, empty": (
        templates.CHATML,
        turns("a cat", "", "a", "b"),
        ["b<|im_end|>"],
    ),
    "qwen 2.5": (templates.QWEN_2_5, TWO, [" sat <|im_end|>", "sat<|im_end|>"]),
    "qwen 2.5, tools": (
        templates.QWEN_2_5,
        CALLED,
        [f"{WRITTEN_CALL}<|im_end|>", "on a mat<|im_end|>"],
    ),
    # The prompt is `assistant` and a line break: what follows it is learned.
    "qwen 3": (
        templates.QWEN_3,
        TWO,
        [" sat <|im_end|>", "<think>\n\n</think>\n\nsat<|im_end|>"],
    ),
    "qwen 3, thinking": (
        templates.QWEN_3,
        THOUGHT,
        ["sat<|im_end|>", "<think>\nit ran\n</think>\n\nran<|im_end|>"],
    ),
    "qwen 3, tools": (
        templates.QWEN_3,
        [*CALLED, *CALLED],
        [
            f"{WRITTEN_CALL}<|im_end|>",
            "on a mat<|im_end|>",
            f"{WRITTEN_CALL}<|im_end|>",
            "<think>\n\n</think>\n\non a mat<|im_end|>",
        ],
    ),
    # The prompt holds the empty block.
    "qwen 3, no thinking": (
        templates.QWEN_3_WITHOUT_THINKING,
        TWO,
        [" sat <|im_end|>", "sat<|im_end|>"],
    ),
    "qwen 3.5": (
        templates.QWEN_3_5,
        TWO,
        [" sat <|im_end|>", "\n</think>\n\nsat<|im_end|>"],
    ),
    "qwen 3.5, thinking": (
        templates.QWEN_3_5,
        THOUGHT,
        ["sat<|im_end|>", "it ran\n</think>\n\nran<|im_end|>"],
    ),
    "gpt-oss": (
        templates.GPT_OSS,
        turns("a cat", "sat", "a dog", "ran"),
        [
            "<|channel|>final<|message|>sat<|end|>",
            "<|channel|>final<|message|>ran<|return|>",
        ],
    ),
    "gpt-oss, thinking": (
        templates.GPT_OSS,
        turns("a", {"content": "b", "thinking": "c"}, "d", {"content": "e", "thinking": "f"}),
        [
            "<|channel|>final<|message|>b<|end|>",
            "<|channel|>analysis<|message|>f<|end|>"
            "<|start|>assistant<|channel|>final<|message|>e<|return|>",
        ],
    ),
    "gpt-oss, tools": (
        templates.GPT_OSS,
        [CALLED[0], call("looking"), *CALLED[2:], *turns("where?", "there")],
        [
            ' to=functions.look<|channel|>commentary json<|message|>{"at": "mat"}<|call|>',
            "<|channel|>final<|message|>on a mat<|end|>",
            "<|channel|>final<|message|>there<|return|>",
        ],
    ),
    "gpt-oss, two tools": (
        templates.GPT_OSS,
        [*turns("where?", "there"), CALLED[0], call("looking"), *CALLED[2:]],
        [
            "<|channel|>final<|message|>there<|end|>",
            ' to=functions.look<|channel|>commentary json<|message|>{"at": "mat"}<|call|>',
            "<|channel|>final<|message|>on a mat<|return|>",
        ],
    ),
    "qwen 3.5, tools": (
        templates.QWEN_3_5,
        [*CALLED, *turns("where?", "there")],
        [
            f"{WRITTEN_CALL}<|im_end|>",
            "on a mat<|im_end|>",
            "\n</think>\n\nthere<|im_end|>",
        ],
    ),
    "gemma 3": (templates.GEMMA_3, PROMPTED, ["sat<end_of_turn>", "ran<end_of_turn>"]),
    "gemma 3, trimmed": (templates.GEMMA_3, TWO, ["sat<end_of_turn>", "sat<end_of_turn>"]),
    "mistral 3": (templates.MISTRAL_3, PROMPTED, [" sat</s>", " ran</s>"]),
    "mistral 3, tools": (
        templates.MISTRAL_3,
        [{"role": "system", "content": "be small"}, *CALLED, *turns("where?", "there")],
        [f"[TOOL_CALLS][{JSON}]</s>", " on a mat</s>", " there</s>"],
    ),
    "mistral 7": (templates.MISTRAL_7, PROMPTED, ["sat</s>", "ran</s>"]),
    "deepseek r1": (templates.DEEPSEEK_R1, TWO, [" sat </s>", "sat</s>"]),
    "deepseek r1, thinking": (
        templates.DEEPSEEK_R1,
        turns("a cat", "<think>\nit sat\n</think>\n\nsat", "a dog", "ran", system="be small"),
        ["\n\nsat</s>", "ran</s>"],
    ),
    "deepseek r1, tag": (templates.DEEPSEEK_R1, turns("a", "<b>c</b>"), ["<b>c</b></s>"]),
    "phi 4": (templates.PHI_4, TWO, [" sat <|im_end|>", "sat<|im_end|>"]),
    "glm": (
        templates.GLM,
        TWO,
        ["\n<think></think>\nsat<|user|>", "\n<think></think>\nsat<|user|>"],
    ),
    "glm, thinking": (
        templates.GLM,
        turns(
            "a", {"content": "b", "reasoning_content": "c"}, "d", {"content": "e", "thinking": "f"}
        ),
        ["\n<think></think>\nb<|user|>", "\n<think>f</think>\ne<|user|>"],
    ),
    "glm, tools": (
        templates.GLM,
        [*CALLED, *turns("where?", "there")],
        [
            f"\n<think></think>{GLM_CALL}<|observation|>",
            "\n<think></think>\non a mat<|user|>",
            "\n<think></think>\nthere<|user|>",
        ],
    ),
    "glm, a call of tools at last": (
        templates.GLM,
        CALLED[:2],
        [f"\n<think></think>{GLM_CALL}<|observation|>"],
    ),
    "glm, two answers": (
        templates.GLM,
        [*turns("a", "b"), {"role": "assistant", "content": "c"}],
        ["\n<think></think>\nb", "\n<think></think>\nc<|user|>"],
    ),
    "gemma 4": (templates.GEMMA_4, PROMPTED, ["sat<turn|>", "ran<turn|>"]),
    "gemma 4, tools": (
        templates.GEMMA_4,
        [*CALLED, *turns("where?", "there")],
        [
            "<|tool_call>call:look{at:mat}<tool_call|><|tool_response>",
            "on a mat<turn|>",
            "there<turn|>",
        ],
    ),
    "gemma 4, a call of tools at last": (
        templates.GEMMA_4,
        CALLED[:2],
        ["<|tool_call>call:look{at:mat}<tool_call|><|tool_response>"],
    ),
    # What a turn says beside its calls stands after their results, which are not learned.
    "gemma 4, words and tools": (
        templates.GEMMA_4,
        [CALLED[0], call("looking"), *CALLED[2:], *turns("where?", "there")],
        [
            "<|tool_call>call:look{at:mat}<tool_call|><|tool_response>",
            "lookingon a mat<turn|>",
            "there<turn|>",
        ],
    ),
    "gemma 4, words and two tools": (
        templates.GEMMA_4,
        [CALLED[0], call("looking"), CALLED[2], CALLED[2], *turns("where?", "there")],
        [
            "<|tool_call>call:look{at:mat}<tool_call|><|tool_response>",
            "looking<turn|>",
            "there<turn|>",
        ],
    ),
    "deepseek v3": (templates.DEEPSEEK_V3, PROMPTED, ["sat</s>", "ran</s>"]),
    "deepseek v3, tools": (
        templates.DEEPSEEK_V3,
        [*CALLED, *turns("where?", "there")],
        [
            f"<|call|>look\n```json\n{ARGUMENTS}\n```<|/call|></s>",
            "on a mat</s>",
            "there</s>",
        ],
    ),
    "parts": (templates.PARTS, PROMPTED, ["sat<|end|>", "ran<|end|>"]),
    "generation": (templates.GENERATION, TWO, [" sat <|im_end|>", "sat<|im_end|>"]),
    "no tokens": (templates.PLAIN, turns("a cat", "sat", "a dog", "ran"), [" sat\n", " ran\n"]),
    "the assistant begins": (
        templates.CHATML,
        [{"role": "assistant", "content": "hi"}, *turns("a", "b")],
        ["hi<|im_end|>", "b<|im_end|>"],
    ),
    "two answers": (
        templates.QWEN_3,
        [*turns("a", "b"), {"role": "assistant", "content": "c"}, *turns("d", "e")],
        ["b<|im_end|>", "c<|im_end|>", "<think>\n\n</think>\n\ne<|im_end|>"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_are_what_follows_the_prompt(name: str, plain: Any) -> None:
    template, chat, expected = CASES[name]
    tools = TOOLS if "tools" in name else None
    assert answers(plain, template, chat, tools) == expected


REFUSING = ("FORGETFUL",)
HANDOVERS = {"GLM": "<|user|>"}  # what ends a last answer beside what a template writes
ORDINARY = {
    name: template
    for name, template in vars(templates).items()
    if isinstance(template, str) and name.isupper() and name[0] != "_" and name not in REFUSING
}
CONTENTS = ["sat", " sat ", "a\nb", "user", "assistant", "<b>", "it sat", "\n\nsat", "sat\n"]


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("seed", range(8))
def test_answers_hold_what_changes_with_the_content(name: str, seed: int, plain: Any) -> None:
    plain.chat_template = ORDINARY[name]
    draw = random.Random(seed)
    contents = draw.choices(CONTENTS, k=2 * draw.randint(1, 3))
    chat = turns(*contents, system=draw.choice(["", "be small"]))
    text, spans = find_answers(plain, chat)
    assert text == render(plain, chat) + HANDOVERS.get(name, "")
    owned = {place for span in spans for place in range(*span)}
    for number, turn in enumerate(chat):
        changed = changed_places(plain, chat, number)
        if turn["role"] == "assistant":
            assert changed <= owned
        else:
            assert not changed & owned
    assert len(spans) == sum(turn["role"] == "assistant" for turn in chat)


def changed_places(tokenizer: Any, chat: list[dict], number: int) -> set[int]:
    """Return the characters of a rendering that differ if one turn has other characters.

    A slow oracle: a mark stands for each character of the content, so that all lengths stay.
    """
    content = chat[number]["content"]
    inner = content.strip()
    marked = content.replace(inner, "\ue001" * len(inner))
    other = [*chat[:number], {**chat[number], "content": marked}, *chat[number + 1 :]]
    pairs = zip(render(tokenizer, chat), render(tokenizer, other), strict=True)
    return {place for place, (one, two) in enumerate(pairs) if one != two}


@pytest.mark.parametrize("template", [templates.CHATML, templates.QWEN_3, templates.GENERATION])
def test_only_the_turns_that_are_to_be_learned_are(template: str, plain: Any) -> None:
    plain.chat_template = template
    ids, learned = encode_answers(plain, TWO, trained=[False, True, False, False])
    trained = [token for token, is_learned in zip(ids, learned, strict=True) if is_learned]
    assert plain.decode(trained) == " sat <|im_end|>"


def encode(tokenizer: Any, *chats: list[dict]) -> None:
    rows = [{"messages": chat} for chat in chats]
    where = [f"d.jsonl:{number}" for number in range(1, len(rows) + 1)]
    encode_causal(Rows("messages", rows, where, "d.jsonl"), tokenizer, 256)


def test_a_turn_that_the_template_leaves_out_is_named(plain: Any) -> None:
    plain.chat_template = templates.FORGETFUL
    with pytest.raises(DataError) as caught:
        encode(plain, turns("a", "b", "c", "d"))
    assert caught.value.faults == [
        "d.jsonl:1   the chat template leaves out turn 2, or writes it in another place"
    ]
    assert '"train": false' in caught.value.advice


def test_calls_that_the_template_does_not_write_are_named(plain: Any) -> None:
    plain.chat_template = templates.CHATML
    with pytest.raises(DataError) as caught:
        encode(plain, CALLED)
    assert caught.value.faults == [
        "d.jsonl:1   the chat template does not write the tool calls of turn 2"
    ]


def test_the_first_word_is_learned_though_its_token_begins_in_the_prompt(plain: Any) -> None:
    plain.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert answers(plain, plain.chat_template, turns("a", "the cat")) == [" the cat\n"]
