"""Sources of rows: files, data sets on the hub and the builtin data set.

A record has the columns and values of the file; layouts say which rows they make.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lorakit.data.class_names import Names, NamesByColumn, find_names
from lorakit.data.content import Text, is_packed, open_text
from lorakit.data.documents import (
    holds_references,
    holds_tags,
    number_passages,
    parse_json,
    parse_references,
    parse_tags,
    refuse_labels,
)
from lorakit.data.hub import data_sets_offline, is_offline, similar_names
from lorakit.data.records import Block, number_rows
from lorakit.data.tables import (
    NAMES,
    SEPARATORS,
    Columns,
    find_declared,
    find_form,
    is_table_without_layout,
    parse_delimited,
    read_class_names,
    read_table,
    usual_form,
)
from lorakit.data.text_folders import (
    Folders,
    check_folders,
    find_folders,
    list_classes,
    read_texts,
)
from lorakit.errors import DataError
from lorakit.files import leaves_folder
from lorakit.text import first_line, plural

JSON = (".jsonl", ".ndjson", ".json")
TABLES = (".parquet", ".arrow")
PLAIN_TEXT = (".txt", ".md")
SUFFIXES = (*JSON, ".csv", ".tsv", *TABLES, *PLAIN_TEXT)
# Files that `datasets` writes beside rows, and files that hold one split.
MADE = {"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"}
SPLIT = re.compile(r"(?<![a-z])(train(ing)?|test(ing)?|valid(ation)?|dev|eval(uation)?)(?![a-z])")
MOST_FILES = 1000  # of a folder that is a data set
NAMING_ADVICE = "Name a file, builtin:stdlib-docs, or a data set of the hub."


@dataclass(frozen=True)
class Reading:
    """How a source is read, as the user said.

    Attributes:
        columns: the column of each key that is called otherwise; numbers in a table without a
            header.
        quotes: True if quotation marks wrap fields of a table; None to find it out.
        separator: between the fields of a table, a key of tables.SEPARATORS, or auto.
        whole: False if only the first rows are read, so that no file is searched to its end.
    """

    columns: Columns = field(default_factory=dict[str, str | int])
    quotes: bool | None = None
    separator: str = "auto"
    whole: bool = True


@dataclass(frozen=True)
class Source:
    """Records of a source.

    Attributes:
        blocks: of records, in their order.
        typed: True if the source tells texts from numbers, as JSON does and a .csv does not.
        notes: how it was read, where that is not what its name says.
        names: the names of classes by column, where the source holds their numbers.
    """

    blocks: Iterable[Block]
    typed: bool = True
    notes: tuple[str, ...] = ()
    names: NamesByColumn = field(default_factory=dict[str, Names])


def open_source(source: str, reading: Reading, split: str) -> Source:
    """Return the records of a source.

    Args:
        source: a file, `builtin:NAME`, or a hub id or folder that the `datasets` library loads.
        reading: how the user said that it is to be read.
        split: of a builtin or of a data set of the hub: train or test.

    Raises:
        DataError: there is no such source, or it cannot be read at all.
    """
    if source.startswith("builtin:"):
        return Source(_read_builtin(source, split))
    path = Path(source)
    if path.is_file():
        return _read_file(path, reading)
    if path.is_dir():
        folders = find_folders(path, split)
        if folders:
            return _read_folders(source, folders, reading)
        _check_folder(path)
    elif path.exists():
        raise DataError(f"{source} is not an ordinary file.", advice="Name a file with rows.")
    elif _suffix(path) in SUFFIXES or _is_missing_path(source):
        raise DataError(f"There is no file {source}.", advice=similar_names(path))
    return _read_hub(source, split)


def list_files(source: str, split: str = "train") -> list[str]:
    """Return the files of a folder that are read one after the other; none for anything else.

    A folder that `datasets` made, that has a data card, or whose files are called like splits, is
    left to that library.

    Args:
        source: as for `open_source`.
        split: as for `open_source`.

    Raises:
        DataError: it is no data set, or a link in it shows a file elsewhere.
    """
    folder = Path(source)
    if source.startswith("builtin:") or not folder.is_dir() or find_folders(folder, split):
        return []
    _check_folder(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    suffixes = {_suffix(path) for path in files}
    of_library = suffixes.intersection(TABLES) or {path.name for path in files} & MADE
    if of_library or _has_card(folder) or any(SPLIT.search(path.stem.lower()) for path in files):
        return []
    for wanted in ((*JSON, ".csv", ".tsv"), (".txt",)):
        chosen = [str(path) for path in files if _suffix(path) in wanted]
        if chosen:
            _check_data_files(source, {"": chosen})
            return chosen
    return []


def _read_folders(source: str, folders: Folders, reading: Reading) -> Source:
    """Return the texts of sub-folders, whose names are the labels."""
    check_folders(source, folders, reading.columns)
    classes = list_classes(folders)
    is_labelled = not reading.columns or "label" in reading.columns
    told = f"the names of its {len(classes)} sub-folders are the labels"
    notes = (told,) if is_labelled else ()
    return Source(read_texts(folders), notes=notes, names={"label": classes})


def _has_card(folder: Path) -> bool:
    """Return True if the README.md of a folder begins with settings, which may name its files."""
    card = folder / "README.md"
    try:
        return card.is_file() and card.read_bytes()[:3] == b"---"
    except OSError:
        return False


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
    of_rows = [file for file in files if _suffix(Path(file)) in SUFFIXES]
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


def _is_missing_path(source: str) -> bool:
    """Return True if a source names a place on the disk that does not exist.

    A hub id is one word, or two with one slash between them.
    """
    path = Path(source)
    return path.parent != Path() and not path.exists() and source.count("/") != 1


def _read_builtin(source: str, split: str) -> Iterator[Block]:
    from lorakit.data import stdlib_docs

    if source != "builtin:stdlib-docs":
        raise DataError(f"There is no {source!r}.", advice="Builtin data: builtin:stdlib-docs.")
    return number_rows(source, stdlib_docs.make_rows(split))


def _read_hub(source: str, split: str) -> Source:
    import datasets

    is_reachable = Path(source).is_dir() or not is_offline()
    try:
        with nullcontext() if is_reachable else data_sets_offline():
            builder = datasets.load_dataset_builder(source)
            _check_data_files(source, builder.config.data_files or {})
            builder.download_and_prepare()
            loaded: Any = builder.as_dataset(split=split)
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
    names = find_names(loaded.features.to_dict()) if loaded.features else {}
    return Source(number_rows(source, loaded), names=names)


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


def _suffix(path: Path) -> str:
    """Return the ending of a file's name; of a file that gzip packed, the one before .gz."""
    named = Path(path.stem) if is_packed(path) else path
    return named.suffix.lower()


