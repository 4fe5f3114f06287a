"""Where rows come from: files of any kind, folders, patterns, the Hub, or memory.

What is wrong with one row is handed on as `Unreadable`, so that the others can still be read; what is wrong with the
whole source is a DataError. Saved folders and the Hub are read by `datasets`, JSON by the standard library, which
knows the line of every row, an array of it one row at a time; `tables` has the rest. pyarrow, datasets and pandas are
imported only where their kind of source is given.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import gzip
import io
import itertools
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, TypeGuard, cast

from prospect.errors import DataError
from prospect.feedback.messages import BrokenJSON, json_value, json_value_at
from prospect.feedback.tables import (
    Rows,
    Unreadable,
    csv_rows,
    dataset_rows,
    first_line,
    limit_of,
    memory_rows,
    parquet_rows,
    too_large,
    with_numbers,
)

if TYPE_CHECKING:
    import datasets
    import pandas

Source: TypeAlias = (
    "str | Path | Sequence[str | Path] | Sequence[Mapping[str, Any]] | datasets.Dataset | pandas.DataFrame"
)

KINDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
"""Kinds of files, by how their names end."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_WRAPPERS = ("data", "rows", "examples", "feedback_data")
"""Keys under which some JSON files, and pages of interfaces, hold their rows."""

_PAGE = frozenset(
    (
        *("meta", "object", "has_more", "hasMore", "has_next", "limit", "offset", "page", "pages", "total", "count"),
        *("total_pages", "totalPages", "totalItems", "next", "previous", "cursor", "next_cursor", "nextCursor"),
        *("first_id", "last_id", "links", "export_info"),
    )
)
"""What a page says of itself beside its rows."""

_NO_SPACE = re.compile(r"[^ \t\n\r]")

CHUNK = 1 << 20
"""Bytes that are read of an array of JSON at a time."""


# What a source names

