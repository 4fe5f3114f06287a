"""Wrong columns, many faults at once, and anything at all: always a DataError, never another one."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import ConfigError, DataError
from prospect.feedback.layouts import LAYOUTS
from prospect.feedback.load import MOST_PROBLEMS, Feedback, load
from prospect.feedback.readers import COMMON
from tests.helpers.feedback import CHAT, GOOD, error_of, save

# Columns


def test_unknown_columns_name_the_layouts_and_the_closest(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", {"prompt": "a", "answer": "b", "label": True})
    message = str(error_of(path))
    assert message.startswith(f'{path}: the columns "answer", "label", "prompt" fit no known layout.')
    assert 'Closest is unpaired, which also needs "completion"' in message
    assert "alpaca (instruction + output)" in message


def test_misspelt_column_that_is_needed() -> None:
    message = str(error_of([{"promt": "a", "completion": "b", "label": True}]))
    assert 'Closest is unpaired, which also needs "prompt" (is it "promt"?)' in message


@pytest.mark.parametrize(
    ("column", "meant"),
    [("wieght", "weight"), ("lable", "label"), ("Label", "label"), ("chat_template_kwarg", "chat_template_kwargs")],
)
def test_misspelt_optional_column(column: str, meant: str) -> None:
    rows = [{"prompt": "a", "completions": ["b"], column: 1}]
    assert f'unknown column "{column}" in the layout prospect. Did you mean "{meant}"?' in str(error_of(rows))


@pytest.mark.parametrize("column", ["rating", "thumbs", "feedback", "reward", "kto_tag", "labels", "scores"])
def test_a_judgement_that_would_not_be_read(column: str) -> None:
    message = str(error_of([{"prompt": "a", "completion": "b", column: 1}]))
    assert f'the column "{column}" looks like a judgement' in message
    assert 'a column named "label" (thumbs) or "score"' in message
    assert "looks like a judgement" in str(error_of([{"text": "a", "label": 1}]))
    assert "Name it label or reward" in str(error_of([{"prompt": "a", "output": "b", "score": 1}]))


def test_other_columns_are_noted() -> None:
    assert load([{**GOOD, "model_size": "8b", "margin": 2}]).notes == ("columns not read: margin, model_size",)


def test_rows_without_columns() -> None:
    assert "the rows have no columns" in str(error_of([{}]))


def test_forced_format_that_does_not_fit() -> None:
    message = str(error_of([GOOD], format="paired"))
    assert (
        message
        == 'the layout paired needs the column "chosen", "rejected", but the file has "completion", "label", "prompt"'
    )


def test_unknown_format() -> None:
    with pytest.raises(ConfigError, match=r'unknown format "unpared"\. Did you mean "unpaired"\?'):
        load([GOOD], format="unpared")


# Many at once


def test_problems_are_collected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, {**GOOD, "label": None, "id": "q7"}, "{", GOOD, {**GOOD, "label": "up"})
    error = error_of(path)
    assert [(e.line, e.row) for e in error.problems] == [(2, "q7"), (3, None), (5, None)]
    assert (error.path, error.line) == (path, None)
    first, *listed, last = str(error).splitlines()
    assert first == f"{path}: 3 problems:"
    assert last == f"To go on with the good rows: prospect check {path} --keep-going GOOD.jsonl"
    assert [line.split(":")[0] for line in listed] == ["  line 2 (q7)", "  line 3", "  line 5"]


def test_at_most_twenty_are_collected_and_all_are_kept_when_going_on(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jsonl", GOOD, *[{**GOOD, "label": None}] * 30, GOOD)
    error = error_of(path)
    assert [e.line for e in error.problems] == list(range(2, 2 + MOST_PROBLEMS))
    assert f"{path}: the first 20 problems:" in str(error)
    kept = load(path, keep_going=True)
    assert [p.line for p in kept.problems] == list(range(2, 32))
    assert [c.line for c in kept.records[0].completions] == [1, 32]


def test_going_on_leaves_out_the_minority_vocabulary() -> None:
    rows = [{**GOOD, "label": label} for label in ("good", True, False, True)]
    kept = load(rows, keep_going=True)
    assert [p.line for p in kept.problems] == [1]
    assert [c.label for c in kept.records[0].completions] == [True, False, True]


def test_going_on_without_a_good_row() -> None:
    kept = load([{**GOOD, "label": None}], keep_going=True)
    assert kept.records == ()
    assert len(kept.problems) == 1


def test_a_file_of_nothing_readable(tmp_path: Path) -> None:
    error = error_of(save(tmp_path / "a.jsonl", "{a", "{b"), keep_going=True)
    assert [e.line for e in error.problems] == [1, 2]


def test_errors_in_memory_name_the_row() -> None:
    assert str(error_of([GOOD, {**GOOD, "weight": -1}])).startswith("row 2: weight must be")


# Anything at all


def test_random_damage_never_gives_another_error(tmp_path: Path) -> None:
    """Five hundred mutilated files: each loads, or fails with a DataError."""
    dice = random.Random(0)
    path = tmp_path / "a.jsonl"
    samples = [
        json.dumps(GOOD).encode() + b"\n" + json.dumps({**GOOD, "weight": 2, "tools": [{"name": "f"}]}).encode(),
        json.dumps([{"messages": [*CHAT, {"role": "assistant", "content": "x", "rating": "up"}]}] * 2).encode(),
        json.dumps({"prompt": CHAT, "completions": [{"content": "x", "label": 1}, "y"], "pairs": [[0, 1]]}).encode(),
        b'prompt,completion,label\na,"b, c",1\nd,e,0\n',
        gzip.compress(json.dumps(GOOD).encode()),
    ]
    edits = (b"", b"null", b"[", b"1", b'"', b"-1", b"\xff", b" ", b"e", b"\n")
    loaded = 0
    for _ in range(500):
        data = bytearray(dice.choice(samples))
        at = dice.randrange(len(data))
        data[at : at + dice.randint(0, 3)] = dice.choice(edits)
        path.write_bytes(bytes(data))
        feedback, message = outcome(path)
        loaded += feedback is not None
        assert message.startswith("" if feedback else str(path))
    assert 25 < loaded < 475  # both happened often, so the damage was of the right size


def outcome(path: Path) -> tuple[Feedback | None, str]:
    """What loading gives: feedback, or the message of a DataError."""
    try:
        return load(path), ""
    except DataError as error:
        return None, str(error)


WILD: tuple[Any, ...] = (
    None,
    True,
    0,
    -3,
    1.5,
    "",
    "x",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"role": []},
    [{"role": "user"}],
    [{"role": 1, "content": 2}],
)


def test_any_value_in_any_column_is_a_data_error_or_fine() -> None:
    good = bad = 0
    for name, layout in LAYOUTS.items():
        needs = [need.partition("|")[0] for need in layout.needs]
        columns = dict.fromkeys((*needs, *layout.reads))
        for column in (*columns, *COMMON):
            for value in WILD:
                for base in ("x", CHAT, [*CHAT, {"role": "assistant", "content": "x"}], ["x"]):
                    row = {**dict.fromkeys(needs, base), column: value}
                    try:
                        held = load([row], format=name, keep_going=True)
                    except DataError:  # of an export whose other part is absent
                        assert layout.join is not None
                        bad += 1
                        continue
                    assert held.rows == 1 or layout.join is not None
                    good, bad = good + (not held.problems), bad + len(held.problems)
    assert good > 500
    assert bad > 1000
