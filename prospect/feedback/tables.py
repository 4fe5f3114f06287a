"""Rows of tables: CSV, Parquet, `datasets` (folders, the Hub, in memory), data frames and lists.

pyarrow, datasets and pandas are imported only where their kind of source is given.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prospect.errors import DataError, written
from prospect.feedback.files import (
    EXPANSION,
    SMALL,
    Rows,
    Unreadable,
    decoded,
    too_large,
)
from prospect.feedback.messages import TOO_DEEP, json_value, too_deep

_NUMBERS = ("weight", "score", "score_chosen", "score_rejected", "reward", "reward_A", "reward_B")
_ANSWERS = ("completion", "chosen", "rejected", "output", "output_A", "output_B")
"""Columns whose empty cell is an empty answer, not an absent one."""

_STRUCTURES = ("prompt", "messages", "conversations", "completions", "pairs", "history", *_ANSWERS)
"""Columns that may hold messages, written as JSON in a CSV cell."""

_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"')
"""How messages begin, which no text does."""

BATCH = 256
"""Rows that are taken out of a table at a time."""

VALUE = 64
"""Bytes that a value of a table takes at the least, once it is a Python object in a row."""


def csv_rows(data: bytes, path: Path, delimiter: str | None, names: Mapping[str, str]) -> Rows:
    """The rows of a CSV file with a header; the delimiter is the most frequent of , ; and tab in it unless given.
    A cell is read by the name that its column has, or will have (`names`)."""
    text = decoded(data, path)
    header_line = text.lstrip("\r\n").partition("\n")[0]
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter or max(",;\t", key=header_line.count), strict=True
    )
    first = next(_checked(reader, path), None)
    if first is None:  # a byte order mark and nothing else
        raise DataError("is empty", path=path)
    header = [name.strip() for name in first[1]]
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"has the column {' and '.join(sorted(twice))} twice", path=path, line=1)
    return _csv_body(_checked(reader, path), header, [names.get(name, name) for name in header])


def _checked(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(first line, cells) of every row that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"broken CSV in the row that begins here: {error}", path=path, line=line) from None
        if cells is None:
            return
        if cells:
            yield line, cells


def _csv_body(rows: Iterable[tuple[int, list[str]]], header: list[str], names: list[str]) -> Rows:
    for line, cells in rows:
        if len(cells) != len(header):
            yield line, Unreadable(",".join(cells), f"has {len(cells)} cells, but the header has {len(header)} columns")
            continue
        try:
            yield line, {column: _cell(name, cell) for column, name, cell in zip(header, names, cells, strict=True)}
        except DataError as error:
            yield line, Unreadable(",".join(cells), error.message)


def _cell(column: str, cell: str) -> Any:
    """A CSV cell's value: numbers, messages and booleans where the column has them, else text."""
    if cell == "" and column not in _ANSWERS:
        return None
    if column in _NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell
    if column == "complete":
        return {"true": True, "false": False, "1": True, "0": False}.get(cell.strip().lower(), cell)
    if column in _STRUCTURES and cell.lstrip().startswith(("[", "{")):
        return _structure(column, cell)
    return cell


def _structure(column: str, cell: str) -> Any:
    """Messages in a cell. An answer may also be text that merely begins with a bracket."""
    if cell.lstrip().startswith(("[{'", "{'")):
        raise DataError(f"{column} is written in Python's notation. Write messages as JSON, with double quotes")
    try:
        value = json_value(cell)
    except DataError as error:
        # Text may begin with a bracket: what json_value cannot even begin to read is text.
        if _MESSAGES.match(cell) or "broken JSON" not in error.message:
            raise DataError(f"{column}: {error.message}") from None
        return cell
    first = value[0] if isinstance(value, list) and value else value
    structured = isinstance(first, list | int) if column in ("history", "pairs") else isinstance(first, dict)
    return value if structured and (column not in _ANSWERS or "role" in first or "from" in first) else cell


def parquet(data: bytes, path: Path, size_on_disk: int, *, any_size: bool) -> Rows:
    """The rows of a Parquet file, which may be packed once more on disk. Raises DataError where it is none, is damaged,
    or holds so many values that it must be a few repeated without end (`any_size` reads them)."""
    import pyarrow
    import pyarrow.parquet

    limit = float("inf") if any_size else max(SMALL, EXPANSION * size_on_disk)

    def bounded(size: int) -> None:
        if size > limit:
            raise too_large(path, limit, size_on_disk)

    def batches() -> Iterator[Any]:
        size = 0
        try:
            for batch in file.iter_batches(batch_size=BATCH):
                size += batch.nbytes + VALUE * sum(map(_values, batch.columns))
                bounded(size)
                yield batch
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"is no readable Parquet file: {_first_line(error)}", path=path) from None

    try:
        # ParquetFile, since read_table would make columns out of folder names such as "label=1".
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        # Of a damaged file the columns' own counts end the process: only the counts of the whole are looked at.
        bounded(VALUE * file.metadata.num_rows * file.metadata.num_columns)
        _ = file.schema_arrow.names
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"is no readable Parquet file: {_first_line(error)}", path=path) from None
    return _numbered(row for batch in batches() for row in _batch_rows(batch))


