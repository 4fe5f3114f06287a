"""Exports of assistants that people host: AnythingLLM, Dify, LibreChat; and OpenAI's format for preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.feedback.load import load
from prospect.feedback.records import Completion, Pair
from tests.helpers.feedback import answers, assistant, error_of, user

ROUTER = (user("How do I reset my router?"),)

# AnythingLLM


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_case_of_anythingllm(shared: Path, kind: str) -> None:
    feedback = load(shared / f"cases/exports/d03_anythingllm.{kind}")
    assert feedback.format == "anythingllm"
    assert [c.label for r in feedback.records for c in r.completions] == [True, False, True, False]
    first = Completion("1", "Hold the small button for ten seconds.", True, by="admin", at="2024-03-18T10:00:00Z")
    assert (feedback.records[0].prompt, feedback.records[0].completions) == (ROUTER, (first,))
    assert any("left out: not rated" in note for note in feedback.notes)
    assert any("CSV of AnythingLLM has spaces" in note for note in feedback.notes) == (kind == "csv")


def anything(**values: Any) -> dict[str, Any]:
    row = {"id": 1, "workspace": "docs", "prompt": "Name a fruit.", "response": "Pear.", "sent_at": 1710756000000}
    return {**row, "username": "API", "rating": "GOOD", "attachments": [], **values}


def test_a_question_is_text() -> None:
    """Messages in its place would become a prompt that cannot be written and read again."""
    words = str(error_of([anything(prompt=[{"role": "assistant", "content": "x"}])]))
    assert "prompt must be text, not list" in words
    assert "prompt is blank" in str(error_of([anything(prompt=" ")]))


def test_reasoning_nobody_and_images_of_anythingllm() -> None:
    picture = anything(attachments=[{"type": "image", "image": "data:"}])
    feedback = load([anything(response="<think>A fruit.</think>\nPear."), picture])
    assert answers(feedback) == [((user("Name a fruit."),), assistant("Pear.", reasoning_content="A fruit."), True)]
    assert (feedback.records[0].completions[0].by, feedback.records[0].completions[0].at) == (
        "",
        "2024-03-18T10:00:00Z",
    )
    assert "1 row (2) left out: a message shows an image, and only text is read" in feedback.notes
    assert 'rating must be one of "good", "bad", "--"' in str(error_of([anything(rating="SO-SO")]))


# OpenAI's preferences


def preference(**values: Any) -> dict[str, Any]:
    row = {"input": {"messages": [user("Name a fruit.")], "tools": [], "parallel_tool_calls": True}}
    return {**row, "preferred_output": [assistant("Pear.")], "non_preferred_output": [assistant("Brick.")], **values}


def test_the_case_of_openai(shared: Path) -> None:
    feedback = load(shared / "cases/exports/f05_openai_ft_dpo.jsonl")
    assert (feedback.format, len(feedback.records)) == ("openai-preference", 4)
    assert {record.pairs for record in feedback.records} == {(Pair(0, 1),)}
    right = "Hold the small button for ten seconds."
    assert answers(feedback)[:2] == [(ROUTER, right, None), (ROUTER, f"{right} NOT", None)]


def test_tools_stand_beside_the_messages() -> None:
    tools = [{"type": "function", "function": {"name": "shop", "parameters": {}}}]
    call = {"type": "function", "id": "c", "function": {"name": "shop", "arguments": '{"kind": "fruit"}'}}
    row = preference(
        input={"messages": [user("Buy a fruit.")], "tools": tools},
        preferred_output=[{"role": "assistant", "content": None, "tool_calls": [call]}],
    )
    (record,) = load([row]).records
    assert record.tools == tuple(tools)
    chosen = record.completions[0].content
    assert isinstance(chosen, dict)
    assert chosen["tool_calls"][0]["function"]["arguments"] == {"kind": "fruit"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (preference(input={}), "input.messages is blank"),
        (preference(input="x"), "input is not valid JSON"),
        (preference(preferred_output=[]), "preferred_output has 0 messages"),
        (preference(non_preferred_output=[user("x")]), "must be an assistant message"),
    ],
)
def test_what_is_wrong_in_a_preference_is_refused(row: dict[str, Any], message: str) -> None:
    assert message in str(error_of([preference(), row]))


# Dify


def dify(id: str, query: str, answer: str, rating: str | None = None, **values: Any) -> dict[str, Any]:
    feedback = {"rating": rating} if rating else None
    row = {"id": id, "conversation_id": "c", "inputs": {}, "query": query, "answer": answer, "feedback": feedback}
    return {**row, "message_files": [], "created_at": 1730000000, **values}


NIL = "00000000-0000-0000-0000-000000000000"
FIRST = (user("Name a fruit."), assistant("Brick."), user("No."))


def test_messages_of_dify_stand_behind_those_before_them() -> None:
    """By their parents, where they name them; a message that was answered again has two children."""
    rows = [
        dify("m3", "No.", "Pear.", "like", parent_message_id="m1"),
        dify("m2", "Why?", "So.", parent_message_id="m1"),
        dify("m1", "Name a fruit.", "Brick.", "dislike", parent_message_id=NIL),
    ]
    feedback = load(rows)
    assert feedback.format == "dify"
    assert answers(feedback) == [(FIRST, "Pear.", True), ((user("Name a fruit."),), "Brick.", False)]
    assert feedback.records[0].conversations == ("c",)
    assert "1 row (2) left out: not rated" in feedback.notes


def test_messages_of_dify_without_parents_follow_each_other() -> None:
    rows = [dify("m2", "No.", "Pear.", "like", created_at=1730000009), dify("m1", "Name a fruit.", "Brick.")]
    assert answers(load(rows)) == [(FIRST, "Pear.", True)]
    lost = [dify("m2", "No.", "Pear.", "like", parent_message_id="m1")]
    assert "the chat lacks the message str 'm1', a parent" in str(error_of(lost))


def test_everybody_who_judged_in_dify() -> None:
    said = [
        {"rating": "like", "content": "ripe", "from_source": "user", "from_end_user_id": "u"},
        {"rating": "dislike", "content": None, "from_source": "admin", "from_account": {"name": "Bo"}},
    ]
    row = dify("m", "Name a fruit.", "<think>Hm.</think>Pear.", inputs={"tone": "dry"}, feedbacks=said)
    feedback = load([{key: value for key, value in row.items() if key != "feedback"}])
    completions = feedback.records[0].completions
    assert [(c.label, c.by, c.note) for c in completions] == [(True, "u", "ripe"), (False, "Bo", "")]
    assert completions[0].content == assistant("Pear.", reasoning_content="Hm.")
    assert any("the app has inputs" in note for note in feedback.notes)
    picture = dify("m", "What is this?", "Pear.", "like", message_files=[{"type": "image"}])
    assert "has no judged answer" in str(error_of([picture]))


def dify_export(**values: Any) -> dict[str, Any]:
    row = {"feedback_id": "f", "conversation_id": "c", "user_query": "Name a fruit.", "ai_response": "Pear."}
    about = {
        "feedback_rating": "👎",
        "feedback_rating_raw": "dislike",
        "feedback_comment": "dry",
        "from_end_user_id": "",
    }
    return {**row, **about, "feedback_date": "2025-01-02 03:04:05", "from_account_name": "Bo", **values}


def test_the_export_of_feedback_of_dify(tmp_path: Path) -> None:
    """It cuts answers after 500 characters: what was cut off gets no end of turn."""
    path = tmp_path / "feedback.json"
    rows = [dify_export(), dify_export(feedback_id="g", ai_response="x" * 500 + "...", feedback_rating_raw="like")]
    path.write_text(json.dumps({"export_info": {"total_records": 2}, "feedback_data": rows}, indent=2))
    (record,) = load(path).records
    assert record.completions == (
        Completion("f", "Pear.", False, by="Bo", at="2025-01-02T03:04:05Z", note="dry", conversation="c"),
        Completion(
            "g", "x" * 500, True, complete=False, by="Bo", at="2025-01-02T03:04:05Z", note="dry", conversation="c"
        ),
    )
    assert any("they are read as cut off" in note for note in load(path).notes)


# LibreChat


def libre(id: str, parent: str | None, text: str | None, by_user: bool = False, **values: Any) -> dict[str, Any]:
    return {"messageId": id, "parentMessageId": parent, "isCreatedByUser": by_user, "text": text, **values}


TALK = [libre("q", NIL, "Name a fruit.", True), libre("a1", "q", "Brick."), libre("q2", "a1", "No.", True)]
UP = {"rating": "thumbsUp", "tag": {"key": "accurate"}, "text": "ripe"}
PARTS = [
    {"type": "think", "think": "Hm."},
    {"type": "text", "text": "Let me look."},
    {"type": "tool_call", "tool_call": {"id": "t", "name": "shop", "args": '{"kind": "fruit"}', "output": "pear"}},
    {"type": "text", "text": {"value": "Pear."}},
]


def conversation(*messages: dict[str, Any], **values: Any) -> dict[str, Any]:
    row = {"conversationId": "c", "endpoint": "openAI", "title": "t", "exportAt": "12:00", "branches": True}
    return {**row, "recursive": False, "options": {"model": "m", "promptPrefix": "Be brief."}, "messages": [*messages]}


def test_a_conversation_of_librechat() -> None:
    rated = libre("a2", "q2", ":::thinking\nHm.\n:::\nPear.", feedback=UP, createdAt="2025-01-02T03:04:05Z")
    feedback = load([conversation(*TALK, rated)])
    assert feedback.format == "librechat"
    system = {"role": "system", "content": "Be brief."}
    pear = assistant("Pear.", reasoning_content="Hm.")
    assert answers(feedback) == [((system, *FIRST), pear, True)]
    one = feedback.records[0].completions[0]
    assert (one.model, one.at, one.note, one.conversation) == ("m", "2025-01-02T03:04:05Z", "accurate: ripe", "c")


def test_a_conversation_as_a_tree() -> None:
    down = {**libre("a1", None, "Brick."), "feedback": {"rating": "thumbsDown"}}
    row = conversation() | {"messagesTree": [{**libre("q", None, "Name a fruit.", True), "children": [down]}]}
    del row["messages"], row["options"]
    assert answers(load([row])) == [((user("Name a fruit."),), "Brick.", False)]


def test_messages_of_librechat_with_calls() -> None:
    rows = [
        {**m, "conversationId": "c"} for m in (*TALK, libre("a2", "q2", None, content=PARTS, feedback=UP, user="u"))
    ]
    feedback = load(rows)
    assert feedback.format == "librechat-messages"
    call = {"type": "function", "id": "t", "function": {"name": "shop", "arguments": {"kind": "fruit"}}}
    (record,) = feedback.records
    assert record.prompt == (
        *FIRST,
        assistant("Let me look.", tool_calls=[call], reasoning_content="Hm."),
        {"role": "tool", "content": "pear", "name": "shop", "tool_call_id": "t"},
    )
    assert (record.completions[0].content, record.completions[0].by) == ("Pear.", "u")
    assert "3 rows (1, 2, 3) left out: not rated" in feedback.notes


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (libre("a2", "q2", "x", feedback={"rating": "meh"}), 'must be one of "thumbsup", "thumbsdown"'),
        (libre("a2", "gone", "x", feedback=UP), "the chat lacks the message str 'gone'"),
        (libre("q3", "q2", "x", True, feedback=UP), "must be the assistant's"),
        (libre("a2", "q2", "x", feedback=UP, error=True), "has no judged answer"),
        (libre("a2", "q2", None, content=[{"type": "image_file"}], feedback=UP), "has no judged answer"),
    ],
)
def test_what_is_wrong_in_librechat(message: dict[str, Any], words: str) -> None:
    assert words in str(error_of([conversation(*TALK, message)]))
