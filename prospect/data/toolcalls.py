"""Tool calls of a message as a chat template may want them."""

from __future__ import annotations

import json
from typing import Any

from prospect.feedback.arguments import function_of, with_arguments
from prospect.feedback.records import Message


def arguments(message: Message) -> list[Any]:
    return [function_of(call).get("arguments") for call in message.get("tool_calls") or ()]


def with_json(message: Message) -> Message:
    """The message with arguments as JSON text."""
    return with_arguments(message, lambda a: a if isinstance(a, str) else json.dumps(a, ensure_ascii=False))