def _read_file(path: Path, reading: Reading) -> Source:
    suffix = _suffix(path)
    if suffix not in SUFFIXES:
        ending = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise DataError(
            f"The format of {path} is not supported: its name has {ending}.",
            advice=f"Supported endings are {' '.join(SUFFIXES)}, each also with .gz.",
        )
    if suffix in TABLES:
        return Source(number_rows(path, read_table(path)), names=read_class_names(path))
    text = open_text(path, whole=reading.whole)
    notes = (f"read as {text.encoding}",) if text.encoding else ()
    if suffix in JSON:
        return Source(parse_json(text, by_line=suffix != ".json"), notes=notes)
    if suffix in PLAIN_TEXT:
        return _read_plain_text(text, reading, notes)
    usual = "," if suffix == ".csv" else "\t"
    return _read_delimited(text, reading, usual, notes)


def _read_delimited(text: Text, reading: Reading, usual: str, notes: tuple[str, ...]) -> Source:
    """Return the records of a table, whose form is found from its first lines."""
    declared = find_declared(text)
    if declared:
        text = replace(text, skipped=1)
        usual = declared
    if reading.separator != "auto":
        usual = SEPARATORS[reading.separator]
        tried = [usual]
    else:
        tried = [usual, *(one for one in SEPARATORS.values() if one != usual and not declared)]
    known = find_form(text, reading.columns, tried, reading.quotes)
    form = known or usual_form(text, reading.columns, usual, reading.quotes)
    if form.separator != usual:
        notes = (*notes, f"its fields are separated by a {NAMES[form.separator]}")
    if form.quotes and form.separator == "\t" and reading.quotes is None:
        notes = (*notes, "quotation marks wrap its fields")
    return Source(parse_delimited(text, form), typed=False, notes=notes)


def _read_plain_text(text: Text, reading: Reading, notes: tuple[str, ...]) -> Source:
    """Return the rows of a table, the pairs of `data||reference`, or the passages of a text."""
    is_table = reading.separator != "auto" or reading.columns or find_declared(text)
    if is_table or find_form(text, reading.columns, ["\t"], reading.quotes):
        return _read_delimited(text, reading, "\t", (*notes, "it is a table"))
    if holds_tags(text):
        return Source(parse_tags(text), notes=(*notes, "its lines are tokens with their tags"))
    if is_table_without_layout(text):
        return _read_delimited(text, reading, "\t", (*notes, "it is a table"))
    refuse_labels(text)
    if holds_references(text):
        return Source(parse_references(text), notes=(*notes, "its lines are `data||reference`"))
    return Source(number_passages(text), notes=notes)
