"""Tool calls of a message: their arguments as objects or as JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from prospect.feedback.records import Message


def function_of(call: Any) -> dict[str, Any]:
    """Name and arguments of a tool call, which stand in "function", or in the call itself."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    return function if isinstance(function, dict) else {}


def arguments(message: Message) -> list[Any]:
    return [function_of(call).get("arguments") for call in message.get("tool_calls") or ()]


def with_arguments(message: Message, change: Callable[[Any], Any]) -> Message:
    """The message with the arguments of its tool calls changed."""

    def changed(call: Any) -> Any:
        function = function_of(call)
        if "arguments" not in function:
            return call
        function = function | {"arguments": change(function["arguments"])}
        return call | {"function": function} if isinstance(call.get("function"), dict) else function

    calls = message.get("tool_calls")
    return message | {"tool_calls": [changed(call) for call in calls]} if isinstance(calls, list | tuple) else message


def with_objects(message: Message) -> Message:
    """The message with arguments that are JSON text as objects."""

    def parsed(arguments: Any) -> Any:
        try:
            value = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments

    return with_arguments(message, parsed)


def with_json(message: Message) -> Message:
    """The message with arguments as JSON text."""
    return with_arguments(message, lambda a: a if isinstance(a, str) else json.dumps(a, ensure_ascii=False))
