"""Trained tokens, cuts, labels, padding and the order of batches."""

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, ByT5Tokenizer

from lorakit.data import templates
from lorakit.data.batches import Batches, collate
from lorakit.data.encode import IGNORED, encode_causal
from lorakit.data.labels import encode_labelled, infer_task, list_labels
from lorakit.data.rows import Rows, read_rows
from lorakit.errors import DataError


def rows(kind: str, *values: dict) -> Rows:
    return Rows(kind, list(values), [f"d.jsonl:{i}" for i in range(1, len(values) + 1)], "d.jsonl")


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def trained_text(tokenizer: Any, example: Any) -> str:
    return tokenizer.decode(
        [t for t, label in zip(example.ids, example.labels, strict=True) if label != IGNORED]
    )


def test_only_the_completion_and_its_eos_are_trained(llama: Any) -> None:
    row = {"prompt": "the cat", "completion": " sat on a mat."}
    (example,) = encode_causal(rows("completion", row), llama, 64)
    assert llama.decode(example.ids) == "<s>the cat sat on a mat.</s>"
    assert trained_text(llama, example) == " sat on a mat.</s>"
    (everything,) = encode_causal(rows("completion", row), llama, 64, loss_on="all")
    assert trained_text(llama, everything) == "<s>the cat sat on a mat.</s>"
    assert everything.trained == len(everything.ids) - 1


def test_every_assistant_turn_is_trained_and_no_other(llama: Any) -> None:
    turns = [
        ("system", "be small"),
        ("user", "the cat?"),
        ("assistant", "on a mat"),
        ("user", "and?"),
        ("assistant", "a dog"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    (example,) = encode_causal(rows("messages", {"messages": messages}), llama, 256)
    assert trained_text(llama, example) == "on a mat</s>a dog</s>"
    assert llama.decode(example.ids).startswith(
        "<|system|>be small</s><|user|>the cat?</s><|assistant|>on a mat</s>"
    )


def test_answers_are_found_though_a_template_rewrites_turns(tiny_llama: Path) -> None:
    other = AutoTokenizer.from_pretrained(tiny_llama)
    other.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (example,) = encode_causal(rows("messages", {"messages": [*messages, *messages]}), other, 64)
    assert other.decode(example.ids) == "4abab"
    assert trained_text(other, example) == "bb"


def test_messages_without_a_template_are_refused_with_the_ways_out(tiny_llama: Path) -> None:
    other = AutoTokenizer.from_pretrained(tiny_llama)
    other.chat_template = None
    with pytest.raises(DataError, match="has no chat template") as caught:
        encode_causal(rows("messages", chat("user", "assistant")), other, 64)
    assert caught.value.advice == (
        "Use a chat model, name a template (--template chatml, or a file), or give rows with "
        "prompt and completion. Nothing was started."
    )


STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
LIMITLESS = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": (
        "more than 0.2 s of processor time"
    ),
    "{{ 'x' * 9999999999 }}": "more than 1.0 GiB of memory",
    "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}": (
        "more than 1.0 GiB of memory"
    ),
    "{% if false %}{{ ["
    + "9**(9**9)," * 300
    + "] }}{% endif %}": "more than 0.2 s of processor time",
    "{{ [" + "('a' * 10**8)|length," * 300 + "] }}": "more than 0.2 s of processor time",
    "{{ 'x' * 300000 }}": "300,000 characters, more than 263,064, for one conversation",
    "{{ '' }}": "the chat template leaves out turn 2",
}


