"""The table of layouts; which of them a file has, by its columns; and columns that nobody would read.

A column whose name or values look like a judgement is never passed over: a reader who takes a rejected answer for a
comment trains the opposite of what people said. A new layout is a reader (`readers`) and a row of LAYOUTS.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from prospect.errors import ConfigError, DataError, UserError, nearest
from prospect.feedback import imports, readers
from prospect.feedback import messages as chat
from prospect.feedback.columns import Pairs, as_flags, labels_of, parts_of, renames_of, take
from prospect.feedback.meanings import propose
from prospect.feedback.messages import thumb
from prospect.feedback.readers import COMMON, ORIGIN_COLUMNS, SIDE_SCORES, SIDES, THUMBS, JudgedBy, Layout

MOST_COLUMNS = 1000
"""A file with more columns than this has values where names of columns should be."""

HEAD = 100
"""Rows that make out what a file is."""


def _is_hh(row: Mapping[str, Any]) -> bool:
    return "prompt" not in row and chat.is_transcript(row.get("chosen"))


_WHOLE = ("score", *THUMBS)
_CHAT = ("system", *_WHOLE)
_ALPACA = ("input", "system", "history")
_OWN, _OWN_LISTS = ("completion", "label", "score", "target", "old_logp", "pairs"), ("completions", "pairs")
_HALOS_PAIRS = ("prompt", "output_A", "output_B", "label")
_HALOS_SCORES = ("reward_A", "reward_B", "reward_difference")


class NoLayout(DataError):
    """The columns of a file fit no layout: it may be no feedback at all."""


# In order of detection: a layout stands before those whose columns it contains.
_TABLE = (
    *imports.LAYOUTS,
    Layout("prospect", ("prompt", "completions"), readers.prospect, _OWN, ("completions",), objects=_OWN_LISTS),
    Layout("halos-pairs", _HALOS_PAIRS, readers.halos_pairs, _HALOS_SCORES, ("label",)),
    Layout("sharegpt-pairs", ("conversations", *SIDES), readers.conversation_pairs, ("system", *SIDE_SCORES), SIDES),
    Layout("sharegpt", ("conversations",), readers.conversation, _CHAT, _WHOLE, turns="conversations"),
    Layout("alpaca-pairs", ("instruction", *SIDES), readers.alpaca_pairs, (*_ALPACA, *SIDE_SCORES), SIDES),
    Layout("alpaca", ("instruction", "output"), readers.alpaca, (*_ALPACA, *_WHOLE), _WHOLE),
    Layout("hh", SIDES, readers.transcripts, (), SIDES, looks=_is_hh),
    Layout("paired", SIDES, readers.paired, ("prompt", "messages", *SIDE_SCORES), SIDES),
    Layout("halos", ("prompt", "output"), readers.halos, ("label", "reward"), ("label", "reward")),
    Layout("unpaired", ("prompt", "completion", "label"), readers.flat, ("score", "target", "old_logp"), ("label",)),
    Layout("scores", ("prompt", "completion", "score"), readers.flat, ("target", "old_logp"), ("score",)),
    Layout("prompt-completion", ("prompt", "completion"), readers.flat, ("target",)),
    Layout("messages", ("messages",), readers.conversation, _CHAT, _WHOLE, turns="messages"),
    Layout("text", ("text",), readers.text),
)
LAYOUTS = {layout.name: layout for layout in _TABLE}
"""Every layout by name. TRL's are unpaired, paired, prompt-completion and messages; LLaMA-Factory's are alpaca and
sharegpt."""


def layout_of(
    format: str, columns: frozenset[str], rows: Sequence[Mapping[str, Any]], choice: ColumnChoice | None = None
) -> Layout:
    """The layout named `format`, or for "auto" the one that `columns` (of all rows) and a look at some `rows` make out;
    `choice` is what the user has said of them already.

    Raises ConfigError for an unknown name, DataError where columns are missing, misspelt, fit nothing, or hold a
    judgement that the layout would not read.
    """
    if len(columns) > MOST_COLUMNS:
        raise DataError(
            f"the rows have {len(columns)} different columns, such as {_quoted(columns)}. A column is a name that rows "
            f"share ({MOST_COLUMNS} at most): write what differs from row to row as values"
        )
    if format == "auto":
        fitting = _fitting(columns, rows)
        if fitting is None:
            raise NoLayout(_no_layout(columns, rows))
        layout = fitting
    elif format in LAYOUTS:
        layout = LAYOUTS[format]
        if lacks := layout.missing(columns):
            raise DataError(
                f"the layout {format} needs the column {_quoted(lacks)}, but the file has {_quoted(columns)}"
            )
    else:
        names = ("auto", *LAYOUTS)
        raise ConfigError(f'unknown format "{format}".{nearest(format, names)} Known: {", ".join(names)}')
    optional = {*layout.reads, *COMMON}.difference(columns, ORIGIN_COLUMNS)  # a column "notes" is no slip
    mapped = choice is not None and bool(choice.rename)  # then what is no plain value lies there for its parts
    parts = {name for row in rows for name, value in row.items() if isinstance(value, list | dict)} if mapped else set()
    absent = [name for name in sorted(optional) if len(name) > 3 and not layout.is_export]
    for name in layout.unread(columns - parts):
        if meant := difflib.get_close_matches(name, absent, n=1, cutoff=0.8):
            raise DataError(
                f'unknown column "{name}" in the layout {layout.name}. Did you mean "{meant[0]}"? If not, leave it '
                f"out: prospect convert IN OUT.jsonl --ignore {name}"
            )
    refuse_unread_judgements(layout, columns, rows)
    return layout


def export_of(format: str, head: Sequence[Mapping[str, Any]]) -> Layout | None:
    """The layout named `format`, or that the first rows of a file make out, where it is an application's export: rows
    of those are read one by one."""
    layout = _fitting(frozenset(chain.from_iterable(head)), head) if format == "auto" else LAYOUTS.get(format)
    return layout if layout is not None and layout.is_export else None


def _fitting(columns: Collection[str], rows: Sequence[Mapping[str, Any]]) -> Layout | None:
    """The first layout that `columns` and a look at some `rows` make out."""
    return next(
        (x for x in LAYOUTS.values() if not x.missing(columns) and any(map(x.looks, rows[:HEAD]))),
        None,
    )


def _no_layout(columns: frozenset[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The error for columns that fit nothing: the --map that would read them, or the closest layout that people write
    by hand, and the layouts there are."""
    layouts = "; ".join(f"{layout.name} ({layout.columns})" for layout in LAYOUTS.values())
    if not columns:
        return f"the rows have no columns. Known layouts: {layouts}"

    def closeness(layout: Layout) -> float:
        alike = [max(difflib.SequenceMatcher(None, need, c).ratio() for c in columns) for need in layout.needs]
        return sum(a if a >= 0.6 else 0.0 for a in alike) / len(alike)

    closest = max((layout for layout in LAYOUTS.values() if not layout.is_export), key=closeness)
    hint = ""
    if flags := _flags_for(rows[:HEAD]):
        hint = f" To read them, probably: prospect convert IN OUT.jsonl {flags} ."
    if closeness(closest) >= 0.3:
        spare = columns - set(closest.needs)
        lacks = []
        for need in closest.missing(columns):
            guess = difflib.get_close_matches(need, spare, n=1, cutoff=0.6)
            lacks.append(f'"{need}"' + (f' (is it "{guess[0]}"?)' if guess else ""))
        hint += f" Closest is {closest.name}, which also needs {' and '.join(lacks)}."
    return f"the columns {_quoted(columns)} fit no known layout.{hint} Known layouts: {layouts}"


