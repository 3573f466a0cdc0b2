"""What a model can read: its positions and its vocabulary, and texts that no tokenizer can read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer, ByT5Tokenizer

from lorakit.cli.__main__ import main
from lorakit.data.encode import IGNORED, encode_causal
from lorakit.data.rows import Rows
from lorakit.errors import DataError, LorakitError
from lorakit.evaluate.decoding import Decoding
from lorakit.evaluate.generate import generate
from lorakit.evaluate.preview import preview
from lorakit.models.load import load, pad_id
from lorakit.models.read import load_tokenizer
from lorakit.plan.meta_model import load_meta_model
from lorakit.tasks.rows import encode_rows

from ..conftest import CHAT, SIZES

# Families whose positions begin after that of the padding.
AFTER_PADDING = ("Roberta", "XLMRoberta", "Camembert", "MPNet", "Data2VecText", "Longformer")


@pytest.mark.slow
@pytest.mark.parametrize("family", AFTER_PADDING)
def test_positions_after_the_padding(family: str, tiny_bert: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=int(1e30))
    more = {"attention_window": 8} if family == "Longformer" else {}
    options = {**SIZES, **more, "vocab_size": len(tokenizer), "pad_token_id": 1}
    config = getattr(transformers, f"{family}Config")(**options)
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path), "classify", labels=["no", "yes"])
    assert loaded.max_length == load_meta_model(str(tmp_path), "classify").max_length == 62
    row = {"text": "the cat sat on a mat " * 20, "label": "yes"}
    rows = Rows("labelled", [row], ["rows:1"], "rows")
    assert preview(rows, str(tmp_path), "classify", "all", None, 0)["max_length"] == 62
    [example] = encode_rows(rows, loaded)
    assert len(example.ids) == 62
    loaded.model(input_ids=torch.tensor([example.ids]))


def add_token(folder: Path, target: Path) -> Path:
    """Copy a model folder, with a token in its tokenizer that the model has no embedding for."""
    shutil.copytree(folder, target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens(["zebra"])
    tokenizer.add_special_tokens({"pad_token": "<extra>"})
    tokenizer.save_pretrained(target)
    return target


def test_a_token_without_an_embedding_is_refused_by_its_row(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = add_token(tiny_llama, tmp_path / "model")
    loaded = load(str(folder), "causal-lm")
    good, bad = {"text": "the cat sat"}, {"text": "a zebra sat"}
    rows = Rows("text", [good, bad], ["rows:1", "rows:2"], "rows")
    with pytest.raises(DataError) as caught:
        encode_rows(rows, loaded)
    assert str(caught.value) == (
        f"1 row with tokens that {folder} cannot embed: its embedding has 320 rows, its tokenizer "
        "322 ids.\n"
        "  rows:2   token 'zebra' has the id 320\n"
        "Use the tokenizer that the model was trained with, or make the embedding larger: "
        "model.resize_token_embeddings(len(tokenizer))."
    )
    with pytest.raises(DataError, match="prompt 1   token 'zebra'"):
        generate(loaded, ["a zebra"], Decoding(max_new_tokens=2))


def test_padding_has_an_embedding(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = load(str(add_token(tiny_llama, tmp_path / "model")), "causal-lm")
    assert loaded.tokenizer.pad_token_id == 321
    loaded.model.config.pad_token_id = None
    assert pad_id(loaded.tokenizer, loaded.model) < 320


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_folder_without_a_tokenizer_says_so(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    if kind == "t5":
        transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(LorakitError) as caught:
        load_tokenizer(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} has no tokenizer.\nCopy the tokenizer's files, such as tokenizer.json and "
        "tokenizer_config.json, into the folder."
    )


@pytest.mark.parametrize("between", ["", "\n"])  # which ByT5 removes after a special token
def test_byt5_with_a_chat_template(between: str) -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.chat_template = CHAT.replace(
        "{{ eos_token }}", between.join(["{{ eos_token + '", "' }}"])
    )
    turns = [
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": "on a mat"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "a dog"},
    ]
    rows = Rows("messages", [{"messages": turns}], ["rows:1"], "rows")
    [example] = encode_causal(rows, tokenizer, 200)
    trained = [i for i, label in zip(example.ids, example.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(trained) == "on a mat</s>a dog</s>"
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert example.ids == tokenizer(text, add_special_tokens=False).input_ids


HALF = "a \ud800 cat"


def encode_broken(kind: str, row: dict[str, object], folder: Path) -> None:
    task = "classify" if "label" in row else "causal-lm"
    tokenizer = load_tokenizer(str(folder))
    if task == "causal-lm":
        encode_causal(Rows(kind, [row], ["rows:1"], "rows"), tokenizer, 32)
    else:
        from lorakit.data.labels import encode_labelled

        encode_labelled(Rows(kind, [row], ["rows:1"], "rows"), tokenizer, 32, ["x"])


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("text", {"text": HALF}),
        ("completion", {"prompt": "a", "completion": HALF}),
        ("messages", {"messages": [{"role": "user", "content": HALF}]}),
        ("labelled", {"text": HALF, "label": "x"}),
        ("pair", {"text_a": "a", "text_b": HALF, "label": "x"}),
    ],
)
def test_half_a_surrogate_pair_is_refused_by_its_row(
    kind: str, row: dict[str, object], tiny_llama: Path
) -> None:
    with pytest.raises(DataError) as caught:
        encode_broken(kind, row, tiny_llama)
    assert str(caught.value) == (
        "1 row with half a surrogate pair, which is no character.\n"
        "  rows:1   'a \\ud800 cat'\n"
        "Write such characters whole, or remove them."
    )


def test_the_command_refuses_it(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"text": HALF}) + "\n")
    assert main(["preview", "--model", str(tiny_llama), "--data", str(data)]) == 2
    assert f"{data}:1   'a \\ud800 cat'" in capsys.readouterr().err
    assert main(["generate", "--model", str(tiny_llama), "--prompt", HALF]) == 2
    assert "prompt 1   " in capsys.readouterr().err
