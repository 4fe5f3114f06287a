"""Prompts and answers as they stand in files, checked and put into one form: text, or messages with role and content.

Every function takes `where`, the column it reads, for its error. Errors are DataError without a place; the caller knows
file and line.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from prospect.errors import DataError, nearest
from prospect.feedback.records import Message, Prompt

T = TypeVar("T")

TURN_JUDGEMENTS = ("rating", "label", "score")
"""Keys of a message that judge it."""

_NOT_FOR_TEMPLATES = (*TURN_JUDGEMENTS, "weight", "complete")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}
"""What ShareGPT's "from" says, as a role."""


def shown(value: Any) -> str:
    """A value in an error message: its type and as much of it as fits."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


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
    """One chat message, role and content first. ShareGPT's keys are translated; nulls and judgements are left out."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a message with role and content, not {shown(value)}")
    if "from" in value and "role" not in value:
        value = _from_sharegpt(value, where)
    kept = {k: v for k, v in value.items() if v is not None and k not in _NOT_FOR_TEMPLATES}
    role, content = kept.get("role"), kept.get("content")
    if not isinstance(role, str) or not role.strip():
        raise DataError(f'{where} has no role. Expected {{"role": "user", "content": "..."}}')
    if isinstance(content, list):
        content = _parts(content, where)
    if content is None and not kept.get("tool_calls"):
        raise DataError(f"{where} ({role}) has no content")
    if content is not None:
        plain_text(content, f"{where} content")
    said = {"role": role} if content is None else {"role": role, "content": content}
    rest = {k: v for k, v in kept.items() if k not in said}
    return {**said, **jsonable(rest, where)} if rest else said


def _from_sharegpt(value: dict[str, Any], where: str) -> dict[str, Any]:
    speaker = value["from"]
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        raise DataError(
            f"{where} is from {shown(speaker)}, which is no known speaker.{nearest(str(speaker), _SPEAKERS)}"
        )
    rest = {k: v for k, v in value.items() if k not in ("from", "value")}
    if speaker != "function_call":
        return {"role": _SPEAKERS[speaker], "content": value.get("value"), **rest}
    calls = from_json(value.get("value"), where)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and "name" in call for call in calls):
        raise DataError(f"{where} is a function call and must name its function")
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls], **rest}


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
    """`turns` if somebody but the system says something in them."""
    if not any(m["role"] != "system" and (m.get("tool_calls") or m.get("content", "").strip()) for m in turns):
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
        found = "is missing" if value is None else f"must be text or one assistant message, not {shown(value)}"
        raise DataError(f"{where} {found}")
    said = message(value, where)
    if said["role"] != "assistant":
        raise DataError(f'{where} must be an assistant message, not one of role "{said["role"]}"')
    return str(said["content"]) if set(said) == {"role", "content"} else said


def from_json(value: Any, where: str) -> Any:
    """`value`, parsed where it is JSON in text (as in CSV and in LLaMA-Factory's tools)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}") from None


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
