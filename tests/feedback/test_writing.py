"""Records as Prospect JSONL: round trips, the same bits every time, files whole or not at all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.data.write import write, write_problems
from prospect.errors import DataError
from prospect.feedback.load import digest, load, merge
from prospect.feedback.records import Completion, Pair, Record
from tests.helpers.feedback import BLUE, GREEN, SKY, TOOLS, assistant, user

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "thumbs": [{"prompt": "a", "completion": "1", "label": True, "weight": 0.5}] * 2,
    "pairs": [{"prompt": [*SKY], "chosen": BLUE, "rejected": GREEN, "weight": 2, "tools": TOOLS}] * 2,
    "chat": [{"messages": [*SKY, assistant(BLUE, rating=1), user("\u2028"), assistant("", rating=-1)]}],
    "text": [{"text": "Once."}, {"text": "Twice 👍."}],
    "calls": [{"prompt": [*SKY], "completion": [{"role": "assistant", "tool_calls": [{"x": 1}]}], "label": 0}],
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_written_records_load_again(tmp_path: Path, name: str, suffix: str) -> None:
    feedback = load(SAMPLES[name])
    path = tmp_path / f"out.{suffix}"
    write(feedback.records, path)
    again = load(path)
    assert again.records == feedback.records
    assert again.digest == feedback.digest == digest(feedback.records)
    assert again.format == "prospect"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


texts = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
completions = st.builds(
    Completion,
    id=texts.filter(bool),
    content=texts | st.builds(lambda c, n: assistant(c, name=n), texts, texts),
    label=st.none() | st.booleans(),
    score=st.none() | numbers,
    weight=numbers.map(abs),
    complete=st.booleans(),
)
chats = st.lists(st.builds(user, texts.filter(lambda t: bool(t.strip()))), min_size=1, max_size=3).map(tuple)


@st.composite
def records(draw: st.DrawFn) -> Record:
    prompt = draw(chats)
    done = draw(st.lists(completions, min_size=1, max_size=3))
    side = st.integers(0, len(done) - 1)
    pairs = draw(st.lists(st.builds(Pair, side, side, numbers.map(abs)), max_size=2))
    tools = draw(st.none() | st.just(tuple(TOOLS)))
    return Record(draw(texts.filter(bool)), prompt, tuple(done), tuple(pairs), draw(texts), tools)


@settings(max_examples=100, deadline=None)
@given(st.lists(records(), min_size=1, max_size=4).map(merge))
def test_any_records_survive_a_round_trip(tmp_path_factory: pytest.TempPathFactory, held: tuple[Record, ...]) -> None:
    path = tmp_path_factory.mktemp("round") / "a.jsonl"
    write(held, path)
    assert load(path).records == held


def test_packed_files_have_the_same_bits_every_time(tmp_path: Path) -> None:
    held = load(SAMPLES["thumbs"]).records
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write(held, tmp_path / name)
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert packed[3:8] == bytes(5)  # no file name, no time of day
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).count(b"\n") == len(held)


def test_digest_tells_feedback_apart() -> None:
    rows = [{"prompt": "a", "completion": "1", "label": True}]
    assert load(rows).digest == load([dict(rows[0])]).digest
    assert load(rows).digest != load([{**rows[0], "label": False}]).digest


def test_write_leaves_the_old_file_where_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def broken() -> Any:
        yield from load(SAMPLES["thumbs"]).records
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"a\.jsonl: cannot be written: No space left on device"):
        write(broken(), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_write_puts_the_whole_file_in_place_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def refuse(draft: Path, target: Path) -> None:
        assert draft.read_bytes().count(b"\n") == 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(DataError, match="cannot be written"):
        write(load(SAMPLES["thumbs"]).records, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("where", ["missing/a.jsonl", "file/a.jsonl", "."])
def test_write_to_where_nothing_can_be(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write([], tmp_path / where)


def test_bad_rows_are_written_with_their_reasons(tmp_path: Path) -> None:
    source, good, bad = tmp_path / "in.jsonl", tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    source.write_text(
        '{"prompt": "a", "completion": "b", "label": true}\n'
        '{"prompt": "a", "completion": "c", "label": null}\n'
        '{"prompt": "a", "completion'
    )
    feedback = load(source, keep_going=True)
    write(feedback.records, good)
    write_problems(feedback.problems, bad)
    assert load(good).records == feedback.records
    found = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [(row["line"], row["row"]) for row in found] == [
        (2, {"prompt": "a", "completion": "c", "label": None}),
        (3, '{"prompt": "a", "completion'),
    ]
    assert "label is null" in found[0]["reason"]
    assert "broken JSON at column" in found[1]["reason"]


def test_what_people_said_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(load([{"prompt": "a", "completion": "b", "label": True}]).records, path)
    assert path.stat().st_mode & 0o777 == 0o600
