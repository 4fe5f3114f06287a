"""AnythingLLM: the export of a workspace's chats as JSON or CSV, with GOOD, BAD or -- for each answer."""

from __future__ import annotations

from prospect.feedback import messages as chat
from prospect.feedback.imports.common import list_of, look_up, origin, with_reasoning
from prospect.feedback.readers import FeedbackLine, Layout, LeftOut
from prospect.feedback.records import Record

_RATINGS = {"good": True, "bad": False, "--": None}
_NOBODY = ("API", "unknown user")
"""Names that AnythingLLM writes where it knows no user."""


def chats(line: FeedbackLine) -> list[Record]:
    """A question and its answer. The export has neither the turns before it nor what was looked up for it."""
    label = look_up(_RATINGS, line.get("rating"), "rating")
    if label is None:
        raise LeftOut("not rated")
    if list_of(line.get("attachments"), "attachments"):
        raise LeftOut("a message shows an image, and only text is read")
    if "attachments" not in line.columns:
        line.remark("CSV of AnythingLLM has spaces where texts had line breaks; its JSON keeps them")
    answer = chat.answer(with_reasoning(chat.plain_text(line.get("response"), "response")), "response")
    name = line.get("username")
    values = origin(line, at=line.get("sent_at"), by=None if name in _NOBODY else name)
    prompt = ({"role": "user", "content": chat.prompt(line.get("prompt"))},)
    return [line.record(prompt, (line.completion(line.id, answer, label, None, values),))]


LAYOUTS = (
    Layout(
        "anythingllm",
        ("workspace", "prompt", "response", "sent_at", "rating"),
        chats,
        ("username", "attachments"),
        ("rating",),
        objects=("attachments",),
        thumbs=None,
    ),
)
