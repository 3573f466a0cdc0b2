"""Records of JSON files and of plain texts."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from random import SystemRandom
from typing import Any

from lorakit.data.content import Text
from lorakit.data.layouts.layout import as_objects
from lorakit.data.records import Block, Found, check_object, gather, make_block, number_rows
from lorakit.errors import DataError

# Characters: a plain text is cut between paragraphs into passages of about this length.
PASSAGE = 1000
LINES = 100  # by which the form of a plain text is found
TAG = re.compile(r"O|[BIESLU]-\S+")  # of a token: outside of every name, or a part of one
DOCUMENT = "-DOCSTART-"  # the first field of a line that begins a document
# A number that no file has by chance, between lines that are parsed at once.
BETWEEN = SystemRandom().getrandbits(60)
# Keys under which a JSON object holds its rows.
HOLDERS = ("data", "rows", "examples", "instances", "train")


def parse_json(text: Text, *, by_line: bool) -> Iterator[Block]:
    """Return the records of JSON: a list, an object that holds one, or one object a line.

    Args:
        text: of the file.
        by_line: True if the name of the file says that each line is an object.

    Raises:
        DataError: it is none of these.
    """
    head, is_short = text.head
    first, _, others = head.lstrip().partition("\n")
    is_list = first[:1] == "["
    has_others = bool(others.strip()) or not is_short
    if not is_list and (by_line or (has_others and _is_object(first))):
        return _parse_lines(text)
    try:
        document = json.loads(text.read())
    except (ValueError, RecursionError) as error:
        if by_line:
            return _parse_lines(text)
        raise DataError(f"{text.path} is not JSON: {error}.") from error
    if by_line and is_list and not all(isinstance(row, Mapping) for row in document):
        return _parse_lines(text)
    return number_rows(text.path, find_rows(text.path, document))


def find_rows(path: Path, document: object) -> Iterable[object]:
    """Return the rows of a JSON document.

    Raises:
        DataError: it holds no list.
    """
    if isinstance(document, list):
        return document
    if isinstance(document, Mapping):
        if isinstance(document.get("entries"), list):
            return _flatten_webnlg(document["entries"])
        if {"columns", "data"} <= {*document} and _are_lists(document["data"]):
            return [dict(zip(document["columns"], row, strict=False)) for row in document["data"]]
        _refuse_several(path, document)
        lists = [document[key] for key in HOLDERS if _holds_objects(document.get(key))]
        if lists:
            return _flatten_squad(lists[0]) if _has_paragraphs(lists[0]) else lists[0]
        rows = as_objects(document) or _transpose(document)
        if rows:
            return rows
    raise DataError(
        f"{path} holds a {type(document).__name__}, a list of rows is needed.",
        advice="Write a list of objects, or one object a line as .jsonl.",
    )


def _are_lists(rows: object) -> bool:
    return isinstance(rows, list) and all(isinstance(row, list) for row in rows)


def _transpose(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of objects by number: rows, or the values of columns, as pandas writes them.

    >>> _transpose({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}})
    [{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 'y'}]
    """
    values = [*document.values()]
    if not values or not all(isinstance(value, dict) for value in values):
        return []
    if all(name.isdigit() for name in document):
        return values
    numbers = [*values[0]]
    are_columns = all([*value] == numbers for value in values)
    if not are_columns or not all(number.isdigit() for number in numbers):
        return []
    return [{name: document[name][number] for name in document} for number in numbers]


def _holds_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value[:1])


def _refuse_several(path: Path, document: Mapping[str, Any]) -> None:
    """Refuse a document with several lists of rows, such as those to train on and those to test on.

    Raises:
        DataError: the keys are named.
    """
    keys = [key for key, value in document.items() if value and _holds_objects(value)]
    if len(keys) > 1:
        raise DataError(
            f"{path} holds rows under {len(keys)} keys, and nothing says which are meant.",
            [repr(key) for key in keys],
            "Write each list to a file of its own. Nothing was started.",
        )


def _has_paragraphs(rows: list[object]) -> bool:
    return bool(rows) and isinstance(rows[0], Mapping) and "paragraphs" in rows[0]


def _flatten_squad(articles: Iterable[Any]) -> Iterator[object]:
    """Yield each question of SQuAD's release, with the paragraph that it is about."""
    for article in articles:
        for paragraph in _list_of(article, "paragraphs"):
            for question in _list_of(paragraph, "qas"):
                if not isinstance(question, Mapping):
                    yield question
                    continue
                answers = question.get("answers", [])
                yield {**question, "answers": answers, "context": paragraph.get("context")}


def _list_of(holder: object, key: str) -> list[Any]:
    found = holder.get(key) if isinstance(holder, Mapping) else None
    return found if isinstance(found, list) else []


def _flatten_webnlg(entries: Iterable[object]) -> Iterator[object]:
    """Yield the entries of WebNLG's release, each of which is under its own number."""
    for entry in entries:
        if isinstance(entry, Mapping) and len(entry) == 1:
            yield from entry.values()
        else:
            yield entry


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_lines(text: Text) -> Iterator[Block]:
    """Yield blocks with a record for each line that is not empty."""
    name = f"{text.path}:"
    number = 1
    for lines in text.blocks_of_lines():
        numbers: Sequence[int] = range(number, number + len(lines))
        number += len(lines)
        if not all(map(str.strip, lines)):
            pairs = zip(numbers, lines, strict=True)
            given = {number: line for number, line in pairs if line.strip()}
            numbers, lines = [*given], [*given.values()]
        if lines:
            values = _parse_together(lines)
            if values is not None:
                yield Block(name, numbers, values)
            else:
                yield make_block(name, [*map(_parse_line, numbers, lines)])


