"""The text of a file: packed by gzip or not, in one of the usual encodings."""

import gzip
import io
import re
import zlib
from pathlib import Path

from lorakit.errors import DataError
from lorakit.text import first_line, format_bytes

GZIP = b"\x1f\x8b"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
MOST_GROWTH = 200  # times: a text that grows more by unpacking is an attack
# A character of two or more bytes in UTF-8.
MULTIBYTE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)


def read_text(path: Path) -> tuple[str, str]:
    """Return the text of a file, and the name of its encoding where it is not UTF-8.

    Raises:
        DataError: it cannot be unpacked, or is in no known encoding.
    """
    content = path.read_bytes()
    if content.startswith(GZIP):
        content = _unpack(path, content)
    text, encoding = _decode(path, content)
    return text.replace("\r\n", "\n").replace("\r", "\n"), encoding


def _decode(path: Path, content: bytes) -> tuple[str, str]:
    if content.startswith(UTF_16) or _alternates(content):
        return _decode_utf_16(path, content)
    try:
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        if MULTIBYTE.search(content) or b"\0" in content:
            raise DataError(
                f"{path} is not UTF-8: byte {error.start} cannot be read.",
                advice="The rest of it is UTF-8: mend that character.",
            ) from error
    # Every byte means something in Latin-1; Windows writes quotation marks where it has none.
    try:
        return content.decode("cp1252"), "Windows-1252 (Latin-1)"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "Latin-1"


def is_packed(path: Path) -> bool:
    """Return True if the name of a file says that gzip packed it."""
    return path.suffix.lower() == ".gz"


def _unpack(path: Path, content: bytes) -> bytes:
    most = MOST_GROWTH * len(content)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {first_line(error)}.") from error
    if len(unpacked) > most:
        raise DataError(
            f"{path} has {format_bytes(len(content))}, and more than {format_bytes(most)} when "
            "it is unpacked.",
            advice="No text grows like that. Unpack it yourself if you trust it.",
        )
    return unpacked


def _alternates(content: bytes) -> bool:
    """Return True if every second byte of the beginning is zero, as in UTF-16 of Latin letters."""
    start = content[:64]
    if len(start) < 4 or len(start) % 2:
        return False
    return not any(start[1::2]) or not any(start[::2])


def _decode_utf_16(path: Path, content: bytes) -> tuple[str, str]:
    codec = "utf-16"
    if not content.startswith(UTF_16):
        codec = "utf-16-le" if not any(content[1:64:2]) else "utf-16-be"
    try:
        return content.decode(codec), "UTF-16"
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-16, as it begins: byte {error.start} cannot be read."
        ) from error
