"""Prompts and answers as they stand in files, checked and put into one form: text, or messages with role and content.

Every function takes `where`, the column it reads, for its error. Errors are DataError without a place; the caller knows
file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from prospect.errors import DataError, brief, nearest
from prospect.feedback.arguments import with_objects
from prospect.feedback.jsontext import json_value
from prospect.feedback.records import Message, Prompt

T = TypeVar("T")

CONVERSATIONS = ("messages", "conversations")
"""Columns that hold whole conversations."""

TURN_THUMBS = ("rating", "label")
TURN_JUDGEMENTS = (*TURN_THUMBS, "score")
"""Keys of a message that judge it. Null says that nobody did."""

TRAIN_FLAGS = ("train", "loss")
"""Keys of a message whose false says that it is context and no answer to learn from."""

_NOT_FOR_TEMPLATES = (*TURN_JUDGEMENTS, *TRAIN_FLAGS, "weight", "complete")
_CALLS = ("function_call", "tool_call")
"""Speakers whose text is a tool call of the assistant, as JSON."""

_SPEAKERS = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "ai", "bot", "chatbot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(_CALLS, "assistant"),
}
"""The role of every speaker that public data name, in lower case."""


def shown(value: Any) -> str:
    """A value in an error message: its type and as much of it as fits."""
    return f"{type(value).__name__} {brief(value)}"


def plain_text(value: Any, where: str) -> str:
    """`value`, if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise DataError(f"{where} must be text, not {shown(value)}" if value is not None else f"{where} is missing")
    try:
        if not value.isascii():  # which Python knows without a look
            value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has half of a character pair (a lone surrogate) at position {error.start}") from None
    return value


def jsonable(value: T, where: str) -> T:
    """`value`, if it can be written as JSON."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be written as JSON: {error}") from None
    return value


def is_messages(value: Any) -> bool:
    """A list of objects, which is how chats are written."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(m, dict) for m in value)


def message(value: Any, where: str) -> Message:
    """One chat message, role and content first. ShareGPT's keys and every known speaker are translated, the arguments
    of tool calls become objects; nulls, judgements and training flags are left out."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a message with role and content, not {shown(value)}")
    sharegpt = "from" in value and "role" not in value
    by, text = ("from", "value") if sharegpt else ("role", "content")
    speaker = value.get(by)
    if not sharegpt and (not isinstance(speaker, str) or not speaker.strip()):
        raise DataError(f'{where} has no role. Expected {{"role": "user", "content": "..."}}')
    name = speaker.strip().lower() if isinstance(speaker, str) else ""
    if name not in _SPEAKERS:
        raise DataError(
            f"{where} is from {shown(speaker)}, which is no known speaker.{nearest(name, _SPEAKERS)} Known: "
            f"{', '.join(_SPEAKERS)}"
        )
    role, content = _SPEAKERS[name], value.get(text)
    rest = {k: v for k, v in value.items() if v is not None and k not in (by, text, *_NOT_FOR_TEMPLATES)}
    if name in _CALLS:
        content, rest["tool_calls"] = None, _called(content, where)
    if "tool_calls" in rest:
        rest["tool_calls"] = _tool_calls(rest["tool_calls"], where)
    if isinstance(content, list):
        content = _parts(content, where)
    if content is None and not rest.get("tool_calls"):
        raise DataError(f"{where} ({role}) has no content")
    said = {"role": role} if content is None else {"role": role, "content": plain_text(content, f"{where} content")}
    return {**said, **jsonable(rest, where)} if rest else said


def _called(text: Any, where: str) -> list[dict[str, Any]]:
    """ShareGPT's function call, or several, as tool calls."""
    calls = from_json(text, where)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise DataError(f"{where} is a function call and must name its function")
    return [{"type": "function", "function": call} for call in calls]


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects."""
    calls = from_json(value, f"{where} tool_calls")
    if not isinstance(calls, list | tuple) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"{where} tool_calls must be a list of objects, not {shown(calls)}")
    return list(with_objects({"tool_calls": calls})["tool_calls"])


def judged(turn: Any) -> bool:
    """Whether a message, as it stands in the file, carries a judgement."""
    return isinstance(turn, dict) and any(turn.get(key) is not None for key in TURN_JUDGEMENTS)


def turns_of(row: Mapping[str, Any]) -> list[Any]:
    """The messages of a row that holds a conversation, as they stand in the file; else none."""
    turns = next((row[column] for column in CONVERSATIONS if column in row), None)
    return list(turns) if isinstance(turns, list | tuple) else []


def judges_turns(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a conversation in which a turn is judged."""
    return any(judged(turn) for turn in turns_of(row))


