"""Examples that are made on demand are those that `encode_causal` makes, in the same order."""

import json
from collections import UserList
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorakit.data import collect
from lorakit.data.encode import encode_causal
from lorakit.data.labels import encode_labelled, list_labels
from lorakit.data.on_demand import (
    count_cut,
    count_tokens,
    encode_labelled_on_demand,
    encode_on_demand,
    find_longest,
)
from lorakit.data.rows import read_rows
from lorakit.errors import DataError
from lorakit.train import job
from tests.conftest import sentences

SOME = sentences(24)
LONG = " ".join(SOME)
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
KINDS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": text} for text in [*SOME, LONG, "</s>", f"<s>{SOME[0]}", "a", f"{LONG} é"]],
    "completion": [{"prompt": text, "completion": "yes"} for text in [*SOME, "", LONG]],
    "messages": [{"messages": TURNS}] * 9,
}


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MANY", 4)


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# In 20 tokens there is room for the prompts alone, which is refused.
@pytest.mark.parametrize(
    ("kind", "length"),
    [("text", 20), *((kind, length) for kind in KINDS for length in (64, 400))],
)
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_they_are_the_same(
    kind: str, loss_on: str, length: int, tiny_llama: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = read_rows(write(tmp_path, KINDS[kind]))
    whole = encode_causal(rows, tokenizer, length, loss_on)
    examples = encode_on_demand(rows, tokenizer, length, loss_on)
    assert list(examples) == whole
    assert examples[1:3] == whole[1:3]
    assert count_cut(examples) == count_cut(whole)
    assert find_longest(whole) <= find_longest(examples) <= length
    pairs = zip(count_tokens(examples), count_tokens(whole), strict=True)
    assert all(real <= estimated <= length for estimated, real in pairs)


LABELLED: dict[str, list[dict[str, Any]]] = {
    "labelled": [{"text": text, "label": len(text) % 3} for text in [*SOME, LONG, f"<s>{SOME[0]}"]],
    "pair": [{"text_a": text, "text_b": "a", "label": 0.5} for text in [*SOME, "a", LONG]],
}


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("length", [20, 64, 400])
def test_labelled_ones_are_the_same(
    kind: str, length: int, tiny_llama: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = read_rows(write(tmp_path, LABELLED[kind]))
    labels = list_labels(rows) if kind == "labelled" else None
    whole = encode_labelled(rows, tokenizer, length, labels)
    examples = encode_labelled_on_demand(rows, tokenizer, length, labels)
    assert list(examples) == whole
    assert len({example.target for example in examples}) == (3 if labels else 1)
    assert count_cut(examples) == count_cut(whole)
    assert find_longest(whole) <= find_longest(examples) <= length


def test_a_label_that_is_no_class_is_found_before_the_first_step(
    tiny_llama: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows = read_rows(write(tmp_path, [*LABELLED["labelled"], {"text": "a", "label": 7}]))
    with pytest.raises(DataError, match="1 of 27 labels") as caught:
        encode_labelled_on_demand(rows, tokenizer, 64, ["0", "1", "2"])
    assert caught.value.faults == [f"{tmp_path}/d.jsonl:27   label '7' is none of the classes"]


FAULTY = {
    "a prompt that fills the sequence": {"prompt": LONG, "completion": "yes"},
    "half a surrogate pair": {"prompt": "\ud800", "completion": "yes"},
}


@pytest.mark.parametrize("case", FAULTY)
def test_faults_are_found_before_the_first_step(
    case: str, tiny_llama: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    good = {"prompt": SOME[0], "completion": "yes"}
    many = [good] * 20
    many[7] = FAULTY[case]
    rows = read_rows(write(tmp_path, many))
    refused = []
    for encode in (encode_causal, encode_on_demand):
        with pytest.raises(DataError) as caught:
            encode(rows, tokenizer, 1 if "fills" in case else 64, "completion")
        refused.append((str(caught.value), caught.value.faults))
    assert refused[0] == refused[1]
    assert f"{tmp_path}/d.jsonl:8" in str(refused[0])


@pytest.mark.parametrize("is_leaky", [True, False])
def test_no_more_is_tokenised_than_shows_that_lengths_differ(
    is_leaky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Lengths(UserList[int]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return SimpleNamespace(ids=[0] * super().__getitem__(index))

        def __iter__(self):
            return (self[i] for i in range(len(self)))

    monkeypatch.setattr(job, "leaks_padding", lambda model, pad: is_leaky)
    lengths: Any = Lengths([3, 4, *[5] * 100])
    settings = SimpleNamespace(batch_size=2)
    one: Any = SimpleNamespace(packed=False, settings=settings, model=0, pad=0, examples=lengths)
    assert job.Job.unpadded.func(one) is is_leaky
    assert asked == ([0, 0, 1] if is_leaky else [])
