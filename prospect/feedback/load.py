"""Feedback in any public layout, as records; and a record as a line of Prospect JSONL.

    feedback = load("thumbs.jsonl")          # or a datasets folder, a Hub name, a list of dicts, a Dataset, a DataFrame

docs/data-format.md describes the layouts.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import math
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from prospect.errors import DataError, brief
from prospect.feedback.layouts import HEAD, LAYOUTS, ColumnChoice, NoLayout, export_of, layout_of
from prospect.feedback.messages import Labels, is_context, judges_turns, plain_text, turns_of
from prospect.feedback.messages import prompt as to_prompt
from prospect.feedback.readers import FeedbackLine, Judgements, Layout, LeftOut, Parts, SourceFile, SourceRow
from prospect.feedback.records import (
    NO_IDS,
    ORIGIN,
    Completion,
    IdList,
    Inventory,
    Pair,
    Record,
    prompt_digests,
    prompt_numbers,
)
from prospect.feedback.sources import OneSource, Source, read_rows, source_path, sources
from prospect.feedback.tables import Unreadable

T = TypeVar("T")

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


class Problem(DataError):
    """Why a row was left out, and the row as it was read in `raw`: its columns, or the text of a line that has none."""

    def __init__(self, message: str, path: str | Path | None, line: int, row: dict[str, Any] | Unreadable) -> None:
        id = row.get("id") if isinstance(row, dict) else None
        name = _printable(brief(id, str)) if isinstance(id, str | int) else None
        super().__init__(_printable(message), path=path, line=line, row=name)
        self.raw = row.raw if isinstance(row, Unreadable) else row


PartCounts = dict[str, Any]
"""What came from one file (or from memory), as config.json and check.json have it: its rows, those left out as wrong,
and what its records held before those of all files with one prompt became one."""


@dataclass
class _Part:
    """The counts of one file, which grow as it is read."""

    path: str
    format: str
    weight: float = 1.0
    rows: int = 0
    problems: int = 0
    counts: Inventory = field(default_factory=Inventory)

    def finish(self) -> PartCounts:
        own = {key: getattr(self, key) for key in ("path", "format", "weight", "rows", "problems")}
        return own | self.counts.to_json()


MOST_PARTS = 20
"""How many files are reported one by one."""


def describe_parts(parts: Sequence[PartCounts]) -> list[str]:
    """A line for each of several files; of very many, the first. One file needs no such report."""
    if len(parts) < 2:
        return []
    lines = []
    for part in parts[:MOST_PARTS]:
        counts = ", ".join(f"{part[key]} {key}" for key in Inventory().to_json() if part[key] or key == "completions")
        wrong = f", {part['problems']} of them wrong" if part["problems"] else ""
        weight = "" if part["weight"] == 1 else f"; weight {part['weight']:g}"
        lines.append(
            _printable(f"from {part['path']} ({part['format']}): {part['rows']} rows{wrong}; {counts}{weight}")
        )
    if rest := parts[MOST_PARTS:]:
        lines.append(f"from {len(rest)} more files: {sum(part['rows'] for part in rest)} rows")
    return lines


@dataclass(frozen=True)
class Feedback:
    """What a source held: its records, the name of its layout, the rows left out, and how many rows were read. `notes`
    says what was not used (columns, unjudged rows). `digest` is the SHA-256 of the records. `parts` say what came from
    which file."""

    records: tuple[Record, ...]
    path: str
    format: str
    problems: tuple[Problem, ...]
    rows: int
    digest: str
    notes: tuple[str, ...] = ()
    parts: tuple[PartCounts, ...] = ()


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
    all files of a layout. `choice` renames columns and leaves some out; `any_size` reads a packed file whatever it
    unpacks to. Raises DataError at once where a file as a whole is missing, empty, damaged or of no known layout, and
    ConfigError for an unknown `format`.
    """
    records: list[Record] = []
    reading = _read_source(source, format, keep_going, choice, any_size, records.extend)
    by_prompt = merge(records)
    return Feedback(by_prompt, *reading[:4], digest(by_prompt), tuple(reading.notes), reading.parts)


