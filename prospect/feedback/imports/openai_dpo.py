"""OpenAI's format for fine-tuning on preferences, which Azure, Together and Fireworks read, too: input,
preferred_output, non_preferred_output."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prospect.feedback import messages as chat
from prospect.feedback.imports.common import api_message, list_of, object_of
from prospect.feedback.readers import FeedbackLine, Layout
from prospect.feedback.records import Message, Record

_SIDES = ("preferred_output", "non_preferred_output")


def preference(line: FeedbackLine) -> list[Record]:
    """A pair; the tools stand beside the messages of the input."""
    given = object_of(line.get("input"), "input")
    prompt = chat.with_text(tuple(_messages(given.get("messages"), "input.messages")), "input.messages")
    if given.get("tools"):
        line = replace(line, values={**line.values, "tools": given["tools"]})
    chosen, rejected = (_messages(line.get(side), side) for side in _SIDES)
    return line.pair(prompt, chosen, rejected, _SIDES)


def _messages(value: Any, where: str) -> list[Message]:
    return [api_message(message, f"{where}: message {i}") for i, message in enumerate(list_of(value, where), 1)]


LAYOUTS = (
    Layout("openai-preference", ("input", *_SIDES), preference, (), _SIDES, objects=("input", *_SIDES), thumbs=None),
)