def _quoted(names: Collection[str]) -> str:
    """Names in quotation marks; of many, the first."""
    listed = ", ".join(f'"{name}"' for name in sorted(names)[:30])
    return listed if len(names) <= 30 else f"{listed} and {len(names) - 30} more"


def _flags_for(rows: Sequence[Mapping[str, Any]]) -> str:
    """The flags with which rows of no known layout have one, "" where none are known."""
    renames, words = propose(rows)
    choice = ColumnChoice({new: old for new, old in renames.items() if new != old})
    copies: list[dict[str, Any]] = [copy.deepcopy(dict(row)) for row in rows]
    if not choice.rename:
        return ""
    try:
        choice.apply(copies)
        layout_of("auto", frozenset(chain.from_iterable(copies)), copies, choice)
    except UserError:
        return ""
    return as_flags(choice.rename, words)


# Judgements that the layout would not read

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

_ANSWER_COLUMNS = ("completion", "output")


def refuse_unread_judgements(layout: Layout, columns: frozenset[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises DataError for columns, and keys of messages ("messages.vote"), that look like a judgement and that the
    layout does not read.

    Where the layout reads no judgement, a telling name is enough, and so are values of which some could be thumbs up
    and some thumbs down. Where it reads one, the name must be telling and the values look like a judgement,
    so that a comment beside a thumb stays a comment. Columns of nulls say nothing.
    """
    reads_judgement = (
        layout.is_export
        or bool(columns.intersection(layout.judged_by))
        or (bool(layout.turns) and any(map(chat.judges_turns, rows)))
    )
    answers = () if reads_judgement else tuple(name for name in layout.needs if name in _ANSWER_COLUMNS)
    unread, values = frozenset(layout.unread(columns)), dict[str, list[Any]]()
    for row in rows:
        for name, value in _unread_values(row, layout, unread, levels=0 if reads_judgement else 4):
            values.setdefault(name, []).append(value)
    names: list[str] = []
    for name in sorted(values):
        if any(name.startswith(f"{outer}.") for outer in names):
            continue
        words, contents = _words(name), values[name]
        suspicious = any(map(_SIDE_NAME.fullmatch, words)) or all(map(_is_judgement_word, contents))
        if any(map(_JUDGEMENT_NAME.fullmatch, words)):
            suspicious = suspicious or not reads_judgement or all(map(_could_judge, contents))
        if not reads_judgement and not suspicious:
            texts = all(isinstance(value, str) or chat.is_messages(value) for value in contents)
            suspicious = any(map(_VERDICT_NAME.fullmatch, words)) or (texts and _is_beside_answer(name, answers))
            suspicious = suspicious or _are_thumbs_both_ways(contents)
        if suspicious:
            names.append(name)
    if not names:
        return
    sides = (any(map(_SIDE_NAME.fullmatch, _words(name))) for name in names)
    if any(sides) or (not reads_judgement and any(_is_beside_answer(name, answers) for name in names)):
        way_in = "A pair has the columns prompt, chosen and rejected"
    elif layout.judged_by and not reads_judgement:
        way_in = f"Name it {' or '.join(layout.judged_by)}"
    else:
        way_in = 'Write prompt, completion and a column named "label" (thumbs) or "score"'
    s, look, it = ("", "looks", "it") if len(names) == 1 else ("s", "look", "them")
    raise DataError(
        f"the column{s} {_quoted(names)} {look} like a judgement, but the layout {layout.name} ({layout.columns}) "
        f"would not read {it}. {way_in} (prospect convert IN OUT.jsonl --map NAME={names[0]}); or train without: "
        f"prospect convert IN OUT.jsonl --ignore {','.join(names)}"
    )


def _is_beside_answer(name: str, answers: Collection[str]) -> bool:
    """Whether, where nothing is judged and `answers` are the columns of answers, a column is named like another one:
    "bad_completion", "completion_b", "negative"."""
    if "." in name:
        return False
    words = _words(name)
    beside = not {answer.rstrip("s") for answer in answers}.isdisjoint(word.rstrip("s") for word in words)
    more = name not in answers and not any(map(_ABOUT_ANSWER.fullmatch, words))
    return _OTHER_SIDE_NAME.fullmatch(name) is not None or (beside and more)


def _words(name: str) -> list[str]:
    """The words of a column's name, or of a key's."""
    return [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]


def _unread_values(
    row: Mapping[str, Any], layout: Layout, unread: Collection[str], levels: int
) -> Iterator[tuple[str, Any]]:
    """(name, value) of everything in a row that no reader looks at and that is not null, down to some `levels` inside
    objects."""
    for column, value in row.items():
        if column in unread:
            yield from _within(column, value, levels)
        elif chat.is_messages(value) and column not in ("tools", "history", *layout.objects):
            for turn in value:
                for key, part in turn.items():
                    read = key in chat.TURN_JUDGEMENTS and column == layout.turns
                    if not read and not _MESSAGE_KEY.fullmatch(key):
                        yield from _within(f"{column}.{key}", part, levels)


def _within(name: str, value: Any, levels: int) -> Iterator[tuple[str, Any]]:
    """(name, value), and so on for each key of an object. Nulls and empty texts are nothing."""
    if value is None or value == "":
        return
    yield name, value
    for part in value if isinstance(value, list | tuple) else (value,):
        if isinstance(part, dict) and levels:
            for key, inner in part.items():
                yield from _within(f"{name}.{key}", inner, levels - 1)


def _could_judge(value: Any) -> bool:
    """Whether a value could be a thumb, a grade or a score."""
    if not isinstance(value, str):
        return isinstance(value, bool | int | float)
    try:
        float(value)
    except ValueError:
        return value.strip().lower() in ("true", "false", "yes", "no") or _is_judgement_word(value)
    return True


def _is_judgement_word(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > 20:
        return False
    return _JUDGEMENT_VALUE.fullmatch(_DECORATION.sub("", value).casefold()) is not None


def _are_thumbs_both_ways(values: Sequence[Any]) -> bool:
    """Whether all values could be thumbs, some up and some down."""
    try:
        return {thumb(value)[0] for value in values} == {True, False}
    except DataError:
        return False


# What the user says of columns


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """What the user says of columns: `rename` is {new name: name in the file}, `ignore` the names to leave out. What
    lies inside is written with its column: "messages.vote", "metadata.rating". Of an application's export, `judgement`
    is the name of the score, question or key to read, and `judged_by` says whose judgements count. `labels` says what
    the words of its thumbs mean."""

    rename: Mapping[str, str] = field(default_factory=dict)
    ignore: Collection[str] = ()
    judgement: str = ""
    judged_by: JudgedBy = "person"
    labels: Mapping[str, bool | None] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        rename: Pairs = "",
        ignore: str = "",
        judgement: str = "",
        judged_by: JudgedBy = "person",
        labels: Pairs = "",
    ) -> ColumnChoice:
        """From `--map NEW=COLUMN,...`, `--ignore COLUMN,...` and `--labels WORD=up,...`. Raises ConfigError where they
        say something else."""
        renames = renames_of(rename) if rename else {}
        return cls(
            renames,
            tuple(parts_of(ignore)) if ignore else (),
            judgement,
            judged_by,
            labels_of(labels) if labels else {},
        )

    def apply(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rename and leave out, in place. Raises DataError where no row has the column, or one has the new name."""
        for name in self.ignore:
            if not sum([_move(row, name, None) for row in rows]):
                raise DataError(f'there is no column "{name}" to ignore')
        for new, old in self.rename.items():
            if "." in new and old.split(".")[: new.count(".")] != new.split(".")[:-1]:
                raise ConfigError(
                    f"--map {new}={old} must stay in its place or come out of it, such as "
                    '"messages.rating=messages.vote" or "label=metadata.rating"'
                )
            if not sum([(_move if "." in new else _take)(row, old, new) for row in rows]):
                names = sorted({name for row in rows for name in row})
                raise DataError(
                    f'there is no column "{old}" to read as "{new}".{nearest(old, names)} There are {_quoted(names)}'
                )


def _take(row: dict[str, Any], old: str, new: str) -> bool:
    """Read what lies at `old` as the column `new`; says whether it was there. Raises DataError where the name is
    taken."""
    there, value = take(row, old, new)
    if there:
        if row.get(new) is not None:
            raise DataError(f'"{new}" is there already. Leave it out first: --ignore {new}')
        row[new] = value
    return there


def _move(row: dict[str, Any], old: str, new: str | None) -> bool:
    """Rename the key `old` of what lies in a row, in its place, or drop it where `new` is None; says whether it was
    there. Raises DataError where the name is taken."""
    *path, key = [old] if old in row else old.split(".")
    depth = len(path) if new is None else new.count(".")
    holders = [row]
    for name in path[:depth]:
        values = (value for holder in holders for value in _as_list(holder.get(name)))
        holders = [value for value in values if isinstance(value, dict)]
    there = False
    for holder in holders:
        inner: Any = holder
        for name in path[depth:]:
            inner = inner.get(name) if isinstance(inner, dict) else inner
        if isinstance(inner, dict) and key in inner:
            value, there = inner.pop(key), True
            if new is not None:
                name = new.rpartition(".")[2]
                if holder.get(name) is not None:
                    raise DataError(f'"{name}" is there already. Leave it out first: --ignore {name}')
                holder[name] = value
    return there


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
