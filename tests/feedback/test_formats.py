"""Which layout a file has; rows of one prompt become one record; ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import DataError
from prospect.feedback.layouts import LAYOUTS
from prospect.feedback.load import FORMATS, load
from prospect.feedback.readers import FeedbackLine, Layout
from prospect.feedback.records import Pair, Record
from tests.helpers.feedback import BLUE, GREEN, SKY, TOOLS, assistant, user

# Detection


def test_every_layout_is_detected_before_those_it_contains() -> None:
    names = list(LAYOUTS)
    for i, layout in enumerate(LAYOUTS.values()):
        for later in names[i + 1 :]:
            assert not set(LAYOUTS[later].needs) > set(layout.needs), (layout.name, later)
    assert ("auto", *names) == FORMATS


def test_format_can_be_forced() -> None:
    rows = [{"prompt": "a", "completion": "b", "text": "ab"}]
    assert load(rows).format == "prompt-completion"
    assert load(rows, format="text").records[0].completions[0].content == "ab"


def test_another_format_is_a_reader_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the export of a chat app may look: thumbs inside objects, under names of its own."""

    def reactions(row: Mapping[str, Any]) -> list[Any]:
        return [turn["reaction"] for turn in row["log"] if "reaction" in turn]

    def read(line: FeedbackLine) -> list[Record]:
        question, reply = line.get("log")
        label = line.labels.read(reply["reaction"])
        answer = line.completion(line.id, reply["text"], label, None, line.values)
        return [line.record(({"role": "user", "content": question["text"]},), (answer,))]

    layout = Layout("app", ("log",), read, judged_by=("log",), objects=("log",), thumbs=reactions)
    monkeypatch.setitem(LAYOUTS, "app", layout)
    rows = [{"log": [{"text": "2 + 2?"}, {"text": text, "reaction": r}]} for text, r in (("4", 1), ("5", -1), ("6", 0))]
    (record,) = load(rows[:2]).records
    assert [(c.content, c.label) for c in record.completions] == [("4", True), ("5", False)]
    with pytest.raises(DataError, match="both 0 and -1"):
        load(rows)


def test_columns_of_all_rows_decide() -> None:
    rows: list[dict[str, Any]] = [{"messages": [*SKY, assistant(BLUE)]}, {"messages": [*SKY, assistant(GREEN)]}]
    rows[1]["tools"] = TOOLS
    assert [r.tools is None for r in load(rows).records] == [True, False]


def test_the_docs_name_every_layout_and_their_example_loads() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data-format.md").read_text()
    assert [name for name in LAYOUTS if f"| `{name}` |" not in page] == []
    example = page.split("```json\n")[1].split("```")[0]
    (record,) = load([json.loads(example)]).records
    assert [(c.label, c.score, c.weight, c.complete) for c in record.completions] == [
        (True, None, 1.0, True),
        (False, None, 2.0, True),
        (None, 0.4, 1.0, False),
    ]


# One prompt, one record; ids


def test_same_prompt_from_different_lines_is_one_record() -> None:
    rows = [
        {"prompt": "a", "completion": "1", "label": True, "source": "x"},
        {"prompt": "b", "completion": "2", "label": True},
        {"prompt": "a", "completion": "3", "label": False, "source": "y"},
        {"prompt": "a", "completion": "1", "label": True},
        {"prompt": [user("a")], "completion": "4", "label": True},
    ]
    feedback = load(rows)
    assert [(r.id, [c.id for c in r.completions]) for r in feedback.records] == [
        ("line1", ["line1", "line3", "line4"]),  # line 4 says the same again: a second thumb, for the doctor to count
        ("line2", ["line2"]),
        ("line5", ["line5"]),
    ]
    assert feedback.records[0].source == "x"


def test_order_of_message_keys_makes_no_other_prompt() -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "completion": "1"},
        {"prompt": [{"content": "a", "role": "user"}], "completion": "2"},
    ]
    assert len(load(rows).records) == 1


def test_an_answer_in_several_pairs_is_one_completion() -> None:
    rows = [
        {"prompt": "a", "chosen": "best", "rejected": "fair"},
        {"prompt": "a", "chosen": "fair", "rejected": "bad"},
        {"prompt": "a", "chosen": "best", "rejected": "bad", "weight": 2},
    ]
    (record,) = load(rows).records
    assert [c.content for c in record.completions] == ["best", "fair", "bad"]
    assert record.pairs == (Pair(0, 1), Pair(1, 2), Pair(0, 2, 2.0))
    assert [c.id for c in record.completions] == ["line1/chosen", "line1/rejected", "line2/rejected"]


def test_pairs_of_equal_answers_keep_two_completions() -> None:
    rows = [
        {"prompt": "a", "chosen": "same", "rejected": "same"},
        {"prompt": "a", "chosen": "same", "rejected": "same"},
    ]
    (record,) = load(rows).records
    assert all(pair.chosen != pair.rejected for pair in record.pairs)
    assert len(record.pairs) == 2


def test_nothing_merges_where_labels_or_scores_differ() -> None:
    def line(**judged: Any) -> dict[str, Any]:
        return {"prompt": "a", "completions": [{"content": "x", **judged}, {"content": "y"}], "pairs": [[0, 1]]}

    (record,) = load([line(label=True), line(label=False), line(score=1.0), line(label=True)]).records
    assert [(c.label, c.score) for c in record.completions] == [
        (True, None),
        (None, None),
        (False, None),
        (None, 1.0),
    ]
    assert record.pairs == (Pair(0, 1), Pair(2, 1), Pair(3, 1), Pair(0, 1))


def test_ids_are_the_given_ones_and_stay_unique() -> None:
    rows = [
        {"id": "q", "prompt": "a", "completion": "1"},
        {"id": "q", "prompt": "b", "completion": "2"},
        {"id": 7, "prompt": "b", "completion": "3"},
        {"id": "q", "prompt": "c", "completion": "4"},
    ]
    assert [(r.id, [c.id for c in r.completions]) for r in load(rows).records] == [
        ("q", ["q"]),
        ("q#2", ["q#2", "7"]),
        ("q#3", ["q#3"]),
    ]
