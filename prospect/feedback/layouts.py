"""The table of layouts, and which of them a file has, by its columns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prospect.errors import ConfigError, DataError, nearest
from prospect.feedback import messages as chat
from prospect.feedback import readers
from prospect.feedback.columns import is_side, overlooked
from prospect.feedback.records import Record
from prospect.feedback.rows import COMMON, CONVERSATION_IDS, FeedbackLine

MOST_COLUMNS = 1000
"""A file with more columns than this has values where names of columns should be."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`needs` are the columns that make it out, `reads` the optional ones beside COMMON: all that its reader looks at.
    `judged_by` are the columns that carry its judgement; of messages with judgements of their own, `turns` is the
    column. `looks` may ask a row itself."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[FeedbackLine], list[Record]]
    reads: tuple[str, ...] = ()
    judged_by: tuple[str, ...] = ()
    turns: str = ""
    looks: Callable[[Mapping[str, Any]], bool] = lambda row: True

    @property
    def columns(self) -> str:
        """What it needs, in words: "instruction + output"."""
        return " + ".join(self.needs)

    def missing(self, columns: Collection[str]) -> list[str]:
        """The needed columns that are not among `columns`."""
        return [name for name in self.needs if name not in columns]


_SIDES, _SIDE_SCORES = ("chosen", "rejected"), ("score_chosen", "score_rejected")
_ANSWERS = ("completion", "output")
_WHOLE = ("score", *readers.ROW_TAGS)
"""What judges a whole row of chat."""

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        # In order of detection: a layout stands before those whose columns it contains.
        Layout(
            "prospect",
            ("prompt", "completions"),
            readers.prospect,
            reads=("completion", "label", "score", "pairs"),
            judged_by=("completions",),
        ),
        Layout(
            "halos-pairs",
            ("prompt", "output_A", "output_B", "label"),
            readers.halos_pairs,
            reads=("reward_A", "reward_B", "reward_difference"),
            judged_by=("label",),
        ),
        Layout(
            "sharegpt-pairs",
            ("conversations", *_SIDES),
            readers.conversation_pairs,
            reads=("system", *_SIDE_SCORES),
            judged_by=_SIDES,
        ),
        Layout(
            "sharegpt",
            ("conversations",),
            readers.conversation,
            reads=("system", *_WHOLE),
            judged_by=_WHOLE,
            turns="conversations",
        ),
        Layout(
            "alpaca-pairs",
            ("instruction", *_SIDES),
            readers.alpaca_pairs,
            reads=("input", "system", "history", *_SIDE_SCORES),
            judged_by=_SIDES,
        ),
        Layout(
            "alpaca",
            ("instruction", "output"),
            readers.alpaca,
            reads=("input", "system", "history", *_WHOLE),
            judged_by=_WHOLE,
        ),
        Layout(
            "hh",
            _SIDES,
            readers.transcripts,
            judged_by=_SIDES,
            looks=lambda row: "prompt" not in row and chat.is_transcript(row.get("chosen")),
        ),
        Layout("paired", _SIDES, readers.paired, reads=("prompt", "messages", *_SIDE_SCORES), judged_by=_SIDES),
        Layout("halos", ("prompt", "output"), readers.halos, reads=("label", "reward"), judged_by=("label", "reward")),
        Layout("unpaired", ("prompt", "completion", "label"), readers.flat, reads=("score",), judged_by=("label",)),
        Layout("scores", ("prompt", "completion", "score"), readers.flat, judged_by=("score",)),
        Layout("prompt-completion", ("prompt", "completion"), readers.flat),
        Layout(
            "messages",
            ("messages",),
            readers.conversation,
            reads=("system", *_WHOLE),
            judged_by=_WHOLE,
            turns="messages",
        ),
        Layout("text", ("text",), readers.text),
    )
}
"""Every layout by name. TRL's are unpaired, paired, prompt-completion and messages; LLaMA-Factory's are alpaca and
sharegpt."""