def chat(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": f"{role}."} for role in roles]}


def test_rows_that_the_template_refuses_are_named_all_at_once(tiny_llama: Path) -> None:
    strict = AutoTokenizer.from_pretrained(tiny_llama)
    strict.chat_template = STRICT
    bad, good = chat("assistant"), chat("user", "assistant")
    with pytest.raises(DataError) as caught:
        encode_causal(rows("messages", bad, good, chat("user", "user", "assistant")), strict, 64)
    assert caught.value.message == "2 of 3 rows of d.jsonl cannot be encoded."
    fault = "the chat template cannot render it: roles must alternate"
    assert caught.value.faults == [f"d.jsonl:1   {fault}", f"d.jsonl:3   {fault}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    LIMITLESS,
    ids=["time", "memory", "doubling", "constants", "system", "text", "nothing"],
)
def test_a_template_without_limits_is_stopped(
    template: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine may need seconds to fill the memory that ends the other templates.
    timed = "processor time" in LIMITLESS[template]
    monkeypatch.setattr(templates, "SECONDS", 0.2 if timed else 60)
    endless = AutoTokenizer.from_pretrained(tiny_llama)
    endless.chat_template = template
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    with pytest.raises(DataError, match=LIMITLESS[template]):
        encode_causal(rows("messages", chat("user", "assistant")), endless, 64)
    after = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    assert after == before


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize(
    ("kind", "plain", "rendered"),
    [
        ("text", {"text": "the cat"}, {"text": "<s>the cat</s>"}),
        (
            "completion",
            {"prompt": "the cat", "completion": " sat"},
            {"prompt": "<s>the cat", "completion": " sat</s>"},
        ),
    ],
)
def test_a_rendered_text_gets_no_second_bos_or_eos(
    kind: str, plain: dict, rendered: dict, loss_on: str, llama: Any
) -> None:
    expected = encode_causal(rows(kind, plain), llama, 64, loss_on)
    assert encode_causal(rows(kind, rendered), llama, 64, loss_on) == expected


def test_a_line_break_after_the_last_eos_is_no_reason_for_another(llama: Any) -> None:
    (example,) = encode_causal(rows("text", {"text": "the cat</s>\n"}), llama, 64)
    assert llama.decode(example.ids) == "<s>the cat</s>\n"
    (example,) = encode_causal(rows("text", {"text": "</s> the cat"}), llama, 64)
    assert llama.decode(example.ids) == "<s></s> the cat</s>"


def test_a_rendered_text_of_a_class_gets_no_second_cls_or_sep(bert: Any) -> None:
    plain = rows("labelled", {"text": "the cat", "label": "a"})
    rendered = rows("labelled", {"text": "[CLS]the cat[SEP]", "label": "a"})
    assert encode_labelled(rendered, bert, 64, ["a"]) == encode_labelled(plain, bert, 64, ["a"])


def test_a_long_text_goes_on_in_the_next_sequence(llama: Any) -> None:
    text = "the cat sat on a mat. " * 30
    examples = encode_causal(rows("text", {"text": text}), llama, 16)
    assert [t for e in examples for t in e.ids] == [*llama(text).input_ids, llama.eos_token_id]
    assert max(len(e.ids) for e in examples) == 16
    assert all(e.cut == 0 for e in examples)


def test_a_long_prompt_loses_its_start_and_is_counted(llama: Any) -> None:
    prompt = " ".join(["green trees"] * 20)
    (example,) = encode_causal(
        rows("completion", {"prompt": prompt, "completion": " by the house."}), llama, 16
    )
    whole = (
        len(llama(prompt).input_ids)
        + len(llama(" by the house.", add_special_tokens=False).input_ids)
        + 1
    )
    assert len(example.ids) == 16
    assert example.cut == whole - 16
    assert example.ids[0] == llama.bos_token_id
    assert trained_text(llama, example) == " by the house.</s>"


def test_a_long_prompt_of_a_conversation_is_cut_at_its_start(llama: Any) -> None:
    long = {"role": "user", "content": "the cat sat on a mat " * 10}
    turns = [long, {"role": "assistant", "content": "no"}, long]
    (example,) = encode_causal(rows("messages", {"messages": turns}), llama, 16)
    (whole,) = encode_causal(rows("messages", {"messages": turns}), llama, 1000)
    assert len(example.ids) == 16
    assert example.cut == len(whole.ids) - 16
    assert example.ids[0] == whole.ids[0]
    assert trained_text(llama, example) == trained_text(llama, whole) == "no</s>"


def test_a_first_answer_that_is_too_long_is_cut_at_its_end(llama: Any) -> None:
    long = {"role": "user", "content": "the cat sat on a mat " * 10}
    answer = {"role": "assistant", "content": "a dog ran to the house " * 10}
    (example,) = encode_causal(rows("messages", {"messages": [long, answer]}), llama, 16)
    assert len(example.ids) == 16
    assert example.trained == 15
    assert trained_text(llama, example).startswith("a dog ran")


def test_labels_keep_one_name_however_they_are_written() -> None:
    assert list_labels(
        rows(
            "labelled",
            {"text": "a", "label": 10},
            {"text": "b", "label": "2"},
            {"text": "c", "label": 2.0},
        )
    ) == [
        "2",
        "10",
    ]


def labelled(tmp_path: Path, name: str, *labels: str) -> Rows:
    """Write labels as a file has them, and read its rows."""
    if name.endswith(".csv"):
        lines = ["text,label", *(f"a,{label}" for label in labels)]
    else:
        lines = [f'{{"text": "a", "label": {label}}}' for label in labels]
    (tmp_path / name).write_text("\n".join(lines))
    return read_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["true", "false"], ["false", "true"]),
        (["true", "0.5"], ["0.5", "true"]),
        (['"1.1"', '"1.10"', '"2.0"'], ["1.1", "1.10", "2.0"]),
        (['"1"', "1", "1.0", "2"], ["1", "2"]),
        (['"007"', '"7"'], ["007", "7"]),
    ],
)
def test_class_names_are_what_the_file_says(
    labels: list[str], names: list[str], tmp_path: Path
) -> None:
    found = labelled(tmp_path, "d.jsonl", *labels)
    assert infer_task(found) == "classify"
    assert list_labels(found) == names
    assert infer_task(found.take([0])) == "classify"


