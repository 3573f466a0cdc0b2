"""Records of JSON files and of plain texts."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import DataError

# Characters: a plain text is cut between paragraphs into passages of about this length.
PASSAGE = 1000
# Keys under which a JSON object holds its rows.
HOLDERS = ("data", "rows", "examples", "instances", "train")


@dataclass(frozen=True)
class Record:
    """One record of a source.

    Attributes:
        where: "file:line" or "file, row n".
        values: the values by column; None where the record cannot be used.
        fault: the reason why it cannot, as it follows the place in a message.
    """

    where: str
    values: Mapping[Any, Any] | None
    fault: str = ""


def number_rows(source: str | Path, rows: Iterable[object]) -> Iterator[Record]:
    """Yield a record for each row, which has a number as place."""
    for number, row in enumerate(rows, 1):
        yield check_object(f"{source}, row {number}", row)


def check_object(where: str, value: object) -> Record:
    """Return the record of a value, which is at fault unless it is an object."""
    if isinstance(value, Mapping):
        return Record(where, value)
    return Record(where, None, "is not an object with named values")


def parse_json(path: Path, text: str, *, by_line: bool) -> Iterator[Record]:
    """Return the records of JSON: a list, an object that holds one, or one object a line.

    Args:
        path: of the file, for messages.
        text: of the file.
        by_line: True if the name of the file says that each line is an object.

    Raises:
        DataError: it is none of these.
    """
    is_list = text.lstrip()[:1] == "["
    if by_line and not is_list:
        return _parse_lines(path, text)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().partition("\n")[0]
        if by_line or _is_object(first):
            return _parse_lines(path, text)
        raise DataError(f"{path} is not JSON: {error}.") from error
    if by_line and is_list and not all(isinstance(row, Mapping) for row in document):
        return _parse_lines(path, text)
    return number_rows(path, find_rows(path, document))


def find_rows(path: Path, document: object) -> Iterable[object]:
    """Return the rows of a JSON document.

    Raises:
        DataError: it holds no list.
    """
    if isinstance(document, list):
        return document
    if isinstance(document, Mapping):
        lists = [document[key] for key in HOLDERS if isinstance(document.get(key), list)]
        if lists and _has_paragraphs(lists[0]):
            return _flatten_squad(lists[0])
        if isinstance(document.get("entries"), list):
            return _flatten_webnlg(document["entries"])
        if lists:
            return lists[0]
    raise DataError(
        f"{path} holds a {type(document).__name__}, a list of rows is needed.",
        advice="Write a list of objects, or one object a line as .jsonl.",
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


def _parse_lines(path: Path, text: str) -> Iterator[Record]:
    # Not splitlines(): it also cuts at characters that JSON strings may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Record(where, None, f"is not JSON: {error}")
            continue
        yield check_object(where, value)


def parse_references(path: Path, text: str) -> list[Record] | None:
    """Return the records of a text whose lines are all `data||reference`; None if it is another."""
    records: list[Record] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        data, separator, reference = line.partition("||")
        if not separator or "||" in reference or not data.strip():
            return None
        values = {"prompt": data.rstrip(), "completion": reference.strip()}
        records.append(Record(f"{path}:{number}", values))
    return records or None


def number_passages(path: Path, text: str) -> Iterator[Record]:
    """Yield a record for each passage of a plain text."""
    for number, passage in enumerate(split_passages(text), 1):
        yield Record(f"{path}, passage {number}", {"text": passage})


def split_passages(text: str) -> list[str]:
    """Cut a plain text into passages of about 1,000 characters.

    The cuts are between paragraphs where there are any, else between lines.

    >>> split_passages("One.\\n\\nTwo.")
    ['One.\\n\\nTwo.']
    """
    passages: list[list[str]] = [[]]
    size = 0
    for line in text.replace("\r\n", "\n").split("\n"):
        ends_paragraph = not line.strip()
        if size >= 2 * PASSAGE or (size >= PASSAGE and ends_paragraph):
            passages.append([])
            size = 0
        for piece in _wrap(line):
            if size + len(piece) > 3 * PASSAGE:
                passages.append([])
                size = 0
            passages[-1].append(piece)
            size += len(piece) + 1
    joined = ["\n".join(lines).strip("\n") for lines in passages]
    return [passage for passage in joined if passage]


def _wrap(line: str) -> list[str]:
    """Cut a line that is longer than two passages."""
    if len(line) <= 2 * PASSAGE:
        return [line]
    return textwrap.wrap(line, 2 * PASSAGE, break_on_hyphens=False)
