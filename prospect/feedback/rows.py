"""A row of a file and the columns every layout has: id, source, tools, template keywords, weight, complete."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prospect.errors import DataError, written
from prospect.feedback import messages as chat
from prospect.feedback.labels import Labels
from prospect.feedback.records import Completion, Message, Pair, Prompt, Record

COMMON = ("id", "source", "tools", "template_kwargs", "chat_template_kwargs", "weight", "complete")
"""Optional columns of every layout."""
CONVERSATION_IDS = (
    "conversation_id",
    "conversation_hash",
    "conv_id",
    "convo_id",
    "chat_id",
    "thread_id",
    "session_id",
    "dialog_id",
    "dialogue_id",
)
"""Columns that name the conversation of a row, in any layout."""


@dataclass(frozen=True, slots=True)
class FeedbackLine:
    """One row, with what its reader must know of the file: all its `columns`, and whether any turn in it is judged."""

    line: int
    values: Mapping[str, Any]
    columns: frozenset[str]
    labels: Labels
    judged_turns: bool = False
    prefix: str = ""

    @property
    def name(self) -> str:
        """The row's own id, or "line12"; `prefix` tells the files of one source apart."""
        return identifier(self.values.get("id"), f"{self.prefix}line{self.line}")

    def get(self, column: str) -> Any:
        return self.values.get(column)

    def thumb(self, column: str) -> bool:
        """Whether the label in `column` says desirable."""
        if column not in self.values:
            raise DataError(f"has no {column}, though other rows do. Judge the row or leave it out")
        return self.labels.read(self.values[column])

    def score(self, column: str, label: bool | None) -> float | None:
        """The score in `column`. Raises DataError where the file has scores, and this row neither that nor a label."""
        score = number(self.values, column)
        if score is None and label is None and column in self.columns:
            raise DataError(f"{column} is missing, though other rows have one. Score the row or leave it out")
        return score

    def record(
        self, prompt: Prompt, completions: tuple[Completion, ...], pairs: tuple[Pair, ...] = (), name: str = ""
    ) -> Record:
        """A record of this row's source, tools and template keywords."""
        source = self.get("source")
        return Record(
            id=name or self.name,
            prompt=prompt,
            completions=completions,
            pairs=pairs,
            source="" if source is None else chat.plain_text(str(source), "source"),
            tools=_tools(self.get("tools")),
            template_kwargs=_template_kwargs(self.values),
            conversations=conversations(self.values),
        )

    def completion(self, content: str | Message, label: bool | None = None, score: float | None = None) -> Completion:
        """A completion with this row's weight and completeness."""
        return Completion(
            id=self.name,
            content=content,
            label=label,
            score=score,
            weight=weight(self.values),
            complete=complete(self.values),
            line=self.line,
        )


def identifier(value: Any, default: str, where: str = "id") -> str:
    """An id: `value`, or `default` where there is none."""
    if value is None or value == "":
        return default
    text = written(value, str)
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, int) and text == "..."):
        raise DataError(f"{where} must be text or a whole number, not {chat.excerpt(value)}")
    return chat.plain_text(text, where)


def conversations(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of the conversations that a row is from. "conversation_id" may list several, as Prospect writes it; an id
    of another column is told apart by its name."""
    names: list[str] = []
    for column in CONVERSATION_IDS:
        value = values.get(column)
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, float) and one.is_integer():  # a column of numbers with gaps
                one = int(one)
            name = identifier(one, "", column)
            if name:
                names.append(name if column == "conversation_id" else f"{column} {name}")
    return tuple(dict.fromkeys(names))


def number(values: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None where the key is absent or null."""
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{key} must be a number, not {chat.excerpt(value)}")
    try:
        as_float = float(value)
    except OverflowError:  # a whole number beyond 1e308
        as_float = math.inf
    if not math.isfinite(as_float):
        raise DataError(f"{key} must be finite, not {chat.excerpt(value)}")
    return as_float


def weight(values: Mapping[str, Any]) -> float:
    """The importance of a row, 1 where none is given."""
    value = number(values, "weight")
    if value is not None and value < 0:
        raise DataError(f"weight must be 0 or more, not {value:g}. To unlearn an answer, label it undesirable")
    return 1.0 if value is None else value


def complete(values: Mapping[str, Any]) -> bool:
    value = values.get("complete")
    if value is not None and not isinstance(value, bool):
        raise DataError(f"complete must be true or false, not {chat.excerpt(value)}")
    return value is not False


def _tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    value = chat.from_json(value, "tools") if value != "" else None
    if value is None or value == []:
        return None
    if not chat.is_messages(value):
        raise DataError(f"tools must be a list of function descriptions, not {chat.excerpt(value)}")
    return tuple(chat.jsonable(value, "tools"))


def _template_kwargs(values: Mapping[str, Any]) -> dict[str, Any] | None:
    name = "template_kwargs" if values.get("template_kwargs") is not None else "chat_template_kwargs"
    value = chat.from_json(values.get(name) or None, name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise DataError(f"{name} must be an object, not {chat.excerpt(value)}")
    return chat.jsonable(value, name) or None