def layout_of(format: str, columns: frozenset[str], rows: Sequence[Mapping[str, Any]]) -> Layout:
    """The layout named `format`, or for "auto" the one that `columns` (of all rows) and a look at some `rows` make out.

    Raises ConfigError for an unknown name, DataError where columns are missing, misspelt, fit nothing, or hold a
    judgement that the layout would not read.
    """
    if len(columns) > MOST_COLUMNS:
        raise DataError(
            f"the rows have {len(columns)} different columns, such as {_listed(columns)}. A column is a name that rows "
            f"share ({MOST_COLUMNS} at most): write what differs from row to row as values"
        )
    if format == "auto":
        sample = rows[:100]
        fitting = [x for x in LAYOUTS.values() if not x.missing(columns) and any(map(x.looks, sample))]
        if not fitting:
            raise DataError(_unknown(columns))
        layout = fitting[0]
    elif format in LAYOUTS:
        layout = LAYOUTS[format]
        if lacks := layout.missing(columns):
            raise DataError(
                f"the layout {format} needs the column {_listed(lacks)}, but the file has {_listed(columns)}"
            )
    else:
        known = ("auto", *LAYOUTS)
        raise ConfigError(f'unknown format "{format}".{nearest(format, known)} Known: {", ".join(known)}')
    unread = ignored(layout, columns)
    _refuse_misspelt(layout, columns, unread)
    _refuse_overlooked(layout, columns, rows, unread)
    return layout


def ignored(layout: Layout, columns: frozenset[str]) -> list[str]:
    """The columns that the layout does not read."""
    return sorted(columns - {*layout.needs, *layout.reads, *COMMON, *CONVERSATION_IDS})


def _refuse_misspelt(layout: Layout, columns: frozenset[str], unread: Sequence[str]) -> None:
    """An unread column is fine unless it was probably meant to be read."""
    absent = [name for name in (*layout.reads, *COMMON) if name not in columns and len(name) > 3]
    for name in unread:
        meant = difflib.get_close_matches(name, absent, n=1, cutoff=0.8)
        if meant:
            raise DataError(
                f'unknown column "{name}" in the layout {layout.name}. Did you mean "{meant[0]}"? If not, leave it '
                f"out: prospect convert IN OUT.jsonl --ignore {name}"
            )


def _refuse_overlooked(
    layout: Layout, columns: frozenset[str], rows: Sequence[Mapping[str, Any]], unread: Sequence[str]
) -> None:
    """Raises DataError for judgements that the layout does not read."""
    turns_judged = bool(layout.turns) and any(map(chat.judges_turns, rows))
    judged = bool(columns.intersection(layout.judged_by)) or turns_judged
    answers = None if judged else tuple(name for name in layout.needs if name in _ANSWERS)
    names = overlooked(rows, frozenset(unread), layout.turns, answers)
    if not names:
        return
    one = len(names) == 1
    if any(is_side(name, answers) for name in names):
        way_in = "A pair has the columns prompt, chosen and rejected"
    elif layout.judged_by and not judged:
        way_in = f"Name it {' or '.join(layout.judged_by)}"
    else:
        way_in = 'Write prompt, completion and a column named "label" (thumbs) or "score"'
    raise DataError(
        f"the column{'' if one else 's'} {_listed(names)} look{'s' if one else ''} like a judgement, but the layout "
        f"{layout.name} ({layout.columns}) would not read {'it' if one else 'them'}. {way_in} (prospect convert IN "
        f"OUT.jsonl --map NAME={names[0]}); or train without: prospect convert IN OUT.jsonl --ignore {','.join(names)}"
    )


def _unknown(columns: frozenset[str]) -> str:
    """The error for columns that fit nothing: the layouts there are, and the closest one."""
    known = "; ".join(f"{layout.name} ({layout.columns})" for layout in LAYOUTS.values())
    if not columns:
        return f"the rows have no columns. Known layouts: {known}"

    def closeness(layout: Layout) -> float:
        alike = [max(difflib.SequenceMatcher(None, need, c).ratio() for c in columns) for need in layout.needs]
        return sum(a if a >= 0.6 else 0.0 for a in alike) / len(alike)

    closest = max(LAYOUTS.values(), key=closeness)
    hint = ""
    if closeness(closest) >= 0.3:
        lacks = closest.missing(columns)
        spare = columns - set(closest.needs)
        guesses = {need: difflib.get_close_matches(need, spare, n=1, cutoff=0.6) for need in lacks}
        named = [f'"{need}"' + (f' (is it "{guess[0]}"?)' if guess else "") for need, guess in guesses.items()]
        hint = f" Closest is {closest.name}, which also needs {' and '.join(named)}."
    return f"the columns {_listed(columns)} fit no known layout.{hint} Known layouts: {known}"


def _listed(names: Collection[str]) -> str:
    """Names in quotation marks; of many, the first."""
    listed = ", ".join(f'"{name}"' for name in sorted(names)[:30])
    return listed if len(names) <= 30 else f"{listed} and {len(names) - 30} more"
