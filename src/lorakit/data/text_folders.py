"""Folders of texts: a file for each text, in a sub-folder for each class."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from lorakit.data.content import open_text
from lorakit.data.records import Block
from lorakit.errors import NOT_STARTED, DataError
from lorakit.files import leaves_folder
from lorakit.text import plural

SUFFIXES = ("", ".txt")  # of texts; those of 20 Newsgroups have none
SPLITS = ("train", "test")
# Names of sub-folders that are classes, and of those whose texts have no label.
CLASSES = {"neg", "pos", "negative", "positive", "neutral", "ham", "spam"}
UNLABELLED = {"unsup", "unlabeled", "unlabelled"}
SHOWN = 5  # sub-folders that a message names

Folders = Mapping[str, Sequence[Path]]  # the files of each sub-folder


def find_folders(folder: Path, split: str) -> Folders:
    """Return the text files of each sub-folder; none where the folder holds something else.

    Args:
        folder: with sub-folders, or with `train` and `test` that have them.
        split: train or test.
    """
    try:
        return _list_texts(folder / split if (folder / split).is_dir() else folder)
    except OSError:  # a folder that may not be read holds no data
        return {}


def _list_texts(folder: Path) -> Folders:
    with os.scandir(folder) as entries:
        shown = sorted((one for one in entries if one.name[0] != "."), key=lambda one: one.name)
    names = [entry.name for entry in shown if entry.is_dir()]
    others = [entry.name for entry in shown if not entry.is_dir()]
    are_classes = bool(CLASSES.intersection(names))
    if len(names) < 2 or set(SPLITS) & {*names} or (others and not are_classes):
        return {}
    found: dict[str, Sequence[Path]] = {}
    for name in names:
        with os.scandir(folder / name) as entries:
            files = sorted(one.name for one in entries if one.name[0] != ".")
        if not files or any(os.path.splitext(file)[1].lower() not in SUFFIXES for file in files):
            return {}
        found[name] = [folder / name / file for file in files]
    return found


def check_folders(source: str, folders: Folders, columns: Mapping[str, str | int]) -> None:
    """Refuse folders of texts that may be classes or not, unless the user says what they are.

    Args:
        source: as the user named it.
        folders: the files of each.
        columns: as the user named them.

    Raises:
        DataError: nothing tells whether the names of the folders are to be learned, or a file is
            a link out of the source.
    """
    if not columns and not CLASSES.intersection(folders):
        shown = ", ".join([*folders][:SHOWN])
        raise DataError(
            f"{source} has {plural(len(folders), 'sub-folder')} of texts ({shown}): their names "
            "may be the labels of the texts, or say nothing about them.",
            advice="Give --columns text=text label=label to learn these labels, or --columns "
            f"text=text to learn the texts. {NOT_STARTED}",
        )
    files = chain.from_iterable(folders.values())
    faults = [str(file) for file in files if leaves_folder(file, Path(source))]
    if faults:
        raise DataError(
            f"{source} has {plural(len(faults), 'link')} to files outside of it.",
            faults,
            f"Copy these files into the folder. {NOT_STARTED}",
        )


def read_texts(folders: Folders) -> Iterator[Block]:
    """Yield a block for each text, with the name of its folder as label; one of each in turn."""
    labels = [None if name in UNLABELLED else name for name in folders]
    for files in zip_longest(*folders.values()):
        for label, file in zip(labels, files, strict=True):
            if file is not None:
                values = {"text": open_text(file).read(), "label": label}
                yield Block(f"{file}:", [1], [values])


def list_classes(folders: Folders) -> tuple[str, ...]:
    """Return the names of the folders that are labels."""
    return tuple(name for name in folders if name not in UNLABELLED)