def load_prompts(source: Source, *, format: str = "auto") -> tuple[Record, ...]:
    """Prompts to be answered, each once: those of any feedback, with what people said of other answers to them, or rows
    with a `prompt` (text or messages) and whatever `id`, `conversation`, `tools` and template keywords they have.

    Raises DataError as `load` does, and where a row has no prompt.
    """
    try:
        records = load(source, format=format).records
    except NoLayout:
        rows = list(read_rows(source))
        if format != "auto" or not any(isinstance(row, dict) and "prompt" in row for _, row in rows):
            raise
        records = _records_of_prompts(rows, source_path(source))
    if empty := next((record for record in records if not record.prompt), None):
        raise DataError(f"{empty.id} has no prompt that could be answered", path=source_path(source))
    return records


def _records_of_prompts(rows: Sequence[tuple[int, Any]], path: str | Path | None) -> tuple[Record, ...]:
    records: list[Record] = []
    problems: list[DataError] = []
    for number, row in rows:
        try:
            if isinstance(row, Unreadable):
                raise DataError(row.reason)
            line = FeedbackLine(number, row, frozenset(row), Labels(()))
            records.append(line.record(to_prompt(row.get("prompt")), ()))
        except DataError as error:
            problems.append(Problem(error.message, path, number, row))
    if problems:
        listed = "\n".join(f"  line {problem.line}: {problem.message}" for problem in problems[:MOST_PROBLEMS])
        raise DataError(
            f"{len(problems)} of {len(rows)} rows have no prompt that can be answered:\n{listed}\nCorrect them or "
            'leave them out; a row is {"prompt": "text, or messages"}',
            path=path,
            line=problems[0].line,
            problems=tuple(problems),
        )
    return merge(records)


class Stream(NamedTuple):
    """What a source held, as `Feedback` has it, with the records to be taken one by one."""

    records: Iterator[Record]
    format: str
    notes: list[str]
    parts: tuple[PartCounts, ...]


@contextmanager
def stream(
    source: Source,
    *,
    format: str = "auto",
    choice: ColumnChoice = AS_NAMED,
    any_size: bool = False,
    without: IdList = NO_IDS,
) -> Iterator[Stream]:
    """Read feedback as `load` does, its records on disk until all are read: memory holds some 400 bytes for each of an
    application's export. What is `without` is left out. Raises as `load` does."""
    with tempfile.TemporaryFile() as file, collector_paused():
        spool = _Spool(file)
        reading = _read_source(source, format, False, choice, any_size, lambda new: spool.extend(without.apply(new)))
        yield Stream(spool.merged(), reading.format, reading.notes + without.notes(), reading.parts)


class _Reading(NamedTuple):
    """What reading a source came to, beside its records."""

    path: str
    format: str
    problems: tuple[Problem, ...]
    rows: int
    notes: list[str]
    parts: tuple[PartCounts, ...]


