"""Feedback in any public layout, as records; and a record as a line of Prospect JSONL.

    feedback = load("thumbs.jsonl")          # or a datasets folder, a Hub name, a list of dicts, a Dataset, a DataFrame

docs/data-format.md describes the layouts.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prospect.errors import DataError, brief
from prospect.feedback.columns import ColumnChoice
from prospect.feedback.files import Unreadable
from prospect.feedback.labels import Labels
from prospect.feedback.layouts import (
    LAYOUTS,
    Layout,
    ignored,
    layout_of,
)
from prospect.feedback.messages import (
    is_context,
    judges_turns,
    plain_text,
    turns_of,
)
from prospect.feedback.prompts import prompt_digests, prompt_numbers
from prospect.feedback.readers import raw_thumbs
from prospect.feedback.records import Completion, Pair, Record
from prospect.feedback.rows import FeedbackLine
from prospect.feedback.sources import Source, read_rows, source_name, source_path, sources

FORMATS = ("auto", *LAYOUTS)
AS_NAMED = ColumnChoice()
"""Every column under the name that it has."""

MOST_PROBLEMS = 20
"""How many problems are collected before loading gives up."""


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection in this block, or in the function that this decorates: rows are many small objects without
    cycles, and a collection while they are made walks over all of them to find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that was left out: why, and the row as it was read (its columns, or the text of a line that has none)."""

    error: DataError
    raw: dict[str, Any] | str

    @property
    def path(self) -> str | Path | None:
        return self.error.path

    @property
    def line(self) -> int:
        return self.error.line or 0

    @property
    def message(self) -> str:
        return self.error.message


@dataclass(frozen=True)
class Feedback:
    """What a source held: its records, the name of its layout, the rows left out, and how many rows were read. `notes`
    says what was not used (columns, unjudged rows). `digest` is the SHA-256 of the records."""

    records: tuple[Record, ...]
    path: str
    format: str
    problems: tuple[Problem, ...]
    rows: int
    digest: str
    notes: tuple[str, ...] = ()


@collector_paused()
def load(
    source: Source,
    *,
    format: str = "auto",
    keep_going: bool = False,
    choice: ColumnChoice = AS_NAMED,
    any_size: bool = False,
) -> Feedback:
    """Read feedback. One DataError lists up to 20 problems and carries them as `problems`; with `keep_going`, rows with
    a problem are left out instead and all of them are in `Feedback.problems`.

    `source` may stand for several files, each with its own layout and words for thumbs; numbers are told from scores by
    all files of a layout. `choice` renames columns and leaves
    some out; `any_size` reads a packed file whatever it unpacks to. Raises DataError at once where a file as a whole is
    missing, empty, damaged or of no known layout, and ConfigError for an unknown `format`.
    """
    if isinstance(source, list | tuple) and len(source) == 1 and isinstance(source[0], str | Path):
        source = source[0]
    files, notes = sources(source)
    several = len(files) > 1
    opened = [_open(file, format, choice, keep_going, any_size, several) for file in files]
    for layout in {file.layout.name for file in opened}:
        Labels.join([file.labels for file in opened if file.layout.name == layout])
    parts = []
    for file in opened:
        parts.append(_read(file, keep_going))
        notes += [f"{file.prefix[:-1]}: {note}" if file.prefix else note for note in parts[-1].notes]
    problems = tuple(problem for part in parts for problem in part.problems)
    if problems and not keep_going:
        raise _summary(problems[:MOST_PROBLEMS], source_path(source), in_files=several)
    records = merge(record for part in parts for record in part.records)
    layouts = ", ".join(dict.fromkeys(file.layout.name for file in opened))
    count = sum(part.rows for part in parts)
    return Feedback(records, source_name(source), layouts, problems, count, digest(records), tuple(notes))


@dataclass(frozen=True)
class _File:
    """A file whose rows are to become records, and what of all its rows each of them needs to know."""

    path: str | Path | None
    prefix: str
    rows: list[tuple[int, dict[str, Any] | Unreadable]]
    columns: frozenset[str]
    layout: Layout
    labels: Labels
    judged_turns: bool
    notes: Sequence[str]


@dataclass(frozen=True)
class _Part:
    """What one file held: as Feedback, but its records are not merged yet."""

    records: Sequence[Record]
    problems: Sequence[Problem]
    rows: int
    notes: Sequence[str]


