"""Text that somebody else wrote, line by line: UTF-8, and bounded in memory whatever the file holds."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, cast

from sagediff.errors import InputError, first_line

MAX_LINE = 1 << 20  # characters; rows of prompts take some hundreds
_CHUNK = 1 << 16  # bytes read at once
# a compressed file that unpacks to more bytes than both is none of prompts, which shrink to a twentieth or so
_ROOM, _EXPANSION = 4 << 20, 200

_NOT_WESTERN = frozenset(b"\x81\x8d\x8f\x90\x9d")  # stand for nothing in Windows-1252
_CYRILLIC = b"\xa8\xb8"  # letters of Windows-1251 beside those from 0xc0 on
_EAST_ASIAN = {"shift_jis": "Shift-JIS", "gb18030": "GB18030 (GBK)", "big5": "Big5", "euc_kr": "EUC-KR"}

_SIGNATURES = (  # what a file that is no UTF-8 text begins with; longer ones first
    (b"\xff\xfe\x00\x00", "it is UTF-32; save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "it is UTF-32; save it as UTF-8"),
    (b"\xff\xfe", "it is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "it is UTF-16; save it as UTF-8"),
    (b"\x1f\x8b", "it is compressed with gzip; let its name end in .gz, or unpack it"),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet; save it as CSV in UTF-8"),
    (b"PAR1\x15", "it is a parquet file; let its name end in .parquet"),
)


def read_lines(path: Path) -> Iterator[str]:
    r"""Lines of a UTF-8 file, each with its end as "\n"; `.gz` is unpacked on the way. A pipe is read to its end.

    Lines end at "\n", "\r\n" and "\r" only: other separators of Unicode may stand inside a prompt.

    Raises:
        InputError: a file that cannot be read, or one that `lines_of` refuses.
    """
    with _opened(path) as (file, packed_size):
        yield from lines_of(file, shortened(path), packed_size=packed_size)


def read_pieces(path: Path) -> Iterator[str]:
    """As `read_lines`, the text in pieces of whatever length."""
    with _opened(path) as (file, packed_size):
        yield from pieces_of(file, shortened(path), packed_size=packed_size)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """A file's bytes, unpacked, and the size of the file where it is compressed."""
    with reading(path):
        size = regular_size(path)
        if path.suffix.lower() == ".gz":
            with gzip.open(path, "rb") as file:
                yield cast("IO[bytes]", file), size
        else:
            with path.open("rb") as plain:
                yield plain, None


def lines_of(file: IO[bytes], where: str, *, packed_size: int | None = None) -> Iterator[str]:
    r"""Lines of a stream of UTF-8, each with its end as "\n".

    Args:
        where: what the stream is, for messages.
        packed_size: bytes of the compressed file that the stream comes from.

    Raises:
        InputError: not UTF-8, a NUL, a line longer than `MAX_LINE`, or a file that unpacks to far more than it is.
    """
    yield from lines_in(pieces_of(file, where, packed_size=packed_size), where)


def lines_in(pieces: Iterable[str], where: str) -> Iterator[str]:
    """Lines of a text that comes in pieces; as `lines_of`."""
    number, rest = 1, ""
    for text in pieces:
        lines = (rest + text).split("\n")
        rest = lines.pop()
        if "\0" in text or len(rest) > MAX_LINE or (lines and len(lines[0]) > MAX_LINE):
            _refuse([*lines, rest], where, number)
        for line in lines:
            yield line + "\n"
        number += len(lines)
    if rest:
        yield rest