def _read_source(
    source: Source,
    format: str,
    keep_going: bool,
    choice: ColumnChoice,
    any_size: bool,
    keep: Callable[[Sequence[Record]], None],
) -> _Reading:
    """Hand every record of a source to `keep`, in the order of its rows."""
    if isinstance(source, list | tuple) and len(source) == 1 and isinstance(source[0], str | Path):
        source = source[0]
    listed, notes = sources(source)
    several = len(listed) > 1
    files = []
    strangers: list[DataError] = []
    for one in listed:
        try:
            files.append(_open(one, format, choice, keep_going, any_size, several))
        except (NoLayout, _NoRows) as error:
            strangers.append(error)
    _refuse_strangers(strangers, files, listed, notes)
    files = _with_joins(files)
    for layout in {file.layout.name for file in files}:
        Labels.join([file.labels for file in files if file.layout.name == layout])
    problems: list[Problem] = []
    parts: dict[SourceFile, _Part] = {}
    for file in files:
        _read(file, keep, problems, parts, keep_going)
        notes += [f"{file.name.prefix[:-1]}: {note}" if file.name.prefix else note for note in file.all_notes()]
    path = source_path(source)
    if problems and not keep_going:
        raise _summary(problems[:MOST_PROBLEMS], path, several)
    if not keep_going and not any(file.with_answer for file in files) and any(file.layout.is_export for file in files):
        raise DataError(f"has no judged answer. {'; '.join(notes)}", path=path)
    layouts = ", ".join(dict.fromkeys(file.layout.name for file in files))
    title = f"{type(source).__name__} in memory" if path is None else str(path)
    rows = sum(part.rows for part in parts.values())
    return _Reading(title, layouts, tuple(problems), rows, notes, tuple(part.finish() for part in parts.values()))


class _NoRows(DataError):
    """A file without a row: beside others of an export it has nothing to say."""


@dataclass
class _File:
    """A file whose rows are to become records, and what of all its rows each of them needs to know."""

    name: SourceFile
    rows: Iterator[SourceRow]
    columns: frozenset[str]
    layout: Layout
    labels: Labels
    judged_turns: bool
    judgements: Judgements
    notes: list[str]
    with_answer: int = 0
    without_answer: int = 0

    def all_notes(self) -> list[str]:
        """What there is to tell once the file is read."""
        if unread := self.layout.unread(self.columns):
            self.notes.insert(0, f"columns not read: {', '.join(unread)}")
        if self.without_answer and not self.layout.is_export:
            share = f"{self.without_answer} of {self.with_answer + self.without_answer}"
            self.notes.append(f"{share} conversations have no judged answer and were left out")
        return self.notes + self.judgements.notes()


def _open(one: OneSource, format: str, choice: ColumnChoice, keep_going: bool, any_size: bool, several: bool) -> _File:
    """The rows of one file with its layout and labels. Raises DataError where the file as a whole has none."""
    path = one.source if isinstance(one.source, str | Path) else None
    prefix = f"{Path(path).name.partition('.')[0]}/" if several and path is not None else ""
    name = SourceFile(path, prefix, one.weight)
    unread = read_rows(one.source, any_size=any_size, names={old: new for new, old in choice.rename.items()})
    rows = list(unread if choice.rename or choice.ignore else itertools.islice(unread, HEAD))
    if not rows:
        raise _NoRows("has no rows", path=path)
    export = export_of(format, [row for _, row in rows if isinstance(row, dict)])
    if export is None:
        rows += unread
    readable = [row for _, row in rows if isinstance(row, dict)]
    if not readable:
        errors = [Problem(row.reason, path, n, row) for n, row in rows if isinstance(row, Unreadable)]
        raise _summary(errors if keep_going else errors[:MOST_PROBLEMS], path)
    try:
        choice.apply(readable)
        columns = frozenset(column for row in readable for column in row)
        for column in columns:
            plain_text(column, f"the column {column!r}")
        layout = layout_of(format, columns, readable, choice)
    except DataError as error:
        raise type(error)(_printable(error.message), path=path) from None
    file = _File(
        name=name,
        rows=iter(()),
        columns=columns,
        layout=layout,
        labels=Labels((), choice.labels),
        judged_turns=any(map(judges_turns, readable)),
        judgements=Judgements(choice.judgement, choice.judged_by),
        notes=[],
    )
    if choice.labels and layout.thumbs is None:
        file.notes.append(f"--labels is not used: the words of {layout.name} are known")
    if layout.is_export:
        file.rows = _with_columns(itertools.chain(_taken(rows), unread), file)
        return file
    if context_turns := sum(is_context(turn) for row in readable for turn in turns_of(row)):
        file.notes.append(f"{context_turns} turns say train: false or loss: false: they are context and not trained")
    file.labels = _labels_of(layout, ((name, n, row) for n, row in rows), several, choice.labels)
    file.rows = ((name, n, row) for n, row in _taken(rows))
    return file


