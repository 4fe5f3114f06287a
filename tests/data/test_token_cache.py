"""The table of token ids: nothing in it differs from what the tokenizer says, and nothing is tokenised twice."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, normalizers

from prospect.data import dataset
from prospect.data.dataset import Tree
from prospect.data.tokens import Encoder
from prospect.errors import DataError
from prospect.feedback.records import Record
from tests.helpers.tokenizers import CHATML, GEMMA, build_trees, byte_level, chat, cut_off, llama_like, record


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The records that the template was asked for."""
    found: list[Record] = []
    original = Encoder.encode

    def encode(self: Encoder, records: Any) -> Any:
        found.extend(records)
        return original(self, records)

    monkeypatch.setattr(Encoder, "encode", encode)
    return found


def rows() -> list[Record]:
    made = [record(chat(f"question {i}", system="Be kind."), "four", f"{i} and é", "") for i in range(1100)]
    made[3] = cut_off(made[3])
    made[4] = dataclasses.replace(made[4], completions=())
    made[5] = record("the boat crossed", "the river", " the river")
    return [dataclasses.replace(r, id=f"r{i}") for i, r in enumerate(made)]


def same(some: list[Tree], others: list[Tree]) -> bool:
    def plain(tree: Tree) -> Any:
        done = [None if ids is None else (ids.dtype, ids.tolist()) for ids in tree.completions]
        return tree.record, tree.prompt.dtype, tree.prompt.tolist(), done

    return [plain(tree) for tree in some] == [plain(tree) for tree in others]


@pytest.mark.parametrize("over_long", ["drop", "cut_prompt", "cut_completion"])
@pytest.mark.parametrize("length", [12, 100])
def test_from_the_table_comes_what_the_tokenizer_says(
    tmp_path: Path, asked: list[Record], over_long: Any, length: int
) -> None:
    tokenizer, records = byte_level(CHATML), rows()
    plain, report = build_trees(records, tokenizer, max_length=length, over_long=over_long)
    for _ in range(2):
        asked.clear()
        kept, again = build_trees(records, tokenizer, max_length=length, over_long=over_long, cache=tmp_path)
        assert same(plain, kept)
        assert again == report
    if length == 100:
        assert asked == []


def test_straddled_tokens_are_counted_from_the_table_too(tmp_path: Path) -> None:
    r = record("a t", "he")
    reports = [build_trees([r], llama_like(), max_length=64, cache=cache)[1] for cache in (None, tmp_path, tmp_path)]
    assert reports[0].flaws == {"straddled": 1}
    assert reports[0] == reports[1] == reports[2]


def test_only_what_is_new_is_tokenised(tmp_path: Path, asked: list[Record]) -> None:
    tokenizer, records = byte_level(CHATML), rows()
    build_trees(records[:600], tokenizer, max_length=64, cache=tmp_path)
    asked.clear()
    build_trees(records[500:900], tokenizer, max_length=64, cache=tmp_path)
    assert asked == records[600:900]
    changed = [
        cut_off(records[0]),
        record(chat("question 0"), "four"),
        dataclasses.replace(records[0], tools=({"name": "add"},)),
        dataclasses.replace(records[0], template_kwargs={"enable_thinking": False}),
        dataclasses.replace(records[0], completions=records[0].completions[::-1]),
    ]
    asked.clear()
    build_trees(changed, tokenizer, max_length=64, cache=tmp_path)
    assert asked == changed
    asked.clear()
    build_trees([dataclasses.replace(records[0], id="other", source="x")], tokenizer, max_length=64, cache=tmp_path)
    assert asked == []


def test_another_tokenizer_or_template_has_another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [byte_level(), byte_level(CHATML), byte_level(GEMMA), byte_level(CHATML, bos_token="<|end|>"), llama_like()]
    names = [dataset.identity(Encoder(tokenizer)) for tokenizer in made]
    assert len(set(names)) == 5
    assert None not in names
    assert dataset.identity(Encoder(byte_level(CHATML))) == names[1]
    dated = byte_level(CHATML + "{{ strftime_now('%d %b %Y') }}")
    today = dataset.identity(Encoder(dated))
    monkeypatch.setattr(time, "strftime", lambda form: "another day")
    assert dataset.identity(Encoder(dated)) != today


def test_what_changes_ids_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer's content, flags of its tokens, the mode of control tokens, the template's text, versions, code."""
    plain = dataset.identity(Encoder(byte_level(CHATML)))
    others = [
        Encoder(byte_level(CHATML), None, "token"),
        Encoder(byte_level(CHATML + " ")),
        Encoder(byte_level(CHATML), "plain"),
    ]
    more_words = byte_level(CHATML)
    more_words.add_tokens(["boat"])
    unnormal = byte_level(CHATML)
    unnormal.backend_tokenizer.normalizer = normalizers.Lowercase()
    not_special = byte_level(CHATML)
    not_special.add_tokens([AddedToken("<|im_end|>", special=False, lstrip=True)])
    splitting = byte_level(CHATML)
    splitting.split_special_tokens = True
    others += [Encoder(tokenizer) for tokenizer in (more_words, unnormal, not_special, splitting)]
    names = [dataset.identity(template) for template in others]
    monkeypatch.setattr(dataset, "version", lambda name: "another")
    names.append(dataset.identity(Encoder(byte_level(CHATML))))
    assert None not in names
    assert len({plain, *names}) == 1 + len(names)


def test_flaws_come_from_the_table_too(tmp_path: Path, asked: list[Record]) -> None:
    records = [record(chat("Hi<|im_end|>"), "four", "five<|im_end|>x"), record(chat("Hi"), "four")]
    reports = []
    for _ in range(2):
        asked.clear()
        reports.append(build_trees(records, byte_level(CHATML), max_length=64, cache=tmp_path)[1])
    assert asked == []
    assert reports[0] == reports[1]
    assert reports[1].flaws == {"control": 2}
    assert len(reports[1].examples["control"]) == 2
    token = build_trees(records, byte_level(CHATML), max_length=64, cache=tmp_path, special_tokens="token")[0]
    assert len(token[0].prompt) < len(
        build_trees(records, byte_level(CHATML), max_length=64, cache=tmp_path)[0][0].prompt
    )


def test_a_tokenizer_with_parts_in_python_is_not_described(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend:
        def to_str(self) -> str:
            raise Exception("Custom PreTokenizer cannot be serialized")  # as tokenizers says it

    template = Encoder(byte_level(), "plain")
    monkeypatch.setattr(type(template.tokenizer), "backend_tokenizer", Backend())
    assert dataset.identity(template) is None


def test_errors_are_not_kept(tmp_path: Path, asked: list[Record]) -> None:
    records = [record(chat("Hi"), "four"), record(chat("Hi", system="Be kind."), "four")]
    for _ in range(2):
        with pytest.raises(DataError, match="System role not supported"):
            build_trees(records, byte_level(GEMMA), max_length=64, cache=tmp_path)


def test_a_disk_that_refuses_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_trees(rows()[:10], byte_level(CHATML), max_length=64)[0]
    (tmp_path / "tokens").write_text("a file where a folder should be")
    assert same(build_trees(rows()[:10], byte_level(CHATML), max_length=64, cache=tmp_path)[0], plain)


def test_kept_ids_are_int32_and_cannot_be_changed(tmp_path: Path) -> None:
    for _ in range(2):
        tree = build_trees([record(chat("Hi"), "four")], byte_level(CHATML), max_length=64, cache=tmp_path)[0][0]
    assert tree.prompt.dtype == np.int32
    assert not tree.prompt.flags.writeable
