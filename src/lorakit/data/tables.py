"""Records of tables: delimited text, Parquet and Arrow."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.data.class_names import NamesByColumn, read_names
from lorakit.data.content import Text
from lorakit.data.layouts import find_headerless, find_layout
from lorakit.data.records import Block, Found, gather
from lorakit.errors import DataError
from lorakit.text import first_line, plural

if TYPE_CHECKING:
    from _csv import Reader

# The column of each key: its name, or its number in a table without a header.
Columns = Mapping[str, str | int]

LARGEST_FIELD = 1 << 28
ROWS = 1000  # of a table that are made at once
SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}
NAMES = {separator: name for name, separator in SEPARATORS.items()}
QUOTES = "see --quotes and --no-quotes"
WRAPPED = re.compile(r'"(?:[^"]|"")*"')  # a field as csv writes it
MOST_LINES = 100  # over which a field goes
DECLARED = re.compile(r'"?sep=([,;|\t])"?')  # a first line, by which Excel knows the separator

Fields = list[str]
Numbered = tuple[int, Fields]  # the fields of a row, and the number of its first line


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


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet or Arrow file, of which a part at a time is read.

    Raises:
        DataError: it is damaged, or no such file.
    """
    with _open_table(path) as (_, batches):
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                part = batch.slice(start, ROWS)
                # Rows of a damaged table can lie outside of the memory that was read.
                part.validate(full=True)
                yield from part.to_pylist()


def read_class_names(path: Path) -> NamesByColumn:
    """Return the names of classes that a Parquet or Arrow file holds, by column.

    Raises:
        DataError: as `read_table`.
    """
    with _open_table(path) as (schema, _):
        return read_names(schema.metadata)


