"""What several importers need: fields and words looked up, message trees, reasoning in its own field, and the messages
of LangChain's and OpenAI's interfaces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.readers import FeedbackLine, LeftOut
from prospect.feedback.records import Message, Prompt
from prospect.feedback.tables import Unreadable

T = TypeVar("T")


# Fields


def object_of(value: Any, where: str) -> dict[str, Any]:
    """An object, which may stand as JSON in text; {} for null and for nothing."""
    if value is None or value == "":
        return {}
    value = chat.from_json(value, where)
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object, not {chat.excerpt(value)}")
    return value


def list_of(value: Any, where: str) -> list[Any]:
    """A list, which may stand as JSON in text; [] for null and for nothing."""
    value = chat.from_json(value, where) if value not in (None, "") else []
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list, not {chat.excerpt(value)}")
    return value


def at_path(value: Any, path: str) -> Any:
    """What lies at "chat.history.messages" in objects, None where a part of the path is absent or no object."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def camel(name: str) -> str:
    """trace_id as traceId."""
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def either(row: Mapping[str, Any], name: str) -> Any:
    """The value of `name`, which some exports write like trace_id and others like traceId."""
    value = row.get(name)
    return row.get(camel(name)) if value is None else value


def look_up(table: Mapping[Any, T], value: Any, where: str) -> T:
    """What a word of the application means. Raises DataError for a word that is not in the table."""
    key = value.strip().casefold() if isinstance(value, str) else value
    if not isinstance(key, str | int | float) or isinstance(key, bool) or key not in table:
        known = ", ".join(str(word) if isinstance(word, int | float) else f'"{word}"' for word in table)
        raise DataError(f"{where} must be one of {known}, not {chat.excerpt(value)}")
    return table[key]


def origin(line: FeedbackLine, *, at: Any = None, note: Sequence[Any] = (), **names: Any) -> dict[str, Any]:
    """The origin of an answer for `FeedbackLine.completion`; what is no text or number is left out. A time that nobody
    can read is told and left out; the parts of the `note` that say something are joined."""
    values = {key: str(name) for key, name in names.items() if isinstance(name, str | int) and name != ""}
    if at not in (None, ""):
        try:
            values["at"] = chat.moment(at, "its time")
        except DataError:
            line.remark(f"the time {chat.excerpt(at)} cannot be read, and is left out")
    if text := ": ".join(part.strip() for part in note if isinstance(part, str) and part.strip()):
        values["note"] = text
    return values


def bad_row(row: Mapping[str, Any], reason: str) -> Unreadable:
    """A row that a join cannot use, as it was read, and why."""
    return Unreadable(json.dumps(row, ensure_ascii=False, default=str), reason)


# Message trees


def chain(messages: Mapping[str, T], parents: Mapping[str, Any], id: str) -> list[T]:
    """The messages from the root to `id`. Raises DataError where a parent is absent, the chain is a circle, or
    the message has no id."""
    if id == "":
        raise DataError("a message of the chat has no id, so that nobody can say what it answers")
    path: list[T] = []
    name: Any = id
    while name not in (None, ""):
        if not isinstance(name, str) or name not in messages:
            raise DataError(f"the chat lacks the message {chat.excerpt(name)}, a parent")
        if len(path) == len(messages):
            raise DataError(f'the message "{name}" is its own ancestor')
        path.append(messages[name])
        name = parents.get(name)
    return path[::-1]


# Reasoning, which chat templates want in a field of its own

_THINK = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)</\1>\s*", re.DOTALL)


def with_reasoning(text: str, reasoning: str = "") -> str | Message:
    """An answer as text, or as a message where it has reasoning: what stands in <think> at its beginning, or beside."""
    match = None if reasoning else _THINK.match(text)
    if match is not None:
        reasoning, text = match[2].strip(), text[match.end() :]
    return {"role": "assistant", "content": text, "reasoning_content": reasoning} if reasoning else text


# An assistant's message with calls in it, which chat templates want as a message per call


class Call(NamedTuple):
    """A call of a tool with its result, None where it has none."""

    name: str
    arguments: Any
    result: str | None
    id: str


def in_steps(parts: Iterable[tuple[str, Any]], where: str) -> list[Message]:
    """An assistant's message of ("text", text), ("reasoning", text) and ("call", Call): a message per call, each with
    its result, and then what is said last. The result of a call at the end is nobody's answer."""
    steps: list[Message] = []
    text, reasoning = "", list[str]()

    def said(calls: list[dict[str, Any]] | None) -> Message:
        message = {"role": "assistant", "content": text.strip() if calls or reasoning else text, "tool_calls": calls}
        return chat.message({**message, "reasoning_content": "\n".join(reasoning) or None}, where)

    for kind, part in parts:
        if kind == "text":
            text += part
        elif kind == "reasoning":
            reasoning.append(part)
        else:
            function = {"name": part.name, "arguments": part.arguments}
            steps.append(said([{"type": "function", "id": part.id, "function": function}]))
            result = {"content": part.result or "", "name": part.name, "tool_call_id": part.id}
            steps.append({"role": "tool", **result})
            text, reasoning = "", []
    if text.strip() or reasoning or not steps:
        return [*steps, said(None)]
    return steps[:-1]


