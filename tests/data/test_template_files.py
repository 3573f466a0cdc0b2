"""Chat templates by name: ChatML and files."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorakit.data import template_files
from lorakit.data.answers import find_answers
from lorakit.data.rows import Rows
from lorakit.data.template_files import check_use, set_template
from lorakit.data.templates import render
from lorakit.errors import SpecError

from . import chat_templates as templates
from .test_answers import CALLED, TOOLS, turns


@pytest.fixture
def plain(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_chatml_ends_a_turn_by_its_own_token_or_by_eos(plain: Any) -> None:
    chat = turns("a", {"content": "b", "reasoning_content": "c"}, system="d")
    set_template(plain, "chatml")
    assert render(plain, chat) == (
        "<|im_start|>system\nd</s>\n<|im_start|>user\na</s>\n"
        "<|im_start|>assistant\n<think>\nc\n</think>\n\nb</s>\n"
    )
    plain.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    set_template(plain, "chatml")
    assert render(plain, chat[:2], prompts=True) == (
        "<|im_start|>system\nd<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_writes_tools_and_their_calls(plain: Any) -> None:
    set_template(plain, "chatml")
    text, spans = find_answers(plain, CALLED, TOOLS)
    assert text.startswith("<|im_start|>system\n# Tools\n")
    assert json.dumps(TOOLS[0]) in text
    called = '{"name": "look", "arguments": {"at": "mat"}}'
    assert [text[start:end] for start, end in spans] == [
        f"<tool_call>\n{called}\n</tool_call></s>",
        "on a mat</s>",
    ]


@pytest.mark.parametrize("name", ["own.jinja", "tokenizer_config.json"])
def test_a_template_is_read_from_a_file(name: str, plain: Any, tmp_path: Path) -> None:
    path = tmp_path / name
    is_json = name.endswith(".json")
    own = json.dumps({"chat_template": templates.PLAIN}) if is_json else templates.PLAIN
    path.write_text(own)
    set_template(plain, str(path))
    assert render(plain, turns("a", "b")) == "User: a\nAssistant: b\n"


def test_a_template_that_refuses_the_probe_is_a_template(plain: Any, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ raise_exception('no') }}")
    set_template(plain, str(tmp_path / "own.jinja"))


FAULTS = {
    "missing": (None, "There is no chat template "),
    "empty": (" \n", "holds no chat template"),
    "syntax": ("a\n{% for m in messages %}", "own.jinja is no jinja in line 2: "),
    "large": ("x" * 2000, "has more than 1.0 KiB"),
    "bytes": (b"\xff\xfe\x00", "cannot be read: "),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_is_no_template_is_refused(
    name: str, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = FAULTS[name]
    monkeypatch.setattr(template_files, "LARGEST", 1024)
    path = tmp_path / "own.jinja"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        set_template(plain, str(path))
    assert message in str(caught.value)


def test_a_template_for_rows_without_turns_is_refused() -> None:
    rows = Rows("text", [{"text": "a"}], ["rows:1"], "rows")
    check_use(rows, None)
    with pytest.raises(SpecError, match="the rows of rows are no conversations"):
        check_use(rows, "chatml")