@contextmanager
def _open_table(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Give the schema and the record batches of a file; the values of these are not checked.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa

    try:
        # Not a memory map: a file that is cut off meanwhile would end the process.
        with pa.OSFile(str(path)) as file:
            yield _open_batches(path, file)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as a table: {first_line(error)}.") from error


def _open_batches(path: Path, file: Any) -> tuple[Any, Iterator[Any]]:  # noqa: ANN401  untyped
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, parquet.iter_batches(ROWS)
    try:
        stream = pa.ipc.open_stream(file)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(file)
        numbers = range(reader.num_record_batches)
        return reader.schema, (reader.get_batch(number) for number in numbers)
    return stream.schema, iter(stream)


def find_declared(text: Text) -> str:
    """Return the separator that the first line of a text declares; empty if it declares none."""
    declared = DECLARED.fullmatch(text.head[0].partition("\n")[0])
    return declared.group(1) if declared else ""


def find_form(
    text: Text, columns: Columns, separators: Sequence[str], quotes: bool | None
) -> Form | None:
    """Return the form in which the columns of a text are those of a known layout, or None.

    Args:
        text: of the file.
        columns: as the user named them.
        separators: to try, the usual one first.
        quotes: as the user said; None to find it out.
    """
    first = text.head[0].split("\n")
    for separator in separators:
        wraps = _wraps(text, separator) if quotes is None else quotes
        try:
            lines = list(islice(_read_lines(first, separator, quotes=wraps), 2))
        except csv.Error:
            continue
        if not lines or len(lines[0]) < 2:
            continue
        by_number = dict(enumerate(lines[0]))
        if find_headerless(by_number) and not columns:
            return Form(separator, wraps, has_header=False, is_known=True)
        by_name = dict(zip(_name_columns(lines[0]), lines[-1], strict=False))
        if find_layout(by_name, columns):
            return Form(separator, wraps, has_header=True, is_known=True)
    return None


def is_table_without_layout(text: Text) -> bool:
    """Return True if the lines of a text have tabs, and all equally many."""
    head, _ = text.head
    counts = {line.count("\t") for line in head.split("\n") if line.strip()}
    several = head.strip().count("\n") > 0
    return several and len(counts) == 1 and 0 not in counts


def usual_form(text: Text, columns: Columns, separator: str, quotes: bool | None) -> Form:
    """Return the form of a table whose columns are in no known layout."""
    wraps = _wraps(text, separator) if quotes is None else quotes
    by_number = any(isinstance(column, int) for column in columns.values())
    first = text.head[0].partition("\n")[0].split(separator)
    return Form(separator, wraps, has_header=not by_number or _is_numbered(first))


def _wraps(text: Text, separator: str) -> bool:
    """Return True if quotation marks wrap fields.

    They do where fields are separated by commas and the like. Where tabs separate them, quotation
    marks are usually text, unless only their removal gives all lines equally many fields, or the
    text shows how csv writes them: doubled inside of a field, and nowhere otherwise.
    """
    if separator != "\t":
        return True
    head, is_short = text.head
    lines = head.split("\n")
    if len(_widths(lines, separator, quotes=False)) > 1:
        return len(_widths(lines, separator, quotes=True, is_cut=not is_short)) == 1
    fields = head.replace("\n", "\t").split("\t")
    quoted = [field for field in fields if field.startswith('"')]
    if not all(WRAPPED.fullmatch(field) for field in quoted):
        return False
    return any('""' in field[1:-1] for field in quoted)


def _widths(
    lines: Sequence[str], separator: str, *, quotes: bool, is_cut: bool = False
) -> set[int]:
    """Return the numbers of fields that lines have; none where they cannot be read."""
    widths: set[int] = set()
    reader = _read_lines(lines, separator, quotes=quotes)
    try:
        for fields in reader:
            widths.add(len(fields))
    except csv.Error:
        # Lines that were cut off may end inside of a field.
        if not is_cut or reader.line_num < len(lines):
            return set()
    return widths - {0}


def _read_lines(lines: Iterable[str], separator: str, *, quotes: bool) -> "Reader":
    csv.field_size_limit(LARGEST_FIELD)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    ended = (f"{line}\n" for line in lines)
    return csv.reader(ended, delimiter=separator, quoting=quoting, strict=quotes)


def parse_delimited(text: Text, form: Form) -> Iterator[Block]:
    """Return the records of a delimited text.

    Raises:
        DataError: its header cannot be read, has a name twice, or has another separator.
    """
    rows = _read_rows(text, form)
    header = None
    if form.has_header:
        _, names = next(rows, (0, []))
        if isinstance(names, csv.Error):
            problem = f"The first line of {text.path} cannot be read: {names}; {QUOTES}."
            raise DataError(problem)
        header = _check_header(text.path, names, form.separator)
        rows = rows if form.quotes else _join_broken(rows, len(header))
    return gather(f"{text.path}:", _find_values(rows, header))


def _read_rows(text: Text, form: Form) -> Iterator[tuple[int, Fields | csv.Error]]:
    """Yield the fields of each row with the number of its first line; at last why one has none."""
    reader = _read_lines(text.lines(), form.separator, quotes=form.quotes)
    number = text.skipped + 1
    try:
        for fields in reader:
            yield number, fields
            number = text.skipped + reader.line_num + 1
    except csv.Error as error:
        yield number, error


def _join_broken(
    rows: Iterable[tuple[int, Fields | csv.Error]], width: int
) -> Iterator[tuple[int, Fields | csv.Error]]:
    """Yield rows; those that a field in quotation marks breaks into several lines are joined.

    Such rows are in QQP of GLUE, all other quotation marks of which are text.

    Args:
        rows: read as if no quotation mark wrapped a field.
        width: number of fields that a row should have.
    """
    begun: list[Numbered] = []
    for number, fields in rows:
        if isinstance(fields, csv.Error) or (not begun and len(fields) >= width):
            yield from begun
            yield number, fields
            begun = []
            continue
        begun.append((number, fields))
        joined = _join_lines([own for _, own in begun])
        if len(joined) < width and joined[-1].startswith('"') and len(begun) < MOST_LINES:
            continue
        unwrapped = [text for text in map(_unwrap, joined) if text is not None]
        is_row = len(joined) == len(unwrapped) == width
        yield from [(begun[0][0], unwrapped)] if is_row else begun
        begun = []
    yield from begun


def _join_lines(lines: Sequence[Fields]) -> Fields:
    """Return the fields of lines, each of which goes on with the last field of the one before."""
    joined: Fields = []
    for fields in lines:
        first, *others = fields or [""]
        joined[-1:] = [f"{joined[-1]}\n{first}" if joined else first, *others]
    return joined


def _unwrap(field: str) -> str | None:
    """Return a field without the quotation marks around its lines; None if it has none."""
    if "\n" not in field:
        return field
    return field[1:-1].replace('""', '"') if WRAPPED.fullmatch(field) else None


def _find_values(
    rows: Iterable[tuple[int, Fields | csv.Error]], header: Sequence[str | int] | None
) -> Iterator[Found]:
    """Yield the values of each row that is not empty; a spreadsheet has empty rows too."""
    for number, fields in rows:
        if isinstance(fields, csv.Error):
            yield Found(number, None, f"cannot be read: {fields}; {QUOTES}")
        elif any(map(str.strip, fields)):
            yield _name_fields(number, fields, header)


def _name_fields(number: int, fields: Fields, header: Sequence[str | int] | None) -> Found:
    """Return the values of a line: by number without a header, else by the header's names."""
    if header is None:
        return Found(number, dict(enumerate(fields)))
    if len(fields) != len(header):
        fault = f"has {plural(len(fields), 'field')}, the header has {len(header)}"
        return Found(number, None, fault)
    return Found(number, dict(zip(header, fields, strict=True)))


def _check_header(path: Path, names: Fields, separator: str) -> list[str | int]:
    """Return the names of columns.

    Raises:
        DataError: a name is there twice, or the fields seem to have another separator.
    """
    if names.count("") > 1:  # a spreadsheet writes commas for columns that it shows as empty
        names = [name or str(number) for number, name in enumerate(names)]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        listed = ", ".join(repr(name) for name in repeated)
        raise DataError(
            f"{path} has more than one column called {listed}.",
            advice="If its first line names no columns, use their numbers, as in --columns text=1.",
        )
    if len(names) == 1:
        _check_separator(path, names[0], separator)
    return _name_columns(names)


def _name_columns(names: Fields) -> list[str | int]:
    """Return the names of columns, or the numbers that pandas writes for columns without names."""
    if not _is_numbered(names):
        return [*names]
    return [int(name) if name else name for name in names]


def _is_numbered(names: Fields) -> bool:
    """Return True for 0, 1, 2 and so on, after the empty name of pandas' index if it is there."""
    numbers = names[1:] if names[:1] == [""] else names
    return len(names) > 1 and numbers == [str(number) for number in range(len(numbers))]


def _check_separator(path: Path, name: str, separator: str) -> None:
    """Refuse a table whose only column has a name with another separator in it."""
    for other in ";\t|,":
        if other != separator and other in name:
            raise DataError(
                f"{path} has one column, called {name!r}: its fields seem to be separated by "
                f"{other!r}, not by {separator!r}.",
                advice=f"Give --separator {NAMES[other]}.",
            )
