"""Wrong rows: each gets a DataError with its line and what to do, and never takes good rows with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.feedback.load import load
from tests.helpers.feedback import CHAT, GOOD, error_of, save


def test_broken_json_at_a_line(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, '{"prompt": "a", "completion"', GOOD)
    error = error_of(path)
    assert (error.path, error.line) == (path, 2)
    assert str(error) == f"{path}:2: broken JSON at column 29: Expecting ':' delimiter"


def test_a_first_line_that_is_broken(tmp_path: Path) -> None:
    error = error_of(save(tmp_path / "a.jsonl", '{"prompt": }', GOOD))
    assert (error.line, error.message) == (1, "broken JSON at column 12: Expecting value")
    assert error_of(save(tmp_path / "b.jsonl", '{"prompt": }')).line == 1


def test_wrong_encoding_at_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9", "completion": "b", "label": true}\n')
    error = error_of(path)
    offset = len(json.dumps(GOOD)) + 1 + 15
    assert error.line == 2
    assert f"is not UTF-8: byte 0xe9 at offset {offset} of the file" in error.message


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "42", "null", "true"])
def test_lines_that_are_no_objects(tmp_path: Path, line: str) -> None:
    error = error_of(save(tmp_path / "a.jsonl", GOOD, line))
    assert error.line == 2
    assert "must be an object" in error.message
    assert "must be a dict" in str(error_of([GOOD, json.loads(line)]))


def test_json_too_deep_to_read(tmp_path: Path) -> None:
    deep = '{"prompt": ' + "[" * 200_000 + "]" * 200_000 + "}"
    assert "nested too deeply" in error_of(save(tmp_path / "a.jsonl", GOOD, deep)).message
    (tmp_path / "b.json").write_text(f"[\n{deep}\n]")
    assert "nested too deeply" in str(error_of(tmp_path / "b.json"))


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    # what is wrong: (a row of a file whose other rows are GOOD, what the message says)
    "unknown label": ({"label": "yep"}, 'label "yep" is no thumb. A file uses one of true/false, 1/0'),
    "null label": ({"label": None}, "label is null"),
    "a score as label": ({"label": 0.85}, 'label 0.85 is a score where a thumb should be. Name the column "score"'),
    "a grade as label": ({"label": 4}, "label 4 is a score"),
    "another vocabulary": (
        {"label": "up"},
        'label \'up\' belongs to "up"/"down", but this file\'s labels are true/false',
    ),
    "1 among booleans": ({"label": 1}, "label 1 belongs to the numbers 1/0/-1"),
    "blank prompt": ({"prompt": "  \n"}, "prompt is blank"),
    "empty chat prompt": ({"prompt": []}, "prompt is blank"),
    "blank chat prompt": ({"prompt": [{"role": "user", "content": " "}]}, "prompt is blank"),
    "a blank system message": ({"prompt": [{"role": "system", "content": " "}]}, "prompt is blank"),
    "unknown role": (
        {"prompt": [{"role": "usr", "content": "x"}]},
        "prompt: message 1 is from str 'usr', which is no known speaker. Did you mean \"user\"?",
    ),
    "tool calls as text": (
        {"prompt": [*CHAT, {"role": "assistant", "tool_calls": "f()"}]},
        "message 2 tool_calls is not valid JSON",
    ),
    "tool calls of a wrong type": (
        {"prompt": [*CHAT, {"role": "assistant", "tool_calls": ["f"]}]},
        "message 2 tool_calls must be a list of objects",
    ),
    "null prompt": ({"prompt": None}, "prompt is missing"),
    "number as prompt": ({"prompt": 4}, "prompt must be text or a list of messages, not int 4"),
    "object as prompt": ({"prompt": {"role": "user"}}, "prompt must be text or a list of messages, not dict"),
    "strings as chat": ({"prompt": ["hi", "ho"]}, "prompt must be a non-empty list of messages, not list ['hi', 'ho']"),
    "message without role": ({"prompt": [*CHAT, {"content": "x"}]}, "prompt: message 2 has no role"),
    "message without content": ({"prompt": [{"role": "user"}]}, "prompt: message 1 (user) has no content"),
    "number as content": ({"prompt": [{"role": "user", "content": 5}]}, "message 1 content must be text, not int 5"),
    "a function call without a name": (
        {"prompt": [*CHAT, {"from": "function_call", "value": "[{}]"}]},
        "message 2 is a function call and must name its function",
    ),
    "a picture": ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "Prospect reads text only"),
    "unknown speaker": ({"prompt": [{"from": "humann", "value": "x"}]}, 'Did you mean "human"?'),
    "speaker of a wrong type": ({"prompt": [{"from": [], "value": "x"}]}, "no known speaker"),
    "null completion": ({"completion": None}, "completion is missing"),
    "number as completion": ({"completion": 42}, "completion must be text or one assistant message, not int 42"),
    "a user's completion": (
        {"prompt": CHAT, "completion": CHAT},
        'must be an assistant message, not one of role "user"',
    ),
    "two messages": ({"prompt": CHAT, "completion": CHAT * 2}, "completion has 2 messages"),
    "text prompt, chat answer": ({"completion": [{"role": "assistant", "content": "x"}]}, "Write both as text or both"),
    "negative weight": ({"weight": -1}, "weight must be 0 or more, not -1"),
    "infinite weight": ({"weight": float("inf")}, "weight must be finite"),
    "enormous weight": ({"weight": 10**400}, "weight must be finite"),
    "weight as text": ({"weight": "heavy"}, "weight must be a number, not str 'heavy'"),
    "weight as boolean": ({"weight": True}, "weight must be a number, not bool True"),
    "NaN score": ({"score": float("nan")}, "score must be finite"),
    "score as text": ({"score": "high"}, "score must be a number"),
    "complete as number": ({"complete": 1}, "complete must be true or false"),
    "tools as text": ({"tools": "search"}, "tools is not valid JSON"),
    "tools of a wrong type": ({"tools": {"name": "f"}}, "tools must be a list of function descriptions"),
    "template keywords": ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
    "id of a wrong type": ({"id": [1]}, "id must be text or a whole number"),
    "half a character": ({"completion": "\ud83d"}, "lone surrogate"),
    "half a character in tools": ({"tools": [{"name": "\ud83d"}]}, "tools cannot be written as JSON"),
    "half a character in a message": ({"prompt": [{**CHAT[0], "name": "\ud83d"}]}, "cannot be written as JSON"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path: Path, what: str) -> None:
    fault, message = BAD_ROWS[what]
    bad = {"prompt": "3 + 3?", "completion": "6", "label": False, **fault}
    path = save(tmp_path / "a.jsonl", GOOD, {**GOOD, "completion": "5", "label": False}, bad, GOOD)
    error = error_of(path)
    assert (error.path, error.line) == (path, 3)
    assert message in error.message
    assert str(error).startswith(f"{path}:3")
    assert [(e.path, e.line, e.message) for e in error.problems] == [(path, 3, error.message)]

    kept = load(path, keep_going=True)
    assert [c.line for r in kept.records for c in r.completions] == [1, 2, 4]
    (problem,) = kept.problems
    assert (problem.path, problem.line, problem.message) == (path, 3, error.message)
    assert kept.rows == 4
    if what not in ("NaN score",):  # NaN equals nothing
        assert problem.raw == json.loads(json.dumps(bad))


def test_a_missing_label_is_no_silent_skip(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, {"prompt": "a", "completion": "b"})
    assert "has no label, though other rows do" in error_of(path).message


def test_numbers_in_csv_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion,label,weight\na,b,1,heavy\n")
    assert str(error_of(path)) == f"{path}:2: weight must be a number, not str 'heavy'"


def test_a_missing_score(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.jsonl", {"prompt": "a", "completion": "b", "score": 1}, {"prompt": "a", "completion": "b"}
    )
    assert "score is missing, though other rows have one" in error_of(path).message


def test_zero_beside_minus_one(tmp_path: Path) -> None:
    rows = [{**GOOD, "label": label} for label in (1, 0, -1)]
    error = error_of(rows)
    assert [e.line for e in error.problems] == [2, 3]
    assert "nobody judged" in str(error)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None}, "prompt is missing"),
        ({"prompt": " "}, "prompt is blank"),
        ({"completions": []}, "completions must be a non-empty list"),
        ({"completions": [5]}, "completions[0] must be an object with content"),
        ({"completions": [{"text": "x"}]}, 'completions[0] has an unknown key "text". Did you mean "content"?'),
        ({"completions": [{"content": "x", "lable": True}]}, 'unknown key "lable". Did you mean "label"?'),
        ({"completions": [{"label": True}]}, "needs content (text) or message"),
        ({"completions": ["x"], "pairs": [[0, 1]]}, "from 0 to 0, not int 1"),
        ({"completions": ["x"], "pairs": [[0, -1]]}, "from 0 to 0, not int -1"),
        ({"completions": ["x"], "pairs": [[0]]}, "a pair is [chosen, rejected]"),
        ({"completions": ["x", "y"], "pairs": {"chosen": 0}}, "pairs must be a list"),
        ({"completions": ["x", "y"], "pairs": [{"chosen": 0, "rejected": True}]}, "not bool True"),
        ({"completions": [{"message": {"role": "assistant", "tool_calls": [{}]}}]}, "both as text or both as messages"),
    ],
)
def test_prospect_lines(row: dict[str, Any], message: str) -> None:
    error = error_of([{"prompt": "a", "completions": ["x"]}, {"prompt": "b", "completions": ["x"], **row}])
    assert error.line == 2
    assert message in error.message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "has no prompt"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected is missing"),
        ({"prompt": "p", "chosen": "a", "rejected": [{}]}, "prompt is text but rejected is a chat message"),
        ({"prompt": CHAT, "chosen": "a", "rejected": 3}, "rejected must be text or one assistant message"),
        (
            {"chosen": CHAT, "rejected": [{"role": "user", "content": "other"}]},
            "what chosen and rejected share is blank",
        ),
        ({"prompt": "p", "chosen": CHAT * 2, "rejected": CHAT * 2}, "Write both as text or both as messages"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "rejected must be a transcript"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "does not end with the assistant's turn"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: z\n\nAssistant: b"},
            "differ before their last answer",
        ),
        ({"conversations": [{"from": "human", "value": "a"}], "kto_tag": True}, "prompt is blank"),
        ({"messages": CHAT, "label": True}, "prompt is blank"),
        ({"messages": [*CHAT, *CHAT], "label": True}, 'must be an assistant message, not one of role "user"'),
        ({"messages": [{**CHAT[0], "rating": "up"}]}, 'must be an assistant message, not one of role "user"'),
        ({"messages": [{"role": "assistant", "content": "x", "rating": "up"}]}, "its prompt is blank"),
        ({"messages": [*CHAT, {**CHAT[0], "rating": "up"}]}, 'must be an assistant message, not one of role "user"'),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x", "train": "no"}]}, "must be true or false, not str"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": 4}]}, "label 4 is a score"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": 1, "label": 1}]}, "label and a rating"),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": 1}], "label": 1},
            "rows and single turns",
        ),
        ({"messages": []}, "messages must be a non-empty list"),
        ({"instruction": " ", "output": "x", "kto_tag": True}, "instruction is blank"),
        ({"instruction": "a", "output": "x", "kto_tag": True, "label": 1}, "which one is the thumb?"),
        ({"instruction": "a", "output": "x", "history": ["b"]}, "history must be a list of [question, answer]"),
        ({"text": " "}, "text is blank"),
        ({"text": 5}, "text must be text, not int 5"),
    ],
)
def test_rows_of_the_other_layouts(row: dict[str, Any], message: str) -> None:
    error = error_of([row])
    assert error.line == 1
    assert message in error.message
