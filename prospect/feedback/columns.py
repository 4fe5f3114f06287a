"""Columns by name: renamed or left out where the user says so, and judgements that nobody would read.

A column whose name or values look like a judgement is never passed over: a reader who takes a rejected answer for a
comment trains the opposite of what people said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prospect.errors import ConfigError, DataError
from prospect.feedback.messages import TURN_JUDGEMENTS, is_messages

_JUDGEMENT_NAME = re.compile(
    "(label|rating|rated|rate|score|reward|thumb|feedback|vote|voted|upvote|downvote|like|liked|dislike|disliked|star|"
    "grade|judgement|judgment|verdict|csat|nps|satisfaction|satisfied|helpful|helpfulness|approval|approved|accepted|"
    "correct|correctness|quality|reaction|emoji|annotation|evaluation|rank|ranking|kto|desirable|undesirable)s?"
)
"""Words in the name of a column that make it a judgement."""

_SIDE_NAME = re.compile(
    "(preference|preferred|prefer|dispreferred|chosen|rejected|reject|winner|winning|won|loser|losing|better|worse|"
    "best|worst)s?"
)
"""Words in the name of a column that make it one side of a comparison, or its outcome."""

_JUDGEMENT_VALUE = re.compile(
    "up|down|good|bad|(dis)?liked?|(un)?desirable|(up|down)voted?|thumbs?(up|down)|positive|negative|(un)?helpful|"
    "(in)?correct|accepted|rejected|chosen|[\U0001f44d\U0001f44e]"
)
"""Words that are a judgement whatever their column is called."""

_DECORATION = re.compile("[\\s_:-]+|[\U0001f3fb-\U0001f3ff\ufe0f]")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_MESSAGE_KEY = re.compile(
    "role|content|from|value|name|tool_calls|tool_call_id|reasoning_content|reasoning|thinking|weight|complete|train|loss"
)
"""Keys of a message that have a meaning of their own."""

_NO_TURNS = ("tools", "completions", "pairs", "history")
"""Columns whose objects are no messages."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user says of columns: `rename` is {new name: name in the file}, `ignore` the names to leave out. The key
    of a message is written with its column: "messages.vote"."""

    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: Collection[str] = ()

    @classmethod
    def parse(cls, rename: str, ignore: str) -> Choice:
        """From `--map NEW=COLUMN,...` and `--ignore COLUMN,...`. Raises ConfigError where an equals sign is missing."""
        pairs = {}
        for part in filter(None, rename.split(",")):
            new, _, old = (name.strip() for name in part.partition("="))
            if not new or not old:
                raise ConfigError(f'--map reads NEW=COLUMN, such as --map label=vote,prompt=question, not "{part}"')
            pairs[new] = old
        return cls(pairs, tuple(name.strip() for name in ignore.split(",") if name.strip()))

    def apply(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rename and leave out, in place. Raises DataError where no row has the column, or one has the new name."""
        for name in self.ignore:
            if not sum([_move(row, name, None) for row in rows]):
                raise DataError(f'there is no column "{name}" to ignore')
        for new, old in self.rename.items():
            if ("." in old) != ("." in new) or old.rpartition(".")[0] != new.rpartition(".")[0]:
                raise ConfigError(f'--map {new}={old} must stay in one place, such as "messages.rating=messages.vote"')
            if not sum([_move(row, old, new) for row in rows]):
                raise DataError(f'there is no column "{old}" to read as "{new}"')


def _move(row: dict[str, Any], old: str, new: str | None) -> bool:
    """Rename `old` in a row, or drop it where `new` is None; says whether it was there."""
    column, dot, key = old.partition(".")
    if old in row or not dot:
        holders = [row]
        key = old
    else:
        inner = row.get(column)
        holders = [part for part in (inner if isinstance(inner, list) else [inner]) if isinstance(part, dict)]
        new = None if new is None else new.partition(".")[2]
    there = False
    for holder in holders:
        if key in holder:
            value, there = holder.pop(key), True
            if new is not None:
                if holder.get(new) is not None:
                    raise DataError(f'"{new}" is there already. Leave it out first: --ignore {new}')
                holder[new] = value
    return there


def overlooked(
    rows: Iterable[Mapping[str, Any]], unread: Collection[str], turns: str, judgement_is_read: bool
) -> list[str]:
    """The unread columns, and unread keys of messages ("messages.vote"), that look like a judgement. `turns` is the
    column whose messages may be judged, empty where there is none.

    Where the layout reads no judgement, a telling name is enough. Where it reads one, the values must look like a
    judgement too, so that a comment beside a thumb stays a comment. Columns of nulls say nothing.
    """
    evidence: dict[str, bool] = {}  # whether all values seen so far look like a judgement
    words: dict[str, bool] = {}  # whether all are words that only a judgement has
    for row in rows:
        for name, value in _unread(row, unread, turns, nested=not judgement_is_read):
            evidence[name] = evidence.get(name, True) and _judges(value)
            words[name] = words.get(name, True) and _is_judgement_word(value)
    suspects = []
    for name, judges in evidence.items():
        telling = any(map(_JUDGEMENT_NAME.fullmatch, _parts(name)))
        if words[name] or is_side(name) or (telling and (judges or not judgement_is_read)):
            suspects.append(name)
    return sorted(suspects)


def is_side(name: str) -> bool:
    """Whether a column is named like one side of a comparison, or like its outcome."""
    return any(map(_SIDE_NAME.fullmatch, _parts(name)))


def _parts(name: str) -> list[str]:
    """The words of a column's name, or of a key's."""
    return [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]


def _unread(row: Mapping[str, Any], unread: Collection[str], turns: str, *, nested: bool) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a row that no reader looks at and that is not null."""
    for column, value in row.items():
        if column in unread:
            if isinstance(value, dict) and nested:
                yield from ((f"{column}.{key}", part) for key, part in value.items() if part is not None)
            elif value is not None and value != "":
                yield column, value
        elif is_messages(value) and column not in _NO_TURNS:
            for turn in value:
                for key, part in turn.items():
                    read = key in TURN_JUDGEMENTS and column == turns
                    if part is not None and not read and not _MESSAGE_KEY.fullmatch(key):
                        yield f"{column}.{key}", part


def _judges(value: Any) -> bool:
    """Whether a value could be a thumb, a grade or a score."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return value.strip().lower() in ("true", "false", "yes", "no") or _is_judgement_word(value)
        return True
    return isinstance(value, bool | int | float)


def _is_judgement_word(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 20:
        return False
    return _JUDGEMENT_VALUE.fullmatch(_DECORATION.sub("", value).casefold()) is not None
