"""Assistants that people host: AnythingLLM (chats as JSON or CSV), Dify (its export of feedback, and messages from its
interface) and LibreChat (a conversation as JSON, and messages as MongoDB exports them).

Of Dify's and LibreChat's messages, the chain of a rated message's parents is its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import (
    Call,
    at_path,
    chain,
    in_steps,
    list_of,
    look_up,
    object_of,
    origin,
    with_reasoning,
)
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut, Parts, SourceRow
from prospect.feedback.records import Message, Record

_ROOT = "00000000-0000-0000-0000-000000000000"
"""The parent of a first message."""

_IMAGE = "a message shows an image, and only text is read"


def _conversations(parts: Parts, layout: str, conversation: str, id: str) -> Iterator[tuple[SourceRow, dict[str, Any]]]:
    """The rows of a layout, each a message, with all messages of its conversation by id."""
    rows = list(parts.rows.get(layout, ()))
    chats: dict[Any, dict[str, Any]] = {}
    for _, _, row in rows:
        if isinstance(row, dict):
            chats.setdefault(str(row.get(conversation)), {})[str(row.get(id))] = row
    for file, number, row in rows:
        yield (file, number, row), chats.get(str(row.get(conversation)), {}) if isinstance(row, dict) else {}


def _question(row: Mapping[str, Any] | FeedbackLine, name: str) -> Message:
    """A question, which these applications have as text. Raises DataError for anything else."""
    return {"role": "user", "content": chat.prompt(chat.plain_text(row.get(name), name), name)}


# AnythingLLM

_GOOD = {"good": True, "bad": False, "--": None}
_NOBODY = ("API", "unknown user")
"""Names that AnythingLLM writes where it knows no user."""


def anythingllm(line: FeedbackLine) -> list[Record]:
    """A question and its answer. The export has neither the turns before it nor what was looked up for it."""
    label = look_up(_GOOD, line.get("rating"), "rating")
    if label is None:
        raise LeftOut("not rated")
    if list_of(line.get("attachments"), "attachments"):
        raise LeftOut(_IMAGE)
    if "attachments" not in line.columns:
        line.remark("CSV of AnythingLLM has spaces where texts had line breaks; its JSON keeps them")
    answer = chat.answer(with_reasoning(chat.plain_text(line.get("response"), "response")), "response")
    name = line.get("username")
    values = origin(line, at=line.get("sent_at"), by=None if name in _NOBODY else name)
    return [line.record((_question(line, "prompt"),), (line.completion(line.id, answer, label, None, values),))]


# Dify

_LIKES = {"like": True, "dislike": False, "👍": True, "👎": False}
_CUT = 500
"""Characters after which Dify's export of feedback cuts an answer and writes three dots."""


def dify_feedback(line: FeedbackLine) -> list[Record]:
    """A row of the export of feedback: the question, the answer's beginning, and who judged."""
    word = line.get("feedback_rating_raw") or line.get("feedback_rating")
    label = look_up(_LIKES, word, "feedback_rating")
    text = chat.plain_text(line.get("ai_response"), "ai_response")
    whole = not (len(text) == _CUT + 3 and text.endswith("..."))
    if not whole:
        text = text[:_CUT]
        line.remark(f"Dify's export cuts answers after {_CUT} characters; they are read as cut off")
    values = origin(
        line,
        by=line.get("from_end_user_id") or line.get("from_account_name"),
        at=line.get("feedback_date") or line.get("message_date"),
        note=(line.get("feedback_comment"),),
        conversation=line.get("conversation_id"),
    )
    answer = chat.answer(with_reasoning(text), "ai_response")
    id = str(line.get("feedback_id") or line.id)
    completion = line.completion(id, answer, label, None, {"complete": whole, **values})
    return [line.record((_question(line, "user_query"),), (completion,), id=id)]


def dify_join(parts: Parts) -> Iterator[SourceRow]:
    """The rated messages, each with its conversation. Where they name no parents, one follows the other in time."""
    for (file, number, row), messages in _conversations(parts, "dify", "conversation_id", "id"):
        if not isinstance(row, dict):
            yield file, number, row
        elif not _dify_feedback(row):
            parts.judgements.leave_out("not rated", number)
        else:
            yield file, number, {**row, "chat": messages}


