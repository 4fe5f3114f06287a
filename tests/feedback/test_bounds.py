"""Files made to break a reader: what unpacks without end, numbers and nesting without end, text that is no text."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from prospect.data.write import write_problems
from prospect.feedback import sources, tables
from prospect.feedback.load import load
from prospect.feedback.messages import MOST_LEVELS
from tests.helpers.feedback import GOOD, error_of, save

DIGITS = "1" * 5000
DEEP = "[" * 200_000 + "]" * 200_000
NESTED = '{"a":' * (MOST_LEVELS + 20) + "1" + "}" * (MOST_LEVELS + 20)  # Python itself reads and writes this


# What unpacks without end


def bomb(path: Path, copies: int = 100) -> Path:
    """Equal lines: a megabyte of them, packed, over and over."""
    lines = (json.dumps(GOOD) + "\n").encode() * 20_000
    with gzip.open(path, "wb") as file:
        for _ in range(copies):
            file.write(lines)
    return path


def test_a_gzip_bomb_is_refused_before_a_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "a.jsonl.gz")
    monkeypatch.setattr(sources, "json_rows", lambda *arguments: pytest.fail("read"))
    message = str(error_of(path))
    assert "unpacks to more than 67 MB from 0.3 MB, over 100 times its size" in message
    assert f"prospect convert {path} OUT.jsonl --any-size" in message


def test_what_unpacks_to_much_is_read_where_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bomb(tmp_path / "a.jsonl.gz", copies=1)
    monkeypatch.setattr(tables, "SMALL", 1000)
    assert "unpacks to more than" in str(error_of(path))
    assert load(path, any_size=True).rows == 20_000


def test_the_bound_grows_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SMALL", 0)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({**GOOD, "id": i}) + "\n" for i in range(200)).encode()))
    assert load(path).rows == 200


def equal_rows(path: Path, count: int, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: pa.array([value] * count) for name, value in {**GOOD, **columns}.items()}), path)
    return path


def test_a_parquet_file_of_equal_rows_is_refused_by_its_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = equal_rows(tmp_path / "a.parquet", 400_000)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(tables, "batch_rows", lambda batch: pytest.fail("read"))
    message = str(error_of(path))
    assert "over 100 times its size" in message
    assert f"prospect convert {path} OUT.jsonl --any-size" in message


def test_a_parquet_file_of_few_long_rows_is_refused_as_it_grows(tmp_path: Path) -> None:
    path = equal_rows(tmp_path / "a.parquet", 2_000, prompt="x" * 100_000)  # 200 MB, of which the file has one copy
    assert path.stat().st_size < 300_000
    assert "over 100 times its size" in str(error_of(path))


def test_a_parquet_file_of_endless_lists_is_refused_as_it_grows(tmp_path: Path) -> None:
    path = equal_rows(tmp_path / "a.parquet", 4, prompt=[{"role": "user", "content": "x"}] * 500_000)
    assert path.stat().st_size < 10_000
    assert "over 100 times its size" in str(error_of(path))


def test_a_table_packed_once_more_is_held_to_its_size_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array([value] * 400_000) for name, value in GOOD.items()})
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    plain = (tmp_path / "a.parquet").read_bytes()
    path = tmp_path / "b.parquet.gz"
    path.write_bytes(gzip.compress(plain))
    assert 20 * path.stat().st_size < len(plain) < 20_000_000
    monkeypatch.setattr(tables, "batch_rows", lambda batch: pytest.fail("read"))
    assert "over 100 times its size" in str(error_of(path))
    pipe = tmp_path / "pipe.parquet.gz"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()), daemon=True).start()
    assert "over 100 times its size" in str(error_of(pipe))


def test_a_damaged_table_never_ends_the_process(shared: Path, tmp_path: Path) -> None:
    """One wrong byte, at which the counts of a column end the process: hence one of its own."""
    whole = bytearray((shared / "cases" / "rows" / "e12_null_turn.parquet").read_bytes())
    whole[595] = 0x22
    path = tmp_path / "a.parquet"
    path.write_bytes(whole)
    done = subprocess.run([sys.executable, "-m", "prospect", "check", str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{path}: is no readable Parquet file: Definition level histogram size mismatch" in done.stderr


def test_a_parquet_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = tables.batch_rows
    monkeypatch.setattr(tables, "batch_rows", lambda batch: (sizes.append(batch.num_rows), whole(batch))[1])
    assert load(equal_rows(tmp_path / "a.parquet", 1000)).rows == 1000
    assert sizes == [256, 256, 256, 232]


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
def test_refusing_takes_little_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        equal_rows(path, 3_000_000)
    else:
        bomb(path, copies=400)
    code = (
        "import resource, sys\nfrom prospect.errors import DataError\nfrom prospect.feedback.load import load\n"
        "import pyarrow.parquet\nstart = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    load({str(path)!r})\nexcept DataError:\n"
        "    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # MiB; it took 4,700


# JSON without end


@pytest.mark.parametrize(
    ("value", "message"),
    [(DIGITS, "a number of more than 4,300 digits"), (DEEP, "nested too deeply"), (NESTED, "nested too deeply")],
    ids=["digits", "many levels", "levels"],
)
def test_json_beyond_bounds_is_a_bad_row(tmp_path: Path, value: str, message: str) -> None:
    good, bad = json.dumps(GOOD), f'{{"prompt": "a", "completion": "b", "label": true, "x": {value}}}'
    error = error_of(save(tmp_path / "a.jsonl", good, bad))
    assert (error.line, message in error.message) == (2, True)
    assert [c.line for r in load(tmp_path / "a.jsonl", keep_going=True).records for c in r.completions] == [1]
    (tmp_path / "b.json").write_text(f"[\n{good},\n{bad}\n]")
    assert message in str(error_of(tmp_path / "b.json"))
    (tmp_path / "c.jsonl").write_text(bad)
    assert message in str(error_of(tmp_path / "c.jsonl"))


@pytest.mark.parametrize("column", ["prompt", "completion", "tools", "history", "template_kwargs"])
@pytest.mark.parametrize("value", [f"[{DIGITS}]", DEEP, f"[{NESTED}]"], ids=["digits", "many levels", "levels"])
def test_json_beyond_bounds_in_a_cell(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "a.csv"
    columns = {"prompt": "a", "completion": "b", "instruction": "i", "output": "o", column: value}
    names = ["instruction", "output", "history"] if column == "history" else ["prompt", "completion", column]
    names = list(dict.fromkeys(names))
    cells = ['"' + columns[name].replace('"', '""') + '"' for name in names]
    path.write_text(f"{','.join(names)}\n{','.join(cells)}\n")
    error = error_of(path)
    assert error.line == 2
    assert column in error.message
    assert "digits" in error.message or "nested too deeply" in error.message


def test_broken_messages_in_a_cell_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"[{""role"": ""user"", ""content"": ""hi""",ho\n[INST] hi,ho\n')
    error = error_of(path)
    assert (error.line, "prompt: broken JSON" in error.message) == (2, True)


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


