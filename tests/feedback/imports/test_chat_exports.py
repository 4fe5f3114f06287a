"""Exports of chat apps whose words are their own: AnythingLLM; and OpenAI's format for preferences."""

from __future__ import annotations

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
