"""Files as people have them are read as they mean, without a flag; the rest is refused in words."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lorakit.data.rows import read_rows
from lorakit.errors import DataError


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

# A record, then its kind and its row.
KNOWN: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "messages": ({"messages": [USER, ANSWER]}, "messages", {"messages": [USER, ANSWER]}),
    "conversations with roles": (
        {"conversations": [USER, ANSWER]},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "system column": (
        {"system": "Be kind.", "messages": [USER, ANSWER]},
        "messages",
        {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER]},
    ),
    "tool calls without content": (
        {
            "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]}],
            "tools": [TOOL],
        },
        "messages",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}]},
            ],
            "tools": [TOOL],
        },
    ),
    "content parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"text": "i"}]},
                ANSWER,
            ]
        },
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "a turn of weight 0": (
        {"messages": [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]},
        "messages",
        {"messages": [USER, ANSWER, USER, ANSWER], "trained": [False, False, False, True]},
    ),
    "a turn of ShareGPT that is not learned": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello", "train": False},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
            ]
        },
        "messages",
        {"messages": [USER, ANSWER, USER, ANSWER], "trained": [False, False, False, True]},
    ),
    "a call without arguments": (
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": ""}]},
            ]
        },
        "messages",
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "f", "arguments": {}}}
                    ],
                },
            ]
        },
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "ShareGPT with tools": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "Hello"},
            ],
            "tools": '[{"name": "f", "parameters": {}}]',
        },
        "messages",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "2"},
                ANSWER,
            ],
            "tools": [TOOL],
        },
    ),
    "ShareGPT with OpenHermes's system prompt": (
        {
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
            "system_prompt": "Be kind.",
        },
        "messages",
        {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER]},
    ),
    "OpenAI's functions": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": OPENAI_CALL["function"]},
                {"role": "function", "name": "f", "content": "2"},
                ANSWER,
            ],
            "functions": [TOOL["function"]],
        },
        "messages",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "name": "f", "content": "2"},
                ANSWER,
            ],
            "tools": [TOOL],
        },
    ),
    "roles of other data sets": (
        {
            "messages": [
                {"role": "Human", "content": "Hi"},
                {"role": "AI", "content": "Hello"},
            ]
        },
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "a thinking part": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm."},
                        {"type": "text", "text": "Hello"},
                    ],
                },
            ]
        },
        "messages",
        {"messages": [USER, {**ANSWER, "reasoning_content": "Hm."}]},
    ),
    "messages as a JSON text": (
        {"messages": json.dumps([USER, ANSWER])},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "ShareGPT as an object of lists": (
        {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello"]}},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "LIMA": ({"conversations": ["Hi", "Hello"]}, "messages", {"messages": [USER, ANSWER]}),
    "Capybara": (
        {"conversation": [{"input": "Hi", "output": "Hello"}]},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "Gemini": (
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "H"}, {"text": "i"}]},
                {"role": "model", "parts": [{"text": "Hello"}]},
            ],
        },
        "messages",
        {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER]},
    ),
    "exchanges of a human and an assistant": (
        {"conversations": [{"human": "Hi", "assistant": "Hello"}]},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "ShareGPT with Bing": (
        {"conversations": [{"from": "user", "value": "Hi"}, {"from": "bing", "value": "Hello"}]},
        "messages",
        {"messages": [USER, ANSWER]},
    ),
    "an exchange with a system prompt": (
        {"conversation": [{"system": "Be kind.", "input": "Hi", "output": "Hello"}]},
        "messages",
        {"messages": [{"role": "system", "content": "Be kind."}, USER, ANSWER]},
    ),
    "TRL's prompt and completion": (
        {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
        "messages",
        {"messages": [USER, ANSWER, USER, ANSWER], "trained": [False, False, False, True]},
    ),
    "question and answer": (
        {"question": "Why?", "answer": "So."},
        "instruction",
        {
            "prompt": "Question: Why?\nAnswer: ",
            "completion": "So.",
            "messages": [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."},
            ],
        },
    ),
    "a question on a text": (
        {"context": "A is B.", "question": "What is A?", "answer": "B"},
        "instruction",
        {
            "prompt": "Context: A is B.\nQuestion: What is A?\nAnswer: ",
            "completion": "B",
            "messages": [
                {"role": "user", "content": "A is B.\n\nWhat is A?"},
                {"role": "assistant", "content": "B"},
            ],
        },
    ),
    "preferences": (
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        "preference",
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    ),
    "preferences as whole conversations": (
        {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No"}]},
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "No"}]},
    ),
    "preferences in ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "No"}]},
    ),
    "rated completions": (
        {"prompt": "Hi", "completion": "No", "label": False},
        "rated",
        {"prompt": "Hi", "completion": "No", "label": False},
    ),
    "preferences of whole conversations beside their prompt": (
        {
            "prompt": "Hi",
            "chosen": [USER, ANSWER],
            "rejected": [USER, {**ANSWER, "content": "No"}],
        },
        "preference",
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "No"}]},
    ),
    "preferences as transcripts": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No",
        },
        "preference",
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello", "rejected": " No"},
    ),
    "preferences of an instruction with its input": (
        {"instruction": "Add.", "input": "1 1", "chosen": "2", "rejected": "3"},
        "preference",
        {"prompt": "Add.\n\n1 1", "chosen": "2", "rejected": "3"},
    ),
    "OpenAI's preferences": (
        {
            "input": {"messages": [USER], "tools": [TOOL]},
            "preferred_output": [ANSWER],
            "non_preferred_output": [{**ANSWER, "content": "No"}],
        },
        "preference",
        {
            "prompt": [USER],
            "chosen": [ANSWER],
            "rejected": [{**ANSWER, "content": "No"}],
            "tools": [TOOL],
        },
    ),
    "preferences of a question": (
        {"question": "Hi", "chosen": "Hello", "rejected": "No"},
        "preference",
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    ),
    "rated conversations in ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No"}],
            "kto_tag": False,
        },
        "rated",
        {"prompt": [USER], "completion": [{**ANSWER, "content": "No"}], "label": False},
    ),
    "several labels": (
        {"text": "a", "labels": ["x", "y"]},
        "multi-label",
        {"text": "a", "labels": ["x", "y"]},
    ),
    "tokens": (
        {"tokens": ["a", "b"], "ner_tags": [0, 1]},
        "tokens",
        {"tokens": ["a", "b"], "tags": [0, 1]},
    ),
    "GLUE's pairs": (
        {"premise": "a", "hypothesis": "b", "label": 1, "idx": 0},
        "pair",
        {"text_a": "a", "text_b": "b", "label": 1},
    ),
    "DART": (
        {"tripleset": [["A", "IS", "B"], ["A", "HAS", "C"]], "annotations": [{"text": "A is B."}]},
        "completion",
        {"prompt": "A : is : B | A : has : C", "completion": "A is B."},
    ),
    "DART of the hub": (
        {"tripleset": [["A", "IS", "B"]], "annotations": {"source": ["w"], "text": ["A is B."]}},
        "completion",
        {"prompt": "A : is : B", "completion": "A is B."},
    ),
    "E2E of the hub": (
        {"meaning_representation": "name[A]", "human_reference": "A is."},
        "completion",
        {"prompt": "name[A]", "completion": "A is."},
    ),
    "SQuAD": (
        {"context": "A is B.", "question": "What is A?", "answers": {"text": [], "x": []}},
        "completion",
        {
            "prompt": "### CONTEXT\nA is B.\n\n### QUESTION\nWhat is A?\n\n### ANSWER\n",
            "completion": "Can not find answer",
        },
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_layout_is_known_by_its_keys(case: str, tmp_path: Path) -> None:
    record, kind, row = KNOWN[case]
    rows = read_rows(write(tmp_path / "d.jsonl", record))
    assert (rows.kind, rows.rows) == (kind, [row])
    assert rows.layout in rows.describe()


def test_alpaca_is_a_prompt_and_a_conversation(tmp_path: Path) -> None:
    record = {"instruction": "Add.", "input": "1 1", "output": "2", "system": "Be kind."}
    plain = {"instruction": "Add.", "input": "", "output": "2"}
    full, short = read_rows(write(tmp_path / "d.jsonl", record, plain)).rows
    assert full["prompt"].endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:")
    assert short["prompt"].startswith("Below is an instruction that describes a task. Write")
    assert [turn["content"] for turn in full["messages"]] == ["Be kind.", "Add.\n\n1 1", "2"]
    assert full["needs_template"] and "needs_template" not in short


@pytest.mark.parametrize("answer", ["output", "response"])
@pytest.mark.parametrize("column", ["input", "context"])
def test_an_input_is_read_under_either_name(answer: str, column: str, tmp_path: Path) -> None:
    record = {"instruction": "Add.", column: "1 1", answer: "2"}
    rows = read_rows(write(tmp_path / "d.jsonl", record))
    assert rows.rows[0]["messages"][0]["content"] == "Add.\n\n1 1"
    assert rows.notes == ()
    both = {"instruction": "Add.", "context": "In C", "input": "1 1", answer: "2"}
    rows = read_rows(write(tmp_path / "d.jsonl", both))
    assert rows.rows[0]["messages"][0]["content"] == "Add.\n\nIn C\n\n1 1"


ANSWERED = {
    "MetaMath": {"query": "Hi", "response": "Hello", "type": "GSM"},
    "OpenOrca": {"question": "Hi", "response": "Hello", "system_prompt": ""},
    "a prompt with its response": {"prompt": "Hi", "response": "Hello"},
}


@pytest.mark.parametrize("case", ANSWERED)
def test_requests_with_responses_are_instructions(case: str, tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "d.jsonl", ANSWERED[case]))
    assert rows.rows[0]["prompt"].endswith("\n\n### Instruction:\nHi\n\n### Response:")
    assert rows.rows[0]["messages"] == [USER, ANSWER]


def test_a_system_prompt_of_openorca_is_used(tmp_path: Path) -> None:
    record = {"question": "Hi", "response": "Hello", "system_prompt": "Be kind."}
    (row,) = read_rows(write(tmp_path / "d.jsonl", record)).rows
    assert row["messages"] == [{"role": "system", "content": "Be kind."}, USER, ANSWER]
    assert row["needs_template"]


def test_pairs_without_an_agreed_label_are_left_out_and_counted(tmp_path: Path) -> None:
    agreed, not_agreed = (
        {"sentence1": "a", "sentence2": "b", "gold_label": label} for label in ("neutral", "-")
    )
    rows = read_rows(write(tmp_path / "d.jsonl", not_agreed, agreed))
    assert rows.rows == [{"text_a": "a", "text_b": "b", "label": "neutral"}]
    assert rows.notes == ("1 row without a reference left out",)


FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    "a part of Gemini's that is no text": (
        {"contents": [{"role": "user", "parts": [{"fileData": {}}]}, ANSWER]},
        "turn 1 of 'contents' has a part of type None, only text can be used",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
        "has a part of type 'image_url', only text can be used",
    ),
    "a weight of a half": (
        {"messages": [USER, {**ANSWER, "weight": 0.5}]},
        "turn 2 of 'messages' has the weight 0.5, not 0 or 1",
    ),
    "an image beside a turn": (
        {"messages": [{**USER, "images": ["a.png"]}, ANSWER]},
        "turn 1 of 'messages' has 'images', only text can be used",
    ),
    "a list of completions": (
        {"prompt": "a", "completion": ["b", "c"]},
        "'completion' is a list, text is needed",
    ),
    "two system prompts": (
        {"system": "a", "messages": [{"role": "system", "content": "b"}, USER, ANSWER]},
        "has a system prompt in a column and another one in its turns",
    ),
    "a role that no one has": (
        {"messages": [USER, {**ANSWER, "role": "martian"}]},
        "'messages' has no assistant turn to learn from, but one of 'martian'",
    ),
    "no answer": ({"messages": [USER]}, "'messages' has no assistant turn to learn from"),
    "an unknown speaker": (
        {"conversations": [{"from": "martian", "value": "x"}]},
        "turn 1 of 'conversations' is from 'martian'",
    ),
    "arguments that are not JSON": (
        {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{x"}]}]},
        "arguments of a tool call are not JSON",
    ),
    "tools that are none": ({"messages": [USER, ANSWER], "tools": "[1]"}, "'tools' is not a list"),
    "an empty instruction": ({"instruction": " ", "output": "b"}, "'instruction' is empty"),
    "no output": ({"instruction": "a", "output": None}, "'output' is missing"),
    "a triple of two": ({"tripleset": [["A", "B"]], "annotations": []}, "is no triple"),
    "fewer tags": ({"tokens": ["a"], "tags": []}, "has 1 tokens and 0 tags"),
    "answers that are numbers": (
        {"context": "a", "question": "b", "answers": {"text": [1]}},
        "'answers' holds no texts",
    ),
    "conversations that differ at once": (
        {"chosen": [USER], "rejected": [ANSWER]},
        "do not begin alike and end differently",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_faulty_row_is_named_by_its_line(case: str, tmp_path: Path) -> None:
    record, fault = FAULTY[case]
    source = write(tmp_path / "d.jsonl", record)
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert caught.value.faults[0].startswith(f"{source}:1   ")
    assert fault in caught.value.faults[0]


def test_a_column_without_a_name_is_no_system_prompt(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(",instruction,input,output\n7,Hi,,Hello\n")
    (row,) = read_rows(str(tmp_path / "d.csv")).rows
    assert row["messages"] == [USER, ANSWER]


@pytest.mark.parametrize("missing", ["prompt", "completion"])
def test_a_later_row_without_a_list_of_messages_is_named(missing: str, tmp_path: Path) -> None:
    full = {"prompt": [USER], "completion": [ANSWER]}
    part = {key: value for key, value in full.items() if key != missing}
    source = write(tmp_path / "d.jsonl", full, part)
    with pytest.raises(DataError) as caught:
        read_rows(source)
    assert caught.value.faults == [f"{source}:2   {missing!r} is missing"]


def test_calls_of_sharegpt_that_follow_each_other_are_one_turn(tmp_path: Path) -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        call,
        call,
        {"from": "observation", "value": "2"},
        {**call, "weight": 0},
        call,
    ]
    (row,) = read_rows(write(tmp_path / "d.jsonl", {"conversations": turns})).rows
    silent = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    tool = {"role": "tool", "content": "2"}
    assert row["messages"] == [USER, {**ANSWER, "tool_calls": [CALL, CALL]}, tool, silent, silent]
    assert row["trained"] == [False, True, False, False, True]


def test_conversations_of_one_file_may_be_written_differently(tmp_path: Path) -> None:
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"messages": sharegpt}, {"messages": [USER, ANSWER]}, {"messages": sharegpt}]
    source = write(tmp_path / "d.jsonl", *rows)
    assert read_rows(source).rows == [{"messages": [USER, ANSWER]}] * 3


WEBNLG = [
    {"category": "City", "triples": ["A | is | B"], "lex": ["A is B.", "B is what A is."]},
    {"category": "Artist", "triples": ["C | is | D"], "lex": ["C is D."]},
    {"category": "City", "triples": ["E | is | F"], "lex": []},
]


@pytest.mark.parametrize(("categories", "count"), [("all", 3), ("seen", 2), ("unseen", 1)])
def test_webnlg_has_a_row_for_each_reference(categories: str, count: int, tmp_path: Path) -> None:
    source = write(tmp_path / "d.jsonl", *WEBNLG)
    rows = read_rows(source, categories=categories)
    assert len(rows) == count
    assert {row["prompt"] for row in rows.rows} <= {"A : is : B", "C : is : D"}
    if categories == "all":
        assert rows.notes == ("1 row without a reference left out",)


def test_categories_of_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--categories chooses among the categories of WebNLG"):
        read_rows(write(tmp_path / "d.jsonl", {"text": "a"}), categories="seen")


RELEASES: dict[str, tuple[object, list[dict[str, str]]]] = {
    "SQuAD": (
        {
            "version": "v2.0",
            "data": [
                {
                    "title": "t",
                    "paragraphs": [
                        {
                            "context": "c",
                            "qas": [
                                {"id": "1", "question": "q", "answers": [{"text": "a"}]},
                                {"id": "2", "question": "r", "is_impossible": True, "answers": []},
                            ],
                        }
                    ],
                }
            ],
        },
        [
            {
                "prompt": f"### CONTEXT\nc\n\n### QUESTION\n{question}\n\n### ANSWER\n",
                "completion": answer,
            }
            for question, answer in (("q", "a"), ("r", "Can not find answer"))
        ],
    ),
    "WebNLG": (
        {
            "entries": [
                {
                    "1": {
                        "category": "City",
                        "modifiedtripleset": [{"subject": "A", "property": "is", "object": "B"}],
                        "lexicalisations": [{"lex": "A is B.", "comment": "good"}],
                    }
                }
            ]
        },
        [{"prompt": "A : is : B", "completion": "A is B."}],
    ),
    "rows under a key": ({"data": [{"text": "a"}]}, [{"text": "a"}]),
}


@pytest.mark.parametrize("case", RELEASES)
def test_documents_that_hold_rows(case: str, tmp_path: Path) -> None:
    document, rows = RELEASES[case]
    (tmp_path / "d.json").write_text(json.dumps(document))
    assert read_rows(str(tmp_path / "d.json")).rows == rows


TEXTS = {
    "lines in a .json": ("d.json", b'{"text": "a"}\n{"text": "b"}\n'),
    "a list in a .jsonl": ("d.jsonl", b'[{"text": "a"},\n {"text": "b"}]'),
    "gzip": ("d.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "b"}\n')),
    "semicolons": ("d.csv", b"text;id\na;1\nb;2\n"),
    "tabs in a .csv": ("d.csv", b"text\tid\na\t1\nb\t2\n"),
    "a table in a .txt": ("d.txt", b"text\tid\na\t1\nb\t2\n"),
    "a byte-order mark": ("d.csv", b"\xef\xbb\xbftext,id\r\na,1\r\nb,2\r\n"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_file_is_read_by_what_it_holds(case: str, tmp_path: Path) -> None:
    name, content = TEXTS[case]
    (tmp_path / name).write_bytes(content)
    assert read_rows(str(tmp_path / name)).rows == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("codec", "named"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("cp1252", "Latin-1")],
)
def test_other_encodings_are_recognised_and_told(codec: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("text,label\ncafé,1\n".encode(codec))
    rows = read_rows(str(tmp_path / "d.csv"))
    assert rows.rows == [{"text": "café", "label": "1"}]
    assert named in rows.describe()


def test_data_and_reference_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("name : A||A is here . \nname : B||B is here .\n")
    rows = read_rows(str(tmp_path / "d.txt"))
    assert rows.rows[1] == {"prompt": "name : B", "completion": "B is here ."}


HEADERLESS = {
    "CoLA": ("gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tSat cat the.\n", "labelled", "1"),
    "STS": ("main\tMSR\t2012\t0001\t5.000\tA plane.\tAn air plane.\n", "pair", "5.000"),
}


@pytest.mark.parametrize("case", HEADERLESS)
@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_published_tables_without_a_header(case: str, ending: str, tmp_path: Path) -> None:
    content, kind, label = HEADERLESS[case]
    (tmp_path / f"d.{ending}").write_text(content)
    rows = read_rows(str(tmp_path / f"d.{ending}"))
    assert (rows.kind, rows.rows[0]["label"], rows.is_measured) == (kind, label, case == "STS")


def test_quotation_marks_that_hold_tabs_wrap_fields(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text('text\tlabel\n"a\tb"\t1\n"say ""x"""\t0\n')
    rows = read_rows(str(tmp_path / "d.tsv"))
    assert [row["text"] for row in rows.rows] == ["a\tb", 'say "x"']
    assert "quotation marks wrap its fields" in rows.notes


