"""A tokenizer or a chat template in the adapter's folder is used, and told; or refused."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorakit
from lorakit import Adapter, Spec
from lorakit.cli.__main__ import main
from lorakit.data.rows import read_rows
from lorakit.errors import ModelError
from lorakit.models.open import open_model
from lorakit.models.own_tokenizer import take_own_tokenizer
from lorakit.tasks.rows import encode_rows

OWN = "{% for m in messages %}[{{ m['content'] }}]{{ eos_token }}{% endfor %}"


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    """A base whose embedding has eight rows more than its tokenizer has ids."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_llama, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)) + 8)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base)
    lorakit.attach(model, Spec(rank=2)).save(folder)
    return folder


def add_tokenizer(base: Path, adapter: Path, tokens: int, template: str | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<new{i}>" for i in range(tokens)])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(adapter)


def opened(base: Path, adapter: Path):
    said: list[str] = []
    loaded = open_model(str(base), Adapter.load(adapter), "causal-lm", say=said.append)
    return loaded, said


@pytest.mark.slow
def test_a_folder_without_a_tokenizer_takes_the_base_s(base: Path, adapter: Path) -> None:
    loaded, said = opened(base, adapter)
    assert not said and loaded.tokenizer.chat_template != OWN


@pytest.mark.slow
def test_added_tokens_and_the_template_are_the_adapter_s(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    add_tokenizer(base, adapter, 8, OWN)
    loaded, said = opened(base, adapter)
    used = "the tokenizer and the chat template"
    assert said == [f"note: {used} of {adapter} are used, not those of {loaded.name}"]
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "the", "completion": "<new7>"}) + "\n")
    (example,) = encode_rows(read_rows(str(data)), loaded)
    assert loaded.tokenizer.convert_tokens_to_ids("<new7>") in example.ids


def test_a_tokenizer_without_a_template_keeps_the_base_s(base: Path, adapter: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(base).chat_template
    add_tokenizer(base, adapter, 1, None)
    loaded, said = opened(base, adapter)
    assert said == [f"note: the tokenizer of {adapter} is used, not that of {loaded.name}"]
    assert "<new0>" in loaded.tokenizer.get_vocab() and loaded.tokenizer.chat_template == theirs


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jinja", "json", "named"])
def test_a_template_alone_is_used(form: str, base: Path, adapter: Path) -> None:
    if form == "json":
        (adapter / "chat_template.json").write_text(json.dumps({"chat_template": OWN}))
    else:
        (adapter / "chat_template.jinja").write_text(OWN)
    expected: object = OWN
    if form == "named":
        (adapter / "additional_chat_templates").mkdir()
        (adapter / "additional_chat_templates" / "tools.jinja").write_text("x")
        expected = {"tools": "x", "default": OWN}
    loaded, said = opened(base, adapter)
    assert loaded.tokenizer.chat_template == expected
    assert said == [f"note: the chat template of {adapter} is used, not that of {loaded.name}"]


# The name of a file in the adapter's folder, its content, and why it is refused.
NO_TEMPLATES = {
    "no JSON": ("chat_template.json", "{", "chat_template.json cannot be read: "),
    "no jinja": ("chat_template.jinja", "a\n{% for", "chat_template.jinja is no jinja in line 2"),
    "nothing": ("chat_template.jinja", " ", "chat_template.jinja holds no chat template"),
    "too much": ("chat_template.jinja", "x" * (1 << 21), "chat_template.jinja has more than 1"),
}


@pytest.mark.parametrize("case", NO_TEMPLATES)
def test_a_template_that_cannot_be_read_is_refused(
    case: str, tiny_llama: Path, tmp_path: Path
) -> None:
    name, content, message = NO_TEMPLATES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelError) as caught:
        take_own_tokenizer(AutoTokenizer.from_pretrained(tiny_llama), tmp_path)
    assert message in caught.value.message
    assert caught.value.advice == "Remove the file, and the base's template is used."


def test_more_ids_than_the_base_embeds_are_refused(base: Path, adapter: Path) -> None:
    add_tokenizer(base, adapter, 9, OWN)
    with pytest.raises(ModelError) as caught:
        opened(base, adapter)
    ids = len(AutoTokenizer.from_pretrained(adapter))
    assert caught.value.message == f"The tokenizer has {ids} ids, the embedding {ids - 1} rows."
    assert str(caught.value).endswith("Nothing was computed.")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["eval", "generate"])
def test_the_commands_say_so(
    command: str, base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    data = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat"}]
    data.write_text(json.dumps({"messages": turns}) + "\n")
    arguments = ["--model", str(base), "--adapter", str(adapter), "--data", str(data)]
    assert main([command, *arguments]) == 2  # the adapter's template fails
    assert f"note: the chat template of {adapter} is used" in capsys.readouterr().err
    (adapter / "chat_template.jinja").write_text(OWN)
    assert main([command, *arguments, "--json"]) == 0
    json.loads(capsys.readouterr().out)
