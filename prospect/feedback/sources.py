"""Where rows come from: files of any kind, folders, patterns, the Hub, or memory."""

from __future__ import annotations

import difflib
import glob
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from prospect.errors import DataError
from prospect.feedback import tables
from prospect.feedback.files import KINDS, Rows, json_rows, open_file, pieces_of

if TYPE_CHECKING:
    import datasets
    import pandas

Source: TypeAlias = (
    "str | Path | Sequence[str | Path] | Sequence[Mapping[str, Any]] | datasets.Dataset | pandas.DataFrame"
)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_SUFFIXES = (*KINDS, ".gz", ".txt")

NO_NAMES: Mapping[str, str] = {}


def sources(source: Source) -> tuple[list[Source], list[str]]:
    """(each file that `source` names, a note per folder on what was not taken from it): a list of names, a pattern with
    * ? or [], or a folder stand for several files; whatever else stands for itself.

    Raises DataError where a pattern or folder has no file, and where a file is named twice.
    """
    names: Sequence[Source] = source if _is_names(source) else [source]
    files: list[Source] = []
    notes: list[str] = []
    for name in names:
        more, note = _files_of(name) if isinstance(name, str | Path) else ([name], None)
        files += more
        notes += [note] if note else []
    taken = Counter(Path(file).resolve() for file in files if isinstance(file, str | Path))
    for file, times in taken.items():
        if times > 1:
            raise DataError("is named twice", path=file)
    return files, notes


def _files_of(name: str | Path) -> tuple[list[Source], str | None]:
    """The files that one name stands for, and what a folder has beside them."""
    path = Path(name)
    try:
        folder, there = path.is_dir(), path.exists()
    except OSError as error:  # a name too long to be one: someone passed the text itself
        raise DataError(f"is no name of a file: {error.strerror}", path=str(path)[:80]) from None
    if not there and any(sign in str(name) for sign in "*?["):
        matches = sorted(match for match in glob.glob(str(name), recursive=True) if Path(match).is_file())
        if not matches:
            raise DataError("no file matches this pattern", path=path)
        return list(matches), None
    if not folder or (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return [name], None
    inside = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    data = [entry for entry in inside if entry.name.removesuffix(".gz").endswith(KINDS)]
    if not data:
        raise DataError(
            f"is a folder, but none that Dataset.save_to_disk wrote, and it has no file of a known kind "
            f"({' '.join(KINDS)}). Give a file in it, or a pattern such as {path}/**/*.jsonl",
            path=path,
        )
    rest = [entry.name for entry in inside if entry not in data]
    return list(data), f"files of {path} not read: {', '.join(rest)}" if rest else None


def read_rows(source: Source, *, any_size: bool = False, names: Mapping[str, str] = NO_NAMES) -> Rows:
    """The rows of one source. Raises DataError where there is no such source or it cannot be read as a whole.

    `any_size` reads a packed file whatever it unpacks to; `names` are the columns that will be renamed, so that cells
    of CSV are read as what they will be called.
    """

    if not isinstance(source, str | Path):
        return tables.in_memory(source)
    path = Path(source)
    if path.is_dir():
        return tables.datasets_folder(path)
    if not path.exists():
        if isinstance(source, str) and _HUB_NAME.fullmatch(source) and not source.endswith(_SUFFIXES):
            return tables.hub(source)
        raise DataError(f"there is no such file or folder{_neighbour(path)}", path=path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    file = open_file(path)
    size_on_disk = file.seek(0, 2)
    pieces = pieces_of(file, path, any_size=any_size)
    head = b""
    while len(head) < 4 or not head.strip():
        piece = next(pieces, None)
        if piece is None:
            break
        head += piece
    if not head.strip():
        raise DataError("is empty", path=path)
    if kind == "parquet" or head.startswith(b"PAR1"):
        return tables.parquet(b"".join((head, *pieces)), path, size_on_disk, any_size=any_size)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 FILE", path=path)
    mark = b"\xef\xbb\xbf" if head.startswith(b"\xef\xbb\xbf") else b""
    pieces = itertools.chain((head.removeprefix(mark),), pieces)
    if kind in ("csv", "tsv"):
        return tables.csv_rows(b"".join(pieces), path, "\t" if kind == "tsv" else None, names)
    return json_rows(pieces, path, len(mark))


def source_name(source: Source) -> str:
    """What to call a source in messages and reports."""
    path = source_path(source)
    return f"{type(source).__name__} in memory" if path is None else str(path)


def source_path(source: Source) -> str | Path | None:
    """The name of a file, or the names of several as in a command; None where the source lies in memory."""
    if isinstance(source, str | Path):
        return source
    return " ".join(map(str, source)) if _is_names(source) else None


def _is_names(source: Any) -> TypeGuard[Sequence[str | Path]]:
    return isinstance(source, list | tuple) and bool(source) and all(isinstance(part, str | Path) for part in source)


def _neighbour(path: Path) -> str:
    """The most similar name in the same folder, as a question."""
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    match = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.6)
    return f'. Did you mean "{path.parent / match[0]}"?' if match else ""