# Messages as interfaces write them: OpenAI's, Anthropic's, LangChain's in three forms

_KINDS = {"ai": "assistant", "aimessage": "assistant", "aimessagechunk": "assistant", "humanmessage": "user"} | {
    f"{kind}message": kind for kind in ("system", "tool", "function")
}
_LISTS = ("messages", "message", "input", "prompt", "question", "query", "output", "answer", "completion", "response")
"""Keys that hold messages or text in the inputs and outputs of a call."""

_THOUGHT_PARTS = {"thinking": "thinking", "reasoning": "text"}


def api_message(value: Any, where: str) -> Message:
    """One message of an interface, with reasoning and tool calls in their own fields. Raises LeftOut where it holds
    what is no text."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a message with role and content, not {chat.excerpt(value)}")
    kind = value.get("role") or value.get("type")
    if value.get("lc") and isinstance(value.get("id"), list) and value["id"]:
        kind = value["id"][-1]
    inner = value.get("kwargs") if isinstance(value.get("kwargs"), dict) else value.get("data")
    fields = dict(inner) if isinstance(inner, dict) else dict(value)
    extra = fields.get("additional_kwargs") if isinstance(fields.get("additional_kwargs"), dict) else {}
    assert isinstance(extra, dict)
    name = str(kind).casefold() if kind else ""
    message: Message = {"role": _KINDS.get(name, name)}
    reasoning = fields.get("reasoning_content") or extra.get("reasoning_content")
    content = fields.get("content")
    if isinstance(content, list):
        texts = []
        for part in content:
            part_kind = str(part.get("type")) if isinstance(part, dict) else "text"
            if part_kind in _THOUGHT_PARTS:
                reasoning = f"{reasoning or ''}{part.get(_THOUGHT_PARTS[part_kind]) or ''}"
            elif part_kind in ("text", "input_text", "output_text"):
                texts.append(part.get("text") if isinstance(part, dict) else part)
            elif part_kind != "tool_use":  # stands in tool_calls, too
                raise LeftOut(f'a message has content of type "{part_kind}", and only text is read')
        content = "".join(chat.plain_text(text, where) for text in texts)
    calls = fields.get("tool_calls") or extra.get("tool_calls")
    message |= {"content": content, "reasoning_content": reasoning or None}
    message |= {"name": fields.get("name") or None, "tool_call_id": fields.get("tool_call_id")}
    if calls:
        message["tool_calls"] = [_call(call) for call in calls] if isinstance(calls, list) else calls
    return chat.message(message, where)


def _call(call: Any) -> Any:
    """A tool call; LangChain's {"name", "args", "id"} as OpenAI writes it."""
    if not isinstance(call, dict) or "args" not in call:
        return call
    function = {"name": call.get("name"), "arguments": call["args"]}
    return {"type": "function", "function": function} | ({"id": call["id"]} if call.get("id") else {})


def opened(value: Any, where: str) -> Any:
    """The messages or the text of a call's input or output: JSON in text is read, and what lies alone under a key that
    interfaces use, or in OpenAI's choices and LangChain's generations, is taken out. Raises DataError where several
    things could be meant."""
    for _ in range(8):
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            try:
                value = chat.json_value(value)
            except DataError:
                return value  # a text that begins with a bracket
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            value = value[0]  # LangChain's batch of one
        elif isinstance(value, dict) and not _is_message(value):
            value = _inside(value, where)
        else:
            return value
    return value


def _is_message(value: Mapping[str, Any]) -> bool:
    return (
        "content" in value or "kwargs" in value or "tool_calls" in value or at_path(value, "data.content") is not None
    )


def _inside(value: dict[str, Any], where: str) -> Any:
    if isinstance(value.get("choices"), list | tuple) and len(value["choices"]) == 1:
        return at_path(value["choices"][0], "message")
    generations = value.get("generations")
    while isinstance(generations, list) and len(generations) == 1:
        generations = generations[0]
    if isinstance(generations, dict):
        message = generations.get("message")
        return message if isinstance(message, dict) and _is_message(message) else generations.get("text")
    filled = [key for key, part in value.items() if part not in (None, "", [], {})]
    names = [key for key in filled if key in _LISTS] if len(filled) > 1 else filled
    if len(names) != 1:
        keys = ", ".join(f'"{key}"' for key in filled) or "no value"
        raise DataError(
            f"{where} is an object with {keys}: which of them is the text? Expected text, messages, or an object with "
            f"one of {', '.join(_LISTS)}"
        )
    return value[names[0]]


def api_prompt(value: Any, where: str) -> Prompt:
    """The prompt of a call: text, or messages."""
    value = opened(value, where)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return chat.with_text(tuple(api_message(m, f"{where}: message {i}") for i, m in enumerate(value, 1)), where)
    return chat.prompt(value, where)


def api_answer(value: Any, where: str) -> str | Message:
    """The answer of a call: text, or the last of its messages where it is the assistant's."""
    value = opened(value, where)
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, dict):
        return chat.answer(api_message({"role": "assistant"} | value, where), where)
    return with_reasoning(chat.plain_text(value, where))