def pieces_of(file: IO[bytes], where: str, *, packed_size: int | None = None) -> Iterator[str]:
    r"""A stream of UTF-8 as text, in pieces, with "\n" for every line end; the arguments are those of `lines_of`.

    Raises:
        InputError: not UTF-8, or a file that unpacks to far more than it is.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    ends = io.IncrementalNewlineDecoder(decoder=None, translate=True)
    at, begun = 0, False
    while True:
        chunk = file.read(_CHUNK)
        if at == 0:
            _check_signature(chunk, where)
        waiting = len(decoder.getstate()[0])
        try:
            text = ends.decode(decoder.decode(chunk, final=not chunk), final=not chunk)
        except UnicodeDecodeError as error:
            raise InputError(_not_utf8(where, at - waiting + error.start, error)) from error
        at += len(chunk)
        if text and not begun:
            begun, text = True, text.removeprefix("\ufeff")
        if packed_size is not None and at > max(_ROOM, _EXPANSION * packed_size):
            raise InputError(
                f"{where}: {packed_size:,} bytes unpack to more than {at // (1 << 20)} MiB; if these are prompts, "
                "unpack the file first"
            )
        if text:
            yield text
        if not chunk:
            return


def _refuse(lines: Sequence[str], where: str, number: int) -> None:
    """Name the first line that is none; `number` is that of the first of them."""
    for at, line in enumerate(lines, number):
        if len(line) > MAX_LINE:
            raise InputError(f"{where}, line {at}: longer than {MAX_LINE:,} characters")
        if "\0" in line:
            raise InputError(
                f"{where}, line {at}: a NUL character; is it UTF-16? Save the file as UTF-8 text"
            )


def _check_signature(head: bytes, where: str) -> None:
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            byte = next((i for i, value in enumerate(signature) if value > 127), None)
            place = "" if byte is None else f" (byte {byte})"
            raise InputError(f"{where} is not UTF-8 text{place}: {words}")


def _not_utf8(where: str, byte: int, error: UnicodeDecodeError) -> str:
    value = error.object[error.start]
    return (
        f"{where} is not UTF-8 text (byte {byte}), it holds 0x{value:02x} there: if it is "
        f"{_likely_encoding(error.object)}, save it as UTF-8"
    )


def _likely_encoding(data: bytes) -> str:
    """What a text that is no UTF-8 may be in.

    Accents of Western texts stand alone among ASCII, characters of East Asian ones follow each other.
    """
    high = [at for at, value in enumerate(data[:_CHUNK]) if value > 127]
    runs = sum(two - one <= 2 for one, two in pairwise(high))
    if not _NOT_WESTERN.intersection(data) and runs < len(high) / 2:
        return "Windows-1252 (cp1252) or Latin-1"
    if all(data[at] >= 0xC0 or data[at] in _CYRILLIC for at in high):
        return "Windows-1251 (Cyrillic)"
    found = []
    for codec, name in _EAST_ASIAN.items():
        with suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder(codec)().decode(data)
            found.append(name)
    return " or ".join(found) or "in some older encoding"


# -- files of any kind that somebody names


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What can go wrong while a file is read, as an InputError that names it.

    Raises:
        InputError: as it says.
    """
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{shortened(path)} is not a whole gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {shortened(path)}: {error.strerror or first_line(error)}") from error
    except MemoryError as error:
        raise InputError(f"cannot read {shortened(path)}: it does not fit into memory") from error


def regular_size(path: Path) -> int | None:
    """A file's size in bytes; None for a pipe.

    Raises:
        InputError: nothing there, a folder, or a device or socket.
    """
    found = stat_of(path)
    if found is None:
        raise InputError(f"no such file: {shortened(path)}")
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{shortened(path)} is a folder, not a file")
    if stat.S_ISFIFO(found.st_mode):
        return None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{shortened(path)} is neither a file nor a pipe")
    return found.st_size


def stat_of(path: Path) -> os.stat_result | None:
    """What the disk says of a path; None where there is nothing.

    Raises:
        InputError: no path can be like this, or it may not be looked at.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL or half a surrogate pair
        raise InputError(
            f"cannot read {shortened(path)}: {getattr(error, 'strerror', None) or error}"
        ) from error


def is_file(path: Path) -> bool:
    """Whether a regular file is there, which may be opened without waiting for it.

    Raises:
        InputError: as `stat_of`.
    """
    found = stat_of(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """Whether a folder is there.

    Raises:
        InputError: as `stat_of`.
    """
    found = stat_of(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def shortened(path: Path | str, most: int = 200) -> str:
    """A path for a message: the end of one that is very long is left out."""
    text = str(path)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
