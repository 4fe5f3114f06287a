"""Rows of tables: CSV, Parquet, and what lies in memory; and what a row is.

CSV is read by the standard library, which knows the line of every row, Parquet by pyarrow in batches. What is wrong
with one row is handed on as `Unreadable`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prospect.errors import DataError, written
from prospect.feedback.messages import TOO_DEEP, json_value, too_deep


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that is no object of columns: what stands there, and why it cannot be read."""

    raw: str
    reason: str


Rows = Iterator[tuple[int, dict[str, Any] | Unreadable]]
"""(line, row), lines counted from 1. In JSON lines and CSV it is the line of the file, else the number of the row."""


EXPANSION = 100
SMALL = 64 << 20
"""A packed file may unpack to EXPANSION times its own size, and in any case to SMALL bytes."""

BATCH = 256
"""Rows that are taken out of a table at a time."""

VALUE = 64
"""Bytes that a value of a table takes at the least, once it is a Python object in a row."""


def limit_of(size: int) -> float:
    """How many bytes a packed file of `size` bytes may unpack to."""
    return max(SMALL, EXPANSION * size)


def too_large(path: Path, limit: float, size: int) -> DataError:
    return DataError(
        f"unpacks to more than {limit / 1e6:,.0f} MB from {size / 1e6:.1f} MB, over {EXPANSION} times its size: it is "
        "not read, since it may be made to fill the memory. If you trust it, write it out first: prospect convert "
        f"{path} OUT.jsonl --any-size",
        path=path,
    )


# CSV

_NUMBERS = ("weight", "old_logp", "score", "score_chosen", "score_rejected", "reward", "reward_A", "reward_B")
_ANSWERS = ("completion", "chosen", "rejected", "output", "output_A", "output_B")
"""Columns whose empty cell is an empty answer, not an absent one."""

_STRUCTURES = ("prompt", "messages", "conversations", "completions", "pairs", "history", *_ANSWERS)
"""Columns that may hold messages, written as JSON in a cell."""

_EXCEL = re.compile(r'"?sep=(.)"?\r?\n')
"""The first line of a file for Excel, which names the delimiter."""

_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"')
"""How messages begin, which no text does."""


def csv_rows(text: str, path: Path, delimiter: str | None, names: Mapping[str, str]) -> Rows:
    """The rows of CSV with a header; the delimiter is the most frequent of , ; and tab in it unless given. A cell is
    read by the name that its column has, or will have (`names`). The readers of pyarrow and pandas, behind `datasets`,
    do not tell on which line a row begins, and stop at the first row of another width."""
    if excel := _EXCEL.match(text):  # an empty line in its place, so that lines keep their numbers
        delimiter, text = excel[1], "\n" + text[excel.end() :]
    header_line = text.lstrip("\r\n").partition("\n")[0]
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter or max(",;\t", key=header_line.count), strict=True
    )
    del text  # the reader has a copy
    header: list[str] = []
    line, following = 1, 1
    try:
        for cells in reader:
            line, following = following, reader.line_num + 1
            if not cells:
                continue
            if not header:
                header = [name.strip() for name in cells]
                if twice := {name for name in header if header.count(name) > 1}:
                    raise DataError(f"has the column {' and '.join(sorted(twice))} twice", path=path, line=1)
                continue
            try:
                if len(cells) != len(header):
                    raise DataError(f"has {len(cells)} cells, but the header has {len(header)} columns")
                row = {name: _cell(names.get(name, name), cell) for name, cell in zip(header, cells, strict=True)}
            except DataError as error:
                yield line, Unreadable(",".join(cells), error.message)
            else:
                yield line, row
    except csv.Error as error:
        raise DataError(f"broken CSV in the row that begins here: {error}", path=path, line=following) from None


