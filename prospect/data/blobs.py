"""Values by hash on disk, in SQLite: what was computed once is there for every later run, and for runs beside it.

blobs = Blobs(path)
blobs.write([(key, value)])     # one transaction
blobs.read([key, other])        # {key: value}, without what is not there

Every value is kept with a checksum of itself and its key. What a disk has changed is as if it were not there: it is
computed again and replaced.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from prospect.data import store
from prospect.errors import RunError

CHUNK = 900
"""Keys of one query: SQLite's older versions take 999."""
SCAN = 4
"""Where more than one value in so many is wanted, to read all of them is faster."""
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


class Blobs:
    """The file at `path`, which is created; what is no database any more is put aside, since it can be computed again.

    Methods raise RunError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damaged: set[bytes] = set()
        try:
            store.make_folder(path.parent)
            # SQLite would create it for everyone to read, and follow a link.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | store.NOFOLLOW, store.FILE))
        except OSError as error:
            raise RunError(
                f"the table {path} cannot be used: {store.disk_error(error)}. Another place: --cache"
            ) from error
        try:
            self._create()
        except RunError as error:
            self._put_aside(error)

    def read(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values that are there."""
        wanted = sorted(keys)  # in the order of the file, so that each page is read once
        try:
            rows = dict(self._rows(wanted))
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
