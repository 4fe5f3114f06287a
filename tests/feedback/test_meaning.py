"""Data that would change their meaning in silence: scores as thumbs, tool calls, unrated turns, roles, flags, pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.feedback.load import load
from prospect.feedback.records import Pair
from tests.helpers.feedback import CHAT, GOOD, SKY, SYSTEM, answers, assistant, error_of, save, user

STARS = "prompt,completion,label\n" + "".join(f"q{i},a{i},{stars}\n" for i, stars in enumerate((5, 1, 4, 1)))


# Stars are no thumbs


def test_one_star_is_no_thumb_up_however_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stars.csv"
    path.write_text(STARS)
    error = error_of(path)
    assert [e.line for e in error.problems] == [2, 3, 4, 5]
    assert "line 3: label 1 stands among scores (5 on line 2), so it is one" in str(error)
    assert "--map score=label" in str(error)
    kept = load(path, keep_going=True)
    assert kept.records == ()
    assert len(kept.problems) == 4


@pytest.mark.parametrize(
    "rows",
    [
        [GOOD | {"label": 1}, GOOD | {"label": 0}, GOOD | {"label": 0.85}],
        [GOOD | {"label": "1"}, GOOD | {"label": "5"}, GOOD | {"label": "1"}],
        [GOOD | {"label": 1}, GOOD | {"label": 4, "prompt": " "}],  # the row is bad besides, and counts still
        [{"messages": [*CHAT, assistant("a", rating=stars)]} for stars in (1, 5)],
        [{"instruction": "a", "output": "b", "kto_tag": 1}, {"instruction": "a", "output": "c", "kto_tag": 3}],
        [{"prompt": "a", "completions": [{"content": "b", "label": stars}]} for stars in (1, 2)],
        [{"conversations": [user("a"), assistant("b")], "rating": stars} for stars in (1, 5)],
    ],
)
def test_a_column_is_judged_as_a_whole(rows: list[dict[str, Any]]) -> None:
    assert load(rows, keep_going=True).records == ()


def test_a_score_among_words_or_booleans_is_one_bad_row() -> None:
    kept = load([GOOD, {**GOOD, "label": False}, {**GOOD, "label": 4}], keep_going=True)
    assert [c.label for c in kept.records[0].completions] == [True, False]


def test_files_of_stars(shared: Path) -> None:
    rows = shared / "cases" / "rows"
    assert load(rows / "f03_stars.csv", keep_going=True).records == ()
    assert 'the column "rating" looks like a judgement' in str(error_of(rows / "e15_stars.csv"))


# Tool calls

CALL = {"name": "weather", "arguments": '{"city": "Bern", "days": 2}'}


@pytest.mark.parametrize(
    "call",
    [
        {"type": "function", "id": "c1", "function": CALL},
        {"type": "function", "id": "c1", "function": {**CALL, "arguments": {"city": "Bern", "days": 2}}},
    ],
)
def test_arguments_that_hold_json_are_objects(call: dict[str, Any]) -> None:
    row = {"prompt": [*SKY], "completion": {"role": "assistant", "content": "", "tool_calls": [call]}, "label": True}
    content = load([row]).records[0].completions[0].content
    assert isinstance(content, dict)
    function = {"name": "weather", "arguments": {"city": "Bern", "days": 2}}
    assert content["tool_calls"] == [{"type": "function", "id": "c1", "function": function}]


@pytest.mark.parametrize(("text", "value"), [("", {}), ('{"city": "Be', '{"city": "Be'), ("[1]", "[1]"), ("3", "3")])
def test_arguments_that_hold_no_object_stay_as_the_model_wrote_them(text: str, value: Any) -> None:
    message = assistant("", tool_calls=[{"function": {"name": "f", "arguments": text}}])
    content = load([{"prompt": [*SKY], "completion": message}]).records[0].completions[0].content
    assert isinstance(content, dict)
    assert content["tool_calls"][0]["function"]["arguments"] == value


def test_calls_of_every_layout_have_objects_as_arguments(shared: Path) -> None:
    call = json.dumps({"name": "f", "arguments": '{"x": 1}'})
    sharegpt = {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": call}]}
    read = [
        load([sharegpt]),
        *(load(shared / "cases/rows" / f"f0{n}_toolcalls_{k}.jsonl") for n, k in ((1, "thumbs"), (2, "pairs"))),
    ]
    for feedback in read:
        for record in feedback.records:
            for done in record.completions:
                assert isinstance(done.content, dict)
                assert all(isinstance(c["function"]["arguments"], dict) for c in done.content["tool_calls"])


def test_arrows_nulls_in_arguments_are_absent(shared: Path) -> None:
    first, second = load(shared / "cases/rows/g03_tools.parquet").records
    calls = [
        c.content["tool_calls"][0]["function"]
        for c in (*first.completions, *second.completions)
        if isinstance(c.content, dict)
    ]
    assert [call["arguments"] for call in calls] == [{"city": "Bern"}, {"limit": 3}, {"limit": 4}, {"city": "Rome"}]


# Turns that nobody rated, and turns not to be trained


def test_null_beside_a_message_says_that_nobody_rated_it(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"messages": [user("a"), assistant("b", rating=rating), user("c"), assistant("d", rating=None)]}
        for rating in (1, -1)
    ]
    path = save(tmp_path / "a.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for feedback in (load(path), load(tmp_path / "a.parquet"), load(rows)):
        assert answers(feedback) == [((user("a"),), "b", True), ((user("a"),), "b", False)]
    own = [{"prompt": "a", "completions": [{"content": "b", "label": True}, {"content": "c", "label": None}]}]
    assert [c.label for c in load(own).records[0].completions] == [True, None]


def test_null_in_the_column_of_a_row_stays_an_error() -> None:
    assert "label is null" in str(error_of([{"messages": [*CHAT, assistant("a")], "rating": r} for r in (1, None)]))


def test_lines_and_table_of_unrated_turns_are_equal(shared: Path) -> None:
    lines, table = (load(shared / "cases/rows" / f"e12_null_turn.{kind}") for kind in ("jsonl", "parquet"))
    assert lines.records == table.records
    assert [c.label for r in lines.records for c in r.completions] == [True, False, True, False]


@pytest.mark.parametrize("flag", ["train", "loss"])
def test_a_flagged_turn_is_context(flag: str) -> None:
    log = [
        user("a"),
        assistant("b", **{flag: False}),
        user("c"),
        assistant("d", **{flag: True}),
        user("e"),
        assistant("f"),
    ]
    feedback = load([{"messages": log}])
    assert [(len(r.prompt), r.completions[0].content) for r in feedback.records] == [(3, "d"), (5, "f")]
    assert all(
        set(message) == {"role", "content"}
        for r in feedback.records
        for message in r.prompt
        if isinstance(message, dict)
    )
    assert feedback.notes == ("1 turns say train: false or loss: false: they are context and not trained",)


def test_a_flag_counts_where_answers_are_judged_too() -> None:
    log = [user("a"), assistant("b", rating=1, train=False), user("c"), assistant("d", rating=-1)]
    assert [c.content for r in load([{"messages": log}]).records for c in r.completions] == ["d"]
    whole = {"messages": [*CHAT, assistant("a", loss=False)], "label": True}
    feedback = load([whole, {"messages": [*CHAT, assistant("b")], "label": False}])
    assert [c.content for r in feedback.records for c in r.completions] == ["b"]
    assert "1 of 2 conversations have no judged answer and were left out" in feedback.notes


def test_files_of_flagged_turns(shared: Path) -> None:
    rows = shared / "cases" / "rows"
    assert not any(c.text.startswith("BAD") for r in load(rows / "e13_train_flag.jsonl").records for c in r.completions)
    assert [c.content for r in load(rows / "d13_loss_flags.jsonl").records for c in r.completions] == [
        "ACTION: take lamp"
    ]


# Speakers


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        *((name, "user") for name in ("human", "User", " USER ", "prompter")),
        *((name, "assistant") for name in ("gpt", "Assistant", "bot", "model", "chatgpt")),
        *((name, "tool") for name in ("observation", "function", "ipython")),
        ("System", "system"),
        ("developer", "developer"),
    ],
)
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_known_speakers_are_translated(speaker: str, role: str, keys: tuple[str, str]) -> None:
    (record,) = load([{"prompt": [{keys[0]: speaker, keys[1]: "x"}, *SKY], "completion": "y"}]).records
    assert record.prompt == ({"role": role, "content": "x"}, *SKY)


def test_files_of_speakers(shared: Path) -> None:
    for name in ("e01_roles_human_gpt", "e02_roles_User"):
        records = load(shared / "cases/rows" / f"{name}.jsonl").records
        assert {m["role"] for r in records for m in r.prompt if isinstance(m, dict)} == {"user"}


def test_the_assistant_may_answer_the_system_alone(shared: Path) -> None:
    (record,) = load([{"messages": [SYSTEM, assistant("Welcome.")], "label": True}]).records
    assert record.prompt == (SYSTEM,)
    assert len(load(shared / "cases/rows/d38_system_only.jsonl").records) == 2


# A pair in one column


def test_two_outputs_are_a_pair_of_texts(shared: Path) -> None:
    (record,) = load([{"instruction": "Say A", "input": "", "output": ["A", "B"]}]).records
    assert [c.content for c in record.completions] == ["A", "B"]
    assert record.pairs == (Pair(0, 1),)
    assert "no thumb or score of its own" in str(
        error_of([{"instruction": "a", "output": ["A", "B"], "kto_tag": True}])
    )
    assert "has 3 messages" in str(error_of([{"instruction": "a", "output": ["A", "B", "C"]}]))
    assert len(load(shared / "cases/rows/d16_alpaca_list.jsonl").records) == 2
