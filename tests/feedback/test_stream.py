"""Converting holds no records in memory, writes what loading would give, and leaves out what a list of ids names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prospect.cli.main import main
from prospect.feedback.load import load, stream
from prospect.feedback.records import IdList, Inventory, inventory
from tests.helpers.feedback import save, user

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "1", "label": True, "by": "ann", "at": 1730000000, "model": "m", "note": "nice"},
    {"prompt": [user("b")], "completions": [{"content": "2", "label": False, "by": "ben", "conversation": "c1"}, "3"]},
    {"prompt": "", "completions": ["x"]},
    {"prompt": "a", "completion": "4", "label": False, "id": "line1", "by": "ben"},
    {"prompt": "", "completions": ["x"]},
    {"prompt": "p", "completions": ["u", "v", "w"], "pairs": [[0, 1], [2, 0]], "conversation_id": "c2"},
    {"prompt": "p", "completions": ["u", "z"], "pairs": [[0, 1]]},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "a.jsonl", *ROWS)


def test_the_same_records_as_loading(path: Path) -> None:
    feedback, counts = load(path), Inventory()
    with stream(path) as passing:
        records = tuple(counts.watch(passing.records))
    assert records == feedback.records
    assert (str(counts), passing.format, tuple(passing.notes)) == (
        inventory(feedback.records),
        feedback.format,
        feedback.notes,
    )


def test_reference_scores_keep_records_apart_as_in_loading() -> None:
    rows = [{"prompt": "r", "completions": ["s"], "reference_scores": [1, n]} for n in (2, 3, 2)]
    with stream(rows) as passing:
        assert tuple(passing.records) == load(rows).records


def test_origins_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    assert main(["convert", str(path), str(tmp_path / "out.jsonl")]) == 0
    (first, second), *_ = (record.completions for record in load(tmp_path / "out.jsonl").records)
    assert (first.by, first.at, first.model, first.note) == ("ann", "2024-10-27T03:33:20Z", "m", "nice")
    assert (second.id, second.by, second.at) == ("line1#2", "ben", "")
    assert load(tmp_path / "out.jsonl").records == load(path).records


def answers(path: Path, *ids: str) -> list[str]:
    with stream(path, without=IdList(ids)) as passing:
        return [f"{record.prompt and '+'}{c.text}" for record in passing.records for c in record.completions]


@pytest.mark.parametrize(
    ("ids", "rest"),
    [
        (["ben"], ["+1", "+3", "x", "x", "+u", "+v", "+w", "+z"]),  # a rater: his thumbs, and no other answer
        (["c1"], ["+1", "+4", "x", "x", "+u", "+v", "+w", "+z"]),
        (["c2"], ["+1", "+4", "+2", "+3", "x", "x", "+u", "+z"]),  # a conversation: the other record keeps its own "u"
        (["line1"], ["+2", "+3", "x", "x", "+u", "+v", "+w", "+z"]),  # an id that two rows have
        (["line2/0", "line3"], ["+1", "+4", "+3", "x", "+u", "+v", "+w", "+z"]),
    ],
)
def test_ids_leave_out(path: Path, ids: list[str], rest: list[str]) -> None:
    assert answers(path, *ids) == rest


def test_an_id_that_another_like_it_hides_is_left_out_too(path: Path, tmp_path: Path) -> None:
    """Two rows said that they were line1; written, the second is line1#2. Asked to delete line1, both go."""
    main(["convert", str(path), str(tmp_path / "out.jsonl")])
    assert answers(tmp_path / "out.jsonl", "line1")[0] == "+2"


def test_an_answer_of_another_conversation_stays() -> None:
    completions = [{"content": text, "label": True, "conversation": name} for text, name in (("1", "c1"), ("2", "c2"))]
    with stream([{"prompt": "a", "completions": completions}], without=IdList(["c1"])) as passing:
        (record,) = passing.records
    assert ([c.text for c in record.completions], record.conversations) == (["2"], ("c2",))


def test_pairs_lose_what_their_answers_lose(path: Path) -> None:
    with stream(path, without=IdList(["line6/1"])) as passing:
        record = list(passing.records)[-1]
    assert [c.text for c in record.completions] == ["u", "w", "z"]
    assert [(p.chosen, p.rejected) for p in record.pairs] == [(1, 0), (0, 2)]


def test_the_command_says_what_it_left_out(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("ben\n\n nobody \n")
    assert main(["convert", str(path), str(tmp_path / "out.jsonl"), "--without", str(ids)]) == 0
    out = capsys.readouterr().out
    assert "2 answers left out, as the list of ids says" in out
    assert "1 of the ids name nothing in the data: nobody" in out
    assert "ben" not in (tmp_path / "out.jsonl").read_text()
    assert main(["convert", str(path), str(tmp_path / "b.jsonl"), "--without", str(tmp_path / "no.txt")]) == 2
    assert "one on a line, cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("at", "last May", "at must be a time"),
        ("at", True, "at must be a time"),
        ("by", {"name": "x"}, "by must be text"),
    ],
)
def test_origins_that_cannot_be_read_are_refused(path: Path, column: str, value: Any, message: str) -> None:
    feedback = load([ROWS[0], {**ROWS[0], column: value}], keep_going=True)
    assert [problem.line for problem in feedback.problems] == [2]
    assert message in feedback.problems[0].message


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (1730000000, "2024-10-27T03:33:20Z"),
        ("1730000000", "2024-10-27T03:33:20Z"),
        (1730000000123, "2024-10-27T03:33:20.123Z"),
        (1730000000123456789, "2024-10-27T03:33:20.123Z"),
        ("2024-10-27T05:33:20+02:00", "2024-10-27T03:33:20Z"),
        ("2024-10-27 03:33:20", "2024-10-27T03:33:20Z"),
        ("2024-10-27", "2024-10-27T00:00:00Z"),
        ("Sun, 27 Oct 2024 03:33:20 GMT", "2024-10-27T03:33:20Z"),
        ({"$date": "2024-10-27T03:33:20Z"}, "2024-10-27T03:33:20Z"),
    ],
)
def test_times_have_one_form(value: Any, moment: str) -> None:
    assert load([{**ROWS[0], "at": value}]).records[0].completions[0].at == moment