BEYOND = {"digits": 10**5000, "levels": nested(150), "many levels": nested(100_000)}


@pytest.mark.parametrize("what", BEYOND)
@pytest.mark.parametrize(
    "column", ["prompt", "completion", "label", "weight", "id", "tools", "template_kwargs", "note"]
)
def test_values_in_memory_beyond_bounds(tmp_path: Path, column: str, what: str) -> None:
    kept = load([GOOD, {**GOOD, column: BEYOND[what]}], keep_going=True)
    assert [c.line for r in kept.records for c in r.completions] == [1] + [2] * (not kept.problems)
    assert len(kept.problems) == 1 or column == "note"
    write_problems(kept.problems, tmp_path / "bad.jsonl")
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == len(kept.problems)


@pytest.mark.parametrize("twice", ['"label": true, "label": false', '"x": {"a": 1, "a": 2}, "label": true'])
def test_a_key_that_stands_twice_is_a_bad_row(tmp_path: Path, twice: str) -> None:
    row = f'{{"prompt": "a", "completion": "b", {twice}}}'
    error = error_of(save(tmp_path / "a.jsonl", GOOD, row))
    assert (error.line, "twice. Keep one of the two" in error.message) == (2, True)
    (tmp_path / "b.json").write_text(f"[{row}]")
    assert "twice. Keep one of the two" in str(error_of(tmp_path / "b.json"))


# Text that is no text


def test_half_characters_are_named_and_written_as_escapes(tmp_path: Path) -> None:
    half = '{"prompt": "a", "completion": "b", "label": "\\ud83d", "id": "\\ud83d"}'
    kept = load(save(tmp_path / "a.jsonl", GOOD, half), keep_going=True)
    (problem,) = kept.problems
    problem.message.encode()
    str(problem).encode()
    write_problems(kept.problems, tmp_path / "bad.jsonl")
    assert json.loads((tmp_path / "bad.jsonl").read_text())["row"] == json.loads(half)
    error = error_of(save(tmp_path / "b.jsonl", '{"prompt": "a", "completion": "b", "\\ud83d": 1}'))
    str(error).encode()
    assert "lone surrogate" in str(error)


def test_check_prints_what_no_terminal_can(tmp_path: Path) -> None:
    row = '{"prompt": "a", "completion": "b", "label": "\\ud83d"}'
    path = save(tmp_path / "a.jsonl", GOOD, {**GOOD, "label": False}, row)
    command = [
        sys.executable,
        "-m",
        "prospect.cli.main",
        "check",
        str(path),
        "--keep-going",
        str(tmp_path / "good.jsonl"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "\\ud83d" in done.stdout


def invalid_utf8(path: Path, rows: list[bytes]) -> Path:
    """A table whose prompts are bytes that Arrow takes for text unseen."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    prompts = pa.Array.from_buffers(pa.string(), len(rows), pa.array(rows, pa.binary()).buffers())
    pq.write_table(pa.table({"prompt": prompts, "completion": ["b"] * len(rows), "label": [True] * len(rows)}), path)
    return path


def test_text_of_a_table_that_is_not_utf8_spoils_its_row_only(tmp_path: Path) -> None:
    path = invalid_utf8(tmp_path / "a.parquet", [b"one", b"caf\xe9", b"three"])
    error = error_of(path)
    assert (error.line, "holds text that is not UTF-8: byte 0xe9" in error.message) == (2, True)
    assert [r.prompt for r in load(path, keep_going=True).records] == ["one", "three"]
