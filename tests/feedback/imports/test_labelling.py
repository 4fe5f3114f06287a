"""Annotation tools: Argilla's records, nested and flat, and Label Studio's tasks, with fields of any name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.feedback.layouts import ColumnChoice
from prospect.feedback.load import Feedback, load
from prospect.feedback.meanings import fields_of, numbered
from prospect.feedback.records import Completion, Pair
from tests.helpers.feedback import error_of, user

Judged = list[tuple[str, bool | None, float | None, str]]


def judged(feedback: Feedback) -> Judged:
    return [(c.text, c.label, c.score, c.by) for r in feedback.records for c in r.completions]


def record(*responses: dict[str, Any], question: str = "thumb", **rest: Any) -> dict[str, Any]:
    """A record as Argilla's `to_json` writes it."""
    fields = {"prompt": "Name a fruit.", "response": "Pear."}
    row = {"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "vectors": {}, "status": "completed"}
    return {**row, "responses": {question: list(responses)}, "_server_id": "x", **rest}


def task(*results: dict[str, Any], data: dict[str, Any] | None = None, **annotation: Any) -> dict[str, Any]:
    """A task as Label Studio's JSON has it, with one annotation."""
    data = data or {"prompt": "Name a fruit.", "answer1": "Pear.", "answer2": "Brick."}
    about = {"id": 9, "completed_by": 3, "was_cancelled": False, "created_at": "2026-01-02T03:04:05.123456Z"}
    return {"id": 1, "data": data, "annotations": [{**about, "result": list(results), **annotation}], "project": 5}


def side(selected: str, to_name: str = "a1,a2") -> dict[str, Any]:
    return {"type": "pairwise", "from_name": "pw", "to_name": to_name, "value": {"selected": selected}}


def choice(*words: str, name: str = "thumb") -> dict[str, Any]:
    return {"type": "choices", "from_name": name, "to_name": "text", "value": {"choices": list(words)}}


ONE = {"question": "Name a fruit.", "reply": "Pear."}


def test_the_cases(shared: Path) -> None:
    feedback = load(shared / "cases/exports/d08_argilla_rating.jsonl")
    assert feedback.format == "argilla-flat"
    assert judged(feedback) == [
        ("Hold the small button for ten seconds.", None, 5.0, "u"),
        ("It is about 50 degrees.", None, 1.0, "u"),
        ("7", None, 5.0, "u"),
        ("Hola", None, 1.0, "u"),
    ]
    assert [r.prompt for r in feedback.records][:1] == ["How do I reset my router?"]
    feedback = load(shared / "cases/exports/labelstudio.json")
    (one,) = feedback.records
    assert (feedback.format, one.prompt, one.pairs) == ("labelstudio", "Name a fruit.", (Pair(0, 1),))
    assert judged(feedback) == [("Pear.", None, None, "3"), ("Brick.", None, None, "3")]


# Argilla


def test_words_are_thumbs_and_each_response_is_one() -> None:
    drafts = {"value": "bad", "user_id": "u3", "status": "draft"}
    feedback = load([record({"value": "good", "user_id": "u1"}, {"value": "bad", "user_id": "u2"}, drafts)])
    assert judged(feedback) == [("Pear.", True, None, "u1"), ("Pear.", False, None, "u2")]
    assert "1 row (1) left out: a response that is str 'draft', not submitted" in feedback.notes


def test_numbers_are_scores_even_where_all_of_them_are_1() -> None:
    """1 star is no thumb up, whatever else the file holds."""
    assert judged(load([record({"value": 1, "user_id": "u1"})])) == [("Pear.", None, 1.0, "u1")]


SIDES = {"prompt": "Name a fruit.", "response-1": "Brick.", "response-2": "Pear.", "response-3": "Plum."}


@pytest.mark.parametrize(
    ("value", "texts", "pairs"),
    [
        ("response_2", ["Pear.", "Brick.", "Plum."], (Pair(0, 1), Pair(0, 2))),
        (
            [{"value": f"response-{i}", "rank": rank} for i, rank in ((1, 2), (2, 1), (3, 2))],
            ["Pear.", "Brick.", "Plum."],
            (Pair(0, 1), Pair(0, 2)),
        ),
    ],
)
def test_answers_are_preferred_by_name_and_by_rank(value: Any, texts: list[str], pairs: tuple[Pair, ...]) -> None:
    """Equal ranks make no pair."""
    (one,) = load([record({"value": value, "user_id": "u1"}, fields=SIDES)]).records
    assert ([c.content for c in one.completions], one.pairs) == (texts, pairs)


def test_models_suggest_and_people_respond() -> None:
    suggested = {"thumb": {"value": "bad", "score": 0.9, "agent": "m"}}
    rows = [record({"value": "good", "user_id": "u1"}, suggestions=suggested)]
    assert judged(load(rows)) == [("Pear.", True, None, "u1")]
    assert judged(load(rows, choice=ColumnChoice(judged_by="model"))) == [("Pear.", False, None, "m")]


def test_one_of_several_questions_is_named() -> None:
    rows = [record(responses={"thumb": [{"value": "good"}], "style": [{"value": 3}]})]
    assert "--judgement style" in str(error_of(rows))
    assert judged(load(rows, choice=ColumnChoice(judgement="thumb"))) == [("Pear.", True, None, "")]


def test_flat_records_in_tables(tmp_path: Path) -> None:
    """Tables write lists as Python does; chats are messages."""
    path = tmp_path / "records.csv"
    chat = json.dumps([user("Name a fruit.")]).replace('"', '""')
    path.write_text(
        "id,status,_server_id,chat,answer,thumb.responses,thumb.responses.users,thumb.responses.status,thumb.suggestion\n"
        f"""1,completed,x,"{chat}",Pear.,"['good', 'bad']","['u1', 'u2']","['submitted', 'discarded']",\n"""
        f"""2,pending,y,"{chat}",Plum.,,,,\n"""
    )
    feedback = load(path)
    assert feedback.records[0].prompt == (user("Name a fruit."),)
    assert judged(feedback) == [("Pear.", True, None, "u1")]
    assert "1 row (3) left out: a record without a response" in feedback.notes


# Label Studio


def test_sides_follow_the_names_that_the_export_gives() -> None:
    (one,) = load([task(side("left", "answer2,answer1"))]).records
    assert ([c.content for c in one.completions], one.pairs) == (["Brick.", "Pear."], (Pair(0, 1),))
    feedback = load([task(side("right"))])
    assert [c.content for c in feedback.records[0].completions] == ["Brick.", "Pear."]
    assert any("left and right are read as answer1 and answer2" in note for note in feedback.notes)


def test_choices_ratings_and_comments() -> None:
    remark = {"type": "textarea", "from_name": "why", "to_name": "text", "value": {"text": ["ripe", "sweet"]}}
    rating = {"type": "rating", "from_name": "stars", "to_name": "text", "value": {"rating": 1}}
    (one,) = load([task(choice("good"), remark, data=ONE)]).records
    assert one.prompt == "Name a fruit."
    assert one.completions == (
        Completion("9", "Pear.", True, by="3", at="2026-01-02T03:04:05.123Z", note="ripe: sweet"),
    )
    assert judged(load([task(rating, data=ONE)])) == [("Pear.", None, 1.0, "3")]


def test_what_is_cancelled_or_no_judgement_is_counted() -> None:
    box = {"type": "labels", "from_name": "spans", "to_name": "text", "value": {"start": 0}}
    rows = [
        task(choice("good"), data=ONE),
        task(choice("bad"), data=ONE, was_cancelled=True),
        task(box, data=ONE),
        {**task(data=ONE), "annotations": []},
        {**task(choice("good"), data=ONE), "predictions": [{"result": [choice("bad")], "model_version": "m"}]},
    ]
    feedback = load(rows)
    assert [label for _, label, _, _ in judged(feedback)] == [True, True]
    assert [note for note in feedback.notes if "left out" in note] == [
        "1 row (2) left out: the annotation was cancelled",
        "1 row (3) left out: a result of type str 'labels', which is no judgement",
        "1 row (3) left out: an annotation without a judgement",
        "1 row (4) left out: a task without an annotation",
    ]


def test_the_short_form() -> None:
    about = {"id": 1, "annotator": 3, "annotation_id": 9, "created_at": "2026-01-02", "lead_time": 4.2}
    pair = {"prompt": "Name a fruit.", "answer1": "Pear.", "answer2": "Brick.", "pw": "right", **about}
    (one,) = load([pair]).records
    assert ([c.content for c in one.completions], one.pairs) == (["Brick.", "Pear."], (Pair(0, 1),))
    assert judged(load([{**ONE, "thumb": "good", **about}])) == [("Pear.", True, None, "3")]
    assert judged(load([{**ONE, "stars": 4, **about}])) == [("Pear.", None, 4.0, "3")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([task(choice("good", "bad"), data=ONE)], "thumb must be one choice"),
        ([task(choice("good"))], "is a judgement, but of which answer: answer1, answer2?"),
        ([task(choice("good"), data={"x": "a", "y": "b"})], "--map data.prompt=data.NAME,data.response=data.NAME"),
        ([record({"value": ["a"]})], "a list is read as a ranking"),
        ([record({"user_id": "u"})], 'responses["thumb"] must hold objects with value'),
        ([record({"value": "good"}, fields={"a": "x", "b": "y"})], "--map fields.prompt=fields.NAME"),
        ([task({"type": "choices", "value": "x"}, data=ONE)], "value is not valid JSON"),
    ],
)
def test_what_is_wrong_is_refused(rows: list[dict[str, Any]], message: str) -> None:
    error = error_of(rows)
    assert message in error.message
    assert error.line == 1