def _open(source: Source, format: str, choice: ColumnChoice, keep_going: bool, any_size: bool, several: bool) -> _File:
    """The rows of one file with its layout and labels. Raises DataError where the file as a whole has none."""
    path = source if isinstance(source, str | Path) else None
    rows = list(read_rows(source, any_size=any_size, names={old: new for new, old in choice.rename.items()}))
    if not rows:
        raise DataError("has no rows", path=path)
    readable = [row for _, row in rows if isinstance(row, dict)]
    if not readable:
        broken = [_problem(row.reason, path, n, row) for n, row in rows if isinstance(row, Unreadable)]
        raise _summary(broken if keep_going else broken[:MOST_PROBLEMS], path)
    try:
        choice.apply(readable)
        columns = _columns(readable)
        layout = layout_of(format, columns, readable)
    except DataError as error:
        raise DataError(_printable(error.message), path=path) from None
    where = f" of {_printable(str(path))}" if several and path is not None else ""
    labels = Labels(
        (f"on line {n}{where}", value) for n, row in rows if isinstance(row, dict) for value in raw_thumbs(row)
    )
    return _File(
        path=path,
        prefix=f"{Path(path).name.partition('.')[0]}/" if several and path is not None else "",
        rows=rows,
        columns=columns,
        layout=layout,
        labels=labels,
        judged_turns=any(map(judges_turns, readable)),
        notes=_notes(layout, columns, readable),
    )


def _read(file: _File, keep_going: bool) -> _Part:
    """The records of a file, whose rows are used up."""
    rows, count = file.rows, len(file.rows)
    most = count if keep_going else MOST_PROBLEMS
    records: list[Record] = []
    problems: list[Problem] = []
    silent = read = 0
    rows.reverse()
    while rows and len(problems) < most:
        line, values = rows.pop()  # what was read is let go: rows and records are never held together
        try:
            if isinstance(values, Unreadable):
                raise DataError(values.reason)
            made = file.layout.read(
                FeedbackLine(line, values, file.columns, file.labels, file.judged_turns, file.prefix)
            )
        except DataError as error:
            problems.append(_problem(error.message, file.path, line, values))
        else:
            records += made
            silent += not made
            read += 1
    left_out = f"{silent} of {read} conversations have no judged answer and were left out"
    return _Part(records, problems, count, [*file.notes, left_out] if silent else file.notes)