def _taken(rows: list[T]) -> Iterator[T]:
    """The rows, each of which is let go once it is read: rows and records are never held together."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _with_columns(rows: Iterable[tuple[int, Any]], file: _File) -> Iterator[SourceRow]:
    """The rows of an export, which come one by one. Raises DataError where a later row has a judgement in a new column
    that nobody would read."""
    for number, row in rows:
        if isinstance(row, dict) and not row.keys() <= file.columns:
            file.columns |= row.keys()
            layout_of(file.layout.name, file.columns, [row])
        yield file.name, number, row


def _labels_of(layout: Layout, rows: Iterable[SourceRow], several: bool, words: Mapping[str, bool | None]) -> Labels:
    """The vocabulary of a file's thumbs."""
    if layout.thumbs is None:
        return Labels((), words)

    def where(file: SourceFile) -> str:
        return f" of {_printable(str(file.path))}" if several and file.path is not None else ""

    values = (
        (f"on line {number}{where(file)}", value)
        for file, number, row in rows
        if isinstance(row, dict)
        for value in layout.thumbs(row)
    )
    return Labels(values, words)


def _refuse_strangers(
    strangers: Sequence[DataError], files: Sequence[_File], listed: Sequence[OneSource], notes: list[str]
) -> None:
    """Raises the first of the errors of files without rows or layout, unless they came out of a folder or an archive
    beside an application's export: then they are no feedback, and named in the notes."""
    if not strangers:
        return
    named = {one.name for one in listed}
    homes = {Path(file.name.path).parent for file in files if file.layout.join and file.name.path is not None}
    for error in strangers:
        if error.path is None or str(error.path) in named or Path(error.path).parent not in homes:
            raise error
    notes.append(f"files that hold no feedback: {', '.join(Path(str(error.path)).name for error in strangers)}")


def _with_joins(files: Sequence[_File]) -> list[_File]:
    """The files, of which those that refer to each other are one: its rows are what their join makes of them."""
    parts: dict[Any, list[_File]] = {}
    for i, file in enumerate(files):
        parts.setdefault(file.layout.join or i, []).append(file)
    return [_joined(group) if group[0].layout.join else group[0] for group in parts.values()]


def _joined(group: Sequence[_File]) -> _File:
    first, join = group[0], group[0].layout.join
    assert join is not None
    if len({file.name.weight for file in group}) > 1:
        names = ", ".join(f"{file.name.path}:{file.name.weight:g}" for file in group)
        raise DataError(f"these files are one export and need one weight: {names}", path=first.name.path)
    rows = {
        name: itertools.chain.from_iterable([file.rows for file in group if file.layout.name == name])
        for name in dict.fromkeys(file.layout.name for file in group)
    }
    first.rows = _placed(join(Parts(rows, first.judgements)), first.name.path)
    if first.layout.thumbs is not None:
        listed = list(first.rows)
        first.labels = _labels_of(first.layout, listed, len(group) > 1, first.labels.words)
        first.rows = _taken(listed)
    return first


def _placed(rows: Iterator[T], path: str | Path | None) -> Iterator[T]:
    """The rows; an error about files as a whole says where the first of them is."""
    try:
        yield from rows
    except DataError as error:
        raise DataError(error.message, path=error.path or path, line=error.line) from None


