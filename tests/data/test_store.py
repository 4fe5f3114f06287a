"""The table of values: what is written is read, by every later opener, and damage is survived."""

from __future__ import annotations

import gc
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prospect.data.store import CHUNK, SCAN, ValueTable, replacing_folder
from prospect.errors import RunError
from prospect.feedback.load import collector_paused


def test_what_is_written_is_read(tmp_path: Path) -> None:
    items = {i.to_bytes(16, "little"): b"v" * (i % 3000) for i in range(2 * SCAN * CHUNK)}
    ValueTable(tmp_path / "sub" / "t.sqlite").write(items.items())
    again = ValueTable(tmp_path / "sub" / "t.sqlite")
    assert again.read([*items, b"absent"]) == items
    few = {key: items[key] for key in list(items)[: len(items) // SCAN - 1]}
    assert again.read([*few, b"absent"]) == few
    assert again.read([]) == {}
    again.write([(bytes(16), b"new")])
    assert again.read([bytes(16)]) == {bytes(16): b"new"}


def test_all_or_none_is_written(tmp_path: Path) -> None:
    table = ValueTable(tmp_path / "t.sqlite")
    with pytest.raises(ZeroDivisionError):
        table.write((b"%d" % i, b"%d" % (1 // (2 - i))) for i in range(3))
    assert table.read([b"0", b"1"]) == {}


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    path.write_bytes(b"this is no database" * 100)
    assert ValueTable(path).read([b"k"]) == {}
    assert path.with_suffix(".damaged").exists()


def test_later_damage_is_put_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    items = {i.to_bytes(16, "little"): b"v" * 9000 for i in range(200)}
    table = ValueTable(path)
    table.write(items.items())
    whole = bytearray(path.read_bytes())
    whole[8192:-8192] = b"\xff" * (len(whole) - 16384)
    path.write_bytes(whole)
    assert table.read(items) == {} and table.damaged == 1
    table.write(items.items())
    assert table.read(items) == items


@pytest.mark.parametrize("change", ["value", "swap", "text", "null", "empty"])
def test_a_value_that_the_disk_changed_is_not_there(tmp_path: Path, change: str) -> None:
    path = tmp_path / "t.sqlite"
    items = {bytes([i]) * 16: bytes([i]) * 40 for i in range(10)}
    table = ValueTable(path)
    table.write(items.items())
    one, two = bytes([3]) * 16, bytes([4]) * 16
    with closing(sqlite3.connect(path)) as database, database:
        (value,) = database.execute("select value from rows where hash = ?", (two,)).fetchone()
        wrong = {"value": b"\x04" * 39 + b"\x05" + value[40:], "swap": value, "text": "abc", "null": None, "empty": b""}
        database.execute("update rows set value = ? where hash = ?", (wrong[change], one))
    assert table.read(items) == {key: value for key, value in items.items() if key != one}
    assert table.damaged == 1
    table.write([(one, items[one])])
    assert ValueTable(path).read(items) == items


def damages(whole: bytes, draw: random.Random) -> Iterator[bytes]:
    """A file that was cut, has a wrong bit (in its header and elsewhere), a hole, or noise."""
    yield from (whole[:end] for end in range(0, len(whole), 1499))
    places = [*range(16, 72, 2), *(draw.randrange(len(whole)) for _ in range(30))]
    for place in places:
        yield whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
    for size in (64, 4096):
        for start in (draw.randrange(len(whole)) for _ in range(8)):
            kept = len(whole[start : start + size])
            yield whole[:start] + bytes(kept) + whole[start + kept :]
            yield whole[:start] + draw.randbytes(kept) + whole[start + kept :]


def test_whatever_became_of_the_file_it_serves_again(tmp_path: Path) -> None:
    draw = random.Random(0)
    items = {draw.randbytes(16): draw.randbytes(40) for _ in range(128)}
    ValueTable(tmp_path / "whole.sqlite").write(items.items())
    path = tmp_path / "here" / "t.sqlite"
    for damaged in damages((tmp_path / "whole.sqlite").read_bytes(), draw):
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        path.write_bytes(damaged)
        table = ValueTable(path)
        known = table.read(items)
        assert known.items() <= items.items()
        table.write((key, value) for key, value in items.items() if key not in known)
        again = ValueTable(path).read(items)
        assert again.items() <= items.items() and (again == items or path.with_suffix(".damaged").exists())


def test_a_busy_table_is_not_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.sqlite"
    table = ValueTable(path)
    table.write([(b"k", b"v")])
    original = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name, **_: original(name, timeout=0))
    with closing(original(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        for work in (lambda: table.write([(b"l", b"w")]), lambda: table.read([b"k"]), lambda: ValueTable(path)):
            with pytest.raises(RunError, match="locked"):
                work()
    assert ValueTable(path).read([b"k", b"l"]) == {b"k": b"v"}


def test_a_table_is_private_and_no_link_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "reference" / "t.sqlite"
    ValueTable(path).write([(b"k", b"v")])
    assert [p.stat().st_mode & 0o777 for p in (path, path.parent, path.parent.parent)] == [0o600, 0o700, 0o700]
    link = tmp_path / "link.sqlite"
    link.symlink_to(tmp_path / "victim")
    with pytest.raises(RunError, match=r"link\.sqlite cannot be used: .*symbolic link.*--cache"):
        ValueTable(link)
    assert not (tmp_path / "victim").exists()


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.sqlite").mkdir()
    with pytest.raises(RunError, match=r"t\.sqlite cannot be used.*--cache"):
        ValueTable(tmp_path / "t.sqlite").read([b"k"])


def test_the_collector_waits_and_goes_on() -> None:
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled()
    with pytest.raises(ValueError, match="x"), collector_paused():
        raise ValueError("x")
    assert gc.isenabled()


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing_folder(folder) as part:
        (part / "a").write_text("one")
        assert not folder.exists()
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as part:
        (part / "a").write_text("two" * (1 // 0))
    assert (folder / "a").read_text() == "one"
    folder.rename(tmp_path / ".model.old")  # as where a process was killed between two renames
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as part:
        raise ZeroDivisionError
    assert (folder / "a").read_text() == "one"
    with replacing_folder(folder) as part:
        (part / "b").write_text("three")
    assert [p.name for p in tmp_path.iterdir()] == ["model"] and [p.name for p in folder.iterdir()] == ["b"]
