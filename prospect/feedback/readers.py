"""A line of a file, and one reader per public layout: a line becomes records (usually one, a judged conversation
several).

A reader sees one line and trusts nothing. It raises DataError without a place; `load.load` adds file and line, merges
records that share a prompt and checks that the file's labels speak one vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from prospect.errors import DataError, nearest, written
from prospect.feedback import messages as chat
from prospect.feedback.messages import Labels
from prospect.feedback.records import EXAMPLES, ORIGIN, Completion, Message, Pair, Prompt, Record, cite

ORIGIN_COLUMNS = ("by", "at", "model", "note")
"""Columns that say where a row's judgement and answers come from, in any layout."""


COMMON = (
    "id",
    "source",
    "tools",
    "template_kwargs",
    "chat_template_kwargs",
    "weight",
    "complete",
    "reference_scores",
    *ORIGIN_COLUMNS,
)
"""Optional columns of every layout."""

_OTHER_CONVERSATION_IDS = "conversation_hash conv_id convo_id chat_id thread_id session_id dialog_id dialogue_id"
CONVERSATION_IDS = ("conversation_id", *_OTHER_CONVERSATION_IDS.split())
"""Columns that name the conversation of a line, in any layout."""

THUMBS = ("label", "kto_tag", "rating")
"""Columns that may hold the thumb of a whole line."""

SIDES, SIDE_SCORES = ("chosen", "rejected"), ("score_chosen", "score_rejected")

_COMPLETION_KEYS = (
    *("id", "content", "message", "label", "score", "weight", "complete", "target", "old_logp", "source_weight"),
    *ORIGIN,
)
_BESIDE_COMPLETIONS = ("completion", "label", "score", "weight", "complete", "target", "old_logp")
"""Columns of a flat line that have no meaning beside a list of completions."""


JudgedBy = Literal["person", "model", "any"]


class LeftOut(DataError):
    """A row that is sound and says nothing to learn from. It is counted with its reason, and is no problem."""


class Judgements:
    """Which judgements of a file are read, and what was left out of it.

    `name` is the name of the score, question or key to read; "" is the only one that the file has. `by` says whose
    judgements count: a person's, a model's, or any.
    """

    def __init__(self, name: str = "", by: JudgedBy = "person") -> None:
        self.name, self.by = name, by
        self._only: tuple[str, int] | None = None
        self._left_out: dict[str, list[int]] = {}
        self._remarks: dict[str, list[int]] = {}

    def counts(self, *, by_model: bool) -> bool:
        """Whether a judgement of a person, or of a model, is one to read."""
        return self.by == "any" or (self.by == "model") == by_model

    def choose(self, names: Iterable[str], number: int) -> str | None:
        """The name to read among the `names` of judgements in row `number`, None where they lack it. Raises DataError
        where there are several, here or in an earlier row, and nobody said which."""
        present = sorted(set(names))
        if self.name:
            return self.name if self.name in present else None
        if not present:
            return None
        name, first = self._only = self._only or (present[0], number)
        if others := [other for other in present if other != name]:
            every = ", ".join(f'"{one}"' for one in sorted({name, *others}))
            raise DataError(
                f"has judgements named {every} (the first in row {first}). Say which one to read: --judgement {name}"
            )
        return name

    def leave_out(self, reason: str, number: int) -> None:
        """Count row `number`, which makes no record, and name the reason."""
        self._left_out.setdefault(reason, []).append(number)

    def remark(self, remark: str, number: int) -> None:
        """Something to tell about row `number`, which is read."""
        self._remarks.setdefault(remark, []).append(number)

    def notes(self) -> list[str]:
        """What was left out, and why, then what there is to tell."""
        return [f"{_rows(numbers)} left out: {reason}" for reason, numbers in self._left_out.items()] + [
            f"{_rows(numbers)}: {remark}" for remark, numbers in self._remarks.items()
        ]


def _rows(numbers: Sequence[int]) -> str:
    """How many rows, and the first of them: "7 rows (3, 4, 9, ...)"."""
    few = ", ".join(map(str, numbers[:EXAMPLES])) + (", ..." if len(numbers) > EXAMPLES else "")
    return f"{len(numbers)} row{'' if len(numbers) == 1 else 's'} ({few})"


