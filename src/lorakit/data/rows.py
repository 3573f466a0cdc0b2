"""Rows of training and evaluation data from files, folders, hubs and the embedded default.

A row is known by its keys, and every row of a source is of one kind:
`text` · `prompt, completion` · `messages` · `text, label` · `text_a, text_b, label`.
A row that does not fit is named by file and line, and nothing is returned.
"""

import csv
import hashlib
import io
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit.errors import DataError
from lorakit.text import near_misses, plural

KINDS = {  # kind -> the keys that make it; the first that fits is it
    "pair": ("text_a", "text_b", "label"),
    "labelled": ("text", "label"),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
KEYS = sorted({key for keys in KINDS.values() for key in keys})
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".md")
PASSAGE = (
    1000  # characters: a plain text is cut between paragraphs into passages of about this length
)


@dataclass
class Rows:
    """Checked rows of one kind, and where each came from.

    Attributes:
        kind: a key of KINDS.
        rows: the rows; only the keys of the kind, and `label` as it stood in the file.
        where: "file:line" (or "file, row n") of each.
        source: what was asked for.
        repeated: how many rows stand there more than once.
    """

    kind: str
    rows: list[dict[str, Any]]
    where: list[str]
    source: str
    repeated: int = field(init=False)

    def __post_init__(self) -> None:
        self.repeated = len(self.rows) - len({json.dumps(row, sort_keys=True) for row in self.rows})

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Iterable[int]) -> "Rows":
        """Return the rows of these positions."""
        at = list(chosen)
        return Rows(self.kind, [self.rows[i] for i in at], [self.where[i] for i in at], self.source)

    def content_hash(self) -> str:
        """Return a SHA-256 over the rows in their order."""
        digest = hashlib.sha256(self.kind.encode())
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()


def read_rows(
    source: str, *, columns: Iterable[str] = (), quotes: bool | None = None, split: str = "train"
) -> Rows:
    """Read and check all rows of a source.

    Args:
        source: a file (.jsonl .json .csv .tsv .parquet .arrow .txt), `builtin:NAME`, or a hub id or
            folder that the `datasets` library loads.
        columns: `key=column` pairs where the file's own names differ; a column is a name, or a
            number (from 0) in a .csv or .tsv without a header.
        quotes: whether quotation marks wrap fields of a .csv or .tsv (default: of a .csv, yes; of a
            .tsv, no).
        split: of a builtin or of a data set of the hub: train or test.

    Raises:
        DataError: nothing there, nothing in it, or rows that do not fit, each named with what was
            found.
    """
    wanted = _columns(columns)
    found = list(_records(source, wanted, quotes, split))
    if not found:
        raise DataError(f"{source} holds no rows.")
    kind = _kind(source, found[0][1], wanted)
    faults, rows = [], []
    for where, record in found:
        if record is None or isinstance(record, str):
            faults.append(f"{where}   {record or 'is no object with named values'}")
            continue
        row = {key: record.get(wanted.get(key, key)) for key in KINDS[kind]}
        faults += [f"{where}   {fault}" for fault in _row_faults(kind, row, wanted)]
        rows.append(row)
    if faults:
        counted, keys = (
            f"{plural(len(faults), 'fault')} in {plural(len(found), 'row')}",
            ", ".join(KINDS[kind]),
        )
        raise DataError(
            f"{counted} of {source} (rows with {keys}).", faults, "Nothing was started."
        )
    return Rows(kind, rows, [where for where, _ in found], source)


def _columns(columns: Iterable[str]) -> dict[str, Any]:
    pairs = {item.partition("=")[0]: item.partition("=")[2] for item in columns}
    faults = [
        f"{key}={value}   {near_misses(key, KEYS)}".rstrip()
        for key, value in pairs.items()
        if key not in KEYS or not value
    ]
    if faults:
        raise DataError("Columns are named as key=column.", faults, f"Keys: {', '.join(KEYS)}.")
    return {key: int(value) if value.isdigit() else value for key, value in pairs.items()}


def _records(
    source: str, wanted: Mapping[str, Any], quotes: bool | None, split: str
) -> Iterator[tuple[str, Any]]:
    if source.startswith("builtin:"):
        yield from _builtin(source, split)
        return
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{source} is of a kind that is not read ({path.suffix or 'no ending'}).",
                advice=f"Read are {' '.join(SUFFIXES)}.",
            )
        yield from _file(path, wanted, quotes)
    elif path.suffix.lower() in SUFFIXES or (
        path.parent != Path() and not path.exists() and source.count("/") != 1
    ):
        there = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"There is no file {source}.", advice=near_misses(path.name, there))
    else:
        yield from _datasets(source, split)


def _builtin(source: str, split: str) -> Iterator[tuple[str, Any]]:
    from lorakit.data import stdlib_docs

    if source != "builtin:stdlib-docs":
        raise DataError(f"There is no {source!r}.", advice="Builtin data: builtin:stdlib-docs.")
    for number, row in enumerate(stdlib_docs.rows(split), 1):
        yield f"{source}, row {number}", row


def _file(path: Path, wanted: Mapping[str, Any], quotes: bool | None) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".arrow"):
        for number, row in enumerate(_table(path), 1):
            yield f"{path}, row {number}", row
        return
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} cannot be read.") from error
    if suffix in (".jsonl", ".ndjson"):
        # Not splitlines(): it also cuts at characters that JSON strings may hold, such as U+2028.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{path}:{number}", _json(line)
    elif suffix == ".json":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not JSON: {error}.") from error
        if not isinstance(values, list):
            raise DataError(f"{path} holds a {type(values).__name__}, a list of rows is needed.")
        for number, value in enumerate(values, 1):
            yield f"{path}, row {number}", value if isinstance(value, dict) else None
    elif suffix in (".csv", ".tsv"):
        tabs = suffix == ".tsv"
        yield from _delimited(
            path, text, wanted, "\t" if tabs else ",", not tabs if quotes is None else quotes
        )
    else:
        for number, passage in enumerate(passages(text), 1):
            yield f"{path}, passage {number}", {"text": passage}


