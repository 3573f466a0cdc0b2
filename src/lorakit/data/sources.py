"""Records of data files, of data sets on the hub and of the builtin data set.

A record has the keys and values of the file; rows.py checks them.
"""

import csv
import io
import json
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lorakit.data.hub import data_sets_offline, is_offline, similar_names
from lorakit.errors import DataError
from lorakit.files import leaves_folder
from lorakit.text import first_line, plural

# The column of each key: its name, or its number in a table without a header.
Columns = Mapping[str, str | int]

TABLES = (".parquet", ".arrow")
PLAIN_TEXT = (".txt", ".md")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *TABLES, *PLAIN_TEXT)
# Characters: a plain text is cut between paragraphs into passages of about this length.
PASSAGE = 1000
MOST_FILES = 1000  # of a folder that is a data set
LARGEST_FIELD = 1 << 28
NAMING_ADVICE = "Name a file, builtin:stdlib-docs, or a data set of the hub."
QUOTES = "see --quotes and --no-quotes"


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


def read_records(
    source: str, columns: Columns, quotes: bool | None, split: str
) -> Iterator[Record]:
    """Yield the records of a source.

    Args:
        source: a file, `builtin:NAME`, or a hub id or folder that the `datasets` library loads.
        columns: a table has no header if one of these is a number.
        quotes: True if quotation marks wrap fields of a .csv or .tsv; None for the usual rule of
            each format.
        split: of a builtin or of a data set of the hub: train or test.

    Raises:
        DataError: there is no such source, or it cannot be read at all.
    """
    if source.startswith("builtin:"):
        return _read_builtin(source, split)
    path = Path(source)
    if path.is_file():
        return _read_file(path, columns, quotes)
    if path.is_dir():
        _check_folder(path)
    elif path.exists():
        raise DataError(f"{source} is not an ordinary file.", advice="Name a file with rows.")
    elif path.suffix.lower() in SUFFIXES or _is_missing_path(source):
        raise DataError(f"There is no file {source}.", advice=similar_names(path))
    return _read_hub(source, split)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no data set, before `datasets` searches all of it.

    Raises:
        DataError: it has more than a thousand files, or none that is known to hold rows.
    """
    files: list[str] = []
    places = 0
    for places, (place, _, names) in enumerate(os.walk(folder), 1):
        files += [os.path.join(place, name) for name in names]
        if len(files) > MOST_FILES or places > MOST_FILES:
            break
    of_rows = [file for file in files if Path(file).suffix.lower() in SUFFIXES]
    named = f"Name a file{_examples(of_rows)}."
    if len(files) > MOST_FILES or places > MOST_FILES:
        raise DataError(
            f"{folder} is a folder with more than {MOST_FILES:,} files or folders: no data set.",
            advice=named,
        )
    if not of_rows:
        raise DataError(f"{folder} is a folder without a file of rows.", advice=named)


def _examples(files: Sequence[str]) -> str:
    shown = [file for file in files if not file.endswith(PLAIN_TEXT)][:3]
    return f", such as {' or '.join(shown)}" if shown else ""


def is_delimited(source: str) -> bool:
    """Return True for a .csv or .tsv, in which every value is text."""
    return Path(source).suffix.lower() in (".csv", ".tsv") and Path(source).is_file()


def _is_missing_path(source: str) -> bool:
    """Return True if a source names a place on the disk that does not exist.

    A hub id is one word, or two with one slash between them.
    """
    path = Path(source)
    return path.parent != Path() and not path.exists() and source.count("/") != 1


def _read_builtin(source: str, split: str) -> Iterator[Record]:
    from lorakit.data import stdlib_docs

    if source != "builtin:stdlib-docs":
        raise DataError(f"There is no {source!r}.", advice="Builtin data: builtin:stdlib-docs.")
    return _number_rows(source, stdlib_docs.make_rows(split))


def _read_hub(source: str, split: str) -> Iterator[Record]:
    import datasets

    is_reachable = Path(source).is_dir() or not is_offline()
    try:
        with nullcontext() if is_reachable else data_sets_offline():
            builder = datasets.load_dataset_builder(source)
            _check_data_files(source, builder.config.data_files or {})
            builder.download_and_prepare()
            loaded = builder.as_dataset(split=split)
    except DataError:
        raise
    # Errors of the library and of its back ends are of many classes; each means no data.
    except Exception as error:
        what = "a data set" if Path(source).is_dir() else "a file here"
        raise DataError(
            f"{source} is not {what}, and `datasets` cannot load it: "
            f"{type(error).__name__}: {first_line(error)}",
            advice=f"{similar_names(Path(source))} {NAMING_ADVICE}".lstrip(),
        ) from error
    return _number_rows(source, loaded)


def _check_data_files(source: str, data_files: Mapping[str, Sequence[str]]) -> None:
    """Refuse a data set whose README.md, or a link in it, names data elsewhere.

    Args:
        source: a folder or a hub id.
        data_files: paths or addresses of its files, by split.

    Raises:
        DataError: each file outside of it is named.
    """
    files = dict.fromkeys(chain.from_iterable(data_files.values()))
    faults = [file for file in files if not _is_inside(file, source)]
    if faults:
        raise DataError(
            f"{source} names {plural(len(faults), 'file')} outside of it as its data.",
            faults,
            "Copy them into the data set, or name one of them. Nothing was read.",
        )


def _is_inside(file: str, source: str) -> bool:
    if Path(source).is_dir():
        return "://" not in file and not leaves_folder(Path(file), Path(source))
    return file.startswith(f"hf://datasets/{source}@")


def _read_file(path: Path, columns: Columns, quotes: bool | None) -> Iterator[Record]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        ending = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise DataError(
            f"The format of {path} is not supported: its name has {ending}.",
            advice=f"Supported endings are {' '.join(SUFFIXES)}.",
        )
    if suffix in TABLES:
        return _number_rows(path, _read_table(path))
    text = _read_text(path)
    if suffix in (".jsonl", ".ndjson"):
        return _parse_json_lines(path, text)
    if suffix == ".json":
        return _number_rows(path, _parse_json_list(path, text))
    if suffix == ".csv":
        return _parse_delimited(path, text, columns, ",", quotes=quotes is not False)
    if suffix == ".tsv":
        return _parse_delimited(path, text, columns, "\t", quotes=quotes is True)
    return _number_passages(path, text)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: byte {error.start} cannot be read.") from error


def _read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet or Arrow file."""
    import pyarrow as pa

    try:
        table = _open_table(path)
        # Rows of a damaged table can lie outside of the memory that was read.
        table.validate(full=True)
        return table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as a table: {first_line(error)}.") from error


