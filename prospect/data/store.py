"""What is kept on disk outlives faults: written whole or not at all, for its owner alone, never through a link.

write(path, text)   write_json(path, values)       files, flushed to disk
with replacing_folder(path) as part:                                  the same for a folder
read_json(path)     json_lines(path)           parse_json(text)       ValueError, whatever is wrong with the text
with locked(path):                                                    one process at a time, until it ends or dies
ValueTable(path)                                                      values by their hash, in SQLite
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from prospect.errors import ConfigError, RunError

FOLDER, FILE = 0o700, 0o600
"""Permissions: feedback is other people's words, and a run folder is full of them."""
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Opening a symbolic link fails (everywhere but on Windows)."""
PART = ".part"

REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room: the quota is used up",
    errno.EROFS: "This file system can only be read: choose a folder on another one",
    errno.EACCES: "Correct its permissions or choose another folder",
    errno.EPERM: "Correct its permissions or choose another folder",
    errno.ELOOP: "It is a symbolic link, and nothing is written through one: remove it",
    errno.EMFILE: "Allow more open files (ulimit -n)",
}


def disk_error(error: OSError) -> RunError:
    """The RunError that an OSError is to the user: which file, what is wrong with it, what to do."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    place = f"{' -> '.join(names)}: " if names else ""
    remedy = REMEDIES.get(error.errno or 0, "")
    return RunError(f"{place}{error.strerror or error}{remedy and '. '}{remedy}")


def require_name(path: str | Path) -> None:
    """Raises ConfigError where a name to write to is no UTF-8: libraries that save models cannot write there."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{str(path)!r} is no UTF-8, so not every file can be written there: choose another name"
        ) from None


def make_folder(path: Path) -> None:
    """Create a folder and the missing ones above it, all private."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):  # a process beside this one was faster
            folder.mkdir(FOLDER)
    path.mkdir(exist_ok=True)  # raises where a file has that name


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which stands at `path` once it is whole, and never if it is not, whenever the process dies. A
    link of that name is replaced."""
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    part.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW, FILE), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which stands at `folder` once it is whole and on the disk, and never if it is not. What stood
    there before stays until then; where a process was killed in between, the next call brings it back."""
    part, old = (folder.with_name(f".{folder.name}{ending}") for ending in (PART, ".old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for path in (*part.iterdir(), part):
            _flush(path)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        _flush(folder.parent)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(encoded(content) if isinstance(content, str) else content)


def append_lines(path: Path) -> BinaryIO:
    """A file of lines, created where it is missing and open for more of them behind its last whole one: what a kill has
    left of a line is cut off. A symbolic link of that name is refused."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW, FILE), "r+b")
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which feedback may hold, as the escape that JSON has for it."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, values: Any) -> None:
    """`write`, as JSON for people to read."""
    write(path, json.dumps(values, indent=1, ensure_ascii=False))


def parse_json(text: str | bytes) -> Any:
    """One JSON value. Raises ValueError, also where it is nested too deeply, has a number of too many digits, or is not
    UTF-8."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises OSError, and ValueError as `parse_json` does."""
    return parse_json(path.read_bytes())


def json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON lines file, and how many lines hold none: cut off by a kill, or damaged. No file, no lines.

    A line ends with a line feed and nothing else: Python's splitlines would also end it within a text at U+2028.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    values: list[dict[str, Any]] = []
    damaged = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            values.append(value)
        else:
            damaged += 1
    return values, damaged


def checksum(values: Any) -> str:
    """Of plain data, whatever its order of keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_checksum(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def private() -> Iterator[None]:
    """Within, whatever this process writes, by any library, is for its owner alone."""
    before = os.umask(0o777 & ~FOLDER)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Within, no other process gets here with the same `path`, a file that is left behind. The operating system lets go
    of the lock when the process ends, however it ends. Raises ConfigError saying `busy` where another one has it.

    It is SQLite's lock, which is there on every system.
    """
    if path.is_symlink():
        raise disk_error(OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)))
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE))
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as database:
        try:
            database.execute("pragma journal_mode = memory")  # no second file
            database.execute("begin exclusive")
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise ConfigError(busy) from None
            raise RunError(f"{path}: {error}. Delete it if no other run is at work there") from error
        yield