def _values(array: Any) -> int:
    """How many values an Arrow array holds, those inside its lists and objects included."""
    import pyarrow.types as kinds

    if kinds.is_list(array.type) or kinds.is_large_list(array.type):
        return len(array) + _values(array.flatten())
    if kinds.is_struct(array.type):
        return sum(map(_values, array.flatten()))
    return len(array)


def _batch_rows(batch: Any) -> Iterator[Any]:
    """The rows of an Arrow table or batch. Text that is not UTF-8, for which Arrow never looks, spoils only its row."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield from batch.slice(i, 1).to_pylist()
            except UnicodeDecodeError as error:
                raw = error.object.decode("utf-8", "backslashreplace")
                yield Unreadable(raw, f"holds text that is not UTF-8: byte 0x{error.object[error.start]:02x}")


def datasets_folder(path: Path) -> Rows:
    """The rows of a folder written by `Dataset.save_to_disk`."""
    if (path / "dataset_dict.json").exists():
        splits = ", ".join(str(p.parent) for p in sorted(path.glob("*/state.json")))
        raise DataError(f"holds several splits; name one of them: {splits}", path=path)
    if not (path / "dataset_info.json").exists():
        raise DataError("is a folder, but none that Dataset.save_to_disk wrote. Give a file in it", path=path)
    import datasets

    try:
        rows = list(_dataset_rows(datasets.load_from_disk(str(path))))
    except Exception as error:  # arrow, json and file errors of several libraries, all about this folder
        raise DataError(f"is no readable datasets folder: {_first_line(error)}", path=path) from error
    return _numbered(rows)


def hub(name: str) -> Rows:
    """The rows of "owner/name" (its split "train") or "owner/name:split" on the Hugging Face Hub."""
    import datasets

    repository, _, split = name.partition(":")
    try:
        rows = list(_dataset_rows(datasets.load_dataset(repository, split=split or "train")))
    except Exception as error:  # offline, unknown name, unknown split, ...: the libraries raise a dozen kinds
        raise DataError(
            f"there is no such file, and as a data set on the Hub it cannot be had ({type(error).__name__}: "
            f"{_first_line(error)}). A split is named like {repository}:test; without a network, give a local file",
            path=name,
        ) from error
    return _numbered(rows)


def in_memory(source: Any) -> Rows:
    """The rows of a list of dicts, a datasets.Dataset or a pandas.DataFrame."""
    kind = type(source).__module__.partition(".")[0]
    if kind == "datasets":
        if not hasattr(source, "to_list"):
            raise DataError(f"a {type(source).__name__} is not one table. Choose a split, such as data['train']")
        return _numbered(_dataset_rows(source))
    if kind == "pandas":
        return _numbered(source.to_dict("records"), _plain)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(f"feedback is a path, a list of dicts, a Dataset or a DataFrame, not a {type(source).__name__}")
    return _numbered(source, _plain)


def _dataset_rows(data: Any) -> Iterator[Any]:
    for batch in data.with_format("arrow").iter(batch_size=BATCH):
        yield from _batch_rows(batch)


def _numbered(rows: Iterable[Any], clean: Callable[[Any], Any] | None = None) -> Rows:
    """`rows` with their numbers, each made plain by `clean` (else without Arrow's nulls)."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, Unreadable):
            yield number, row
        elif isinstance(row, Mapping):
            values: Any
            try:
                values = {str(k): (clean or _pruned)(v) for k, v in row.items()}
            except RecursionError:
                values = row
            yield number, Unreadable(written(row), TOO_DEEP) if values is row or too_deep(values) else values
        else:
            yield number, Unreadable(written(row), f"must be a dict, not a {type(row).__name__}")


def _pruned(value: Any) -> Any:
    """Nested values without the nulls that Arrow puts where one row's object lacks a key that another's has."""
    if isinstance(value, dict):
        return {k: _pruned(v) for k, v in value.items() if v is not None}
    return [_pruned(v) for v in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A copy in Python's own types: numpy's arrays and numbers, tuples, and a data frame's NaN for "nothing here"."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
