"""Values by hash on disk, in SQLite: what was computed once is there for every later run, and for runs beside it.

blobs = Blobs(path)
blobs.write([(key, value)])     # one transaction
blobs.read([key, other])        # {key: value}, without what is not there
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from prospect.errors import RunError

CHUNK = 900
"""Keys of one query: SQLite's older versions take 999."""
SCAN = 4
"""Where more than one value in so many is wanted, to read all of them is faster."""


class Blobs:
    """The file at `path`, which is created; what is no database any more is put aside, since it can be computed again.

    Methods raise RunError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._create()
        except RunError as error:
            if isinstance(error.__cause__, sqlite3.OperationalError):
                raise
            with suppress(FileNotFoundError):  # a run beside this one may have put it aside
                path.replace(path.with_suffix(".damaged"))
            self._create()

    def read(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values that are there."""
        wanted = sorted(keys)  # in the order of the file, so that each page is read once
        found: dict[bytes, bytes] = {}
        with self._open() as database:
            most = SCAN * len(wanted)
            (size,) = database.execute("select count(*) from (select 1 from rows limit ?)", (most,)).fetchone()
            if size < most:
                some = set(wanted)
                return {key: value for key, value in database.execute("select hash, value from rows") if key in some}
            for start in range(0, len(wanted), CHUNK):
                part = wanted[start : start + CHUNK]
                marks = ",".join("?" * len(part))
                found.update(database.execute(f"select hash, value from rows where hash in ({marks})", part))
        return found

    def write(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep values, all or none."""
        with self._open() as database:
            database.executemany("insert or replace into rows values (?, ?)", items)

    def _create(self) -> None:
        with self._open() as database:
            database.execute("create table if not exists rows (hash blob primary key, value blob) without rowid")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection that waits for other runs' writes and commits at the end. Short-lived: nothing stays locked."""
        try:
            with closing(sqlite3.connect(self.path, timeout=120)) as database, database:
                yield database
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"the table {self.path} cannot be used: {error}. Make room, delete the file if it is damaged, "
                f"or choose another place with --cache"
            ) from error
