"""The views of records, worked out by hand."""

from __future__ import annotations

import pytest

from prospect.errors import ConfigError, DataError
from prospect.feedback.records import (
    Completion,
    Example,
    Pair,
    Prompt,
    Record,
    View,
    binary,
    examples,
    groups,
    inventory,
    pairs,
    readable,
    text,
    threshold_of,
    without_spread,
)


def record(*completions: Completion, pairs: tuple[Pair, ...] = ()) -> Record:
    return Record("r", "question", completions, pairs)


THUMBS = record(
    Completion("0", "a", label=True),
    Completion("1", "b", label=False, weight=2.0),
    Completion("2", "c"),
    Completion("3", "d", label=True, weight=0.5),
)
SCORES = record(Completion("0", "a", score=0.2), Completion("1", "b", score=0.9), Completion("2", "c", score=0.2))
PAIRS = record(
    Completion("0", "a"),
    Completion("1", "b"),
    Completion("2", "c", weight=3.0),
    pairs=(Pair(0, 1), Pair(0, 2, weight=0.5), Pair(1, 2)),
)


def test_completions_differing_only_in_their_line_are_equal() -> None:
    assert Completion("0", "a", line=3) == Completion("0", "a", line=9)
    assert Completion("0", "a") != Completion("0", "a", label=True)


def test_text_of_a_completion() -> None:
    assert Completion("0", "hello").text == "hello"
    assert Completion("0", {"role": "assistant", "content": "hello", "name": "x"}).text == "hello"
    assert Completion("0", {"role": "assistant", "tool_calls": [{}]}).text == ""


def test_binary_takes_labels_with_their_weights() -> None:
    assert binary(THUMBS) == [
        Example("0", 0, (0,), desirable=True),
        Example("1", 0, (1,), desirable=False, weight=2.0),
        Example("3", 0, (3,), desirable=True, weight=0.5),
    ]


def test_binary_turns_scores_into_thumbs_only_with_a_threshold() -> None:
    assert binary(SCORES) == []
    assert [row.desirable for row in binary(SCORES, threshold=0.5)] == [False, True, False]
    assert [row.desirable for row in binary(SCORES, threshold=0.2)] == [True, True, True]  # score >= threshold


def test_a_label_outranks_a_score() -> None:
    mixed = record(Completion("0", "a", label=False, score=0.9))
    assert binary(mixed, threshold=0.1) == [Example("0", 0, (0,), desirable=False)]


def test_binary_takes_each_side_of_each_pair() -> None:
    assert binary(PAIRS) == [
        Example("0", 0, (0,), desirable=True),
        Example("1", 0, (1,), desirable=False),
        Example("0", 0, (0,), desirable=True, weight=0.5),
        Example("2", 0, (2,), desirable=False, weight=1.5),  # pair 0.5 x completion 3
        Example("1", 0, (1,), desirable=True),
        Example("2", 0, (2,), desirable=False, weight=3.0),
    ]


def test_a_label_outranks_the_side_of_a_pair() -> None:
    mixed = record(Completion("0", "a", label=False), Completion("1", "b"), pairs=(Pair(0, 1),))
    assert binary(mixed) == [Example("0", 0, (0,), desirable=False), Example("1", 0, (1,), desirable=False)]


def test_pairs_explicit_ones_first() -> None:
    assert pairs(PAIRS) == [
        Example("0 > 1", 0, (0, 1)),
        Example("0 > 2", 0, (0, 2), weight=0.5),
        Example("1 > 2", 0, (1, 2)),
    ]


def test_pairs_of_different_scores() -> None:
    assert pairs(SCORES) == [Example("1 > 0", 0, (1, 0), score=0.7), Example("1 > 2", 0, (1, 2), score=0.7)]


def test_pairs_of_desirable_with_undesirable() -> None:
    assert pairs(THUMBS) == [Example("0 > 1", 0, (0, 1), weight=2.0), Example("3 > 1", 0, (3, 1), weight=1.0)]


def test_text_leaves_out_the_undesirable_and_what_is_only_rejected() -> None:
    assert [row.branches[0] for row in text(THUMBS)] == [0, 2, 3]
    assert [row.branches[0] for row in text(PAIRS)] == [0, 1]  # 1 is rejected once, but also chosen once
    assert [row.weight for row in text(THUMBS)] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(("rule", "value"), [("mean", 1.3 / 3), ("median", 0.2), ("0.5", 0.5), ("-1e-3", -0.001)])
