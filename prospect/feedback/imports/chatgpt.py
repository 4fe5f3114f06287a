"""ChatGPT's account export, a folder or zip: conversations.json (newer ones in parts) and message_feedback.json.

A thumb names its message by id; the message is the answer, and the chain of its parents in the conversation's `mapping`
the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import at_path, chain, list_of, look_up, object_of, origin
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut, Parts, SourceRow
from prospect.feedback.records import Message, Record

_RATINGS = {"thumbs_up": True, "thumbsup": True, "thumbs_down": False, "thumbsdown": False}
_NO_TURN = ("user_editable_context", "model_editable_context", "reasoning_recap", "system_error", "app_pairing_content")
"""Kinds of content that nobody said."""


def join(parts: Parts) -> Iterator[SourceRow]:
    """The conversations, each with the feedback on its messages."""
    ratings: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for file, row_number, row in parts.rows.get("chatgpt-feedback", ()):
        if isinstance(row, dict) and isinstance(row.get("conversation_id"), str):
            ratings.setdefault(row["conversation_id"], []).append((row_number, row))
        else:
            yield file, row_number, row
    if "chatgpt" not in parts.rows:
        raise DataError(
            "message_feedback.json holds thumbs, but not the messages that they judge. Give the whole export: its "
            "folder or zip, or conversations.json beside it"
        )
    if not ratings:
        raise DataError(
            "conversations.json holds no thumbs. Give the whole export: its folder or zip, or message_feedback.json "
            "beside it"
        )
    for file, row_number, row in parts.rows["chatgpt"]:
        if isinstance(row, dict):
            id = row.get("conversation_id") or row.get("id")
            rated = ratings.pop(id, []) if isinstance(id, str) else []
            row = {**row, "feedback": [rating for _, rating in rated]}
        yield file, row_number, row
    for row_number in (row_number for rated in ratings.values() for row_number, _ in rated):
        parts.judgements.leave_out("the conversation of a thumb is not in the export", row_number)


def conversation(line: FeedbackLine) -> list[Record]:
    """A conversation with the feedback on its messages."""
    if "feedback" not in line.values:
        raise DataError("a thumb needs the id of its message and conversation_id, as text")
    if not line.values["feedback"]:
        raise LeftOut("a conversation without a thumb")
    mapping = object_of(line.get("mapping"), "mapping")
    if bad := next((id for id, node in mapping.items() if not isinstance(node, dict)), None):
        raise DataError(f'mapping: the node "{bad}" must be an object, not {chat.excerpt(mapping[bad])}')
    parents = {id: node.get("parent") for id, node in mapping.items()}
    records = []
    for rating in list_of(line.values["feedback"], "feedback"):
        if not isinstance(rating, dict):
            raise DataError(f"feedback must be a list of objects, not {chat.excerpt(rating)}")
        id, word = rating.get("id"), rating.get("rating")
        if word in (None, ""):
            line.judgements.leave_out("feedback without a thumb", line.number)
        elif not isinstance(id, str) or id not in mapping:
            line.judgements.leave_out("the message of a thumb is not in its conversation", line.number)
        else:
            records.append(_record(line, chain(mapping, parents, id), rating, look_up(_RATINGS, word, "rating")))
    return records


def _record(line: FeedbackLine, path: list[dict[str, Any]], rating: Mapping[str, Any], label: bool) -> Record:
    """One thumb, on the last message of the path."""
    *before, answer = _turns([node["message"] for node in path if isinstance(node.get("message"), dict)])
    if answer["role"] != "assistant":
        raise DataError(f'the rated message "{rating["id"]}" must be the assistant\'s, not of role "{answer["role"]}"')
    try:
        content = object_of(rating.get("content"), "content")
    except DataError:
        content = {"text": rating.get("content")}
    tags = content.get("tags")
    values = origin(
        line,
        by=rating.get("user_id"),
        at=rating.get("create_time"),
        model=at_path(path[-1], "message.metadata.model_slug"),
        note=(*(tags if isinstance(tags, list) else ()), content.get("text")),
        conversation=line.get("conversation_id") or line.get("id"),
    )
    completion = line.completion(rating["id"], chat.answer(answer, "the answer"), label, None, values)
    return line.record(chat.with_text(tuple(before)), (completion,), id=rating["id"])


def _turns(messages: list[dict[str, Any]]) -> list[Message]:
    """What was said; thoughts belong to the answer after them, and what is hidden or empty is nothing."""
    turns: list[Message] = []
    thoughts: list[str] = []
    for i, message in enumerate(messages):
        last = i == len(messages) - 1
        role, kind = at_path(message, "author.role"), at_path(message, "content.content_type")
        if kind in _NO_TURN or (not last and at_path(message, "metadata.is_visually_hidden_from_conversation") is True):
            continue
        if kind == "thoughts":
            parts = at_path(message, "content.thoughts")
            thoughts += [
                str(thought.get("content") or "")
                for thought in (parts if isinstance(parts, list) else ())
                if isinstance(thought, dict)
            ]
            continue
        text = _text_of(message)
        if not text.strip() and not last:
            continue
        turn: Message = {"role": role, "content": text}
        recipient = message.get("recipient")
        if role == "assistant" and recipient not in (None, "all"):
            function = {"name": recipient, "arguments": {"content": text}}
            turn = {"role": role, "content": "", "tool_calls": [{"type": "function", "function": function}]}
        if role == "tool":
            turn["name"] = at_path(message, "author.name")
        if role == "assistant":
            turn["reasoning_content"] = "\n".join(filter(None, thoughts)) or None
            thoughts = []
        turns.append(chat.message(turn, f"message {chat.excerpt(message.get('id'))}"))
    if not turns:
        raise DataError("the rated message says nothing")
    return turns


def _text_of(message: Mapping[str, Any]) -> str:
    """The text of a message. Raises LeftOut where it shows more than text."""
    content = message.get("content")
    if not isinstance(content, dict):
        raise DataError(f"the content of a message must be an object, not {chat.excerpt(content)}")
    if "parts" not in content:  # code, the output of a tool, a quotation
        text = next((content[key] for key in ("text", "result") if isinstance(content.get(key), str)), None)
        if text is None:
            raise LeftOut(
                f"a message has content of type {chat.excerpt(content.get('content_type'))}, which is no text"
            )
        return str(text)
    parts = content["parts"]
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise LeftOut("a message shows more than text (an image, a file, sound), and only text is read")
    return "\n".join(map(str, parts))


LAYOUTS = (
    Layout(
        "chatgpt",
        ("mapping", "title"),
        conversation,
        ("feedback",),
        ("feedback",),
        objects=("mapping", "feedback"),
        thumbs=None,
        join=join,
    ),
    Layout(
        "chatgpt-feedback",
        ("conversation_id", "rating", "content"),
        conversation,
        ("user_id", "create_time"),
        ("rating",),
        objects=("content",),
        thumbs=None,
        looks=lambda row: "messages" not in row and "prompt" not in row,
        join=join,
    ),
)