def _cell(column: str, cell: str) -> Any:
    """A cell's value: numbers, messages and booleans where the column has them, else text."""
    if cell == "" and column not in _ANSWERS:
        return None
    if column in _NUMBERS:
        try:
            return float(cell)
        except ValueError:
            return cell
    if column == "complete":
        return {"true": True, "false": False, "1": True, "0": False}.get(cell.strip().lower(), cell)
    if column not in _STRUCTURES or not cell.lstrip().startswith(("[", "{")):
        return cell
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


# Arrow's tables: Parquet, `datasets`


def parquet_rows(data: bytes, path: Path, size_on_disk: int, *, any_size: bool) -> Rows:
    """The rows of a Parquet file, which may be packed once more on disk. Raises DataError where it is none, is damaged,
    or holds so many values that it must be a few repeated without end (`any_size` reads them)."""
    import pyarrow
    import pyarrow.parquet

    limit = float("inf") if any_size else limit_of(size_on_disk)

    def rows() -> Iterator[Any]:
        # ParquetFile, since read_table would make columns out of folder names such as "label=1".
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        _ = file.schema_arrow.names  # raises where one is no UTF-8
        # Of a damaged file the columns' own counts end the process: only the counts of the whole are looked at.
        if VALUE * file.metadata.num_rows * file.metadata.num_columns > limit:
            raise too_large(path, limit, size_on_disk)
        size = 0
        for batch in file.iter_batches(batch_size=BATCH):
            size += batch.nbytes + VALUE * sum(map(_values, batch.columns))
            if size > limit:
                raise too_large(path, limit, size_on_disk)
            yield from batch_rows(batch)

    try:
        yield from with_numbers(rows())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"is no readable Parquet file: {first_line(error)}", path=path) from None


def _values(array: Any) -> int:
    """How many values an Arrow array holds, those inside its lists and objects included."""
    import pyarrow.types as kinds

    if kinds.is_list(array.type) or kinds.is_large_list(array.type):
        return len(array) + _values(array.flatten())
    return sum(map(_values, array.flatten())) if kinds.is_struct(array.type) else len(array)


def batch_rows(batch: Any) -> Iterator[Any]:
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


def dataset_rows(data: Any) -> Iterator[Any]:
    for batch in data.with_format("arrow").iter(batch_size=BATCH):
        yield from batch_rows(batch)


def memory_rows(source: Any) -> Rows:
    """The rows of a list of dicts, a datasets.Dataset or a pandas.DataFrame."""
    kind = type(source).__module__.partition(".")[0]
    if kind == "datasets":
        if not hasattr(source, "to_list"):
            raise DataError(f"a {type(source).__name__} is not one table. Choose a split, such as data['train']")
        return with_numbers(dataset_rows(source))
    if kind == "pandas":
        return with_numbers(source.to_dict("records"), arrow=False)
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(f"feedback is a path, a list of dicts, a Dataset or a DataFrame, not a {type(source).__name__}")
    return with_numbers(source, arrow=False)


def with_numbers(rows: Iterable[Any], *, arrow: bool = True) -> Rows:
    """`rows` with their numbers, in Python's own types; those of `arrow` without its nulls."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, Unreadable):
            yield number, row
        elif isinstance(row, Mapping):
            try:
                values = {str(k): _plain(v, arrow) for k, v in row.items()}
                deep = too_deep(values)
            except RecursionError:
                values, deep = {}, True
            yield number, Unreadable(written(row), TOO_DEEP) if deep else values
        else:
            yield number, Unreadable(written(row), f"must be a dict, not a {type(row).__name__}")


def _plain(value: Any, arrow: bool) -> Any:
    """A copy in Python's own types: numpy's arrays and numbers, tuples, and a data frame's NaN for "nothing here". Of
    `arrow` without the nulls that it puts where one row's object lacks a key that another's has."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v, arrow) for k, v in value.items() if v is not None or not arrow}
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v, arrow) for v in value]
    return None if isinstance(value, float) and value != value and not arrow else value


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