@dataclass(frozen=True, slots=True)
class FeedbackLine:
    """One line, with what its reader must know of the file: all its `columns`, the vocabulary of its `labels`, whether
    it judges single turns, and which of its `judgements` to read. `prefix` tells the files of one source apart."""

    number: int
    values: Mapping[str, Any]
    columns: frozenset[str]
    labels: Labels
    judged_turns: bool = False
    prefix: str = ""
    judgements: Judgements = field(default_factory=Judgements)

    @property
    def id(self) -> str:
        """The line's own id, or "line12"."""
        return identifier(self.values.get("id"), f"{self.prefix}line{self.number}")

    def get(self, column: str) -> Any:
        return self.values.get(column)

    def thumb(self, column: str) -> bool:
        """Whether the label in `column` says desirable."""
        if column not in self.values:
            raise DataError(f"has no {column}, though other rows do. Judge the row or leave it out")
        if self.labels.says_nothing(self.values[column]):
            raise LeftOut(f"its {column} is {chat.excerpt(self.values[column])}, which --labels calls no judgement")
        return self.labels.read(self.values[column])

    def remark(self, remark: str) -> None:
        """Something to tell about this line, which is read."""
        self.judgements.remark(remark, self.number)

    def judgement(self, value: Any) -> tuple[bool | None, float | None]:
        """(thumb, score) of a value that may be either: where one number of the file is no thumb, all are scores."""
        if self.labels.are_scores and not isinstance(value, bool) and isinstance(value, int | float):
            return None, number({"value": value}, "value")
        if self.labels.says_nothing(value):
            raise LeftOut(f"its judgement is {chat.excerpt(value)}, which --labels calls none")
        return self.labels.read(value), None

    def record(
        self, prompt: Prompt, completions: tuple[Completion, ...], pairs: tuple[Pair, ...] = (), id: str = ""
    ) -> Record:
        """A record with this line's source, tools and template keywords."""
        source = self.get("source")
        return Record(
            id=chat.plain_text(id, "id") if id else self.id,
            prompt=prompt,
            completions=completions,
            pairs=pairs,
            source="" if source is None else chat.plain_text(str(source), "source"),
            tools=_tools(self.get("tools")),
            template_kwargs=_template_kwargs(self.values),
            conversations=tuple(
                dict.fromkeys((*_conversations(self.values), *(c.conversation for c in completions if c.conversation)))
            ),
            reference_scores=_reference_scores(self.get("reference_scores")),
        )

    def completion(
        self,
        id: str,
        content: str | Message,
        label: bool | None,
        score: float | None,
        values: Mapping[str, Any],
        target: Any = None,
    ) -> Completion:
        """An answer with the weight, the completeness, the old log-prob and the origin (`records.ORIGIN`) that `values`
        give."""
        old = _old_logp(values) if "old_logp" in values else None
        rest: dict[str, Any] = {} if values.keys().isdisjoint(ORIGIN) else _origin(values)
        if values.get("source_weight") is not None:
            rest["source_weight"] = weight(values, "source_weight")
        id, whole = chat.plain_text(id, "id"), complete(values)
        return Completion(id, content, label, score, weight(values), whole, _target(target), self.number, old, **rest)

    def single(
        self,
        prompt: Prompt,
        value: Any,
        column: str,
        thumb: str | None = None,
        score: str | None = None,
        target: str | None = None,
        required: bool = True,
    ) -> list[Record]:
        """One record with one answer, `value` in `column`; its judgement stands in the columns `thumb` and `score`,
        which are `required` where other lines have them, and its `target` in that column."""
        _require_same_form(prompt, value, column)
        content = chat.answer(value, column)
        columns = self.columns if required else self.values
        label = None if thumb is None or thumb not in columns else self.thumb(thumb)
        grade = number(self.values, score)
        if required and grade is None and label is None and score in self.columns:
            raise DataError(f"{score} is missing, though other rows have one. Score the row or leave it out")
        aim = None if target is None else self.get(target)
        return [self.record(prompt, (self.completion(self.id, content, label, grade, self.values, aim),))]

    def pair(
        self,
        prompt: Prompt,
        chosen: Any,
        rejected: Any,
        columns: tuple[str, str] = SIDES,
        scores: tuple[str, str] = SIDE_SCORES,
    ) -> list[Record]:
        """One record with one pair, whose sides stand in `columns`; the line's weight is the pair's."""
        for value, column in zip((chosen, rejected), columns, strict=True):
            _require_same_form(prompt, value, column)
        values = {"complete": self.get("complete")} | {
            key: self.values[key] for key in ORIGIN_COLUMNS if key in self.values
        }
        completions = tuple(
            self.completion(f"{self.id}/{side}", chat.answer(value, column), None, number(self.values, score), values)
            for side, value, column, score in zip(SIDES, (chosen, rejected), columns, scores, strict=True)
        )
        return [self.record(prompt, completions, (Pair(0, 1, weight(self.values)),))]