def _read(
    file: _File,
    keep: Callable[[Sequence[Record]], None],
    problems: list[Problem],
    parts: dict[SourceFile, _Part],
    keep_going: bool,
) -> None:
    """Keep the records of a file, add its problems, and count what came from where."""
    most = math.inf if keep_going else len(problems) + MOST_PROBLEMS
    for name, number, row in file.rows:
        part = parts.get(name)
        if part is None:
            path = "(in memory)" if name.path is None else str(name.path)
            part = parts[name] = _Part(path, file.layout.name, name.weight)
        part.rows += 1
        try:
            if isinstance(row, Unreadable):
                raise DataError(row.reason)
            line = FeedbackLine(number, row, file.columns, file.labels, file.judged_turns, name.prefix, file.judgements)
            new = file.layout.read(line)
        except LeftOut as error:
            file.judgements.leave_out(error.message, number)
        except DataError as error:
            problems.append(Problem(error.message, name.path, number, row))
            part.problems += 1
            if len(problems) >= most:
                break
        else:
            if name.weight != 1:
                new = [_weighted(record, name.weight) for record in new]
            keep(list(part.counts.watch(new)))
            file.with_answer += bool(new)
            file.without_answer += not new


def _weighted(record: Record, weight: float) -> Record:
    """The record as it counts in a source of this weight."""
    completions = (replace(c, source_weight=c.source_weight * weight) for c in record.completions)
    return replace(record, completions=tuple(completions))


def _printable(text: str) -> str:
    """`text` with lone surrogates, which no terminal can print, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _summary(errors: Sequence[DataError], path: str | Path | None, several: bool = False) -> DataError:
    """One error for all of them; for a single one, that one."""
    if len(errors) == 1:
        (only,) = errors
        return DataError(only.message, path=only.path, line=only.line, row=only.row, problems=(only,))
    message = f"the first {len(errors)} problems:" if len(errors) == MOST_PROBLEMS else f"{len(errors)} problems:"
    for error in errors:
        where = f"{error.path}:" if several else "row " if path is None else "line "
        message += f"\n  {where}{error.line}{f' ({error.row})' if error.row else ''}: {error.message}"
    if path is not None:
        message += f"\nTo go on with the good rows: prospect check {path} --keep-going GOOD.jsonl"
    return DataError(message, path=path, problems=tuple(errors))


# Records that share a prompt


def merge(records: Iterable[Record]) -> tuple[Record, ...]:
    """One record per prompt (with its tools, template keywords and reference scores), in order of first appearance,
    with unique ids.

    A record without a prompt stays alone: two texts that both begin with nothing have nothing in common.
    """
    every = list(records)
    groups: dict[tuple[int, tuple[float, ...]], list[Record]] = {}
    for i, (record, number) in enumerate(zip(every, prompt_numbers(every), strict=True)):
        groups.setdefault((number if record.prompt else -1 - i, record.reference_scores), []).append(record)
    record_ids, completion_ids = _UniqueNames(), _UniqueNames()
    return tuple(_with_unique_ids(_join(group), record_ids, completion_ids) for group in groups.values())


def _join(group: Sequence[Record]) -> Record:
    """The first record with the completions and pairs of all. An answer that several pairs of the prompt judge, and
    nothing else tells apart, is one completion."""
    first = group[0]
    if len(group) == 1:
        return first
    conversations = tuple(dict.fromkeys(name for record in group for name in record.conversations))
    completions, pairs = list(first.completions), list(first.pairs)
    in_any_pair = any(record.pairs for record in group[1:])
    places = {_identity(c): i for i, c in reversed(list(enumerate(completions)))} if in_any_pair else {}
    for record in group[1:]:
        in_pairs = {side for pair in record.pairs for side in (pair.chosen, pair.rejected)}
        at: list[int] = []
        for i, completion in enumerate(record.completions):
            place = places.get(_identity(completion)) if i in in_pairs else None
            if place is None or place in at:  # a pair of equal answers keeps both sides, for the doctor to find
                place = len(completions)
                completions.append(completion)
                if in_any_pair:
                    places.setdefault(_identity(completion), place)
            at.append(place)
        pairs += [Pair(at[p.chosen], at[p.rejected], p.weight) for p in record.pairs]
    return replace(first, completions=tuple(completions), pairs=tuple(pairs), conversations=conversations)


def _identity(c: Completion) -> str:
    return dumps(
        [
            *(c.content, c.label, c.score, c.weight, c.complete, c.target, c.old_logp, c.source_weight),
            *(getattr(c, key) for key in ORIGIN),
        ]
    )


class _UniqueNames:
    """Gives out names; one that was given out becomes "name#2", "name#3" and so on."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def unique(self, name: str) -> str:
        new, count = name, self._counts.get(name, 0)
        while new in self._counts:
            count += 1
            new = f"{name}#{count}"
        self._counts[name] = max(count, 1)
        self._counts.setdefault(new, 1)
        return new