def _json(line: str) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return value if isinstance(value, dict) else None


def _delimited(
    path: Path, text: str, wanted: Mapping[str, Any], mark: str, quotes: bool
) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(1 << 28)
    # Not splitlines(): it also cuts at characters that a field may hold, such as U+2028.
    lines = io.StringIO(text) if quotes else text.split("\n")
    reader = csv.reader(
        lines,
        delimiter=mark,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=quotes,
    )
    names = (
        None if any(isinstance(c, int) for c in wanted.values()) else _header(path, reader, mark)
    )
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield f"{path}:{line}", f"cannot be read: {error}; see --quotes and --no-quotes"
            return
        if fields is None:
            return
        if not fields or fields == [""]:
            continue
        if names is None:
            yield f"{path}:{line}", dict(enumerate(fields))
        elif len(fields) != len(names):
            yield (
                f"{path}:{line}",
                f"has {plural(len(fields), 'field')}, the header has {len(names)}",
            )
        else:
            yield f"{path}:{line}", dict(zip(names, fields, strict=True))


def _header(path: Path, reader: Iterator[list[str]], mark: str) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise DataError(
            f"The first line of {path} cannot be read: {error}; see --quotes and --no-quotes."
        ) from error
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{path} has more than one column called {', '.join(map(repr, twice))}.")
    other = next(
        (sign for sign in ";\t|," if sign != mark and len(names) == 1 and sign in names[0]), None
    )
    if other:
        raise DataError(
            f"{path} has one column, called {names[0]!r}: its fields seem to be separated by {other!r}, not by "
            f"{mark!r}.",
            advice="A .csv has commas, a .tsv tabs; save or name it so.",
        )
    return names


def _table(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pylist()
        with pa.memory_map(str(path)) as file:
            try:
                return pa.ipc.open_stream(file).read_all().to_pylist()
            except pa.ArrowInvalid:
                return pa.ipc.open_file(file).read_all().to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}.") from error


def _datasets(source: str, split: str) -> Iterator[tuple[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(source, split=split)
    except (
        Exception
    ) as error:  # the library raises its own and its back ends' kinds: all mean "no data"
        raise DataError(
            f"{source} is no file here, and `datasets` cannot load it: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
            advice="Name a file, builtin:stdlib-docs, or a data set of the hub.",
        ) from error
    for number, row in enumerate(loaded, 1):
        yield f"{source}, row {number}", row


def passages(text: str) -> list[str]:
    """Cut a plain text into passages of about 1,000 characters, between paragraphs where there are
    any, else between lines.

    >>> passages("One.\\n\\nTwo.")
    ['One.\\n\\nTwo.']
    """
    out: list[list[str]] = [[]]
    size = 0
    for line in text.replace("\r\n", "\n").split("\n"):
        full = size >= PASSAGE and not line.strip()
        if full or size >= 2 * PASSAGE:
            out.append([])
            size = 0
        for piece in (
            textwrap.wrap(line, 2 * PASSAGE, break_on_hyphens=False)
            if len(line) > 2 * PASSAGE
            else [line]
        ):
            if size + len(piece) > 3 * PASSAGE:
                out.append([])
                size = 0
            out[-1].append(piece)
            size += len(piece) + 1
    return [passage for part in out if (passage := "\n".join(part).strip("\n"))]


def _kind(source: str, first: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(first, dict):
        raise DataError(f"The first row of {source} {first or 'is no object with named values'}.")
    kind = next(
        (k for k, keys in KINDS.items() if all(wanted.get(key, key) in first for key in keys)), None
    )
    lost = [f"{key}={column}" for key, column in wanted.items() if column not in first]
    if lost or kind is None:
        have = ", ".join(map(repr, islice(first, 12)))
        hints = [hint for key in first if (hint := near_misses(str(key), KEYS, 1))]
        raise DataError(
            f"No such column in {source}: {', '.join(lost)}."
            if lost
            else f"The rows of {source} are of no kind that is known.",
            [
                f"its first row has {have}",
                *(f"known are {' + '.join(keys)}" for keys in KINDS.values()),
            ],
            f"Name the columns, as in --columns text={next(iter(first), 'review')}. {hints[0] if hints else ''}".rstrip(),
        )
    return kind


def _row_faults(kind: str, row: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key, value in row.items():
        name = f"{key!r}" + (f" (column {wanted[key]!r})" if key in wanted else "")
        if value is None:
            yield f"{name} is missing"
        elif key == "label":
            finite = not isinstance(value, float) or math.isfinite(value)
            if isinstance(value, bool | str | int | float) and str(value).strip() and finite:
                continue
            yield f"{name} is {value!r}, a word or a number is needed"
        elif key == "messages":
            yield from _message_faults(value)
        elif not isinstance(value, str):
            yield f"{name} is a {type(value).__name__}, text is needed"
        elif not value.strip() and key != "prompt":
            yield f"{name} is empty"


def _message_faults(messages: Any) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield "'messages' is no list of turns"
        return
    for number, turn in enumerate(messages, 1):
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("role"), str)
            or not isinstance(turn.get("content"), str)
        ):
            yield f"turn {number} of 'messages' has no 'role' and 'content' as text"
            return
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in messages):
        yield "'messages' has no assistant turn to learn from"