def _require_same_form(prompt: Prompt, answer: Any, where: str) -> None:
    """Text prompts have text answers: a chat answer says nothing about how the text prompt is to be rendered."""
    if isinstance(prompt, str) and isinstance(answer, dict | list | tuple):
        raise DataError(f"prompt is text but {where} is a chat message. Write both as text or both as messages")


# Columns and keys that stand anywhere


def identifier(value: Any, default: str, where: str = "id") -> str:
    """An id: `value`, or `default` where there is none."""
    if value is None or value == "":
        return default
    text = written(value, str)
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, int) and text == "..."):
        raise DataError(f"{where} must be text or a whole number, not {chat.excerpt(value)}")
    return chat.plain_text(text, where)


def number(values: Mapping[str, Any], key: str | None) -> float | None:
    """A finite number, or None where the key is absent or null."""
    value = None if key is None else values.get(key)
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


def weight(values: Mapping[str, Any], key: str = "weight") -> float:
    """The importance of a line, an answer or a pair, 1 where none is given."""
    value = number(values, key)
    if value is not None and value < 0:
        raise DataError(f"{key} must be 0 or more, not {value:g}. To unlearn an answer, label it undesirable")
    return 1.0 if value is None else value


def _old_logp(values: Mapping[str, Any]) -> float | None:
    """The log-prob of an answer in nats, at most 0."""
    value = number(values, "old_logp")
    if value is not None and value > 0:
        raise DataError(f"old_logp must be 0 or less, the natural logarithm of a probability, not {value:g}")
    return value


def complete(values: Mapping[str, Any]) -> bool:
    """False where the generator was cut off."""
    value = values.get("complete")
    if value is not None and not isinstance(value, bool):
        raise DataError(f"complete must be true or false, not {chat.excerpt(value)}")
    return value is not False


def _reference_scores(value: Any) -> tuple[float, ...]:
    if value is None or value == "":
        return ()
    value = chat.from_json(value, "reference_scores")
    if not isinstance(value, list | tuple) or not value:
        raise DataError(
            "reference_scores must be a list of numbers, the scores of the reference model's own answers to the "
            f"prompt, not {chat.excerpt(value)}"
        )
    if None in value:
        raise DataError(f"reference_scores[{value.index(None)}] is null. Score that answer or leave it out")
    by_name = {f"reference_scores[{i}]": score for i, score in enumerate(value)}
    return tuple(number(by_name, name) or 0.0 for name in by_name)