def test_a_separator_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("body|x\na,b|1\n")
    rows = read_rows(str(tmp_path / "d.csv"), separator="bar", columns=["text=body"])
    assert rows.rows == [{"text": "a,b"}]


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b"\0" * 10_000_000))
    with pytest.raises(DataError, match="when it is unpacked"):
        read_rows(str(tmp_path / "d.jsonl.gz"))
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-6])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_rows(str(tmp_path / "e.jsonl.gz"))


HIDDEN: dict[str, tuple[str, str, str]] = {
    "fastText": ("d.txt", "__label__2 good\n__label__1 bad\n", "in the form of fastText"),
    "a table of no known layout": ("d.txt", "ham\tGo until\nspam\tFree\n", "no known layout"),
    "two lists of rows": (
        "d.json",
        '{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
        "rows under 2 keys",
    ),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_labels_and_lists_are_not_lost_in_silence(case: str, tmp_path: Path) -> None:
    name, content, message = HIDDEN[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(str(tmp_path / name))


TAGGED = {
    "CoNLL 2003": "-DOCSTART- -X- O\n\nEU NNP B-ORG\nsays VBZ O\n\nPeter NNP B-PER\n",
    "two fields": "EU B-ORG\nsays O\n\nPeter B-PER",
    "tabs": "EU\tB-ORG\nsays\tO\n\n\nPeter\tB-PER\n\n",
}


@pytest.mark.parametrize("case", TAGGED)
def test_lines_of_tokens_and_tags_are_sentences(case: str, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text(TAGGED[case])
    rows = read_rows(str(tmp_path / "d.txt"))
    assert rows.rows == [
        {"tokens": ["EU", "says"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "tags": ["B-PER"]},
    ]
    line = 2 + TAGGED[case].partition("says")[2].partition("Peter")[0].count("\n")
    line += 2 * ("DOCSTART" in TAGGED[case])
    assert rows.where[1] == f"{tmp_path}/d.txt:{line}"
    assert rows.notes == ("its lines are tokens with their tags",)


def test_a_token_without_a_tag_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("EU B-ORG\nsays O\n\n" * 60 + "Peter\n")
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / "d.txt"))
    assert caught.value.faults == [f"{tmp_path}/d.txt:181   has a token without a tag: 'Peter'"]


def test_words_that_may_be_tags_are_a_text(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("Blood type O\nI am O\nBlood groups are A and B\n")
    assert read_rows(str(tmp_path / "d.txt")).kind == "text"


PANDAS: dict[str, Any] = {
    "columns": {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
    "index": {"0": {"text": "a", "label": "x"}, "1": {"text": "b", "label": "y"}},
    "split": {"columns": ["text", "label"], "index": [0, 1], "data": [["a", "x"], ["b", "y"]]},
}


@pytest.mark.parametrize("case", PANDAS)
def test_json_of_pandas_is_rows(case: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(PANDAS[case]))
    rows = read_rows(str(tmp_path / "d.json"))
    assert rows.rows == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def test_columns_of_values_are_rows(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"text": ["a", "b"], "label": ["x", "y"]}')
    rows = read_rows(str(tmp_path / "d.json"))
    assert rows.rows == [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def test_empty_columns_of_a_spreadsheet_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("v1,v2,,,\nham,Go until,,,\nspam,Free,,,\n")
    rows = read_rows(str(tmp_path / "d.csv"), columns=["text=v2", "label=v1"])
    assert rows.rows[1] == {"text": "Free", "label": "spam"}
