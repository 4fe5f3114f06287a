"""Feedback files and chat templates of any content: records, or words that say where the fault is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.data.options import DataOptions
from prospect.data.tokens import Encoder
from prospect.data.write import write
from prospect.doctor import check
from prospect.feedback.layouts import ColumnChoice
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Record
from tests.helpers.fuzzing import BROKEN, as_bytes, fuzz, in_words
from tests.helpers.tokenizers import byte_level

TEXT = st.text(max_size=12) | st.sampled_from(["\u2028", "\ud800", "\x1b]52;c;x\x07", "<|im_end|>", "1" * 4999])
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "x", 3]), "content": LEAF}
)
CHAT = st.lists(MESSAGE | LEAF, max_size=4)
COLUMNS = st.sampled_from(
    [
        "prompt",
        "completion",
        "label",
        "chosen",
        "rejected",
        "messages",
        "conversations",
        "score",
        "weight",
        "tools",
        "id",
    ]
)
ROW = st.dictionaries(COLUMNS | TEXT, LEAF | CHAT | st.dictionaries(TEXT, LEAF, max_size=2), max_size=6)
SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".txt", ""])


def examined(path: Path, keep_going: bool) -> None:
    def work() -> None:
        feedback = load(path, keep_going=keep_going)
        check.check(feedback, tokenizer=byte_level(), options=DataOptions(max_length=64))
        write(feedback.records, path.with_name("out.jsonl"))

    in_words(work)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@fuzz(80)
@given(rows=st.lists(ROW, min_size=1, max_size=4), suffix=SUFFIXES, keep_going=st.booleans())
def test_rows_of_any_shape(folder: Path, rows: list[dict[str, Any]], suffix: str, keep_going: bool) -> None:
    path = folder / f"rows{suffix or '.jsonl'}"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    examined(path, keep_going)


@fuzz(60)
@given(data=st.binary(max_size=80) | st.sampled_from([as_bytes(text) for text in BROKEN]), suffix=SUFFIXES)
def test_bytes_of_any_kind(folder: Path, data: bytes, suffix: str) -> None:
    path = folder / f"bytes{suffix}"
    path.write_bytes(data)
    examined(path, True)


@fuzz(60)
@given(text=st.text(alphabet='promtcleabdsi,;\t"\n\r 01\x00é', max_size=80))
def test_tables_of_any_kind(folder: Path, text: str) -> None:
    path = folder / "table.csv"
    path.write_text(f"prompt,completion,label\n{text}", newline="")
    examined(path, True)


PIECES = st.sampled_from(
    [
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{{ m['role'] }}",
        "{% if add_generation_prompt %}",
        "{% endif %}",
        "{{ bos_token }}",
        "{{ raise_exception('no') }}",
        "{{ messages[9].x }}",
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{",
        "%}",
        "{{ messages | tojson }}",
        "{{ '' * 3 }}",
        "x",
        "\n",
        "{% set a = namespace(b=1) %}",
        "{{ a.b.c.d }}",
        "{{ 'a' + 1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{% include 'x' %}",
    ]
)


@fuzz(80)
@given(st.lists(PIECES, max_size=7))
def test_templates_of_any_kind(folder: Path, pieces: list[str]) -> None:
    path = folder / "chat.jinja"
    path.write_text("".join(pieces))
    records = [Record("r", ({"role": "user", "content": "hi"},), (Completion("r/0", "hello", True),))]
    in_words(lambda: Encoder(byte_level(), str(path)).encode(records))


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf", b"\xef\xbb\xbf \n\n", b"\xef\xbb\xbf\n" * 2])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ""])
def test_a_mark_and_nothing_else(folder: Path, data: bytes, suffix: str) -> None:
    (folder / f"mark{suffix}").write_bytes(data)
    examined(folder / f"mark{suffix}", True)


MAPS = st.lists(
    st.sampled_from(
        [*("prompt=", "completion=", "label=", "score=", "by=", "messages.rating=", "=", ",", '"', "\\", "a", "b", "."),
         *("[0]", "[-1]", "[a=1]", "[", "]", "x.y", "inputs", "👍", "up", "down", "none", "--", "null", " ")]
    ),
    max_size=12,
).map("".join)  # fmt: skip
NESTED = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
NAMES = st.sampled_from(["a", "b", "x", "inputs", "question", "reply", "rating", "scores", "prompt", "completion"])


@fuzz(150)
@given(rows=st.lists(st.dictionaries(NAMES, NESTED, max_size=5), min_size=1, max_size=4), map=MAPS, labels=MAPS)
def test_any_map_and_labels_on_rows_of_any_shape(rows: list[dict[str, Any]], map: str, labels: str) -> None:
    in_words(lambda: load(copy.deepcopy(rows), choice=ColumnChoice.parse(map, labels=labels)))
    in_words(lambda: load(rows))