def _target(value: Any) -> tuple[tuple[str, float], ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = chat.from_json(value, "target")
    if not isinstance(value, dict):
        raise DataError(
            'target must be an object of answers and their probabilities, such as {"Yes": 0.7, "No": 0.3}, not '
            f"{chat.excerpt(value)}. A column that means something else: prospect convert IN OUT.jsonl --ignore target"
        )
    probabilities: list[tuple[str, float]] = []
    for answer, share in value.items():
        if share is None:  # tables give every row the keys of all rows
            continue
        name = f"the probability of {cite(chat.plain_text(answer, 'an answer of target'))} in target"
        probability = number({name: share}, name) or 0.0
        if not 0 <= probability <= 1:
            raise DataError(f"{name} must be from 0 to 1, not {probability:g}")
        probabilities.append((answer, probability))
    total = sum(probability for _, probability in probabilities)
    if value and not probabilities:
        return ()
    if len(probabilities) < 2:
        raise DataError("target needs two answers or more, since it says how likely each is beside the others")
    if abs(total - 1) > 1e-6:
        raise DataError(f"the probabilities of target must sum to 1, not {total:g}. Divide each by their sum")
    return tuple(probabilities)


def _origin(values: Mapping[str, Any]) -> dict[str, str]:
    """Who judged an answer, when, and so on, as `values` say it."""
    origin = {
        key: sys.intern(identifier(values.get(key), "", key))
        for key in ORIGIN
        if key != "at" and values.get(key) is not None
    }
    return origin | ({} if values.get("at") in (None, "") else {"at": chat.moment(values["at"], "at")})


def _tools(value: Any) -> tuple[dict[str, Any], ...] | None:
    value = chat.from_json(value, "tools") if value != "" else None
    if value is None or value == []:
        return None
    if not chat.is_messages(value):
        raise DataError(f"tools must be a list of function descriptions, not {chat.excerpt(value)}")
    return tuple(chat.jsonable(value, "tools"))


def _template_kwargs(values: Mapping[str, Any]) -> dict[str, Any] | None:
    column = "template_kwargs" if values.get("template_kwargs") is not None else "chat_template_kwargs"
    value = chat.from_json(values.get(column) or None, column)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise DataError(f"{column} must be an object, not {chat.excerpt(value)}")
    return chat.jsonable(value, column) or None


def _conversations(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids of the conversations that a line is from. "conversation_id" may list several, as Prospect writes it; an
    id of another column is told apart by its name."""
    ids: dict[str, None] = {}
    for column in CONVERSATION_IDS:
        value = values.get(column)
        for one in value if isinstance(value, list | tuple) else (value,):
            whole = int(one) if isinstance(one, float) and one.is_integer() else one  # a column of numbers with gaps
            if name := identifier(whole, "", column):
                ids[name if column == "conversation_id" else f"{column} {name}"] = None
    return tuple(ids)


def thumbs_of(values: Mapping[str, Any]) -> Iterator[Any]:
    """Every value in a line that some layout reads as a thumb, as it stands in the file."""
    yield from (values[column] for column in THUMBS if column in values)
    for column, keys in (("completions", ("label",)), *((name, chat.TURN_THUMBS) for name in chat.CONVERSATIONS)):
        parts = values.get(column)
        for part in parts if isinstance(parts, list | tuple) else ():
            if isinstance(part, dict):
                yield from (part[key] for key in keys if key in part)


# The declaration of a layout


class SourceFile(NamedTuple):
    """A file that rows come from (None: memory), what tells its default ids from other files', and how much its answers
    count beside theirs."""

    path: str | Path | None
    prefix: str
    weight: float = 1.0


SourceRow = tuple[SourceFile, int, Any]
"""A row with its place: its columns as a dict, or an `Unreadable`."""


class Parts(NamedTuple):
    """The files of an export whose rows refer to each other: per name of a layout its rows, which are read once."""

    rows: Mapping[str, Iterable[SourceRow]]
    judgements: Judgements


@dataclass(frozen=True, slots=True)
class Layout:
    """`needs` are the columns that make it out ("trace_id|traceId": either name), `reads` the optional ones beside
    COMMON: all that its reader looks at. `judged_by` are the columns that carry its judgement; of messages with
    judgements of their own, `turns` is the column. The reader looks at all that lies in the columns `objects`. `looks`
    may ask a row itself.

    `thumbs` gives every value of a row that may be a thumb, for the vocabulary of the file. None says that the reader
    knows the words of its application: rows are then read one by one and never held together. `join` makes the rows
    that are read, of all files whose layouts have the same join.
    """

    name: str
    needs: tuple[str, ...]
    read: Callable[[FeedbackLine], list[Record]]
    reads: tuple[str, ...] = ()
    judged_by: tuple[str, ...] = ()
    turns: str = ""
    objects: tuple[str, ...] = ()
    thumbs: Callable[[Mapping[str, Any]], Iterable[Any]] | None = thumbs_of
    looks: Callable[[Mapping[str, Any]], bool] = lambda row: True
    join: Callable[[Parts], Iterator[SourceRow]] | None = None

    @property
    def columns(self) -> str:
        """What it needs: "instruction + output"."""
        return " + ".join(need.replace("|", " or ") for need in self.needs)

    @property
    def is_export(self) -> bool:
        """Whether its first rows make it out, so that a file need not be held to be read."""
        return self.thumbs is None or self.join is not None

    def missing(self, columns: Collection[str]) -> list[str]:
        """The needed columns that are not among `columns`."""
        return [need for need in self.needs if not any(name in columns for name in need.split("|"))]

    def unread(self, columns: frozenset[str]) -> list[str]:
        """The columns that the layout does not read."""
        needs = (name for need in self.needs for name in need.split("|"))
        every = columns if "*" in self.reads else frozenset()
        return sorted(columns - {*needs, *every, *self.reads, *self.judged_by, *COMMON, *CONVERSATION_IDS})


# Prospect's own lines


def prospect(line: FeedbackLine) -> list[Record]:
    """{"prompt", "completions": [...], "pairs": [...]}, or a flat line."""
    if "completions" not in line.values:
        if line.get("pairs"):
            raise DataError("pairs stands beside a single completion. Pairs belong to a row with completions")
        return flat(line)
    if strays := [key for key in _BESIDE_COMPLETIONS if line.get(key) is not None]:
        raise DataError(
            f"{' and '.join(strays)} beside completions belong{'s' if len(strays) == 1 else ''} to none of them. "
            'Write it into the completion: {"completions": [{"content": ..., "label": ...}]}'
        )
    values = line.get("completions")
    if not isinstance(values, list | tuple) or not values:
        raise DataError(f"completions must be a non-empty list, not {chat.excerpt(values)}")
    prompt = "" if line.get("prompt") == "" else chat.prompt(line.get("prompt"))
    completions = tuple(_own_completion(line, i, value) for i, value in enumerate(values))
    pairs = line.get("pairs") or ()
    if not isinstance(pairs, list | tuple):
        raise DataError(f"pairs must be a list, not {chat.excerpt(pairs)}")
    for i, completion in enumerate(completions):
        _require_same_form(prompt, completion.content, f"completions[{i}]")
    return [line.record(prompt, completions, tuple(_own_pair(pair, len(completions)) for pair in pairs))]


def _own_completion(line: FeedbackLine, index: int, value: Any) -> Completion:
    where = f"completions[{index}]"
    if isinstance(value, str):
        value = {"content": value}
    if not isinstance(value, dict):
        raise DataError(f"{where} must be an object with content, not {chat.excerpt(value)}")
    for key in value:
        if key not in _COMPLETION_KEYS:
            absent = () if {"content", "message"} & value.keys() else ("content", "message")
            hint = nearest(key, absent) or nearest(key, _COMPLETION_KEYS)
            raise DataError(f'{where} has an unknown key "{key}".{hint}')
    if ("content" in value) == ("message" in value):
        raise DataError(f"{where} needs content (text) or message (an assistant message), and not both")
    id, answer = identifier(value.get("id"), f"{line.id}/{index}"), value.get("content", value.get("message"))
    label = value.get("label")
    label = None if label is None or line.labels.says_nothing(label) else line.labels.read(label)
    return line.completion(id, chat.answer(answer, where), label, number(value, "score"), value, value.get("target"))


def _own_pair(value: Any, count: int) -> Pair:
    if isinstance(value, list | tuple) and len(value) == 2:
        value = dict(zip(SIDES, value, strict=True))
    if not isinstance(value, dict):
        raise DataError(f"a pair is [chosen, rejected], not {chat.excerpt(value)}")
    for side in map(value.get, SIDES):
        if isinstance(side, bool) or not isinstance(side, int) or not 0 <= side < count:
            raise DataError(f"a pair names its sides by index, from 0 to {count - 1}, not {chat.excerpt(side)}")
    return Pair(value["chosen"], value["rejected"], weight(value))


# One answer per line


def flat(line: FeedbackLine) -> list[Record]:
    """{"prompt", "completion"} with "label", "score", both or neither, and perhaps a "target" and an "old_logp"."""
    mixed = "completions" in line.columns  # Prospect's own file, where every line may be judged or not
    prompt, answer = chat.prompt(line.get("prompt")), line.get("completion")
    return line.single(prompt, answer, "completion", "label", "score", "target", required=not mixed)


def halos(line: FeedbackLine) -> list[Record]:
    """{"prompt", "output": [message], "label", "reward"} as HALOs labels its samples."""
    return line.single(chat.prompt(line.get("prompt")), line.get("output"), "output", "label", "reward")


def text(line: FeedbackLine) -> list[Record]:
    """{"text"}: imitated as it is, without a prompt."""
    value = chat.plain_text(line.get("text"), "text")
    if not value.strip():
        raise DataError("text is blank")
    return line.single("", value, "text")


def _with_thumb(line: FeedbackLine, prompt: Prompt, answer: Any, where: str) -> list[Record]:
    """One answer with the line's own thumb and score, where it has them."""
    columns = [column for column in THUMBS if column in line.columns]
    if len(columns) > 1:
        raise DataError(f"has the columns {' and '.join(columns)}; which one is the thumb? Keep one of them")
    return line.single(prompt, answer, where, columns[0] if columns else None, "score")


# Pairs


def paired(line: FeedbackLine) -> list[Record]:
    """{"prompt", "chosen", "rejected"}; without a prompt, the turns that two conversations share are it."""
    chosen, rejected, prompt = line.get("chosen"), line.get("rejected"), line.get("prompt")
    if prompt is None and not chat.is_messages(chosen):  # LLaMA-Factory's preferences with OpenAI's keys, veRL's
        prompt = line.get("messages")
    if chat.is_messages(chosen) and chat.is_messages(rejected):
        return line.pair(*shared_turns(prompt, chosen, rejected))
    if prompt is None:
        raise DataError("has no prompt, and chosen and rejected are no conversations that could share one")
    return line.pair(chat.prompt(prompt), chosen, rejected)


def shared_turns(prompt: Any, chosen: Any, rejected: Any) -> tuple[Prompt, Any, Any]:
    """The prompt of two conversations, and what each says after it."""
    a, b = chat.messages(chosen, "chosen"), chat.messages(rejected, "rejected")
    lead = 0
    while lead < min(len(a), len(b)) - 1 and a[lead] == b[lead]:
        lead += 1
    shared = a[:lead]
    if prompt is None:
        chat.with_text(shared, "what chosen and rejected share")
        return shared, a[lead:], b[lead:]
    prompt = chat.prompt(prompt)
    if isinstance(prompt, str):
        _require_same_form(prompt, None if any(m.get("content") == prompt for m in shared) else a, "chosen")
        return shared, a[lead:], b[lead:]
    return shared if shared[: len(prompt)] == prompt else prompt + shared, a[lead:], b[lead:]


def halos_pairs(line: FeedbackLine) -> list[Record]:
    """{"prompt", "output_A", "output_B", "label": 1 if A is the better one, "reward_A", "reward_B"}."""
    better, worse = ("A", "B") if line.thumb("label") else ("B", "A")
    columns, rewards = (f"output_{better}", f"output_{worse}"), (f"reward_{better}", f"reward_{worse}")
    return line.pair(chat.prompt(line.get("prompt")), line.get(columns[0]), line.get(columns[1]), columns, rewards)


def transcripts(line: FeedbackLine) -> list[Record]:
    """Anthropic's {"chosen", "rejected"}, both "\\n\\nHuman: ...\\n\\nAssistant: ...", alike up to the last answer."""
    chosen, rejected = (chat.transcript(line.get(side), side) for side in SIDES)
    if chosen[:-1] != rejected[:-1]:
        raise DataError("chosen and rejected differ before their last answer, so they answer no common prompt")
    return line.pair(chat.with_text(chosen[:-1]), chosen[-1:], rejected[-1:])


# LLaMA-Factory's instructions


def alpaca(line: FeedbackLine) -> list[Record]:
    """{"instruction", "input", "system", "history", "output", "kto_tag"}, or with a pair [better, worse] of texts as
    its output."""
    prompt, output = instruction_prompt(line), line.get("output")
    if isinstance(output, list | tuple) and len(output) == 2 and all(isinstance(side, str) for side in output):
        if line.columns.intersection((*THUMBS, "score")):
            raise DataError(
                "output is a pair [better, worse], so it has no thumb or score of its own. Keep one of them"
            )
        return line.pair(prompt, output[0], output[1], columns=("output[0]", "output[1]"))
    return _with_thumb(line, prompt, output, "output")


def alpaca_pairs(line: FeedbackLine) -> list[Record]:
    """{"instruction", "input", "system", "history", "chosen", "rejected", "score_chosen", "score_rejected"}."""
    return line.pair(instruction_prompt(line), line.get("chosen"), line.get("rejected"))


def instruction_prompt(line: FeedbackLine) -> tuple[Message, ...]:
    """The prompt of a line of Alpaca."""
    turns = _system(line)
    history = chat.from_json(line.get("history"), "history") if line.get("history") else []
    if not isinstance(history, list | tuple) or any(not isinstance(v, list | tuple) or len(v) != 2 for v in history):
        raise DataError(f"history must be a list of [question, answer], not {chat.excerpt(history)}")
    for question, reply in history:
        turns.append({"role": "user", "content": chat.plain_text(question, "history")})
        turns.append({"role": "assistant", "content": chat.plain_text(reply, "history")})
    lines = [line.get("instruction"), line.get("input")]
    question = "\n".join(chat.plain_text(text, "instruction or input") for text in lines if text)
    if not question.strip():
        raise DataError("instruction is blank")
    return (*turns, {"role": "user", "content": question})


def _system(line: FeedbackLine) -> list[Message]:
    text = line.get("system")
    return [{"role": "system", "content": chat.plain_text(text, "system")}] if text else []


# Conversations


def conversation(line: FeedbackLine) -> list[Record]:
    """{"messages"} or {"conversations"}: judged turn by turn, or as a whole (then its last answer is meant), or not at
    all (then every answer is imitated)."""
    column = "conversations" if "conversations" in line.columns else "messages"
    system, turns, values = _system(line), _turns(line, column), line.get(column)
    if line.columns.intersection((*THUMBS, "score")):
        if line.judged_turns:
            raise DataError("the file judges both rows and single turns. Keep one of the two")
        if chat.is_context(values[-1]):
            return []
        return _with_thumb(line, chat.with_text((*system, *turns[:-1])), turns[-1], f"the last of {column}")
    records = []
    for i, (turn, value) in enumerate(zip(turns, values, strict=True)):
        prompt = (*system, *turns[:i])
        if line.judged_turns:
            words = [value[key] for key in chat.TURN_THUMBS if value.get(key) is not None]
            is_answer = chat.is_judged(value) and not (words and all(map(line.labels.says_nothing, words)))
        else:  # a greeting answers nobody: it is context, not a completion
            is_answer = turn["role"] == "assistant" and any(m["role"] not in ("system", "developer") for m in prompt)
        if is_answer and not chat.is_context(value):
            records.append(_turn(line, prompt, turn, value, f"{column}: message {i + 1}", f"{line.id}/turn{i + 1}"))
    return records


def conversation_pairs(line: FeedbackLine) -> list[Record]:
    """{"conversations", "chosen", "rejected"}: the conversation is the prompt of the pair."""
    prompt = chat.with_text((*_system(line), *_turns(line, "conversations")))
    return line.pair(prompt, line.get("chosen"), line.get("rejected"))


def _turns(line: FeedbackLine, column: str) -> tuple[Message, ...]:
    turns = chat.messages(line.get(column), column)
    for i, value in enumerate(line.get(column), 1):
        chat.check_flags(value, f"{column}: message {i}")
    return turns


def _turn(
    line: FeedbackLine, prompt: tuple[Message, ...], turn: Message, value: Mapping[str, Any], where: str, id: str
) -> Record:
    """One turn (`value` with its judgement) as the answer to the turns before it."""
    thumbs = [key for key in chat.TURN_THUMBS if value.get(key) is not None]
    if len(thumbs) > 1:
        raise DataError(f"{where} has a label and a rating. Keep one of them")
    label = line.labels.read(value[thumbs[0]]) if thumbs else None
    whole = complete(value) and complete(line.values)
    values = {"weight": (value if "weight" in value else line.values).get("weight"), "complete": whole}
    values |= {key: line.values[key] for key in ORIGIN_COLUMNS if key in line.values}
    completion = line.completion(id, chat.answer(turn, where), label, number(value, "score"), values)
    return line.record(chat.with_text(prompt, f"{where}: its prompt"), (completion,), id=id)
