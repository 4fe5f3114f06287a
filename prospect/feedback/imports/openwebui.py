"""Open WebUI: the export of feedback (an array of ratings, each with its chat) and of chats (ratings inside).

The rated message is the answer, the chain of its parents the prompt. Answers of the other models to the same message
(`sibling_model_ids`) are pairs with it. Fields as of version 0.12.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import Call, at_path, chain, in_steps, look_up, object_of, origin
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut, identifier, number
from prospect.feedback.records import Completion, Message, Pair, Record

_RATINGS = {1: True, -1: False, "1": True, "+1": True, "-1": False}


def feedback(line: FeedbackLine) -> list[Record]:
    """A rating with the snapshot of its chat."""
    data, meta = object_of(line.get("data"), "data"), object_of(line.get("meta"), "meta")
    if line.get("type") not in (None, "rating"):
        raise LeftOut(f"its type is {chat.excerpt(line.get('type'))}, not a rating")
    if data.get("rating") in (None, ""):
        raise LeftOut("not rated")
    rated = at_path(line.get("snapshot"), "chat.chat")
    if not isinstance(rated, dict) or not rated:
        raise LeftOut("it was shared without its chat (snapshot is empty), so nobody knows what was rated")
    tree = _messages(rated)
    id = meta.get("message_id") or next((i for i, m in tree.items() if m.get("feedbackId") == line.get("id")), None)
    if not isinstance(id, str) or id not in tree:
        raise LeftOut(f"its message {chat.excerpt(id)} is not in its chat")
    score = number(object_of(data.get("details"), "data.details"), "rating")
    siblings = data.get("sibling_model_ids") or []
    if not isinstance(siblings, list):
        raise DataError(f"data.sibling_model_ids must be a list of models, not {chat.excerpt(siblings)}")
    values = origin(
        line,
        by=line.get("user_id"),
        at=line.get("created_at"),
        note=(data.get("reason"), data.get("comment")),
        conversation=meta.get("chat_id") or at_path(line.get("snapshot"), "chat.id"),
        model=tree[id].get("model") or data.get("model_id"),
    )
    label = look_up(_RATINGS, data["rating"], "data.rating")
    return [_record(line, rated, tree, id, label, score, siblings, values, line.id)]


def chats(line: FeedbackLine) -> list[Record]:
    """A chat, in which some messages are rated."""
    rated = object_of(line.get("chat"), "chat")
    tree, records = _messages(rated), list[Record]()
    for id, message in tree.items():
        annotation = object_of(message.get("annotation"), f'the annotation of message "{id}"')
        if annotation.get("rating") in (None, ""):
            continue
        label = look_up(_RATINGS, annotation["rating"], f'annotation.rating of message "{id}"')
        values = origin(
            line,
            by=line.get("user_id"),
            at=message.get("timestamp"),
            note=(annotation.get("reason"), annotation.get("comment")),
            conversation=line.get("id"),
            model=message.get("model"),
        )
        score = number(object_of(annotation.get("details"), "annotation.details"), "rating")
        records.append(_record(line, rated, tree, id, label, score, [], values, f"{line.id}/{id}"))
    if not records:
        raise LeftOut("a chat without a rating")
    return records


def _messages(rated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The messages of a chat by id. Chats of old versions are lists, in which each answers the one before."""
    tree = at_path(rated, "history.messages")
    if isinstance(tree, dict) and tree:
        if bad := next((i for i, message in tree.items() if not isinstance(message, dict)), None):
            raise DataError(f'the message "{bad}" of the chat must be an object, not {chat.excerpt(tree[bad])}')
        return tree
    turns = rated.get("messages") or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"the messages of the chat must be a list of objects, not {chat.excerpt(turns)}")
    tree, before = {}, None
    for i, turn in enumerate(turns):
        id = identifier(turn.get("id"), str(i), "the id of a message")
        tree[id] = {"parentId": before, **turn}
        before = id
    return tree


