"""The text of a file: packed by gzip or not, in one of the usual encodings, read as needed."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO

from lorakit.errors import DataError
from lorakit.text import first_line, format_bytes

GZIP = b"\x1f\x8b"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
CHUNK = 1 << 20  # bytes that are read at once
HEAD = 1 << 22  # characters of the beginning, by which the form of a file is found
MOST_GROWTH = 200  # times: a text that grows more by unpacking is an attack
# A character of two or more bytes in UTF-8.
MULTIBYTE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
LONGEST_CHARACTER = 4  # bytes


@dataclass(frozen=True)
class Text:
    """The text of a file, of which no more is read than is asked for.

    Attributes:
        path: of the file.
        codec: by which Python decodes it.
        encoding: its name where it is not UTF-8.
        skipped: number of lines at its beginning that are not of its content.
    """

    path: Path
    codec: str
    encoding: str
    skipped: int = 0

    @cached_property
    def head(self) -> tuple[str, bool]:
        """The text, or whole lines of its beginning; and True if that is all of it."""
        begun = ""
        for part in self.parts():
            begun += part
            if len(begun) > HEAD:
                end = begun.rfind("\n", 0, HEAD)
                return self._skip(begun[: HEAD if end < 0 else end]), False
        return self._skip(begun), True

    def _skip(self, begun: str) -> str:
        return "\n".join(begun.split("\n")[self.skipped :]) if self.skipped else begun

    def parts(self) -> Iterator[str]:
        """Yield the text in parts; every line ends in a line feed.

        Raises:
            DataError: it cannot be unpacked, or a byte is in another encoding than the beginning.
        """
        decoder = codecs.getincrementaldecoder(self.codec)()
        lines = io.IncrementalNewlineDecoder(decoder, translate=True)
        try:
            for chunk in _read_chunks(self.path):
                yield lines.decode(chunk)
            yield lines.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path} is not {self.encoding or 'UTF-8'}, as it begins: {error.reason}."
            ) from error

    def lines(self) -> Iterator[str]:
        """Yield the lines without their ends."""
        return islice(chain.from_iterable(self.blocks_of_lines()), self.skipped, None)

    def blocks_of_lines(self) -> Iterator[list[str]]:
        """Yield all lines without their ends, those that are read at once together."""
        # Not splitlines(): it also cuts at characters that a field may hold, such as U+2028.
        begun: list[str] = []
        for part in self.parts():
            end, *lines = part.split("\n")
            begun.append(end)
            if lines:
                lines.insert(0, "".join(begun))
                begun = [lines.pop()]
                yield lines
        yield ["".join(begun)]

    def read(self) -> str:
        """Return the whole text."""
        return "".join(self.parts())


def open_text(path: Path, *, whole: bool = True) -> Text:
    """Return the text of a file, in the encoding that is found.

    Args:
        path: of the file.
        whole: False to find the encoding by the beginning alone.

    Raises:
        DataError: it cannot be unpacked, or is in no known encoding.
    """
    start = next(_read_chunks(path), b"")
    if start.startswith(UTF_16) or _alternates(start):
        codec = _name_utf_16(start)
        error = _find_error(path, codec, whole=whole)
        if error is not None:
            problem = f"{path} is not UTF-16, as it begins: byte {error} cannot be read."
            raise DataError(problem)
        return Text(path, codec, "UTF-16")
    error = _find_error(path, "utf-8-sig", whole=whole)
    if error is None:
        return Text(path, "utf-8-sig", "")
    if _holds_other_than_latin(path):
        raise DataError(
            f"{path} is not UTF-8: byte {error} cannot be read.",
            advice="The rest of it is UTF-8: mend that character.",
        )
    # Every byte means something in Latin-1; Windows writes quotation marks where it has none.
    if _find_error(path, "cp1252", whole=True) is None:
        return Text(path, "cp1252", "Windows-1252 (Latin-1)")
    return Text(path, "latin-1", "Latin-1")


def _find_error(path: Path, codec: str, *, whole: bool) -> int | None:
    """Return the position of the first byte that a codec cannot decode, or None."""
    decoder = codecs.getincrementaldecoder(codec)()
    count = pending = 0
    try:
        for chunk in _read_chunks(path):
            pending = len(decoder.getstate()[0])  # bytes of a character that goes on
            decoder.decode(chunk)
            count += len(chunk)
            if not whole:
                return None
        pending = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return count - pending + error.start
    return None


def _holds_other_than_latin(path: Path) -> bool:
    """Return True if a file has a character of UTF-8, or a zero."""
    before = b""
    for chunk in _read_chunks(path):
        if MULTIBYTE.search(before + chunk) or b"\0" in chunk:
            return True
        before = chunk[1 - LONGEST_CHARACTER :]
    return False


def is_packed(path: Path) -> bool:
    """Return True if the name of a file says that gzip packed it."""
    return path.suffix.lower() == ".gz"


def _read_chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked."""
    with path.open("rb") as file:
        is_gzip = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if is_gzip:
            yield from _unpack(path, file)
        while chunk := file.read(CHUNK):
            yield chunk


def _unpack(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    size = path.stat().st_size
    most = MOST_GROWTH * size
    count = 0
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            while chunk := unpacked.read(CHUNK):
                count += len(chunk)
                if count > most:
                    break
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {first_line(error)}.") from error
    if count > most:
        raise DataError(
            f"{path} has {format_bytes(size)}, and more than {format_bytes(most)} when it is "
            "unpacked.",
            advice="No text grows like that. Unpack it yourself if you trust it.",
        )


def _alternates(content: bytes) -> bool:
    """Return True if every second byte of the beginning is zero, as in UTF-16 of Latin letters."""
    start = content[:64]
    if len(start) < 4 or len(start) % 2:
        return False
    return not any(start[1::2]) or not any(start[::2])


def _name_utf_16(content: bytes) -> str:
    if content.startswith(UTF_16):
        return "utf-16"
    return "utf-16-le" if not any(content[1:64:2]) else "utf-16-be"