def says_no(turn: Any) -> bool:
    """Whether a message, as it stands in the file, says that it is not to be trained."""
    return isinstance(turn, dict) and any(turn.get(flag) in (False,) for flag in TRAIN_FLAGS)  # 0 included


def check_flags(turn: dict[str, Any], where: str) -> None:
    """Raises DataError where a training flag is neither true nor false."""
    for flag in TRAIN_FLAGS:
        if turn.get(flag) not in (None, True, False):
            raise DataError(f"{where}: {flag} must be true or false, not {shown(turn[flag])}")


def _parts(parts: list[Any], where: str) -> str:
    """Content in parts, joined. Raises DataError for pictures and sound."""
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type", "text") == "text"]
    if len(texts) != len(parts):
        raise DataError(f"{where} has content other than text. Prospect reads text only")
    return "".join(plain_text(text, where) for text in texts)


def messages(value: Any, where: str) -> tuple[Message, ...]:
    """A conversation; `where` is completed with the number of the message, from 1."""
    if not is_messages(value):
        raise DataError(f"{where} must be a non-empty list of messages, not {shown(value)}")
    return tuple(message(m, f"{where}: message {i}") for i, m in enumerate(value, 1))


def prompt(value: Any, where: str = "prompt") -> Prompt:
    """A prompt: text, or messages. Raises DataError where it is blank or neither."""
    if isinstance(value, list | tuple):
        return spoken(messages(value, where), where) if value else spoken((), where)
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f'{where} is blank. To train on text without a prompt, name its column "text"')
        return plain_text(value, where)
    if value is None:
        raise DataError(f"{where} is missing")
    raise DataError(f"{where} must be text or a list of messages, not {shown(value)}")


def spoken(turns: tuple[Message, ...], where: str = "prompt") -> tuple[Message, ...]:
    """`turns` if anybody says something in them: the system alone may, before the assistant opens."""
    if not any(m.get("tool_calls") or m.get("content", "").strip() for m in turns):
        raise DataError(f"{where} is blank: no turn before the answer has text")
    return turns


def answer(value: Any, where: str) -> str | Message:
    """One answer: text, or one assistant message, which becomes text where it carries nothing else."""
    if isinstance(value, str):
        return plain_text(value, where)
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise DataError(
                f"{where} has {len(value)} messages; what is judged must be one assistant message. Move earlier turns "
                "into the prompt"
            )
        value = value[0]
    if not isinstance(value, dict):
        problem = "is missing" if value is None else f"must be text or one assistant message, not {shown(value)}"
        raise DataError(f"{where} {problem}")
    said = message(value, where)
    if said["role"] != "assistant":
        raise DataError(f'{where} must be an assistant message, not one of role "{said["role"]}"')
    return str(said["content"]) if set(said) == {"role", "content"} else said


def from_json(value: Any, where: str) -> Any:
    """`value`, parsed where it is JSON in text (as in CSV and in LLaMA-Factory's tools)."""
    if not isinstance(value, str):
        return value
    try:
        return json_value(value)
    except DataError as error:
        raise DataError(f"{where} is not valid JSON: {error.message}") from None


_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    """Text of the form "Human: ... Assistant: ...", as Anthropic's hh data has it."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def transcript(value: Any, where: str) -> tuple[Message, ...]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ...". Raises DataError where the last is not the assistant's."""
    if not is_transcript(value):
        raise DataError(f'{where} must be a transcript that begins with "\\n\\nHuman:", not {shown(value)}')
    pieces = _TRANSCRIPT.split("\n\n" + plain_text(value, where).lstrip())[1:]
    roles = ["user" if speaker == "Human" else "assistant" for speaker in pieces[::2]]
    if roles[-1] != "assistant":
        raise DataError(f"{where} does not end with the assistant's turn")
    return tuple({"role": r, "content": said.strip()} for r, said in zip(roles, pieces[1::2], strict=True))
