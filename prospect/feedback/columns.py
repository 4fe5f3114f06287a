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
from prospect.feedback.labels import thumb
from prospect.feedback.messages import TURN_JUDGEMENTS, is_messages

_JUDGEMENT_NAME = re.compile(
    "(label|rating|rated|rate|score|reward|thumb|feedback|vote|voted|upvote|downvote|like|liked|dislike|disliked|star|"
    "grade|judgement|judgment|verdict|csat|nps|satisfaction|satisfied|helpful|helpfulness|approval|approved|accepted|"
    "correct|correctness|quality|reaction|emoji|annotation|evaluation|rank|ranking|kto|desirable|undesirable)s?"
)
"""Words in the name of a column that make it a judgement."""

_VERDICT_NAME = re.compile("good|ok|okay|pass|passed|fail|failed|resolved|selected|flagged|harmful|comparison")
"""Words that name a judgement where nothing else does; beside a thumb they are often a fact of the row."""

_SIDE_NAME = re.compile(
    "(preference|preferred|prefer|dispreferred|chosen|rejected|reject|winner|winning|won|loser|losing|better|worse|"
    "best|worst)s?"
)
"""Words in the name of a column that make it one side of a comparison, or its outcome."""

_OTHER_SIDE_NAME = re.compile("(.+_)?negatives?|y_?[wl]", re.IGNORECASE)
"""Names of a side, where nothing else is judged."""

_ABOUT_ANSWER = re.compile(
    "ids?|hash|model|tokens?|tokenized|length|len|language|lang|format|type|kind|source|url|path|file|name|date|time|"
    "style|schema|reason|status|version"
)
"""Words that make a column named like the answer's one about the answer: "completion_model"."""

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
class ColumnChoice:
    """What the user says of columns: `rename` is {new name: name in the file}, `ignore` the names to leave out. What
    lies inside is written with its column: "messages.vote", "metadata.rating"."""

    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: Collection[str] = ()

    @classmethod
    def parse(cls, rename: str, ignore: str) -> ColumnChoice:
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
            if old.split(".")[: new.count(".")] != new.split(".")[:-1]:
                raise ConfigError(
                    f"--map {new}={old} must stay in its place or come out of it, such as "
                    '"messages.rating=messages.vote" or "label=metadata.rating"'
                )
            if not sum([_move(row, old, new) for row in rows]):
                raise DataError(f'there is no column "{old}" to read as "{new}"')


def _move(row: dict[str, Any], old: str, new: str | None) -> bool:
    """Rename `old` in a row, or drop it where `new` is None; says whether it was there. A name with fewer dots takes
    the value out of the object that it lies in. Raises DataError where that is one of several, or the name is taken."""
    *path, key = [old] if old in row else old.split(".")
    depth = len(path) if new is None else new.count(".")
    holders = [row]
    for name in path[:depth]:
        holders = [part for holder in holders for part in _objects(holder.get(name))]
    there = False
    for holder in holders:
        inner: Any = holder
        for name in path[depth:]:
            inner = inner.get(name) if isinstance(inner, dict) else inner
        if isinstance(inner, list) and path[depth:]:
            raise DataError(f'"{old}" is a key of each of several objects, so it cannot be read as one "{new}"')
        if isinstance(inner, dict) and key in inner:
            value, there = inner.pop(key), True
            if new is not None:
                name = new.rpartition(".")[2]
                if holder.get(name) is not None:
                    raise DataError(f'"{name}" is there already. Leave it out first: --ignore {name}')
                holder[name] = value
    return there


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects that a value is, or is a list of."""
    return [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, dict)]


def overlooked(
    rows: Iterable[Mapping[str, Any]], unread: Collection[str], turns: str, answers: Collection[str] | None
) -> list[str]:
    """The unread columns, and unread keys of messages ("messages.vote"), that look like a judgement. `turns` is the
    column whose messages may be judged, empty where there is none; `answers` are the columns of answers, None where
    something is judged.

    Where the layout reads no judgement, a telling name is enough, and so are values of which some could be thumbs up
    and some thumbs down. Where it reads one, the name must be telling and the values look like a judgement,
    so that a comment beside a thumb stays a comment. Columns of nulls say nothing.
    """
    judged = answers is None
    evidence: dict[str, _Evidence] = {}
    for row in rows:
        for name, value in _unread(row, unread, turns, nested=not judged):
            evidence.setdefault(name, _Evidence()).add(value)
    suspects = []
    for name, values in evidence.items():
        words = _parts(name)
        telling = any(map(_JUDGEMENT_NAME.fullmatch, words))
        if judged:
            suspicious = telling and values.judge
        else:
            unnamed = values.thumbs and values.directions == {True, False}
            side = values.texts and is_side(name, answers)
            suspicious = telling or unnamed or side or any(map(_VERDICT_NAME.fullmatch, words))
        if suspicious or values.words or is_side(name):
            suspects.append(name)
    return sorted(name for name in suspects if not any(name.startswith(f"{outer}.") for outer in suspects))


@dataclass
class _Evidence:
    """What all values of a column seen so far are, and which directions they have as thumbs."""

    judge: bool = True
    words: bool = True
    thumbs: bool = True
    texts: bool = True
    directions: set[bool] = field(default_factory=set)

    def add(self, value: Any) -> None:
        self.judge = self.judge and _judges(value)
        self.words = self.words and _is_judgement_word(value)
        self.texts = self.texts and (isinstance(value, str) or is_messages(value))
        if self.thumbs:
            try:
                self.directions.add(thumb(value)[0])
            except DataError:
                self.thumbs = False


def is_side(name: str, answers: Collection[str] | None = None) -> bool:
    """Whether a column is named like one side of a comparison, or like its outcome. Where nothing is judged,
    and `answers` are the columns of answers, "bad_completion" and "completion_b" are sides, too."""
    words = _parts(name)
    if any(map(_SIDE_NAME.fullmatch, words)):
        return True
    if answers is None or "." in name:
        return False
    beside_answer = not {answer.rstrip("s") for answer in answers}.isdisjoint(word.rstrip("s") for word in words)
    more = name not in answers and not any(map(_ABOUT_ANSWER.fullmatch, words))
    return _OTHER_SIDE_NAME.fullmatch(name) is not None or (beside_answer and more)


def _parts(name: str) -> list[str]:
    """The words of a column's name, or of a key's."""
    return [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]


def _unread(row: Mapping[str, Any], unread: Collection[str], turns: str, *, nested: bool) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a row that no reader looks at and that is not null; with `nested`, also of what
    lies inside objects."""
    levels = 4 if nested else 0
    for column, value in row.items():
        if column in unread:
            yield from _within(column, value, levels)
        elif is_messages(value) and column not in _NO_TURNS:
            for turn in value:
                for key, part in turn.items():
                    read = key in TURN_JUDGEMENTS and column == turns
                    if not read and not _MESSAGE_KEY.fullmatch(key):
                        yield from _within(f"{column}.{key}", part, levels)


def _within(name: str, value: Any, levels: int) -> Iterator[tuple[str, Any]]:
    """(name, value), and so on for each key of an object, down to some levels. Nulls and empty texts are nothing."""
    if value is None or value == "":
        return
    yield name, value
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, dict) and levels:
            for key, inner in part.items():
                yield from _within(f"{name}.{key}", inner, levels - 1)


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