def test_numbers_of_json_with_a_decimal_point_are_values(tmp_path: Path) -> None:
    assert infer_task(labelled(tmp_path, "d.jsonl", "1.5", "2", "3.0")) == "regress"
    assert infer_task(labelled(tmp_path, "d.jsonl", "1.0", "2.0", "3.0")) == "regress"
    with pytest.raises(DataError, match="1 of 2 labels"):
        encode_labelled(labelled(tmp_path, "d.jsonl", "true", "1.5"), None, 64, None)  # type: ignore[arg-type]


def test_numbers_of_a_table_are_the_names_of_classes(tmp_path: Path) -> None:
    found = labelled(tmp_path, "d.csv", "1.1", "1.10", "2.0")
    assert infer_task(found) == "classify"
    assert infer_task(found, "regress") == "regress"
    assert list_labels(found) == ["1.1", "1.10", "2.0"]


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
def test_many_numbers_are_refused_with_both_ways_out(name: str, tmp_path: Path) -> None:
    found = labelled(tmp_path, name, *(str(number) for number in range(51)))
    with pytest.raises(DataError, match="51 different numbers") as caught:
        infer_task(found)
    assert "--task regress or --task classify" in caught.value.advice
    assert infer_task(found, "classify") == "classify"
    fewer = labelled(tmp_path, name, *(str(number) for number in range(50)))
    assert infer_task(fewer) == "classify"


def test_a_class_is_found_by_its_number_too(bert: Any) -> None:
    found = rows("labelled", {"text": "a", "label": "1.0"}, {"text": "b", "label": 0.0})
    assert [e.target for e in encode_labelled(found, bert, 64, ["0", "1"])] == [1, 0]
    with pytest.raises(DataError, match="is none of the classes"):
        encode_labelled(found, bert, 64, ["0", "1.00", "1"])


def test_a_label_that_is_no_class_is_named(bert: Any) -> None:
    with pytest.raises(DataError) as caught:
        encode_labelled(
            rows("labelled", {"text": "a", "label": "good"}, {"text": "b", "label": "goood"}),
            bert,
            64,
            ["bad", "good"],
        )
    assert caught.value.faults == [
        "d.jsonl:2   label 'goood' is none of the classes; did you mean 'good'?"
    ]
    with pytest.raises(DataError, match="1 of 1 labels"):
        encode_labelled(rows("labelled", {"text": "a", "label": "high"}), bert, 64, None)


def test_pairs_have_token_types_and_the_longer_text_is_cut(bert: Any) -> None:
    row = {"text_a": "the cat " * 40, "text_b": "a dog", "label": "yes"}
    (example,) = encode_labelled(rows("pair", row), bert, 20, ["no", "yes"])
    assert (len(example.ids), example.target) == (20, 1)
    assert example.types is not None and set(example.types) == {0, 1}
    assert example.cut == len(bert(row["text_a"], row["text_b"]).input_ids) - 20


def test_padding_is_masked_by_position(llama: Any) -> None:
    examples = encode_causal(
        rows("text", {"text": "the cat"}, {"text": "the cat sat on"}), llama, 64
    )
    batch = collate(examples, pad=llama.eos_token_id)
    assert batch["attention_mask"].sum(1).tolist() == [len(e.ids) for e in examples]
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert batch["labels"][0, len(examples[0].ids) - 1] == llama.eos_token_id


def test_every_example_comes_once_an_epoch_in_an_order_the_seed_gives() -> None:
    lengths = [1 + i % 7 for i in range(101)]
    batches, again, other = Batches(lengths, 8, 0), Batches(lengths, 8, 0), Batches(lengths, 8, 1)
    epochs = [
        [i for k in range(e * batches.per_epoch, (e + 1) * batches.per_epoch) for i in batches[k]]
        for e in range(2)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(101))] * 2
    assert epochs[0] != epochs[1]
    # Any batch can be asked for first: that is what resuming does.
    assert again[17] == batches[17]
    assert other[17] != batches[17]


def test_rows_without_tokens_are_refused() -> None:
    rows = Rows("text", [{"text": ""}, {"text": ""}], ["a:1", "a:2"], "a.txt")
    with pytest.raises(DataError) as caught:
        encode_causal(rows, ByT5Tokenizer(), 8)
    assert caught.value.message == (
        "No row of a.txt has two tokens or more, so nothing would be trained."
    )


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_template_reads_thoughts_by_the_name_it_knows(name: str, tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = "{% for m in messages %}{{ m.thinking }}|{{ m.content }}{% endfor %}"
    turn = {"role": "assistant", "content": "four", name: "two and two"}
    assert templates.render(tokenizer, [turn]) == "two and two|four"
