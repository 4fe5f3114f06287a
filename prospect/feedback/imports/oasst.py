"""OpenAssistant's trees of messages (OASST1 and 2): a file of messages that name their parents, or of whole trees.

The replies of assistants to a message are answers to the chain that ends there. Volunteers ranked them; `--judgement
emoji` reads thumbs instead, and any other name (quality, helpfulness, ...) the mean of that label as a score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prospect.errors import DataError
from prospect.feedback import messages as chat
from prospect.feedback.imports.common import bad_row, chain, list_of, object_of, origin
from prospect.feedback.imports.comparisons import Answer, answers_record
from prospect.feedback.imports.graded import ranked
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut, Parts, SourceRow, number
from prospect.feedback.records import Record


def join(parts: Parts) -> Iterator[SourceRow]:
    """A row per message that assistants replied to, with its "path" from the root and the "replies"."""
    messages: dict[str, dict[str, Any]] = {}
    replies: dict[str, list[SourceRow]] = {}
    for file, row_number, row in parts.rows["oasst"]:
        if not isinstance(row, dict):
            yield file, row_number, row
        elif not isinstance(row.get("message_id"), str) or row["message_id"] in messages:
            yield file, row_number, bad_row(row, "message_id must be text, and another one in every row")
        else:
            messages[row["message_id"]] = row
            if row.get("role") == "assistant" and row.get("parent_id") in (None, ""):
                parts.judgements.leave_out("an assistant's message that answers nobody", row_number)
            elif row.get("role") == "assistant":
                replies.setdefault(str(row.get("parent_id")), []).append((file, row_number, row))
    parents = {id: row.get("parent_id") for id, row in messages.items()}
    for id, rows in replies.items():
        file, row_number, first = rows[0]
        try:
            path = chain(messages, parents, id)
        except DataError as error:
            yield file, row_number, bad_row(first, error.message)
        else:
            yield file, row_number, {**path[-1], "path": path, "replies": [row for _, _, row in rows]}


def message(line: FeedbackLine) -> list[Record]:
    """A message with its replies."""
    return [_record(line, line.values["path"], line.values["replies"])]


def tree(line: FeedbackLine) -> list[Record]:
    """A whole tree: {"message_tree_id", "prompt": {"text", "role", "replies": [...]}}."""
    records, reasons = list[Record](), list[str]()
    paths = [[object_of(line.get("prompt"), "prompt")]]
    while paths:
        path = paths.pop()
        replies = list_of(path[-1].get("replies"), "replies")
        if not all(isinstance(reply, dict) for reply in replies):
            raise DataError(f"replies must be a list of messages, not {chat.excerpt(replies)}")
        answers = [reply for reply in replies if reply.get("role") == "assistant"]
        if answers:
            try:
                records.append(_record(line, path, answers))
            except LeftOut as error:
                reasons.append(error.message)
        paths += [[*path, reply] for reply in reversed(replies)]
    if not records:
        raise LeftOut(reasons[0] if reasons else "a tree without an assistant's reply")
    return records


def _record(line: FeedbackLine, path: Sequence[Mapping[str, Any]], replies: Sequence[Mapping[str, Any]]) -> Record:
    """The replies as answers to the path. Raises LeftOut where nothing is said about them."""
    name = line.judgements.name or "rank"
    prompt = tuple(chat.message({"role": m.get("role"), "content": m.get("text")}, "a message") for m in path)
    good = [m for m in replies if m.get("deleted") is not True and m.get("review_result") is not False]
    if len(good) < len(replies):
        line.remark("a reply that was deleted, or that reviewers refused, is left out")
    answers, ranks = list[Answer](), list[float | None]()
    for i, reply in enumerate(good):
        values = origin(
            line,
            at=reply.get("created_date"),
            model=reply.get("model_name"),
            conversation=reply.get("message_tree_id") or line.get("message_tree_id"),
        )
        thumb, score = None, None
        if name == "emoji":
            thumb = _thumb(reply)
        elif name != "rank":
            score = _table(reply, "labels", "value").get(name)
        content = chat.answer(reply.get("text"), "the text of a reply")
        answers.append(Answer(str(reply.get("message_id") or i), content, thumb, score, values))
        ranks.append(number(reply, "rank") if name == "rank" else None)
    id = str(path[-1].get("message_id") or line.id)
    if name == "rank":
        if len({rank for rank in ranks if rank is not None}) < 2:
            raise LeftOut("replies that nobody ranked, or only one")
        return ranked(line, prompt, list(zip(answers, ranks, strict=True)), id)[0]
    answers = [answer for answer in answers if (answer.label, answer.score) != (None, None)]
    if not answers:
        raise LeftOut(f'replies without "{name}"')
    return answers_record(line, prompt, answers, id=id)


def _thumb(reply: Mapping[str, Any]) -> bool | None:
    counts = _table(reply, "emojis", "count")
    up, down = counts.get("+1", 0), counts.get("-1", 0)
    return None if up == down else up > down


def _table(reply: Mapping[str, Any], column: str, key: str) -> dict[str, float]:
    """The numbers of a message by name: {"name": [...], "value": [...]} of tables, {name: {"value"}} or {name: number}
    of trees."""
    table = object_of(reply.get(column), column)
    if isinstance(table.get("name"), list):
        table = dict(zip(map(str, table["name"]), list_of(table.get(key), f"{column}.{key}"), strict=False))
    numbers = {name: number(v if isinstance(v, dict) else {key: v}, key) for name, v in table.items()}
    return {name: value for name, value in numbers.items() if value is not None}


_READS = ("parent_id", "created_date", "model_name", "message_tree_id", "deleted", "review_result", "review_count")
_JUDGED_BY = ("rank", "labels", "emojis")

LAYOUTS = (
    Layout(
        "oasst",
        ("message_id", "parent_id", "text", "role"),
        message,
        _READS,
        (*_JUDGED_BY, "detoxify"),
        objects=("labels", "emojis", "detoxify", "path", "replies"),
        thumbs=None,
        join=join,
    ),
    Layout(
        "oasst-trees",
        ("message_tree_id", "prompt", "tree_state"),
        tree,
        (),
        ("prompt",),
        objects=("prompt",),
        thumbs=None,
    ),
)