def _columns(rows: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of all columns. Raises DataError where one cannot be written."""
    names = frozenset(name for row in rows for name in row)
    for name in names:
        plain_text(name, f"the column {name!r}")
    return names


def _problem(message: str, path: str | Path | None, line: int, row: dict[str, Any] | Unreadable) -> Problem:
    name = row.get("id") if isinstance(row, dict) else None
    named = _printable(brief(name, str)) if isinstance(name, str | int) else None
    error = DataError(_printable(message), path=path, line=line, row=named)
    return Problem(error, row.raw if isinstance(row, Unreadable) else row)


def _printable(text: str) -> str:
    """`text` with lone surrogates, which no terminal can print, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _notes(layout: Layout, columns: frozenset[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of a file is not used, by its columns and the flags of its turns."""
    notes = []
    if extra := ignored(layout, columns):
        notes.append(f"columns not read: {', '.join(extra)}")
    if flagged := sum(is_context(turn) for row in rows for turn in turns_of(row)):
        notes.append(f"{flagged} turns say train: false or loss: false: they are context and not trained")
    return notes


def _summary(problems: Sequence[Problem], path: str | Path | None, *, in_files: bool = False) -> DataError:
    """One error for all of them; for a single one, that one."""
    errors = tuple(problem.error for problem in problems)
    if len(errors) == 1:
        only = errors[0]
        return DataError(only.message, path=only.path, line=only.line, row=only.row, problems=errors)
    count = f"the first {len(errors)} problems" if len(errors) == MOST_PROBLEMS else f"{len(errors)} problems"
    where = "row " if path is None else "line "
    listed = "".join(
        f"\n  {f'{e.path}:' if in_files else where}{e.line}{f' ({e.row})' if e.row else ''}: {e.message}"
        for e in errors
    )
    way_out = "" if path is None else f"\nTo go on with the good rows: prospect check {path} --keep-going GOOD.jsonl"
    return DataError(f"{count}:{listed}{way_out}", path=path, problems=errors)


# From rows to records


def merge(records: Iterable[Record]) -> tuple[Record, ...]:
    """One record per prompt (with its tools and template keywords), in order of first appearance, with unique ids.

    A record without a prompt stays alone: two texts that both begin with nothing have nothing in common.
    """
    every = list(records)
    groups: dict[int, list[Record]] = {}
    for i, (record, number) in enumerate(zip(every, prompt_numbers(every), strict=True)):
        groups.setdefault(number if record.prompt else -1 - i, []).append(record)
    record_ids, completion_ids = _Names(), _Names()
    return tuple(_unique(_joined(group), record_ids, completion_ids) for group in groups.values())


def _joined(group: Sequence[Record]) -> Record:
    """The first record with the completions and pairs of all. An answer that several pairs of the prompt judge, and
    nothing else tells apart, is one completion."""
    first = group[0]
    if len(group) == 1:
        return first
    from_all = tuple(dict.fromkeys(name for record in group for name in record.conversations))
    first = replace(first, conversations=from_all)
    if not any(record.pairs for record in group[1:]):
        return replace(first, completions=tuple(done for record in group for done in record.completions))
    completions, pairs = list(first.completions), list(first.pairs)
    known = {_sameness(c): i for i, c in reversed(list(enumerate(completions)))}
    for record in group[1:]:
        in_pairs = {side for pair in record.pairs for side in (pair.chosen, pair.rejected)}
        at: list[int] = []
        for i, done in enumerate(record.completions):
            place = known.get(_sameness(done)) if i in in_pairs else None
            if place is None or place in at:  # a pair of equal answers keeps both sides, for the doctor to find
                place = len(completions)
                completions.append(done)
                known.setdefault(_sameness(done), place)
            at.append(place)
        pairs += [Pair(at[p.chosen], at[p.rejected], p.weight) for p in record.pairs]
    return replace(first, completions=tuple(completions), pairs=tuple(pairs))


def _sameness(done: Completion) -> str:
    return dumps([done.content, done.label, done.score, done.weight, done.complete])


class _Names:
    """Gives out names; one that is taken becomes "name#2", "name#3" and so on."""

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, name: str) -> str:
        new, count = name, self._taken.get(name, 0)
        while new in self._taken:
            count += 1
            new = f"{name}#{count}"
        self._taken[name] = max(count, 1)
        self._taken.setdefault(new, 1)
        return new


def _unique(record: Record, record_ids: _Names, completion_ids: _Names) -> Record:
    name = record_ids.take(record.id)
    names = [completion_ids.take(done.id) for done in record.completions]
    if name == record.id and names == [done.id for done in record.completions]:
        return record
    done = (c if c.id == n else replace(c, id=n) for c, n in zip(record.completions, names, strict=True))
    return replace(record, id=name, completions=tuple(done))


# From records to lines


def to_json(record: Record) -> dict[str, Any]:
    """A line of Prospect JSONL; what has its default value is left out."""
    line: dict[str, Any] = {"id": record.id, "prompt": record.prompt}
    line["completions"] = [_completion_json(done) for done in record.completions]
    if record.pairs:
        line["pairs"] = [_pair_json(pair) for pair in record.pairs]
    if record.source:
        line["source"] = record.source
    if record.tools is not None:
        line["tools"] = record.tools
    if record.template_kwargs is not None:
        line["template_kwargs"] = record.template_kwargs
    if record.conversations:
        several = len(record.conversations) > 1
        line["conversation_id"] = record.conversations if several else record.conversations[0]
    return line


def digest(records: Sequence[Record]) -> str:
    """SHA-256 of the records: equal for the same feedback from a packed and an unpacked file."""
    found = hashlib.sha256()
    for record, prompt in zip(records, prompt_digests(records), strict=True):
        found.update(prompt + dumps(to_json(replace(record, prompt=""))).encode() + b"\n")
    return found.hexdigest()


def _completion_json(done: Completion) -> dict[str, Any]:
    line: dict[str, Any] = {"id": done.id, "content" if isinstance(done.content, str) else "message": done.content}
    if done.label is not None:
        line["label"] = done.label
    if done.score is not None:
        line["score"] = done.score
    if done.weight != 1.0:
        line["weight"] = done.weight
    if not done.complete:
        line["complete"] = False
    return line


def _pair_json(pair: Pair) -> dict[str, Any]:
    line: dict[str, Any] = {"chosen": pair.chosen, "rejected": pair.rejected}
    return line if pair.weight == 1.0 else {**line, "weight": pair.weight}


dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
