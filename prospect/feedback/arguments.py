"""The arguments of a message's tool calls, which stand in files as objects or as JSON text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prospect.errors import DataError
from prospect.feedback.jsontext import json_value
from prospect.feedback.records import Message


def function_of(call: Any) -> dict[str, Any]:
    """Name and arguments of a tool call, which stand in "function", or in the call itself."""
    if not isinstance(call, dict):
        return {}
    function = call.get("function")
    return function if isinstance(function, dict) else call


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
    """The message with arguments as objects: OpenAI's interface writes them as JSON in text, which a chat template
    would print as a quoted text. Blank text is no argument; what is no JSON object stays as the model wrote it."""

    def parsed(arguments: Any) -> Any:
        if not isinstance(arguments, str):
            return arguments
        try:
            value = json_value(arguments) if arguments.strip() else {}
        except DataError:
            return arguments
        return value if isinstance(value, dict) else arguments

    return with_arguments(message, parsed)
