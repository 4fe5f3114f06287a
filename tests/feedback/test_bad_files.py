"""Files that are wrong as a whole: a DataError with the path and what to do."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from prospect.feedback.load import load
from tests.helpers.feedback import GOOD, error_of, save


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    save(tmp_path / "thumbs.jsonl", GOOD)
    error = error_of(tmp_path / "thumb.jsonl")
    assert error.path == tmp_path / "thumb.jsonl"
    assert str(error).endswith(f'no such file or folder. Did you mean "{tmp_path / "thumbs.jsonl"}"?')
    assert f"nor a folder {tmp_path / 'no'}" in str(error_of(str(tmp_path / "no" / "thumbs.jsonl")))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("b.json", b"\n \n"), ("c.csv", b""), ("d.gz", b"")])
def test_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert str(error_of(tmp_path / name)) == f"{tmp_path / name}: is empty"


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", "[]"), ("b.csv", "prompt,completion\n"), ("c.json", '{"data": []}')]
)
def test_file_without_rows(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert str(error_of(tmp_path / name)) == f"{tmp_path / name}: has no rows"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jsonl", GOOD)

    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert str(error_of(path)) == f"{path}: cannot be read: Permission denied"


def test_text_in_place_of_a_path() -> None:
    assert "is no name of a file" in str(error_of("a question? " * 500))


def test_no_rows_in_memory() -> None:
    assert str(error_of([])) == "has no rows"


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    assert "none that Dataset.save_to_disk wrote" in str(error_of(tmp_path))


def test_a_folder_of_several_splits(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([GOOD])
    both = datasets.DatasetDict({"train": data, "test": data})
    both.save_to_disk(str(tmp_path / "d"))
    assert str(error_of(tmp_path / "d")).endswith(f"name one of them: {tmp_path / 'd/test'}, {tmp_path / 'd/train'}")
    assert load(tmp_path / "d" / "test").rows == 1
    assert "Choose a split" in str(error_of(both))


def test_a_damaged_datasets_folder(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([GOOD]).save_to_disk(str(tmp_path / "d"))
    (shard,) = (tmp_path / "d").glob("*.arrow")
    shard.write_bytes(b"not arrow at all")
    assert "is no readable datasets folder" in str(error_of(tmp_path / "d"))


@pytest.mark.parametrize("source", [42, {"prompt": "a"}, None, object()])
def test_what_is_no_source(source: Any) -> None:
    assert "feedback is a path, a list of dicts, a Dataset or a DataFrame" in str(error_of(source))


@pytest.mark.parametrize("keep", [20, 60])
def test_corrupt_gzip(tmp_path: Path, keep: int) -> None:
    packed = gzip.compress(random.Random(0).randbytes(400))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[:keep])
    assert str(error_of(path)).startswith(f"{path}: is corrupt gzip (it ends too early)")
    path.write_bytes(packed[:keep] + b"\xff" * 8 + packed[keep + 8 :])
    assert str(error_of(path)).startswith(f"{path}: is corrupt gzip")
    path.write_bytes(b'{"prompt": "plain"}')
    assert str(error_of(path)).startswith(f"{path}: is corrupt gzip")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1 but then nothing PAR1", b"no parquet", b"PAR1" + bytes(100)])
def test_corrupt_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert str(error_of(path)).startswith(f"{path}: is no readable Parquet file: ")


def test_truncated_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD] * 100), path)
    path.write_bytes(path.read_bytes()[:-30])
    assert "is no readable Parquet file" in str(error_of(path))


def test_binary_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(256)))
    assert "is neither JSON nor JSON lines" in str(error_of(path))


@pytest.mark.parametrize("content", ["hello\nworld", "- prompt: a\n", "<html></html>"])
def test_text_that_is_no_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    error = error_of(tmp_path / "a.jsonl")
    assert "is neither JSON nor JSON lines" in error.message
    assert error.line == 1


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode(codec))
    message = str(error_of(path))
    assert "is UTF-16" in message or "neither JSON" in message or "broken JSON" in message
    assert ("iconv" in message) == (codec == "utf-16")


def test_broken_json_array_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=0).replace('"label": true\n}\n]', '"label": tru\n}\n]'))
    error = error_of(path)
    assert error.line == 10
    assert "broken JSON at column" in error.message


def test_broken_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\na,b\na,"b\nc,d\n')
    error = error_of(path)
    assert error.line == 3
    assert "broken CSV" in error.message
    path.write_text("text,text\na,b\n")
    assert "has the column text twice" in str(error_of(path))


def test_wrong_encoding_of_a_table_or_array(tmp_path: Path) -> None:
    csv, array = tmp_path / "a.csv", tmp_path / "a.json"
    csv.write_bytes("text\nok\ncafé\n".encode("latin-1"))
    array.write_bytes('[\n{"text": "café"}]'.encode("latin-1"))
    assert "a.csv:3: is not UTF-8: byte 0xe9 at offset 11 of the file" in str(error_of(csv))
    assert "a.json:2: is not UTF-8: byte 0xe9 at offset 15 of the file" in str(error_of(array))
    assert "iconv -f LATIN1" in str(error_of(csv))