def _with_unique_ids(record: Record, record_ids: _UniqueNames, completion_ids: _UniqueNames) -> Record:
    """The record with unique ids; most have one."""
    id = record_ids.unique(record.id)
    ids = [completion_ids.unique(c.id) for c in record.completions]
    if id == record.id and ids == [c.id for c in record.completions]:
        return record
    completions = tuple(replace(c, id=new) for c, new in zip(record.completions, ids, strict=True))
    return replace(record, id=id, completions=completions)


class _Spool:
    """Records on disk, in any order of their prompts. Memory knows which of them share a prompt, and where they lie."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._numbers: dict[bytes, int] = {}
        self._prompt, self._start = array("q"), array("q")

    def extend(self, records: Iterable[Record]) -> None:
        for record in records:
            place = len(self._start)  # a record without a prompt shares it with none
            text = dumps([record.prompt or place, record.tools, record.template_kwargs, record.reference_scores])
            key = hashlib.blake2b(text.encode(), digest_size=16).digest()
            self._prompt.append(self._numbers.setdefault(key, len(self._numbers)))
            self._start.append(self._file.tell())
            pickle.dump(record, self._file, pickle.HIGHEST_PROTOCOL)

    def merged(self) -> Iterator[Record]:
        """One record per prompt, in order of first appearance, with unique ids, as `merge` makes them."""
        self._numbers.clear()
        names = _UniqueNames(), _UniqueNames()
        order = sorted(range(len(self._prompt)), key=self._prompt.__getitem__)
        for _, places in itertools.groupby(order, key=self._prompt.__getitem__):
            group = []
            for place in places:
                self._file.seek(self._start[place])
                group.append(pickle.load(self._file))
            yield _with_unique_ids(_join(group), *names)


# Records as lines

dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def to_json(record: Record) -> dict[str, Any]:
    """A line of Prospect JSONL; what has its default value is left out."""
    conversations = record.conversations
    return {"id": record.id, "prompt": record.prompt} | _without_none(
        completions=[_completion_json(c) for c in record.completions],
        pairs=[
            {"chosen": p.chosen, "rejected": p.rejected} | _without_none(weight=None if p.weight == 1 else p.weight)
            for p in record.pairs
        ]
        or None,
        source=record.source or None,
        tools=record.tools,
        template_kwargs=record.template_kwargs,
        conversation_id=conversations if len(conversations) > 1 else next(iter(conversations), None),
        reference_scores=record.reference_scores or None,
    )


def _completion_json(c: Completion) -> dict[str, Any]:
    return {"id": c.id, "content" if isinstance(c.content, str) else "message": c.content} | _without_none(
        label=c.label,
        score=c.score,
        weight=None if c.weight == 1 else c.weight,
        complete=None if c.complete else False,
        target=dict(c.target) or None,
        old_logp=c.old_logp,
        source_weight=None if c.source_weight == 1 else c.source_weight,
        **{key: getattr(c, key) or None for key in ORIGIN},
    )


def _without_none(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def digest(records: Sequence[Record]) -> str:
    """SHA-256 of the records: equal for the same feedback from a packed and an unpacked file."""
    sha = hashlib.sha256()
    for record, prompt in zip(records, prompt_digests(records), strict=True):
        sha.update(prompt + dumps(to_json(replace(record, prompt=""))).encode() + b"\n")
    return sha.hexdigest()
