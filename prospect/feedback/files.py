"""Where rows come from: JSON lines, JSON, CSV, Parquet, `datasets` folders, the Hub, or memory.

What is wrong with one row is handed on as `Unreadable`, so that the others can still be read; what is wrong with the
whole file is a DataError.
"""

from __future__ import annotations

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from prospect.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pandas

Source: TypeAlias = "str | Path | Sequence[Mapping[str, Any]] | datasets.Dataset | pandas.DataFrame"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".txt")
_WRAPPERS = ("data", "rows", "examples")
"""Keys under which some JSON files hold their rows."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is no object of columns: what stands there, and why it cannot be read."""

    raw: str
    reason: str


Rows = Iterator[tuple[int, dict[str, Any] | Unreadable]]
"""(line, row), lines counted from 1. In JSON lines and CSV it is the line of the file, else the number of the row."""


def read_rows(source: Source) -> Rows:
    """The rows of any source. Raises DataError where there is no such source or it cannot be read as a whole."""
    from prospect.feedback import tables

    if not isinstance(source, str | Path):
        return tables.in_memory(source)
    path = Path(source)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError as error:  # a name too long to be one: someone passed the text itself
        raise DataError(f"is no name of a file: {error.strerror}", path=str(path)[:80]) from None
    if folder:
        return tables.datasets_folder(path)
    if not there:
        if isinstance(source, str) and _HUB_NAME.fullmatch(source) and not source.endswith(_SUFFIXES):
            return tables.hub(source)
        raise DataError(f"there is no such file or folder{_neighbour(path)}", path=path)
    data = _bytes(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "parquet" or data.startswith(b"PAR1"):
        return tables.parquet(data, path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 FILE", path=path)
    data = data.removeprefix(b"\xef\xbb\xbf")
    if kind in ("csv", "tsv"):
        return tables.csv_rows(data, path, "\t" if kind == "tsv" else None)
    return _json(data, path)


def source_name(source: Source) -> str:
    """What to call a source in messages and reports."""
    return str(source) if isinstance(source, str | Path) else f"{type(source).__name__} in memory"


def decoded(data: bytes, path: Path) -> str:
    """A whole file's text. Raises DataError with line and byte offset where it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(_not_utf8(data, error.start), path=path, line=line) from None


def _not_utf8(data: bytes, offset: int) -> str:
    return (
        f"is not UTF-8: byte 0x{data[offset]:02x} at offset {offset} of the file. If it is Latin-1, convert it: "
        "iconv -f LATIN1 -t UTF-8 FILE"
    )


def _neighbour(path: Path) -> str:
    """The most similar name in the same folder, as a question."""
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    match = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.6)
    return f'. Did you mean "{path.parent / match[0]}"?' if match else ""


def _bytes(path: Path) -> bytes:
    """The file's content, unpacked where it is gzip."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    if path.suffix == ".gz" or data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data) if data else data
        except (OSError, EOFError, zlib.error) as error:
            reason = "it ends too early" if isinstance(error, EOFError) else error
            raise DataError(f"is corrupt gzip ({reason}). Copy or download it again", path=path) from None
    if not data.strip():
        raise DataError("is empty", path=path)
    return data


def _json(data: bytes, path: Path) -> Rows:
    """JSON lines or one JSON document, by the look of its beginning."""
    start = data.lstrip()[:1]
    if start == b"[":
        return _document(json_document(data, path))
    if start != b"{":
        known = " ".join(_SUFFIXES[:-2])
        raise DataError(
            f"is neither JSON nor JSON lines: it begins with {data.lstrip()[:20]!r}. Known kinds of files: {known}",
            path=path,
            line=1,
        )
    lines = [line for line in data.split(b"\n", 40) if line.strip()]
    if len(lines) > 1 and lines[0].strip() != b"{":
        return _json_lines(data)
    try:
        value = json_document(data, path)
    except DataError:
        if len(lines) > 1:
            raise
        return _json_lines(data)
    held = next(iter(value.values())) if len(value) == 1 and next(iter(value)) in _WRAPPERS else None
    return _document(held if isinstance(held, list) else [value])


def json_document(data: bytes, path: Path) -> Any:
    """One JSON value. Raises DataError with the line where it breaks."""
    try:
        return json.loads(decoded(data, path))
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON at column {error.colno}: {error.msg}", path=path, line=error.lineno) from None
    except RecursionError:
        raise DataError("JSON is nested too deeply", path=path) from None


def _document(values: list[Any]) -> Rows:
    for number, value in enumerate(values, 1):
        yield number, value if isinstance(value, dict) else _no_object(value, json.dumps(value, ensure_ascii=False))


def _no_object(value: Any, raw: str) -> Unreadable:
    return Unreadable(raw, f'must be an object such as {{"prompt": ...}}, not a {type(value).__name__}')


def _json_lines(data: bytes) -> Rows:
    offset = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        start, offset = offset, offset + len(line) + 1
        if not line.strip():
            continue
        raw = line.decode("utf-8", "backslashreplace").rstrip("\r")
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number, Unreadable(raw, _not_utf8(data, start + error.start))
        except json.JSONDecodeError as error:
            yield number, Unreadable(raw, f"broken JSON at column {error.colno}: {error.msg}")
        except RecursionError:
            yield number, Unreadable(raw, "JSON is nested too deeply")
        else:
            yield number, value if isinstance(value, dict) else _no_object(value, raw)