_WEIGHT = re.compile(r"(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


class OneSource(NamedTuple):
    """One file, or what else rows come from: `source` itself, how much its answers count, and the name behind which the
    user gave it."""

    source: Source
    weight: float = 1.0
    name: str = ""


def sources(source: Source) -> tuple[list[OneSource], list[str]]:
    """(each file that `source` names, a note per folder on what was not taken from it): a list of names, a pattern with
    * ? or [], or a folder stand for several files; whatever else stands for itself. A name may end with its weight:
    "a.jsonl:0.5".

    Raises DataError where a pattern or folder has no file, where a file is named twice, and for a weight of 0 or less.
    """
    files: list[OneSource] = []
    notes: list[str] = []
    for whole in source if _is_names(source) else [source]:
        if isinstance(whole, str | Path):
            name, weight = _with_weight(whole)
            files += (OneSource(file, weight, str(name)) for file in _files_of(name, notes))
        else:
            files.append(OneSource(cast(Source, whole)))
    paths = (Path(file.source).resolve() for file in files if isinstance(file.source, str | Path))
    for path, times in Counter(paths).items():
        if times > 1:
            raise DataError("is named twice", path=path)
    return files, notes


def _with_weight(name: str | Path) -> tuple[str | Path, float]:
    """A name and its weight. A file that is called so, or a pattern that matches so, is no name with a weight."""
    match = _WEIGHT.fullmatch(str(name))
    if match is None:
        return name, 1.0
    with suppress(OSError):  # a name too long to be one
        if Path(name).exists() or glob.glob(str(name), recursive=True):
            return name, 1.0
    weight = float(match[2])
    if not 0 < weight < float("inf"):
        raise DataError(f"the weight of a source must be over 0 and finite, not {match[2]}", path=match[1])
    return match[1], weight


def _files_of(name: str | Path, notes: list[str]) -> Sequence[str | Path]:
    """The files that one name stands for; a note says what a folder has beside them."""
    path = Path(name)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError as error:  # a name too long to be one: someone passed the text itself
        raise DataError(f"is no name of a file: {error.strerror}", path=str(path)[:80]) from None
    if not there and any(sign in str(name) for sign in "*?["):
        matches = sorted(match for match in glob.glob(str(name), recursive=True) if Path(match).is_file())
        if not matches:
            raise DataError("no file matches this pattern", path=path)
        return matches
    if there and not folder and path.suffix == ".zip":
        inside = [path / entry.filename for entry in _archive(path).infolist() if not entry.is_dir()]
    elif not folder or (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return [name]
    else:
        inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
        if not any(map(_is_data, inside)):  # a blob export has a folder for every table
            inside = sorted(entry for entry in path.glob("*/*") if entry.is_file() and not entry.name.startswith("."))
    data = [entry for entry in inside if _is_data(entry)]
    if not data:
        raise DataError(
            f"is a folder, but none that Dataset.save_to_disk wrote, and it has no file of a known kind "
            f"({' '.join(KINDS)}). Give a file in it, or a pattern such as {path}/**/*.jsonl",
            path=path,
        )
    if rest := [entry.name for entry in inside if entry not in data]:
        notes.append(f"files of {path} not read: {', '.join(rest)}")
    return data


def _is_data(file: Path) -> bool:
    return file.name.removesuffix(".gz").endswith(KINDS)


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip file. Raises DataError where it is none."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"is no readable zip file ({error}). Copy or download it again", path=path) from None


def source_path(source: Source) -> str | Path | None:
    """The name of a file, or the names of several as in a command; None where the source lies in memory."""
    if isinstance(source, str | Path):
        return source
    return " ".join(map(str, source)) if _is_names(source) else None


def _is_names(source: Any) -> TypeGuard[Sequence[str | Path]]:
    return isinstance(source, list | tuple) and bool(source) and all(isinstance(part, str | Path) for part in source)


def read_rows(source: Source, *, any_size: bool = False, names: Mapping[str, str] | None = None) -> Rows:
    """The rows of one source. Raises DataError where there is no such source or it cannot be read as a whole.

    `any_size` reads a packed file whatever it unpacks to; `names` are the columns that will be renamed, so that cells
    of CSV are read as what they will be called.
    """
    if not isinstance(source, str | Path):
        return memory_rows(source)
    path = Path(source)
    if path.is_dir():
        return _rows_of_folder(path)
    archive = next((outer for outer in path.parents if outer.suffix == ".zip" and outer.is_file()), None)
    if path.exists() or archive is not None:
        return _rows_of_file(path, archive, any_size, names or {})
    if isinstance(source, str) and _HUB_NAME.fullmatch(source) and not source.endswith((*KINDS, ".gz", ".txt")):
        return _rows_of_hub(source)
    neighbour = f", nor a folder {path.parent}"
    if path.parent.is_dir():
        match = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.6)
        neighbour = f'. Did you mean "{path.parent / match[0]}"?' if match else ""
    raise DataError(f"there is no such file or folder{neighbour}", path=path)


# Files


def _rows_of_file(path: Path, archive: Path | None, any_size: bool, names: Mapping[str, str]) -> Rows:
    """The rows of a file, which may lie in a zip. It stays open until the last, and is read as they are taken."""
    with _failures_named(path), _open(path) if archive is None else _unzipped(path, archive, any_size) as file:
        size = file.seek(0, 2)
        content = _content_of(file, path, size, any_size)
        head = content.read(4)
        start = content.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
        if not _first_line_of(content, start):
            raise DataError("is empty", path=path)
        kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
        if kind == "parquet" or head.startswith(b"PAR1"):
            yield from parquet_rows(content.read(), path, size, any_size=any_size)
        elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError("is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 FILE", path=path)
        elif kind in ("csv", "tsv"):
            yield from csv_rows(_text_of(content.read(), path), path, "\t" if kind == "tsv" else None, names)
        else:
            yield from json_rows(content, path, start)


@contextmanager
def _failures_named(path: Path) -> Iterator[None]:
    """What goes wrong on a disk or in an archive, as a DataError."""
    try:
        yield
    except zipfile.BadZipFile as error:
        raise DataError(f"is damaged in its zip file ({error}). Copy or download it again", path=path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = "it ends too early" if isinstance(error, EOFError) else error
        raise DataError(f"is corrupt gzip ({reason}). Copy or download it again", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None


def _open(path: Path) -> BinaryIO:
    """The file as it lies on disk, or what has come through a pipe, to be read more than once."""
    file = path.open("rb")
    if file.seekable():
        return file
    with file:
        return io.BytesIO(file.read())


def _unzipped(path: Path, archive: Path, any_size: bool) -> BinaryIO:
    """A file in a zip. Raises DataError where there is none, or where it would unpack to too much."""
    packed = _archive(archive)
    try:
        entry = packed.getinfo(path.relative_to(archive).as_posix())
        file = packed.open(entry)
    except (KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read in the zip file: {first_line(error)}", path=path) from None
    limit = limit_of(entry.compress_size)
    if entry.file_size > limit and not any_size:
        raise too_large(path, limit, entry.compress_size)
    return cast(BinaryIO, file)


def _content_of(file: BinaryIO, path: Path, size: int, any_size: bool) -> BinaryIO:
    """The content of a file of `size` bytes, unpacked where it is gzip. Raises DataError where it would unpack to too
    much; memory holds a piece of it at a time."""
    file.seek(0)
    packed = path.suffix == ".gz" or file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed or not size:
        return file
    content = cast(BinaryIO, gzip.GzipFile(fileobj=file))
    limit, unpacked = limit_of(size), 0
    while not any_size and (piece := content.read(1 << 20)):
        unpacked += len(piece)
        if unpacked > limit:
            raise too_large(path, limit, size)
    content.seek(0)
    return content


def _text_of(data: bytes, path: Path) -> str:
    """A whole file's text. Raises DataError with line and byte offset where it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(_not_utf8(data[error.start], error.start), path=path, line=line) from None


def _not_utf8(byte: int, offset: int) -> str:
    return (
        f"is not UTF-8: byte 0x{byte:02x} at offset {offset} of the file. If it is Latin-1, convert it: "
        "iconv -f LATIN1 -t UTF-8 FILE"
    )


def _first_line_of(content: BinaryIO, start: int) -> bytes:
    """The first line that is not blank, or its beginning: a file may be one line. The content stands at `start` after
    it as before."""
    content.seek(start)
    line = b""
    while not (line := line.lstrip()) and (piece := content.read(1 << 16)):
        line = piece
    content.seek(start)
    return line.partition(b"\n")[0].rstrip()


def json_rows(content: BinaryIO, path: Path, start: int) -> Rows:
    """JSON lines, or one JSON document where the first line begins an array or is a brace; `start` is the offset at
    which the content stands."""
    first = _first_line_of(content, start)
    if not first.startswith((b"[", b"{")):
        raise DataError(
            f"is neither JSON nor JSON lines: it begins with {first[:20]!r}. Known kinds of files: {' '.join(KINDS)}",
            path=path,
            line=1,
        )
    if first.startswith(b"["):
        yield from _array_rows(content, path, start)
        return
    if first == b"{":
        try:
            value = json_value(_text_of(content.read(), path))
        except DataError as error:
            raise DataError(error.message, path=path, line=error.line) from None
        yield from _rows_of_document(value)
        return
    rows = _json_lines(content, start)
    head = list(itertools.islice(rows, 2))
    if len(head) == 1 and isinstance(head[0][1], dict):
        yield from _rows_of_document(head[0][1])
    else:
        yield from itertools.chain(head, rows)


def _rows_of_document(value: dict[str, Any]) -> Rows:
    """The rows of a document: {"data": [...]}, which a page of an interface may say more about, or one object."""
    wrapper = next((key for key in _WRAPPERS if isinstance(value.get(key), list)), None)
    inner = value[wrapper] if wrapper is not None and value.keys() - {wrapper} <= _PAGE else [value]
    return (_row_of_array(number, row) for number, row in enumerate(inner, 1))


def _row_of_array(number: int, row: Any) -> tuple[int, dict[str, Any] | Unreadable]:
    return number, row if isinstance(row, dict) else Unreadable(json.dumps(row, ensure_ascii=False), _no_object(row))


def _array_rows(content: BinaryIO, path: Path, start: int) -> Rows:
    """The rows of one JSON array, which is never held as a whole. Raises DataError with the line where it breaks."""
    array = _Array(content, path, start)
    array.expect("[")
    if array.sign() == "]":
        array.expect("]")
    else:
        for number in itertools.count(1):
            yield _row_of_array(number, array.value())
            if array.expect(",]") == "]":
                break
    if array.sign(at_end=True):
        raise array.broken("Extra data")


class _Array:
    """The text of a file, read as far as the values in it are. `_text` begins at byte `_offset`, on line `_line`, after
    `_column` characters of that line; `_place` is what comes next in it."""

    def __init__(self, content: BinaryIO, path: Path, start: int) -> None:
        self._content, self._path = content, path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._place, self._line, self._column = "", 0, 1, 0
        self._end, self._size = start, CHUNK

    def sign(self, *, at_end: bool = False) -> str:
        """The next character that is no white space, "" `at_end`."""
        while (match := _NO_SPACE.search(self._text, self._place)) is None:
            self._place = len(self._text)
            if not self._read_on():
                if at_end:
                    return ""
                raise self.broken("the array does not end")
        self._place = match.start()
        return self._text[self._place]

    def expect(self, signs: str) -> str:
        """The next sign, one of `signs`, which is read."""
        sign = self.sign()
        if sign not in signs:
            raise self.broken(f"Expecting {' or '.join(map(repr, signs))}")
        self._place += 1
        return sign

    def value(self) -> Any:
        """The next value. Whether it ends where the text does, only what follows can say: more is read then, twice as
        much every time."""
        self.sign()
        while True:
            try:
                value, end = json_value_at(self._text, self._place)
            except BrokenJSON as error:
                failure = self.broken(error.reason, error.place)
                if not self._read_on():
                    raise failure from None
            except DataError as error:
                raise DataError(error.message, path=self._path, line=self._position(self._place)[0]) from None
            else:
                length = end - self._place
                if end < len(self._text) or not self._read_on():
                    self._place, self._size = self._place + length, CHUNK
                    return value

    def broken(self, reason: str, place: int | None = None) -> DataError:
        """The error for a place of the text, by default the next."""
        line, column = self._position(self._place if place is None else place)
        return DataError(f"broken JSON at column {column}: {reason}", path=self._path, line=line)

    def _position(self, place: int) -> tuple[int, int]:
        """Line and column, both from 1."""
        before = self._text.rfind("\n", 0, place)
        column = self._column + place + 1 if before < 0 else place - before
        return self._line + self._text.count("\n", 0, place), column

    def _read_on(self) -> bool:
        """Add to the text, and drop what was read of it; says whether there was more."""
        data = self._content.read(self._size)
        line, column = self._position(self._place)
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = self._end - (len(error.object) - len(data)) + error.start
            line = self._position(len(self._text))[0] + error.object.count(b"\n", 0, error.start)
            raise DataError(_not_utf8(error.object[error.start], at), path=self._path, line=line) from None
        self._text, self._place, self._line, self._column = self._text[self._place :] + text, 0, line, column - 1
        self._end, self._size = self._end + len(data), self._size * 2
        return bool(data)


def _no_object(value: Any) -> str:
    return f'must be an object such as {{"prompt": ...}}, not a {type(value).__name__}'


def _json_lines(lines: Iterable[bytes], offset: int) -> Rows:
    for number, line in enumerate(lines, 1):
        start, offset = offset, offset + len(line)
        if not line.strip():
            continue
        try:
            value = json_value(line.decode("utf-8").rstrip("\n"))
        except UnicodeDecodeError as error:
            reason = _not_utf8(line[error.start], start + error.start)
        except DataError as error:
            reason = error.message
        else:
            if isinstance(value, dict):
                yield number, value
                continue
            reason = _no_object(value)
        yield number, Unreadable(line.decode("utf-8", "backslashreplace").rstrip("\r\n"), reason)


# Folders that `datasets` wrote, and the Hub


def _rows_of_folder(path: Path) -> Rows:
    """The rows of a folder written by `Dataset.save_to_disk`."""
    if (path / "dataset_dict.json").exists():
        splits = ", ".join(str(p.parent) for p in sorted(path.glob("*/state.json")))
        raise DataError(f"holds several splits; name one of them: {splits}", path=path)
    if not (path / "dataset_info.json").exists():
        raise DataError("is a folder, but none that Dataset.save_to_disk wrote. Give a file in it", path=path)
    import datasets

    try:
        rows = list(dataset_rows(datasets.load_from_disk(str(path))))
    except Exception as error:  # arrow, json and file errors of several libraries, all about this folder
        raise DataError(f"is no readable datasets folder: {first_line(error)}", path=path) from error
    return with_numbers(rows)


def _rows_of_hub(name: str) -> Rows:
    """The rows of "owner/name" (its split "train") or "owner/name:split" on the Hugging Face Hub."""
    import datasets

    repository, _, split = name.partition(":")
    try:
        rows = list(dataset_rows(datasets.load_dataset(repository, split=split or "train")))
    except Exception as error:  # offline, unknown name, unknown split, ...: the libraries raise a dozen kinds
        raise DataError(
            f"there is no such file, and as a data set on the Hub it cannot be had ({type(error).__name__}: "
            f"{first_line(error)}). A split is named like {repository}:test; without a network, give a local file",
            path=name,
        ) from error
    return with_numbers(rows)
