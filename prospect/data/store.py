"""Files that outlive faults: written whole or not at all, for their owner alone, never through a link; JSON that is
read as data or refused; and what a disk that refuses means to the user.

    write(path, text)   write_json(path, values)   append(path, line)     into private folders, flushed to disk
    read_json(path)     json_lines(path)           parse_json(text)       ValueError, whatever is wrong with the text
    with locked(path):                                                    one process at a time, until it ends or dies
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
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


def write(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(encoded(content) if isinstance(content, str) else content)


def append(path: Path, text: str) -> None:
    """Add to the end of a file, which is created."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NOFOLLOW, FILE), "ab") as file:
        file.write(encoded(text))


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
