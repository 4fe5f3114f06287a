"""Files of feedback: opened, unpacked, and read as JSON or JSON lines.

What is wrong with one row is handed on as `Unreadable`, so that the others can still be read; what is wrong with the
whole file is a DataError. Files are read in pieces, and a packed one that would unpack to a multiple of its size is
refused before it is read: memory follows what is kept.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from prospect.errors import DataError
from prospect.feedback.messages import json_value

KINDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
"""Kinds of files, by how their names end."""


_WRAPPERS = ("data", "rows", "examples")
"""Keys under which some JSON files hold their rows."""

_PIECE = 1 << 20
"""Bytes that are read at a time."""


EXPANSION = 100
SMALL = 64 << 20
"""A packed file may unpack to EXPANSION times its own size, and in any case to SMALL bytes."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is no object of columns: what stands there, and why it cannot be read."""

    raw: str
    reason: str


Rows = Iterator[tuple[int, dict[str, Any] | Unreadable]]
"""(line, row), lines counted from 1. In JSON lines and CSV it is the line of the file, else the number of the row."""


def decoded(data: bytes, path: Path) -> str:
    """A whole file's text. Raises DataError with line and byte offset where it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(_not_utf8(data[error.start], error.start), path=path, line=line) from None


def too_large(path: Path, size: float, packed: int) -> DataError:
    """The refusal of a packed file whose content would take `size` bytes or more."""
    return DataError(
        f"unpacks to more than {size / 1e6:,.0f} MB from {packed / 1e6:.1f} MB, over {EXPANSION} times its size: it is "
        "not read, since it may be made to fill the memory. If you trust it, write it out first: prospect convert "
        f"{path} OUT.jsonl --any-size",
        path=path,
    )


def _not_utf8(byte: int, offset: int) -> str:
    return (
        f"is not UTF-8: byte 0x{byte:02x} at offset {offset} of the file. If it is Latin-1, convert it: "
        "iconv -f LATIN1 -t UTF-8 FILE"
    )


def open_file(path: Path) -> BinaryIO:
    """The file as it lies on disk, or what has come through a pipe, to be read more than once. Raises DataError."""
    try:
        file = path.open("rb")
        if file.seekable():
            return file
        with file:
            return io.BytesIO(file.read())
    except OSError as error:
        raise _not_read(path, error) from None


def pieces_of(file: BinaryIO, path: Path, *, any_size: bool) -> Iterator[bytes]:
    """The file's content piece by piece, unpacked where it is gzip; closes it. Raises DataError where it cannot be
    read, or where it would unpack to too much: that is found out before the first piece."""
    try:
        with file:
            file.seek(0)
            packed = path.suffix == ".gz" or file.read(2) == b"\x1f\x8b"
            size = file.seek(0, 2)
            if packed and size and not any_size:
                limit = max(SMALL, EXPANSION * size)
                unpacked = 0
                for piece in _read_pieces(file, packed=True):
                    unpacked += len(piece)
                    if unpacked > limit:
                        raise too_large(path, limit, size)
            yield from _read_pieces(file, packed=packed and size > 0)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = "it ends too early" if isinstance(error, EOFError) else error
        raise DataError(f"is corrupt gzip ({reason}). Copy or download it again", path=path) from None
    except OSError as error:
        raise _not_read(path, error) from None


def _not_read(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot be read: {error.strerror}", path=path)


def _read_pieces(file: BinaryIO, *, packed: bool) -> Iterator[bytes]:
    file.seek(0)
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
    while piece := stream.read(_PIECE):
        yield piece


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file without their ends."""
    begun: list[bytes] = []
    for piece in pieces:
        first, *rest = piece.split(b"\n")
        begun.append(first)
        for line in rest:
            yield b"".join(begun)
            begun = [line]
    yield b"".join(begun)


def json_rows(pieces: Iterable[bytes], path: Path, offset: int) -> Rows:
    """JSON lines or one JSON document, by the look of its first two lines; `offset` is where the pieces begin."""
    lines = _lines(pieces)
    seen: list[bytes] = []
    written: list[bytes] = []  # the first line that is not blank, and the second where the first may be a row
    for line in lines:
        seen.append(line)
        written += [line.strip()] if line.strip() else []
        if len(written) == 2 or (written and (written[0] == b"{" or not written[0].startswith(b"{"))):
            break
    if not written:  # a byte order mark and blanks
        raise DataError("is empty", path=path)
    first = written[0]
    if not first.startswith((b"[", b"{")):
        raise DataError(
            f"is neither JSON nor JSON lines: it begins with {first[:20]!r}. Known kinds of files: {' '.join(KINDS)}",
            path=path,
            line=1,
        )
    everything = itertools.chain(seen, lines)
    if len(written) == 2:
        return _json_lines(everything, offset)
    data = b"\n".join(everything)
    try:
        value = _document(data, path)
    except DataError:
        if first == b"{" or first.startswith(b"["):
            raise
        return _json_lines(data.split(b"\n"), offset)
    if isinstance(value, list):
        return _numbered(value)
    held = next(iter(value.values())) if len(value) == 1 and next(iter(value)) in _WRAPPERS else None
    return _numbered(held if isinstance(held, list) else [value])


def _document(data: bytes, path: Path) -> Any:
    """One JSON value. Raises DataError with the line where it breaks."""
    try:
        return json_value(decoded(data, path))
    except DataError as error:
        if error.path is not None:
            raise
        raise DataError(error.message, path=path, line=error.line) from None


def _numbered(values: list[Any]) -> Rows:
    for number, value in enumerate(values, 1):
        yield number, value if isinstance(value, dict) else _no_object(value, json.dumps(value, ensure_ascii=False))


def _no_object(value: Any, raw: str) -> Unreadable:
    return Unreadable(raw, f'must be an object such as {{"prompt": ...}}, not a {type(value).__name__}')


def _json_lines(lines: Iterable[bytes], offset: int) -> Rows:
    for number, line in enumerate(lines, 1):
        start, offset = offset, offset + len(line) + 1
        if not line.strip():
            continue
        raw = line.decode("utf-8", "backslashreplace").rstrip("\r")
        try:
            value = json_value(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number, Unreadable(raw, _not_utf8(line[error.start], start + error.start))
        except DataError as error:
            yield number, Unreadable(raw, error.message)
        else:
            yield number, value if isinstance(value, dict) else _no_object(value, raw)
