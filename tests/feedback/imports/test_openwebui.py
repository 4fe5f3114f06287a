"""Open WebUI's exports of feedback and of chats: the rated message, the chain of its parents, and its siblings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prospect.data.write import write
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Pair
from tests.helpers.feedback import error_of, user

ROUTER = user("How do I reset my router?")


def message(id: str, parent: str | None, role: str, content: Any, **rest: Any) -> dict[str, Any]:
    return {"id": id, "parentId": parent, "childrenIds": [], "role": role, "content": content, **rest}


def export(*messages: dict[str, Any], rated: str, rating: Any = 1, **rest: Any) -> dict[str, Any]:
    """A row of the feedback export; `rest` are fields of "data", and "params" of the chat."""
    params = rest.pop("params", {})
    tree = {m["id"]: m for m in messages}
    return {
        "id": f"f-{rated}",
        "user_id": "u7",
        "version": 0,
        "type": "rating",
        "data": {"rating": rating, "model_id": "m-a", "sibling_model_ids": None, **rest},
        "meta": {"arena": False, "chat_id": "c1", "message_id": rated},
        "snapshot": {"chat": {"id": "c1", "chat": {"params": params, "history": {"messages": tree}}}},
        "created_at": 1730000002,
        "updated_at": 1730000003,
    }


QUESTION = message("q", None, "user", "Name a fruit.")
PEAR = message("a1", "q", "assistant", "Pear.", model="m-a")
BRICK = message("a2", "q", "assistant", "Brick.", model="m-b")


def test_the_case(shared: Path, tmp_path: Path) -> None:
    feedback = load(shared / "cases/exports/d01_openwebui_feedback.json")
    assert (feedback.format, len(feedback.records)) == ("openwebui", 4)
    assert [c.label for r in feedback.records for c in r.completions] == [True, False, True, False]
    first = feedback.records[0]
    assert first.prompt == (ROUTER,)
    assert first.completions == (
        Completion(
            "f-m0",
            "Hold the small button for ten seconds.",
            True,
            8.0,
            by="user-1",
            at="2024-10-27T03:33:22Z",
            model="m:8b",
            conversation="c0",
        ),
    )
    assert first.conversations == ("c0",)
    write(feedback.records, tmp_path / "out.jsonl")
    assert load(tmp_path / "out.jsonl").records == feedback.records


def test_the_prompt_is_the_chain_of_parents() -> None:
    """Of two branches of a chat the one that holds the rated message, with the system prompt of the chat."""
    row = export(
        QUESTION,
        PEAR,
        BRICK,
        message("q2", "a1", "user", "Another."),
        message("a3", "q2", "assistant", "Plum.", model="m-a"),
        message("q3", "a2", "user", "No."),
        rated="a3",
        rating="-1",
        params={"system": "Be brief."},
        reason="boring",
        comment="I know plums",
    )
    (record,) = load([row]).records
    assert record.prompt == (
        {"role": "system", "content": "Be brief."},
        user("Name a fruit."),
        {"role": "assistant", "content": "Pear."},
        user("Another."),
    )
    assert [(c.content, c.label, c.note) for c in record.completions] == [("Plum.", False, "boring: I know plums")]


@pytest.mark.parametrize(("rating", "pair"), [(1, Pair(0, 1)), (-1, Pair(1, 0))])
def test_siblings_of_the_other_models_are_pairs(rating: int, pair: Pair) -> None:
    again = message("a3", "q", "assistant", "Plum.", model="m-a")  # an answer that was generated again is none
    (record,) = load(
        [export(QUESTION, PEAR, BRICK, again, rated="a1", rating=rating, sibling_model_ids=["m-b"])]
    ).records
    assert [(c.content, c.label, c.model) for c in record.completions] == [
        ("Pear.", rating == 1, "m-a"),
        ("Brick.", None, "m-b"),
    ]
    assert record.pairs == (pair,)


THOUGHT = (
    '<details type="reasoning" done="true" duration="3">\n<summary>Thought for 3 seconds</summary>\n'
    "&gt; A fruit &lt; a tree.\n&gt; Pear.\n</details>\n"
)
CALL = (
    '<details type="tool_calls" done="true" id="c1" name="shop" arguments="&quot;{\\&quot;kind\\&quot;: \\&quot;fruit'
    '\\&quot;}&quot;" result="&quot;pear&quot;" files="">\n<summary>Tool Executed</summary>\n</details>\n'
)


def test_reasoning_and_tool_calls_have_fields_of_their_own() -> None:
    answer = message("a", "q", "assistant", f"{THOUGHT}Let me look.{CALL}Pear <b>is</b> one.", model="m")
    (record,) = load([export(QUESTION, answer, rated="a")]).records
    call = {"type": "function", "id": "c1", "function": {"name": "shop", "arguments": {"kind": "fruit"}}}
    thought = "A fruit < a tree.\nPear."
    assert record.prompt == (
        user("Name a fruit."),
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call], "reasoning_content": thought},
        {"role": "tool", "content": "pear", "name": "shop", "tool_call_id": "c1"},
    )
    assert record.completions[0].content == "Pear <b>is</b> one."
    (record,) = load([export(QUESTION, message("a", "q", "assistant", f"{THOUGHT}Pear."), rated="a")]).records
    assert record.completions[0].content == {"role": "assistant", "content": "Pear.", "reasoning_content": thought}
    (record,) = load([export(QUESTION, message("a", "q", "assistant", CALL), rated="a")]).records
    assert record.completions[0].content == {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize("text", ["<details>mine</details> x", "<details type=", '<details type="reasoning">no end'])
def test_other_html_is_text(text: str) -> None:
    (record,) = load([export(QUESTION, message("a", "q", "assistant", text), rated="a")]).records
    assert record.completions[0].content == text


def test_many_blocks_that_never_end_take_no_time() -> None:
    text = '<details type="reasoning">' * 40_000
    (record,) = load([export(QUESTION, message("a", "q", "assistant", text), rated="a")]).records
    assert record.completions[0].content == text


def test_what_says_nothing_is_counted_with_its_reason() -> None:
    good = export(QUESTION, PEAR, rated="a1")
    picture = message("q", None, "user", "What is this?", files=[{"type": "image", "url": "x"}])
    rows = [
        good,
        export(QUESTION, PEAR, rated="a1", rating=None),
        {**good, "snapshot": None},
        {**good, "type": "comment"},
        export(QUESTION, PEAR, rated="gone"),
        export(picture, PEAR, rated="a1"),
        {**good, "snapshot": None},
    ]
    feedback = load(rows)
    assert (len(feedback.records), feedback.rows) == (1, 7)
    assert [note for note in feedback.notes if "left out" in note] == [
        "1 row (2) left out: not rated",
        "2 rows (3, 7) left out: it was shared without its chat (snapshot is empty), so nobody knows what was rated",
        "1 row (4) left out: its type is str 'comment', not a rating",
        "1 row (5) left out: its message str 'gone' is not in its chat",
        "1 row (6) left out: a message shows an image, and only text is read",
    ]
    assert "has no judged answer" in str(error_of(rows[1:]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (export(QUESTION, PEAR, rated="a1", rating=3), "data.rating must be one of 1, -1"),
        (export(QUESTION, PEAR, rated="a1", rating=True), "data.rating must be one of 1, -1"),
        (export(PEAR, rated="a1"), "the chat lacks the message str 'q', a parent"),
        (export({**QUESTION, "parentId": "a1"}, PEAR, rated="a1"), "is its own ancestor"),
        (export(QUESTION, rated="q"), 'must be the assistant\'s, not one of role "user"'),
        (export(QUESTION, PEAR, rated="a1", sibling_model_ids=3), "data.sibling_model_ids must be a list"),
    ],
)
def test_what_is_wrong_is_refused(row: dict[str, Any], message: str) -> None:
    error = error_of([export(QUESTION, PEAR, rated="a1"), row])
    assert error.line == 2
    assert message in error.message


def test_the_export_of_chats() -> None:
    up = {"rating": 1, "reason": "good", "comment": ""}
    tree = {
        m["id"]: m
        for m in (QUESTION, {**PEAR, "annotation": up, "timestamp": 1730000000}, {**BRICK, "annotation": None})
    }
    rows = [
        {"id": "c1", "user_id": "u", "title": "t", "chat": {"history": {"currentId": "a1", "messages": tree}}},
        {"id": "c2", "user_id": "u", "title": "t", "chat": {"messages": [{**QUESTION, "parentId": None}, PEAR]}},
    ]
    feedback = load(rows)
    assert feedback.format == "openwebui-chats"
    (record,) = feedback.records
    assert (record.id, record.prompt, record.conversations) == ("c1/a1", (user("Name a fruit."),), ("c1",))
    assert record.completions == (
        Completion(
            "c1/a1", "Pear.", True, by="u", at="2024-10-27T03:33:20Z", model="m-a", note="good", conversation="c1"
        ),
    )
    assert "1 row (2) left out: a chat without a rating" in feedback.notes


def test_chats_of_old_versions_are_lists() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes?", "annotation": {"rating": -1}}]
    (record,) = load([{"id": "c", "chat": {"messages": turns}}]).records
    assert (record.prompt, record.completions[0].content, record.completions[0].label) == ((user("hi"),), "Yes?", False)


def test_a_large_array_is_read_in_little_memory(tmp_path: Path) -> None:
    """A row is let go once it is read: 30 MB of chats never lie in memory together."""
    import tracemalloc

    text = json.dumps(export(QUESTION, message("a1", "q", "assistant", "Pear.", padding="x" * 15_000), rated="a1"))
    path = tmp_path / "feedback.json"
    path.write_text(f"[{', '.join([text] * 2_000)}]")
    tracemalloc.start()
    feedback = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (feedback.rows, len(feedback.records[0].completions)) == (2_000, 2_000)
    assert peak < 12e6 < path.stat().st_size
