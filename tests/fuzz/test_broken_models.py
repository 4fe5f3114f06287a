"""Model and adapter folders whose files are broken: an error that names the folder, never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prospect.engine.load import load
from prospect.errors import ModelError, ProspectError
from tests.helpers.fuzzing import BROKEN, as_bytes, in_words

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")


def digest_of(folder: Path) -> str:
    return load(folder, frozen=True).digest


@pytest.mark.parametrize("name", FILES)
def test_files_that_hold_something_else(assistant: Path, tmp_path: Path, name: str) -> None:
    for text in BROKEN:
        folder = shutil.copytree(assistant, tmp_path / "model", dirs_exist_ok=True)
        (folder / name).write_bytes(as_bytes(text))
        in_words(partial(digest_of, folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_values_of_another_kind(assistant: Path, tmp_path: Path, name: str) -> None:
    draw = random.Random(name)
    whole = json.loads((assistant / name).read_text())
    for key in draw.sample(sorted(whole), min(12, len(whole))):
        values: list[Any] = [None, -1, 0, 1e400, "text", [], {}, [[]], 10**4000, {"a": 1}, True]
        for value in draw.sample(values, 3):
            folder = shutil.copytree(assistant, tmp_path / "model", dirs_exist_ok=True)
            (folder / name).write_text(json.dumps(whole | {key: value}))
            in_words(partial(digest_of, folder))


@pytest.mark.parametrize(
    "head",
    [
        (1 << 62).to_bytes(8, "little") + b"{}",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2).to_bytes(8, "little") + b"[]",
        (28).to_bytes(8, "little") + b'{"a":{"data_offsets":[0,9]}}',
        (26).to_bytes(8, "little") + b'{"a":{"data_offsets":"x"}}',
        (28).to_bytes(8, "little") + b'{"a":{"data_offsets":[9,-9]}',
    ],
)
def test_weights_with_a_wrong_head(assistant: Path, tmp_path: Path, head: bytes) -> None:
    from prospect.engine.folders import fingerprint

    folder = shutil.copytree(assistant, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(head)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        fingerprint(folder)
    with pytest.raises(ProspectError):
        load(folder, frozen=True)