def test_fields_are_named_where_their_names_do_not_tell() -> None:
    rows = [task(choice("good"), data={"x": "Name a fruit.", "y": "Pear."})]
    choice_of = ColumnChoice.parse("data.prompt=data.x,data.response=data.y", "")
    assert judged(load(rows, choice=choice_of)) == [("Pear.", True, None, "3")]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["prompt", "answer_2", "answer_1"], ["answer_1", "answer_2"]),
        (["text", "responseA", "responseB"], ["responseA", "responseB"]),
        (["q", "Right", "Left"], ["Left", "Right"]),
        (["a", "b", "data", "banana"], ["a", "b"]),
        (["step1", "step2", "response1", "response2"], ["response1", "response2"]),
        (["step1", "step2", "hint1", "hint2"], []),
        (["gpt4", "answer"], []),
    ],
)
def test_several_answers_differ_in_a_number_alone(names: list[str], order: list[str]) -> None:
    assert numbered(names) == order


def test_a_system_prompt_goes_before_the_question() -> None:
    fields = fields_of({"system_prompt": "Be brief.", "instruction": "Name a fruit.", "text": "Pear."})
    assert fields.prompt == [{"role": "system", "content": "Be brief."}, user("Name a fruit.")]
    assert (fields.answers, fields.others) == ({"text": "Pear."}, [])
