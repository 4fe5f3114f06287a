"""Columns that hold a judgement under an unknown name, and the ways out: another name, or leaving them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prospect.errors import ConfigError, DataError
from prospect.feedback.layouts import MOST_COLUMNS, ColumnChoice
from prospect.feedback.load import load
from tests.helpers.feedback import CHAT, GOOD, assistant, error_of, user

PLAIN = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        # Nothing else is judged: the name is enough.
        *(
            ({**PLAIN, name: "x"}, name)
            for name in ("feedback", "user_feedback", "Vote", "userRating", "csat", "preferred")
        ),
        ({"messages": [user("2+2?"), assistant("4")], "rejected_reply": "5"}, "rejected_reply"),
        (
            {"messages": [user("2+2?"), assistant("4")], "rejected_turns": [user("2+2?"), assistant("5")]},
            "rejected_turns",
        ),
        ({"text": "a", "is_good_quality": True}, "is_good_quality"),
        ({**PLAIN, "metadata": {"thumbs": 1, "model": "m"}}, "metadata.thumbs"),
        # The values are enough, whatever the name says.
        ({**PLAIN, "outcome": "thumbs_up"}, "outcome"),
        ({**PLAIN, "mark": "👎🏽"}, "mark"),
        ({**GOOD, "second_opinion": "Dislike"}, "second_opinion"),
        # Beside a judgement that is read, a telling name with values to match; sides of a pair in any case.
        ({**GOOD, "rating": 5}, "rating"),
        ({**GOOD, "stars": "4"}, "stars"),
        ({**GOOD, "winner": "model_a"}, "winner"),
        ({**GOOD, "rejected_response": "five"}, "rejected_response"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "label": False}, "label"),
        # Keys of messages.
        ({"messages": [user("a"), assistant("b", vote="up")]}, "messages.vote"),
        ({"messages": [user("a"), assistant("b", feedback={"type": "x"})]}, "messages.feedback"),
        ({"prompt": CHAT, "completion": [assistant("b", rating=-1)]}, "completion.rating"),
    ],
)
def test_a_judgement_under_another_name_is_never_passed_over(row: dict[str, Any], column: str) -> None:
    message = str(error_of([row, row]))
    assert f'the column "{column}" looks like a judgement' in message
    assert f"--ignore {column}" in message
    read = load([dict(row)], choice=ColumnChoice(ignore=(column,)))
    assert len(read.records) == 1


@pytest.mark.parametrize(
    "extra",
    [{"model_size": "8b", "margin": 2}, {"feedback": "a comment, not a thumb"},
     {"rating": None}, {"lang": "en", "votes_url": "http://x"},
     {"likely_topic": "x"}, {"metadata": {"score": 0.5}}, {"turn": 1, "anony": True}],
)  # fmt: skip
def test_what_is_no_judgement_is_noted(extra: dict[str, Any]) -> None:
    assert load([{**GOOD, **extra}]).notes == (f"columns not read: {', '.join(sorted(extra))}",)


def test_all_of_them_are_named_at_once() -> None:
    message = str(error_of([{**PLAIN, "vote": 1, "stars": 5}]))
    assert 'the columns "stars", "vote" look like a judgement' in message
    assert "--ignore stars,vote" in message


def test_a_column_may_be_read_under_another_name() -> None:
    rows = [{"question": "a", "answer": "b", "vote": "up"}, {"question": "a", "answer": "c", "vote": "down"}]
    choice = ColumnChoice.parse("prompt=question, completion=answer,label=vote", "")
    (record,) = load(rows, choice=choice).records
    assert [(c.content, c.label) for c in record.completions] == [("b", True), ("c", False)]
    assert rows[0] == {"question": "a", "answer": "b", "vote": "up"}  # the caller's rows are left alone


def test_stars_are_scores_where_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "stars.csv"
    path.write_text("prompt,completion,label\na,b,5\na,c,1\n")
    feedback = load(path, choice=ColumnChoice.parse("score=label", ""))
    assert [(c.score, c.label) for c in feedback.records[0].completions] == [(5.0, None), (1.0, None)]


def test_keys_of_messages_are_renamed_with_their_column() -> None:
    rows = [{"messages": [user("a"), assistant("b", vote="up"), user("c"), assistant("d", vote="down")]}]
    feedback = load(rows, choice=ColumnChoice.parse("messages.rating=messages.vote", ""))
    assert [c.label for r in feedback.records for c in r.completions] == [True, False]


def test_judgements_are_taken_out_of_the_objects_that_they_lie_in() -> None:
    rows = [
        {"prompt": "q", "completion": text, "more": {"vote": vote, "by": "x"}} for text, vote in (("a", 1), ("b", 0))
    ]
    assert "--map NAME=more.vote" in str(error_of(rows))
    records = load(rows, choice=ColumnChoice.parse("label=more.vote", "")).records
    assert [c.label for r in records for c in r.completions] == [True, False]
    turns = [user("a"), assistant("b", about={"vote": "up"}), user("c"), assistant("d", about={"vote": "down"})]
    feedback = load([{"messages": turns}], choice=ColumnChoice.parse("messages.rating=messages.about.vote", ""))
    assert [c.label for r in feedback.records for c in r.completions] == [True, False]


def test_a_key_of_several_messages_is_no_judgement_of_the_row() -> None:
    rows = [{"messages": [user("a"), assistant("b", vote="up"), user("c"), assistant("d")]}]
    with pytest.raises(DataError, match="a key of each of several objects"):
        load(rows, choice=ColumnChoice.parse("rating=messages.vote", ""))


@pytest.mark.parametrize(
    ("rename", "ignore", "message"),
    [
        ("label=thumb", "", 'there is no column "thumb" to read as "label"'),
        ("", "thumb", 'there is no column "thumb" to ignore'),
        ("prompt=completion", "", '"prompt" is there already. Leave it out first: --ignore prompt'),
    ],
)
def test_choices_that_fit_no_column(rename: str, ignore: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load([GOOD], choice=ColumnChoice.parse(rename, ignore))


@pytest.mark.parametrize("rename", ["label", "label=", "=vote", "messages.rating=vote", "messages.rating=turns.vote"])
def test_choices_that_say_nothing(rename: str) -> None:
    with pytest.raises(ConfigError, match="--map"):
        load([GOOD], choice=ColumnChoice.parse(rename, ""))


def test_keys_that_are_values_are_refused_at_once() -> None:
    error = error_of([{**GOOD, f"question {i}": "x"} for i in range(MOST_COLUMNS)])
    assert f"the rows have {MOST_COLUMNS + 3} different columns" in str(error)
    assert len(str(error)) < 2000


SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
INSTRUCTION = {"instruction": "2+2?", "output": "4"}
SIDES = {"chosen": "4", "rejected": "5"}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({**INSTRUCTION, "rejected": "5"}, "rejected"),
        ({**INSTRUCTION, "score_chosen": 1.0}, "score_chosen"),
        ({"instruction": "2+2?", **SIDES, "label": False}, "label"),
        ({"instruction": "2+2?", **SIDES, "score": 0.5}, "score"),
        ({"conversations": SHAREGPT, "rejected": "5"}, "rejected"),
        ({"conversations": SHAREGPT, "score_chosen": 1.0}, "score_chosen"),
        ({"conversations": SHAREGPT[:1], **SIDES, "kto_tag": False}, "kto_tag"),
        ({"conversations": SHAREGPT[:1], **SIDES, "score": 0.5}, "score"),
        ({"conversations": [*SHAREGPT, {**SHAREGPT[0], "rating": -1}], **SIDES}, "conversations.rating"),
        ({"messages": [user("2+2?"), assistant("4", rating=-1)], "prompt": "2+2?", **SIDES}, "messages.rating"),
    ],
)
def test_a_judgement_of_another_form_of_the_layout_is_not_passed_over(row: dict[str, Any], column: str) -> None:
    assert f'the column "{column}" looks like a judgement' in str(error_of([row]))


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "2+2?", **SIDES, "score_chosen": 1.0, "score_rejected": 0.0},
        {"conversations": SHAREGPT[:1], **SIDES, "score_chosen": 1.0, "score_rejected": 0.0},
    ],
)
def test_pairs_of_instructions_and_conversations_have_scores(row: dict[str, Any]) -> None:
    feedback = load([{**row, "output": "unused"}])
    ((chosen, rejected),) = [record.completions for record in feedback.records]
    assert [(c.content, c.score) for c in (chosen, rejected)] == [("4", 1.0), ("5", 0.0)]
    assert feedback.notes == ("columns not read: output",)


@pytest.mark.parametrize(
    ("column", "value"), [("completion", "y"), ("label", False), ("score", 0.1), ("weight", 2), ("complete", False)]
)
def test_a_line_with_completions_has_no_answer_or_judgement_beside_them(column: str, value: Any) -> None:
    row = {"prompt": "2+2?", "completions": [{"content": "x", "label": True}]}
    assert f"{column} beside completions belongs to none of them" in str(error_of([{**row, column: value}]))
    assert len(load([{**row, column: None}]).records) == 1  # as a table writes it


def test_a_flat_line_has_no_pairs() -> None:
    rows = [{"prompt": "2+2?", "completions": ["4", "5"]}, {"prompt": "2+2?", "completion": "4", "pairs": [[0, 1]]}]
    assert "pairs stands beside a single completion" in str(error_of(rows))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        *(
            ({**PLAIN, name: True}, name)
            for name in ("is_good", "ok", "passed", "resolved", "selected", "flagged", "harmful")
        ),
        ({**PLAIN, "comparison": "A"}, "comparison"),
        *(({**PLAIN, name: "c"}, name) for name in ("bad_completion", "completion_b", "negative", "y_l")),
        ({"instruction": "a", "output": "b", "output_2": "c"}, "output_2"),
        ({"messages": [user("a"), assistant("b")], "negative": "c"}, "negative"),
        ({"messages": [user("a"), assistant("b", metadata={"rating": 1})]}, "messages.metadata.rating"),
        ({"messages": [user("a"), assistant("b", metadata={"thumbs": "down"})]}, "messages.metadata.thumbs"),
        ({"messages": [user("a"), assistant("b", extra={"by": [{"vote": 1}]})]}, "messages.extra.by.vote"),
        ({**PLAIN, "rating": {"overall": 5}}, "rating"),
    ],
)
def test_where_nothing_is_judged_more_names_are_telling(row: dict[str, Any], column: str) -> None:
    assert f'the column "{column}" looks like a judgement' in str(error_of([row]))
    assert len(load([row], choice=ColumnChoice(ignore=(column,))).records) == 1


@pytest.mark.parametrize("values", [(True, False), (1, 0), ("1", "0"), (1.0, None, -1.0), ("true", "", "False")])
def test_where_nothing_is_judged_thumbs_up_and_down_are_telling_under_any_name(values: tuple[Any, ...]) -> None:
    assert 'the column "xyz" looks like' in str(error_of([{**PLAIN, "xyz": value} for value in values]))
    inside = [{"messages": [user("a"), assistant("b", info={"xyz": value})]} for value in values]
    assert 'the column "messages.info.xyz" looks like' in str(error_of(inside))
    assert load([{**GOOD, "xyz": value} for value in values]).notes == ("columns not read: xyz",)


@pytest.mark.parametrize(
    "extra",
    [
        {"completion_tokens": 12, "completion_model": "m", "completion_id": "a1"},
        {"turn": 1, "redacted": False, "language": "en", "model_size": "8b"},
        {"prompt_id": "a", "index": 0, "likely_topic": "x", "text_b": "x"},
        {"metadata": {"source": "x", "cached": True}, "timestamp": 1.5},
    ],
)
def test_facts_about_an_answer_to_imitate_are_no_judgement(extra: dict[str, Any]) -> None:
    assert load([{**PLAIN, **extra}] * 2).notes == (f"columns not read: {', '.join(sorted(extra))}",)
    assert load([{"messages": [user("a"), assistant("b", **extra)]}]).notes == ()


@pytest.mark.parametrize(
    "name",
    ["sft_small", "tinystories_1.7k", "kto_oasst_emoji", "pairs_hh_harmless_test", "scores_cje_arena_judge"],
)
def test_public_data_are_under_no_suspicion(shared: Path, name: str) -> None:
    assert load(shared / "data" / f"{name}.jsonl.gz").notes == ()