CHUNK = 900
"""Keys of one query: SQLite's older versions take 999."""
SCAN = 4
"""Where a query is for more than one value in so many, to read all of them is faster."""
CHECKSUM = 8
"""Bytes at the end of each value in the file."""

DISK = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)
"""Errors that say nothing of what stands in the file."""


class ValueTable:
    """Values by their hash in the file at `path`, which is created: what was computed once is there for every later
    run, and for runs beside it.

    Every value has a checksum of itself and its key; what a disk has changed is as if it were not there. A file that is
    no database any more is put aside, since it can be computed again. Methods raise RunError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damaged: set[bytes] = set()
        try:
            make_folder(path.parent)
            # SQLite would create it for everyone to read, and follow a link.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW, FILE))
        except OSError as error:
            raise RunError(f"the table {path} cannot be used: {disk_error(error)}. Another place: --cache") from error
        try:
            self._create()
        except RunError as error:
            self._put_aside(error)

    def read(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values that are there."""
        try:
            rows = dict(self._rows(sorted(keys)))  # in the order of the file, so that each page is read once
        except RunError as error:
            self._put_aside(error)
            rows = {}
        whole = {key: value[:-CHECKSUM] for key, value in rows.items() if _is_whole(key, value)}
        self._damaged |= rows.keys() - whole.keys()
        return whole

    @property
    def damaged(self) -> int:
        """How many values, and whole files, were found to be other than what was written."""
        return len(self._damaged)

    def write(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep values, all or none."""
        sealed = [(key, _sealed(key, value)) for key, value in items]
        try:
            self._insert(sealed)
        except RunError as error:
            self._put_aside(error)
            self._insert(sealed)

    def _insert(self, rows: list[tuple[bytes, bytes]]) -> None:
        with self._open() as database:
            database.executemany("insert or replace into rows values (?, ?)", rows)

    def _rows(self, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Those of the file with these keys, as they stand there."""
        with self._open() as database:
            most = SCAN * len(keys)
            (size,) = database.execute("select count(*) from (select 1 from rows limit ?)", (most,)).fetchone()
            if size < most:
                some = set(keys)
                yield from (row for row in database.execute("select hash, value from rows") if row[0] in some)
                return
            for start in range(0, len(keys), CHUNK):
                part = keys[start : start + CHUNK]
                marks = ",".join("?" * len(part))
                yield from database.execute(f"select hash, value from rows where hash in ({marks})", part)

    def _put_aside(self, error: RunError) -> None:
        """Begin anew where the file is no sound database; raises `error` where the disk is at fault."""
        code = getattr(error.__cause__, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in DISK:  # the low byte is the kind, the rest says more of it
            raise error
        with suppress(FileNotFoundError):  # a run beside this one may have put it aside
            self.path.replace(self.path.with_suffix(".damaged"))
        self._damaged.add(b"")
        self._create()

    def _create(self) -> None:
        with self._open() as database:
            database.execute("create table if not exists rows (hash blob primary key, value blob) without rowid")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection that waits for other runs' writes and commits at the end. Short-lived: nothing stays locked."""
        try:
            with closing(sqlite3.connect(self.path, timeout=120)) as database, database:
                database.text_factory = bytes  # what damage calls text is none
                yield database
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter from the words of an error
            raise RunError(
                f"the table {self.path} cannot be used: {error}. Make room, delete the file if it is damaged, "
                f"or choose another place with --cache"
            ) from error


def _sealed(key: bytes, value: bytes) -> bytes:
    """The value with its checksum behind it."""
    return value + hashlib.blake2b(key + value, digest_size=CHECKSUM).digest()


def _is_whole(key: bytes, sealed: object) -> bool:
    return isinstance(sealed, bytes) and sealed == _sealed(key, sealed[:-CHECKSUM])