def _record(
    line: FeedbackLine,
    rated: Mapping[str, Any],
    tree: Mapping[str, dict[str, Any]],
    id: str,
    label: bool,
    score: float | None,
    siblings: list[Any],
    values: dict[str, Any],
    record_id: str,
) -> Record:
    """The rated message as the answer to the chain of its parents, with its siblings as pairs."""
    parents = {name: message.get("parentId") for name, message in tree.items()}
    *before, answer = chain(tree, parents, id)
    system = at_path(rated, "params.system")
    prompt: list[Message] = [{"role": "system", "content": chat.plain_text(system, "params.system")}] if system else []
    for message in before:
        prompt += _steps(line, message)
    *steps, last = _steps(line, answer)
    if last["role"] != "assistant":
        raise DataError(f'the rated message "{id}" must be the assistant\'s, not one of role "{last["role"]}"')
    whole = answer.get("done") is not False
    best = line.completion(record_id, chat.answer(last, "the answer"), label, score, {"complete": whole, **values})
    others: list[Completion] = []
    for name, message in tree.items():
        if name == id or parents[name] != parents[id] or message.get("model") not in siblings:
            continue
        if message.get("role") != "assistant" or not message.get("content"):
            continue
        *more, other = _steps(line, message)
        if steps or more:
            line.remark("an answer that called tools is no pair with the other models' answers")
            continue
        content, model = chat.answer(other, "an answer"), str(message.get("model"))
        others.append(replace(best, id=f"{record_id}/{name}", content=content, label=None, score=None, model=model))
    pairs = tuple(Pair(0, i) if label else Pair(i, 0) for i in range(1, len(others) + 1))
    return line.record(chat.with_text((*prompt, *steps)), (best, *others), pairs, id=record_id)


# Reasoning and tool calls, which stand as HTML in the text of a message


def _steps(line: FeedbackLine, message: Mapping[str, Any]) -> list[Message]:
    """A message; one that called tools is a message per call, each with its result, and then its text."""
    where = f'message "{message.get("id")}"'
    files = message.get("files")
    for file in files if isinstance(files, list) else ():
        if isinstance(file, dict) and file.get("type") == "image":
            raise LeftOut("a message shows an image, and only text is read")
        line.remark("a message has files, whose content the model may have read and the export lacks")
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str):
        return [chat.message({"role": message.get("role"), "content": content}, where)]
    return in_steps(_parts(content), where)


def _parts(content: str) -> Iterator[tuple[str, Any]]:
    """The blocks of a message as `in_steps` reads them. Raises LeftOut for one that it does not know."""
    for kind, attributes, body in _blocks(content):
        if kind == "":
            yield "text", body
        elif kind == "reasoning":
            quoted = html.unescape(re.sub(r"<summary>.*?</summary>", "", body, count=1, flags=re.DOTALL))
            yield "reasoning", re.sub(r"^> ?", "", quoted.strip(), flags=re.MULTILINE)
        elif kind == "tool_calls":
            arguments, result = (_unquoted(attributes.get(name, "")) for name in ("arguments", "result"))
            yield "call", Call(attributes.get("name", ""), arguments, result, attributes.get("id", ""))
        else:
            raise LeftOut(f'an answer holds a block of type "{kind}", which is not read')


def _blocks(content: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """(type, attributes, body) of the blocks of a message: "" is text. A block that never ends is text."""
    place = 0
    while (start := content.find("<details", place)) >= 0:
        head, end = content.find(">", start), content.find("</details>", start)
        if head < 0 or end < head:
            break
        attributes = {name: html.unescape(v) for name, v in re.findall(r'([\w-]+)="([^"]*)"', content[start:head])}
        stop = end + len("</details>")
        if "type" not in attributes:  # the user's or the model's own HTML
            yield "", {}, content[place:stop]
        else:
            yield "", {}, content[place:start]
            yield attributes["type"], attributes, content[head + 1 : end]
            while stop < len(content) and content[stop].isspace():
                stop += 1
        place = stop
    yield "", {}, content[place:]


def _unquoted(text: str) -> str:
    """The text that an attribute holds as JSON, or the attribute itself."""
    try:
        value = chat.json_value(text)
    except DataError:
        return text
    return value if isinstance(value, str) else text


LAYOUTS = (
    Layout(
        "openwebui",
        ("data", "meta", "type"),
        feedback,
        ("snapshot", "user_id", "created_at"),
        ("data",),
        objects=("data", "meta", "snapshot"),
        thumbs=None,
        looks=lambda row: at_path(row, "data.rating") is not None or at_path(row, "data.model_id") is not None,
    ),
    Layout(
        "openwebui-chats",
        ("chat",),
        chats,
        ("user_id",),
        ("chat",),
        objects=("chat",),
        thumbs=None,
        looks=lambda row: at_path(row, "chat.history") is not None or at_path(row, "chat.messages") is not None,
    ),
)