def _open_table(path: Path) -> Any:  # noqa: ANN401  pyarrow has no types
    """Return the table of a file; its values are not checked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Not a memory map: a file that is cut off meanwhile would end the process.
    content = pa.py_buffer(path.read_bytes())
    if path.suffix.lower() == ".parquet":
        return pq.read_table(pa.BufferReader(content))
    try:
        return pa.ipc.open_stream(content).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(content).read_all()


def _number_rows(source: str | Path, rows: Iterable[object]) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        yield _check_object(f"{source}, row {number}", row)


def _number_passages(path: Path, text: str) -> Iterator[Record]:
    for number, passage in enumerate(split_passages(text), 1):
        yield Record(f"{path}, passage {number}", {"text": passage})


def _check_object(where: str, value: object) -> Record:
    if isinstance(value, Mapping):
        return Record(where, value)
    return Record(where, None, "is not an object with named values")


def _parse_json_lines(path: Path, text: str) -> Iterator[Record]:
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
        yield _check_object(where, value)


def _parse_json_list(path: Path, text: str) -> list[object]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, list):
        raise DataError(f"{path} holds a {type(values).__name__}, a list of rows is needed.")
    return values


def _parse_delimited(
    path: Path, text: str, columns: Columns, separator: str, *, quotes: bool
) -> Iterator[Record]:
    csv.field_size_limit(LARGEST_FIELD)
    # Not splitlines(): it also cuts at characters that a field may hold, such as U+2028.
    lines = io.StringIO(text) if quotes else text.split("\n")
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=quotes)
    by_number = any(isinstance(column, int) for column in columns.values())
    header = None if by_number else _read_header(path, reader, separator)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield Record(where, None, f"cannot be read: {error}; {QUOTES}")
            return
        if fields is None:
            return
        if fields and fields != [""]:
            yield _name_fields(where, fields, header)


def _name_fields(where: str, fields: list[str], header: list[str] | None) -> Record:
    """Return the record of a line: by number without a header, else by the header's names."""
    if header is None:
        return Record(where, dict(enumerate(fields)))
    if len(fields) != len(header):
        fault = f"has {plural(len(fields), 'field')}, the header has {len(header)}"
        return Record(where, None, fault)
    return Record(where, dict(zip(header, fields, strict=True)))


def _read_header(path: Path, reader: Iterator[list[str]], separator: str) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise DataError(f"The first line of {path} cannot be read: {error}; {QUOTES}.") from error
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        listed = ", ".join(repr(name) for name in repeated)
        raise DataError(f"{path} has more than one column called {listed}.")
    if len(names) == 1:
        _check_separator(path, names[0], separator)
    return names


def _check_separator(path: Path, name: str, separator: str) -> None:
    """Refuse a table whose only column has a name with another separator in it."""
    for other in ";\t|,":
        if other != separator and other in name:
            raise DataError(
                f"{path} has one column, called {name!r}: its fields seem to be separated by "
                f"{other!r}, not by {separator!r}.",
                advice="A .csv has commas, a .tsv tabs: convert or rename the file.",
            )


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