def test_threshold(rule: str, value: float) -> None:
    assert threshold_of([SCORES], rule) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize("rule", ["mode", "", "nan", "inf", "0,5"])
def test_threshold_refuses_other_words(rule: str) -> None:
    with pytest.raises(ConfigError, match="--threshold must be"):
        threshold_of([SCORES], rule)


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_threshold_needs_scores(rule: str) -> None:
    with pytest.raises(DataError, match="no completion has one"):
        threshold_of([THUMBS], rule)


def test_examples_number_their_records() -> None:
    none = record(Completion("0", "a"))
    rows = examples([none, THUMBS], "binary")
    assert [row.tree for row in rows] == [1, 1, 1]
    # the threshold is taken over all records: scores 0.2, 0.9, 0.2 and 1.0 have the mean 0.575
    other = record(Completion("0", "a", score=1.0))
    every = examples([SCORES, other], "binary", "mean")
    assert [(e.tree, e.desirable) for e in every] == [(0, False), (0, True), (0, False), (1, True)]


@pytest.mark.parametrize(
    ("view", "held", "message"),
    [
        ("pairs", record(Completion("0", "a", label=True)), "reads pairs"),
        ("binary", SCORES, "reads thumbs"),
        ("text", record(Completion("0", "a", label=False)), "reads completions to imitate"),
    ],
)
def test_a_view_that_finds_nothing_says_what_there_is(view: View, held: Record, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        examples([held], view)
    assert inventory([held]) in str(error.value)


def test_groups_are_the_scored_answers_of_a_prompt() -> None:
    """Without a threshold the group's own mean tells its answers apart; one at it has no thumb."""
    assert [(row.branches, row.score, row.desirable) for row in groups(SCORES)] == [
        ((0,), 0.2, False), ((1,), 0.9, True), ((2,), 0.2, False)
    ]  # fmt: skip
    middle = record(
        *(Completion(str(k), "a", score=score) for k, score in enumerate((0.1, 0.3, 0.2))), Completion("u", "b")
    )
    assert [row.desirable for row in groups(middle)] == [False, True, None]
    assert [row.desirable for row in groups(middle, 0.2)] == [False, True, True]
    assert groups(record(Completion("0", "a", score=1.0), Completion("1", "b"))) == []
    assert examples([THUMBS, SCORES], "groups")[0].tree == 1
    with pytest.raises(DataError, match="several scored completions to one prompt"):
        examples([THUMBS], "groups")


def test_groups_without_spread() -> None:
    """Equal up to rounding, on whatever scale."""
    equal = record(*(Completion(str(k), "a", score=score) for k, score in enumerate((0.3, 0.1 + 0.2, 0.3))))
    rows = [*groups(SCORES, tree=3), *groups(equal, tree=5)]
    assert without_spread(rows) == {5} and not any(row.desirable for row in groups(equal))


def test_inventory() -> None:
    assert inventory([THUMBS, SCORES, PAIRS]) == (
        "10 completions to 3 prompts: 2 desirable, 1 undesirable, 3 scored, 3 pairs"
    )


def test_text_leaves_out_low_scores_where_there_is_a_threshold() -> None:
    low, high, unscored = Completion("r/0", "1", score=0.2), Completion("r/1", "2", score=0.8), Completion("r/2", "3")
    held = Record("r", "a", (low, high, unscored))
    assert [e.branches[0] for e in examples([held], "text", "0.5")] == [1, 2]
    assert [e.branches[0] for e in examples([held], "text")] == [0, 1, 2]


# For people to read

QUESTION = {"role": "user", "content": "2 + 2?"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("2 + 2?", "2 + 2?"),
        ((QUESTION,), "2 + 2?"),
        ((QUESTION, CALL), 'user: 2 + 2?\nassistant: add({"a": 2})'),
        ((CALL,), 'add({"a": 2})'),
        (({"role": "system", "content": "Be brief."},), "system: Be brief."),
        ((), ""),
    ],
)
def test_a_conversation_is_shown_with_its_roles_and_calls(prompt: Prompt, text: str) -> None:
    assert readable(prompt) == text
