"""The table of layouts, and which of them a file has, by its columns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prospect.errors import ConfigError, DataError, nearest
from prospect.feedback import messages as chat
from prospect.feedback import readers
from prospect.feedback.records import Record
from prospect.feedback.rows import COMMON, Row

_JUDGEMENTS = ("label", "kto_tag", "rating", "score", "reward", "thumb", "feedback", "vote", "preference")
"""Columns that sound like a judgement: a layout that reads none of them must not pass over them in silence."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`needs` are the columns that make it out; of `either`, at least one must be there too. `reads` are the optional
    ones beside COMMON. `judged_by` are the columns that carry its judgement. `looks` may ask a row itself."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row], list[Record]]
    reads: tuple[str, ...] = ()
    judged_by: tuple[str, ...] = ()
    either: tuple[str, ...] = ()
    looks: Callable[[Mapping[str, Any]], bool] = lambda row: True

    @property
    def columns(self) -> str:
        """What it needs, in words: "instruction + output or chosen"."""
        return " + ".join((*self.needs, *([" or ".join(self.either)] if self.either else [])))

    def missing(self, columns: Iterable[str]) -> list[str]:
        """The needed columns that are not among `columns`."""
        there = set(columns)
        lacks = [name for name in self.needs if name not in there]
        return lacks if not self.either or there.intersection(self.either) else [*lacks, " or ".join(self.either)]


_SIDES, _SIDE_SCORES = ("chosen", "rejected"), ("score_chosen", "score_rejected")
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
            reads=("reward_A", "reward_B"),
            judged_by=("label",),
        ),
        Layout(
            "sharegpt",
            ("conversations",),
            readers.conversation,
            reads=("system", *_WHOLE, *_SIDES, *_SIDE_SCORES),
            judged_by=(*_WHOLE, "chosen"),
        ),
        Layout(
            "alpaca",
            ("instruction",),
            readers.alpaca,
            reads=("input", "output", "system", "history", *_WHOLE, *_SIDES, *_SIDE_SCORES),
            judged_by=(*_WHOLE, "chosen"),
            either=("output", "chosen"),
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
        Layout("messages", ("messages",), readers.conversation, reads=("system", *_WHOLE), judged_by=_WHOLE),
        Layout("text", ("text",), readers.text),
    )
}
"""Every layout by name. TRL's are unpaired, paired, prompt-completion and messages; LLaMA-Factory's are alpaca and
sharegpt."""


def layout_of(format: str, columns: frozenset[str], rows: Sequence[Mapping[str, Any]]) -> Layout:
    """The layout named `format`, or for "auto" the one that `columns` (of all rows) and a look at some `rows` make out.

    Raises ConfigError for an unknown name, DataError where columns are missing, misspelt, or fit nothing.
    """
    if format == "auto":
        sample = rows[:100]
        found = [x for x in LAYOUTS.values() if not x.missing(columns) and any(map(x.looks, sample))]
        if not found:
            raise DataError(_unknown(columns))
        layout = found[0]
    elif format in LAYOUTS:
        layout = LAYOUTS[format]
        if lacks := layout.missing(columns):
            raise DataError(
                f"the layout {format} needs the column {_listed(lacks)}, but the file has {_listed(columns)}"
            )
    else:
        known = ("auto", *LAYOUTS)
        raise ConfigError(f'unknown format "{format}".{nearest(format, known)} Known: {", ".join(known)}')
    _refuse_misspelt(layout, columns)
    return layout


def ignored(layout: Layout, columns: frozenset[str]) -> list[str]:
    """The columns that the layout does not read."""
    return sorted(columns - {*layout.needs, *layout.reads, *COMMON})


def _refuse_misspelt(layout: Layout, columns: frozenset[str]) -> None:
    """An unread column is fine unless it was probably meant to be read."""
    absent = [name for name in (*layout.reads, *COMMON) if name not in columns and len(name) > 3]
    for name in ignored(layout, columns):
        meant = difflib.get_close_matches(name, absent, n=1, cutoff=0.8)
        if meant:
            raise DataError(
                f'unknown column "{name}" in the layout {layout.name}. Did you mean "{meant[0]}"? If not, rename or '
                "remove it"
            )
        if name.removesuffix("s") in _JUDGEMENTS and not columns.intersection(layout.judged_by):
            raise DataError(
                f'the column "{name}" looks like a judgement, but the layout {layout.name} ({layout.columns}) would '
                f"not read it. {_judged_alternative(layout)}; remove the column to train without judgements"
            )


def _judged_alternative(layout: Layout) -> str:
    if layout.judged_by:
        return f"Name it {' or '.join(layout.judged_by)}"
    return 'Write prompt, completion and a column named "label" (thumbs) or "score"'


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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names))