def _parse_together(lines: list[str]) -> list[dict[str, Any]] | None:
    """Return the object of each line; None if one of them may be something else.

    To parse many lines at once takes a quarter of the time. The number between two lines shows
    that no value goes on in the next line, and that no line has two values.
    """
    try:
        parsed = json.loads(f"[{f',{BETWEEN},'.join(lines)}]")
    except (ValueError, RecursionError):
        return None
    values, between = parsed[::2], parsed[1::2]
    are_apart = between == [BETWEEN] * (len(lines) - 1)
    return values if are_apart and [*map(type, values)] == [dict] * len(lines) else None


def _parse_line(number: int, line: str) -> Found:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Found(number, None, f"is not JSON: {error}")
    return check_object(number, value)


def holds_references(text: Text) -> bool:
    """Return True if the lines of a text are all `data||reference`; of a long one, the first."""
    lines = [line for line in text.head[0].split("\n") if line.strip()]
    return bool(lines) and all(_split_reference(line) for line in lines)


def _split_reference(line: str) -> dict[str, str] | None:
    """Return the prompt and the completion of a line; None if it is not `data||reference`."""
    data, separator, reference = line.partition("||")
    if not separator or "||" in reference or not data.strip():
        return None
    return {"prompt": data.rstrip(), "completion": reference.strip()}


def parse_references(text: Text) -> Iterator[Block]:
    """Yield the records of a text whose lines are `data||reference`."""
    numbered = enumerate(text.lines(), 1)
    found = (_parse_reference(number, line) for number, line in numbered if line.strip())
    return gather(f"{text.path}:", found)


def _parse_reference(number: int, line: str) -> Found:
    values = _split_reference(line)
    fault = "" if values else "is not `data||reference`, as the lines before it are"
    return Found(number, values, fault)


def refuse_labels(text: Text) -> None:
    """Refuse a plain text whose lines hold labels in a form that is not read.

    Raises:
        DataError: it is in the form of fastText.
    """
    head, _ = text.head
    lines = [line for line in islice(head.split("\n"), LINES) if line.strip()]
    if lines and all(line.startswith("__label__") for line in lines):
        raise DataError(
            f"{text.path} is in the form of fastText: its lines begin with `__label__`.",
            advice="Write a table with the columns text and label. Nothing was started.",
        )


def holds_tags(text: Text) -> bool:
    """Return True if the first lines of a text are tokens with tags, as in CoNLL's files."""
    lines = [line.split() for line in islice(text.head[0].split("\n"), LINES) if line.strip()]
    rows = [fields for fields in lines if fields[0] != DOCUMENT]
    has_tags = all(len(fields) > 1 and TAG.fullmatch(fields[-1]) for fields in rows)
    return len(rows) > 1 and has_tags and len({len(fields) for fields in rows}) == 1


def parse_tags(text: Text) -> Iterator[Block]:
    """Yield the tokens and tags of each sentence; an empty line ends it.

    The first field of a line is the token, and the last one its tag.
    """
    return gather(f"{text.path}:", _find_sentences(text))


def _find_sentences(text: Text) -> Iterator[Found]:
    sentence: list[list[str]] = []
    first = 1
    for number, line in enumerate(chain(text.lines(), [""]), 1):
        fields = line.split()
        if fields and fields[0] != DOCUMENT:
            sentence.append(fields)
            continue
        if sentence:
            yield _join_tags(first, sentence)
        sentence, first = [], number + 1


def _join_tags(number: int, sentence: Sequence[Sequence[str]]) -> Found:
    short = [fields[0] for fields in sentence if len(fields) < 2]
    if short:
        return Found(number, None, f"has a token without a tag: {short[0]!r}")
    tokens, tags = ([fields[i] for fields in sentence] for i in (0, -1))
    return Found(number, {"tokens": tokens, "tags": tags})


def number_passages(text: Text) -> Iterator[Block]:
    """Yield a record for each passage of a plain text."""
    passages = enumerate(cut_passages(text.lines()), 1)
    found = (Found(number, {"text": passage}) for number, passage in passages)
    return gather(f"{text.path}, passage ", found)


def cut_passages(lines: Iterable[str]) -> Iterator[str]:
    """Yield passages of about 1,000 characters of a plain text.

    The cuts are between paragraphs where there are any, else between lines.

    >>> list(cut_passages(["One.", "", "Two."]))
    ['One.\\n\\nTwo.']
    """
    passage: list[str] = []
    size = 0
    for line in lines:
        ends_paragraph = not line.strip()
        if size >= 2 * PASSAGE or (size >= PASSAGE and ends_paragraph):
            yield from _join(passage)
            passage, size = [], 0
        for piece in _wrap(line):
            if size + len(piece) > 3 * PASSAGE:
                yield from _join(passage)
                passage, size = [], 0
            passage.append(piece)
            size += len(piece) + 1
    yield from _join(passage)


def _join(lines: list[str]) -> Iterator[str]:
    """Yield a passage, unless it is empty."""
    joined = "\n".join(lines).strip("\n")
    if joined:
        yield joined


def _wrap(line: str) -> list[str]:
    """Cut a line that is longer than two passages."""
    if len(line) <= 2 * PASSAGE:
        return [line]
    return textwrap.wrap(line, 2 * PASSAGE, break_on_hyphens=False)