def _dify_feedback(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was said of a message: the user's "feedback", and in the console's pages everybody's "feedbacks"."""
    several = row.get("feedbacks") if isinstance(row.get("feedbacks"), list) else [row.get("feedback")]
    return [one for one in several or () if isinstance(one, dict) and one.get("rating")]


def dify(line: FeedbackLine) -> list[Record]:
    """A message (a question with its answer) behind those before it, once per person who rated it."""
    messages = object_of(line.get("chat"), "the conversation")
    if any("parent_message_id" in message for message in messages.values()):
        parents = {id: message.get("parent_message_id") for id, message in messages.items()}
    else:
        ids = sorted(messages, key=lambda id: str(messages[id].get("created_at")))
        parents = dict(zip(ids[1:], ids, strict=False))
    turns: list[Message] = []
    path = chain(messages, {id: None if parent == _ROOT else parent for id, parent in parents.items()}, line.id)
    for message in path:
        for file in list_of(message.get("message_files"), "message_files"):
            if isinstance(file, dict) and file.get("type") == "image":
                raise LeftOut(_IMAGE)
        answer = with_reasoning(chat.plain_text(message.get("answer"), "answer"))
        turns += (_question(message, "query"), {"role": "assistant", "content": answer})
        if isinstance(answer, dict):
            turns[-1] = answer
    *before, last = turns
    if any(object_of(message.get("inputs"), "inputs") for message in path):
        line.remark("the app has inputs, which stand in a prompt of the app that the export lacks")
    records = []
    for i, feedback in enumerate(_dify_feedback(line.values)):
        account = at_path(feedback, "from_account.name") or at_path(feedback, "from_account.email")
        values = origin(
            line,
            by=feedback.get("from_end_user_id") or account or line.get("from_end_user_id"),
            at=feedback.get("created_at") or line.get("created_at"),
            model=line.get("model_id"),
            note=(feedback.get("content"),),
            conversation=line.get("conversation_id"),
        )
        label = look_up(_LIKES, feedback["rating"], "the rating of feedback")
        id = f"{line.id}/{i}" if i else line.id
        completion = line.completion(id, chat.answer(last, "answer"), label, None, values)
        records.append(line.record(tuple(before), (completion,), id=id))
    return records


# LibreChat

_THUMBS = {"thumbsup": True, "thumbsdown": False}
_THINKING = re.compile(r"\s*:::thinking\n(.*?)\n:::\s*", re.DOTALL)
"""How old messages hold their reasoning."""


def librechat_join(parts: Parts) -> Iterator[SourceRow]:
    """Conversations, and of messages alone the rated ones, each with its conversation."""
    yield from parts.rows.get("librechat", ())
    for (file, number, row), messages in _conversations(parts, "librechat-messages", "conversationId", "messageId"):
        if not isinstance(row, dict):
            yield file, number, row
        elif not row.get("feedback"):
            parts.judgements.leave_out("not rated", number)
        else:
            yield file, number, {**row, "chat": messages}


def librechat(line: FeedbackLine) -> list[Record]:
    """The rated messages of a conversation, or one of them with its conversation."""
    if "chat" in line.values:
        return [_librechat_record(line, object_of(line.get("chat"), "the conversation"), line.get("messageId"))]
    messages: dict[str, dict[str, Any]] = {}
    left = [(message, None) for message in _listed(line, "messages") + _listed(line, "messagesTree")]
    for message, parent in left:  # which grows by the children
        if not isinstance(message, dict) or not isinstance(message.get("messageId"), str):
            raise DataError(f"messages must be a list of objects with messageId, not {chat.excerpt(message)}")
        id = message["messageId"]
        messages[id] = {**message, "parentMessageId": message.get("parentMessageId") or parent}
        left += [(child, id) for child in list_of(message.get("children"), "children")]
    rated = [id for id, message in messages.items() if message.get("feedback")]
    if not rated:
        raise LeftOut("a conversation without a thumb")
    return [_librechat_record(line, messages, id) for id in rated]


def _listed(line: FeedbackLine, column: str) -> list[Any]:
    value = line.get(column)
    return [value] if isinstance(value, dict) else list_of(value, column)


def _librechat_record(line: FeedbackLine, messages: Mapping[str, dict[str, Any]], id: Any) -> Record:
    parents = {name: message.get("parentMessageId") for name, message in messages.items()}
    parents = {name: None if parent == _ROOT else parent for name, parent in parents.items()}
    *before, rated = chain(messages, parents, str(id))
    feedback = object_of(rated.get("feedback"), "feedback")
    label = look_up(_THUMBS, feedback.get("rating"), f'feedback.rating of message "{id}"')
    system = at_path(line.get("options"), "promptPrefix")
    prompt = [{"role": "system", "content": chat.plain_text(system, "options.promptPrefix")}] if system else []
    for message in before:
        prompt += _librechat_turns(message)
    *steps, last = _librechat_turns(rated)
    if last["role"] != "assistant":
        raise DataError(f"the rated message \"{id}\" must be the assistant's, not the user's")
    tag = feedback.get("tag")
    values = origin(
        line,
        by=rated.get("user"),
        at=rated.get("updatedAt") or rated.get("createdAt"),
        model=rated.get("model") or at_path(line.get("options"), "model"),
        note=(tag.get("key") if isinstance(tag, dict) else tag, feedback.get("text")),
        conversation=rated.get("conversationId") or line.get("conversationId"),
    )
    values["complete"] = rated.get("unfinished") is not True and rated.get("finish_reason") != "length"
    completion = line.completion(str(id), chat.answer(last, "the answer"), label, None, values)
    return line.record(chat.with_text((*prompt, *steps)), (completion,), id=str(id))


def _librechat_turns(message: Mapping[str, Any]) -> list[Message]:
    """A message; one that called tools is a message per call, with its result, and then its text."""
    where = f'message "{message.get("messageId")}"'
    if message.get("error") is True:
        raise LeftOut("a message is an error of the application")
    for file in list_of(message.get("files"), "files"):
        if isinstance(file, dict) and str(file.get("type")).startswith("image"):
            raise LeftOut(_IMAGE)
    by_user = message.get("isCreatedByUser") in (True, "true")
    parts = list_of(message.get("content"), "content")
    if by_user or not parts:
        text = chat.plain_text(message.get("text"), f"the text of {where}")
        if by_user:
            return [{"role": "user", "content": text}]
        match = _THINKING.match(text)
        answer = with_reasoning(text[match.end() :], match[1].strip()) if match else with_reasoning(text)
        return [answer if isinstance(answer, dict) else {"role": "assistant", "content": answer}]
    return in_steps(_librechat_parts(parts, where), where)


def _librechat_parts(parts: list[Any], where: str) -> Iterator[tuple[str, Any]]:
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if part is None:
            continue
        if kind == "text":
            text = part.get("text")
            yield "text", chat.plain_text(text.get("value") if isinstance(text, dict) else text, where)
        elif kind == "think":
            yield "reasoning", chat.plain_text(part.get("think"), where)
        elif kind == "tool_call" and isinstance(at_path(part, "tool_call.name"), str):
            call = part["tool_call"]
            output = call.get("output")
            arguments = call.get("args")
            yield (
                "call",
                Call(
                    call["name"],
                    "{}" if arguments in (None, "") else arguments,
                    None if output is None else str(output),
                    str(call.get("id") or ""),
                ),
            )
        else:
            raise LeftOut(f"a message has content of type {chat.excerpt(kind)}, and only text is read")


_DIFY_NAMES = ("conversation_name", "app_id", "app_name", "message_id", "feedback_source", "has_comment")

LAYOUTS = (
    Layout(
        "anythingllm",
        ("workspace", "prompt", "response", "sent_at", "rating"),
        anythingllm,
        ("username", "attachments"),
        ("rating",),
        objects=("attachments",),
        thumbs=None,
    ),
    Layout(
        "dify-feedback",
        ("user_query", "ai_response", "feedback_rating|feedback_rating_raw"),
        dify_feedback,
        (
            *("feedback_id", "feedback_date", "message_date", "feedback_comment"),
            *("from_end_user_id", "from_account_name", *_DIFY_NAMES),
        ),
        ("feedback_rating", "feedback_rating_raw"),
        thumbs=None,
    ),
    Layout(
        "dify",
        ("query", "answer", "conversation_id", "inputs", "feedback|feedbacks"),
        dify,
        ("created_at", "message_files", "parent_message_id", "from_end_user_id", "model_id"),
        ("feedback", "feedbacks"),
        objects=("inputs", "feedback", "feedbacks", "message", "message_files", "retriever_resources", "metadata"),
        thumbs=None,
        join=dify_join,
    ),
    Layout(
        "librechat",
        ("conversationId", "messages|messagesTree", "endpoint|exportAt"),
        librechat,
        ("options", "title", "branches", "recursive"),
        ("messages", "messagesTree"),
        objects=("messages", "messagesTree", "options"),
        thumbs=None,
        join=librechat_join,
    ),
    Layout(
        "librechat-messages",
        ("messageId", "conversationId", "isCreatedByUser"),
        librechat,
        (
            *("parentMessageId", "text", "content", "sender", "user", "endpoint", "createdAt", "updatedAt", "error"),
            *("unfinished", "finish_reason", "files"),
        ),
        ("feedback",),
        objects=("feedback", "content", "files", "attachments", "metadata", "_id", "createdAt", "updatedAt"),
        thumbs=None,
        join=librechat_join,
    ),
)
