"""Prompts for people to read."""

from __future__ import annotations

import pytest

from prospect.feedback.records import Prompt, readable

QUESTION = {"role": "user", "content": "2 + 2?"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2}}}]}


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("2 + 2?", "2 + 2?"),
        ((QUESTION,), "2 + 2?"),
        ((QUESTION, CALL), 'user: 2 + 2?\nassistant: add({"a": 2})'),
        ((CALL,), 'add({"a": 2})'),
        ((), ""),
    ],
)
def test_a_conversation_is_shown_with_its_roles_and_calls(prompt: Prompt, text: str) -> None:
    assert readable(prompt) == text
