"""Records of tables: delimited text, Parquet and Arrow."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data.documents import Record
from lorakit.data.layouts import find_headerless, find_layout
from lorakit.errors import DataError
from lorakit.text import first_line, plural

if TYPE_CHECKING:
    from _csv import Reader

# The column of each key: its name, or its number in a table without a header.
Columns = Mapping[str, str | int]

LARGEST_FIELD = 1 << 28
SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}
NAMES = {separator: name for name, separator in SEPARATORS.items()}
QUOTES = "see --quotes and --no-quotes"
WRAPPED = re.compile(r'"(?:[^"]|"")*"')  # a field as csv writes it


@dataclass(frozen=True)
class Form:
    """How a delimited text is written.

    Attributes:
        separator: between fields.
        quotes: True if quotation marks wrap fields.
        has_header: True if the first line names the columns.
        is_known: True if its columns are those of a known layout.
    """

    separator: str
    quotes: bool
    has_header: bool
    is_known: bool = False


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet or Arrow file.

    Raises:
        DataError: it is damaged, or no such file.
    """
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


def find_form(
    text: str, columns: Columns, separators: Sequence[str], quotes: bool | None
) -> Form | None:
    """Return the form in which the columns of a text are those of a known layout, or None.

    Args:
        text: of the file.
        columns: as the user named them.
        separators: to try, the usual one first.
        quotes: as the user said; None to find it out.
    """
    for separator in separators:
        wraps = _wraps(text, separator) if quotes is None else quotes
        try:
            lines = list(islice(_read_lines(text, separator, quotes=wraps), 2))
        except csv.Error:
            continue
        if not lines or len(lines[0]) < 2:
            continue
        by_number = dict(enumerate(lines[0]))
        if find_headerless(by_number) and not columns:
            return Form(separator, wraps, has_header=False, is_known=True)
        by_name = dict(zip(lines[0], lines[-1], strict=False))
        if find_layout(by_name, columns):
            return Form(separator, wraps, has_header=True, is_known=True)
    return None


def usual_form(text: str, columns: Columns, separator: str, quotes: bool | None) -> Form:
    """Return the form of a table whose columns are in no known layout."""
    wraps = _wraps(text, separator) if quotes is None else quotes
    by_number = any(isinstance(column, int) for column in columns.values())
    return Form(separator, wraps, has_header=not by_number)


def _wraps(text: str, separator: str) -> bool:
    """Return True if quotation marks wrap fields.

    They do where fields are separated by commas and the like. Where tabs separate them, quotation
    marks are usually text, unless only their removal gives all lines equally many fields, or the
    text shows how csv writes them: doubled inside of a field, and nowhere otherwise.
    """
    if separator != "\t":
        return True
    if len(_widths(text, separator, quotes=False)) > 1:
        return len(_widths(text, separator, quotes=True)) == 1
    fields = text.replace("\n", "\t").split("\t")
    quoted = [field for field in fields if field.startswith('"')]
    if not all(WRAPPED.fullmatch(field) for field in quoted):
        return False
    return any('""' in field[1:-1] for field in quoted)


def _widths(text: str, separator: str, *, quotes: bool) -> set[int]:
    """Return the numbers of fields that lines have; none where it cannot be read."""
    try:
        return {len(fields) for fields in _read_lines(text, separator, quotes=quotes)} - {0}
    except csv.Error:
        return set()


def _read_lines(text: str, separator: str, *, quotes: bool) -> "Reader":
    csv.field_size_limit(LARGEST_FIELD)
    # Not splitlines(): it also cuts at characters that a field may hold, such as U+2028.
    lines = io.StringIO(text) if quotes else text.split("\n")
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=separator, quoting=quoting, strict=quotes)


def parse_delimited(path: Path, text: str, form: Form) -> Iterator[Record]:
    """Yield the records of a delimited text.

    Raises:
        DataError: its header cannot be read, has a name twice, or has another separator.
    """
    reader = _read_lines(text, form.separator, quotes=form.quotes)
    header = _read_header(path, reader, form.separator) if form.has_header else None
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
                advice=f"Give --separator {NAMES[other]}.",
            )
