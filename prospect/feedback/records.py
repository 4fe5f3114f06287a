"""What people said about answers: one Record per prompt, whichever lines of the file its completions came from.

    Record(id="r0", prompt=({"role": "user", "content": "2 + 2?"},), completions=(
        Completion(id="r0/0", content="4", label=True, line=1),
        Completion(id="r0/1", content="5", label=False, line=7)))

Views serve the losses: `binary` (each completion with a thumb), `pairs` (chosen over rejected), `scores`, `groups` (all
scored completions of a prompt); `text` serves SFT.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any, Literal

from prospect.errors import ConfigError, DataError

Message = dict[str, Any]
"""A chat message: "role", "content" and whatever else the chat template reads ("tool_calls", "name", ...)."""

Prompt = str | tuple[Message, ...]
View = Literal["binary", "pairs", "scores", "groups", "text"]

ORIGIN = ("by", "at", "model", "note", "conversation")
"""What a completion may say of where it comes from."""

EQUAL = 1e-6
"""Standard deviation of a group's scores up to which they count as equal."""
EXAMPLES = 5
"""Examples that a message to people gives of whatever it counts."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a record's prompt.

    `content` is text, or an assistant message where it carries more than text. `label` is the thumb (True desirable,
    False undesirable, None unknown), `score` a graded judgement, `weight` its importance (>= 0), `complete` False if
    the generator was cut off, `target` how likely which answers are to be where they first differ, `old_logp` the
    log-prob in nats of the whole answer under the policy that gave it (None unknown), `line` where it stands in its
    file (1-based, 0 unknown; it plays no part in equality).
    Where it comes from, empty where unknown: `by` who judged it, `at` when (ISO 8601, UTC), the `model` that wrote it,
    the rater's `note`, and the `conversation` that it stands in. `source_weight` is how much its source counts beside
    others: a factor of every row that is made of the answer, of a pair's once and not for either side.
    """

    id: str
    content: str | Message
    label: bool | None = None
    score: float | None = None
    weight: float = 1.0
    complete: bool = True
    target: tuple[tuple[str, float], ...] = ()
    line: int = field(default=0, compare=False)
    old_logp: float | None = None
    by: str = ""
    at: str = ""
    model: str = ""
    note: str = ""
    conversation: str = ""
    source_weight: float = 1.0

    @property
    def text(self) -> str:
        """The answer as plain text."""
        content = self.content if isinstance(self.content, str) else self.content.get("content")
        return content if isinstance(content, str) else ""

    @property
    def readable(self) -> str:
        """All that the answer says, tool calls included, for people."""
        return readable(self.content)

    @property
    def key(self) -> str:
        """Equal for equal answers: the text, or of a message all of it but the random ids of its tool calls."""
        if isinstance(self.content, str):
            return self.content
        calls = [{k: v for k, v in call.items() if k != "id"} for call in self.content.get("tool_calls") or ()]
        return json.dumps({**self.content, "tool_calls": calls}, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """`chosen` and `rejected` are indices into the record's completions."""

    chosen: int
    rejected: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """One prompt (text or chat messages) with every completion judged for it. `tools` and `template_kwargs` go to the
    chat template. `conversations` are the ids of the conversations that it comes from: they stay on one side of a
    split. `reference_scores` are those of answers that the reference model itself gave to the prompt."""

    id: str
    prompt: Prompt
    completions: tuple[Completion, ...]
    pairs: tuple[Pair, ...] = ()
    source: str = ""
    tools: tuple[dict[str, Any], ...] | None = None
    template_kwargs: dict[str, Any] | None = None
    conversations: tuple[str, ...] = ()
    reference_scores: tuple[float, ...] = ()


def as_chat(record: Record) -> Record:
    """A record whose prompt is text, as a user's message; any other one, and one without a prompt, as it is."""
    if not isinstance(record.prompt, str) or not record.prompt:
        return record
    return replace(record, prompt=({"role": "user", "content": record.prompt},))


# For people to read


def readable(content: Prompt | Message) -> str:
    """A prompt, message or answer for people: text as it is, a message as its reasoning, text and tool calls, a
    conversation as its messages with their roles (a lone one without, unless it is a system message)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, dict):
        if len(content) == 1 and content[0].get("role") != "system":
            return readable(content[0])
        return "\n".join(f"{message.get('role')}: {readable(message)}" for message in content)
    texts = [text for key in ("reasoning_content", "content") if isinstance(text := content.get(key), str) and text]
    for call in content.get("tool_calls") or ():
        function = function_of(call)
        arguments = json.dumps(function.get("arguments"), ensure_ascii=False, default=str)
        texts.append(f"{function.get('name')}({arguments})")
    return "\n".join(texts)


def function_of(call: Any) -> dict[str, Any]:
    """Name and arguments of a tool call, which stand in "function", or in the call itself."""
    if not isinstance(call, dict):
        return {}
    function = call.get("function")
    return function if isinstance(function, dict) else call


def cite(text: str, size: int = 60) -> str:
    """The beginning of a text on one line, in quotation marks."""
    line = " ".join(text.split())
    return f'"{line}"' if len(line) <= size else f'"{line[: size - 1]}…"'


def cite_end(text: str) -> str:
    """The end of a text on one line, in quotation marks: conversations often begin alike."""
    line = " ".join(text.split())
    return cite(line if len(line) <= 60 else f"…{line[-58:]}")


def at(completion: Completion) -> str:
    """Where a completion stands: "line 12 (r0/1)"."""
    return f"line {completion.line} ({completion.id})" if completion.line else completion.id


class Inventory:
    """What the data holds: "12 completions to 9 prompts: 7 desirable, 5 undesirable, 0 scored, 0 pairs"."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("completions", "prompts", "desirable", "undesirable", "scored", "pairs"), 0)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """The same records, counted as they pass."""
        counts = self._counts
        for record in records:
            labels = [c.label for c in record.completions]
            counts["completions"] += len(labels)
            counts["prompts"] += 1
            counts["desirable"] += labels.count(True)
            counts["undesirable"] += labels.count(False)
            counts["scored"] += sum(c.score is not None for c in record.completions)
            counts["pairs"] += len(record.pairs)
            yield record

    def to_json(self) -> dict[str, int]:
        """The counts by name."""
        return dict(self._counts)

    def __str__(self) -> str:
        completions, prompts, *rest = (f"{count} {name}" for name, count in self._counts.items())
        return f"{completions} to {prompts}: {', '.join(rest)}"


def inventory(records: Iterable[Record]) -> str:
    """What the data holds, in a sentence."""
    counts = Inventory()
    for _ in counts.watch(records):
        pass
    return str(counts)


# Parts of a record


def part_of(record: Record, places: Sequence[int]) -> Record:
    """The record with the completions at `places`, and the pairs of which both sides stay."""
    if len(places) == len(record.completions):
        return record
    new = {old: i for i, old in enumerate(places)}
    pairs = tuple(
        replace(pair, chosen=new[pair.chosen], rejected=new[pair.rejected])
        for pair in record.pairs
        if pair.chosen in new and pair.rejected in new
    )
    return replace(record, completions=tuple(record.completions[i] for i in places), pairs=pairs)


class IdList:
    """Ids of what is to be left out: of answers, records, raters or conversations. "x" also names "x#2", which is how a
    second "x" is called."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._unused = dict.fromkeys(ids)
        self._ids = frozenset(self._unused)
        self._left_out = 0

    def apply(self, records: Sequence[Record]) -> Sequence[Record]:
        """The records without what the ids name; one without an answer left is none."""
        return [rest for record in records if (rest := self._rest(record))] if self._ids else records

    def notes(self) -> list[str]:
        """How much was left out, and which ids name nothing."""
        if not self._ids:
            return []
        notes = [f"{self._left_out} answers left out, as the list of ids says"]
        if self._unused:
            names = ", ".join(list(self._unused)[:EXAMPLES]) + (", ..." if len(self._unused) > EXAMPLES else "")
            notes.append(f"{len(self._unused)} of the ids name nothing in the data: {names}")
        return notes

    def _rest(self, record: Record) -> Record | None:
        """An answer that names no conversation of its own is from all of its record's."""
        whole = self._names(record.id)
        rest = [
            i
            for i, c in enumerate(record.completions)
            if not self._names(c.id, c.by, *((c.conversation,) if c.conversation else record.conversations))
            and not whole
        ]
        self._left_out += len(record.completions) - len(rest)
        if len(rest) == len(record.completions):
            return record
        conversations = tuple(name for name in record.conversations if name not in self._ids)
        return replace(part_of(record, rest), conversations=conversations) if rest else None

    def _names(self, *ids: str) -> bool:
        matches = [name for id in ids for name in (id, id.rpartition("#")[0]) if name and name in self._ids]
        for name in matches:
            self._unused.pop(name, None)
        return bool(matches)


NO_IDS = IdList()


# Views


@dataclass(frozen=True, slots=True)
class Example:
    """One training row of a view: `branches` are indices of its record's completions, (completion,) with its thumb, or
    (chosen, rejected). `tree` is the number of the record, and of its tree of token ids; `desirable` is None where the
    view has no label; `score` is the answer's, of a pair chosen minus rejected, None where there is none;
    `reference_scores` are those of the reference's own answers to the prompt, of a row with one answer and a score;
    `target` are the probabilities of its answer's target."""

    id: str
    tree: int
    branches: tuple[int, ...]
    desirable: bool | None = None
    weight: float = 1.0
    score: float | None = None
    reference_scores: tuple[float, ...] = ()
    target: tuple[float, ...] = ()


def binary(record: Record, threshold: float | None = None, tree: int = 0) -> list[Example]:
    """Each completion with its thumb. Policy: an explicit label; else score >= threshold; else each side of an explicit
    pair (chosen desirable, rejected undesirable, once per pair and side, as in the paper's experiments)."""
    examples: list[Example] = []
    for i, c in enumerate(record.completions):
        label = c.label
        if label is None and c.score is not None and threshold is not None:
            label = c.score >= threshold
        if label is not None:
            weight = c.weight * c.source_weight
            examples.append(Example(c.id, tree, (i,), label, weight, target=tuple(p for _, p in c.target)))
    with_thumb = {example.branches[0] for example in examples}
    for pair in record.pairs:
        for side, desirable in ((pair.chosen, True), (pair.rejected, False)):
            if side not in with_thumb:
                c = record.completions[side]
                examples.append(Example(c.id, tree, (side,), desirable, pair.weight * c.weight * c.source_weight))
    return examples


def pairs(record: Record, tree: int = 0) -> list[Example]:
    """Chosen over rejected. Policy: explicit pairs; else every two completions with different scores; else each
    desirable with each undesirable completion of the prompt."""
    completions = record.completions
    explicit = record.pairs
    if not explicit:
        with_score = [(i, c.score) for i, c in enumerate(completions) if c.score is not None]
        sides = [(i, j) for i, a in with_score for j, b in with_score if a > b]
        if not sides:
            up, down = ([i for i, c in enumerate(completions) if c.label is label] for label in (True, False))
            sides = [(i, j) for i in up for j in down]
        explicit = tuple(Pair(i, j, completions[i].weight * completions[j].weight) for i, j in sides)
    examples = []
    for pair in explicit:
        chosen, rejected = completions[pair.chosen], completions[pair.rejected]
        margin = None if chosen.score is None or rejected.score is None else chosen.score - rejected.score
        name, branches = f"{chosen.id} > {rejected.id}", (pair.chosen, pair.rejected)
        weight = pair.weight * geometric_mean(chosen.source_weight, rejected.source_weight)
        examples.append(Example(name, tree, branches, weight=weight, score=margin))
    return examples


def geometric_mean(a: float, b: float) -> float:
    """What counts for two sources together: exactly `a` where both are equal."""
    return a if a == b else math.sqrt(a * b)


def pair_count(record: Record) -> int:
    """How many rows `pairs` would make, without making them: of n scored answers there are up to n (n - 1) / 2."""
    if record.pairs:
        return len(record.pairs)
    counts = Counter(c.score for c in record.completions if c.score is not None)
    unequal = math.comb(counts.total(), 2) - sum(math.comb(n, 2) for n in counts.values())
    labels = [c.label for c in record.completions]
    return unequal or labels.count(True) * labels.count(False)


def scores(record: Record, threshold: float, tree: int = 0) -> list[Example]:
    """Each scored completion, with a thumb by the threshold for the figures that want one."""
    return [
        Example(c.id, tree, (i,), c.score >= threshold, c.weight * c.source_weight, c.score, record.reference_scores)
        for i, c in enumerate(record.completions)
        if c.score is not None
    ]


def groups(record: Record, threshold: float | None = None, tree: int = 0) -> list[Example]:
    """All scored answers to one prompt where there are at least two, which losses compare. For what wants a thumb:
    score >= threshold; without one, up above the mean score of the group, down below it, and none at it."""
    rows = scores(record, 0.0 if threshold is None else threshold, tree)
    if len(rows) < 2 or threshold is not None:
        return rows if len(rows) > 1 else []
    values = [row.score or 0.0 for row in rows]
    leads = (value - statistics.fmean(values) for value in values)
    return [
        replace(row, desirable=lead > 0 if abs(lead) > EQUAL else None) for row, lead in zip(rows, leads, strict=True)
    ]


def without_spread(rows: Iterable[Example]) -> set[int]:
    """The trees of those groups among rows of `groups` whose answers all have the same score."""
    by_tree: dict[int, list[float]] = {}
    for row in rows:
        assert row.score is not None, "rows of groups have scores"
        by_tree.setdefault(row.tree, []).append(row.score)
    return {tree for tree, values in by_tree.items() if statistics.pstdev(values) <= EQUAL}


def text(record: Record, threshold: float | None = None, tree: int = 0) -> list[Example]:
    """What SFT imitates: every completion but the undesirable ones, those that pairs only reject, and those without a
    label whose score is below `threshold`."""
    left_out = {p.rejected for p in record.pairs} - {p.chosen for p in record.pairs}
    for i, c in enumerate(record.completions):
        low = threshold is not None and c.score is not None and c.score < threshold
        if c.label is False or (c.label is None and low):
            left_out.add(i)
    return [
        Example(c.id, tree, (i,), weight=c.weight * c.source_weight)
        for i, c in enumerate(record.completions)
        if i not in left_out
    ]


def threshold_of(records: Iterable[Record], rule: str) -> float:
    """The number that turns scores into thumbs: "mean" or "median" of all scores, or a number as text.

    Raises ConfigError for any other rule, DataError where no completion has a score.
    """
    if rule in ("mean", "median"):
        scores = [c.score for r in records for c in r.completions if c.score is not None]
        if not scores:
            raise DataError(f"--threshold {rule} needs scores, but no completion has one")
        return float(statistics.fmean(scores) if rule == "mean" else statistics.median(scores))
    try:
        threshold = float(rule)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise ConfigError(f'--threshold must be "mean", "median" or a number, not "{rule}"')
    return threshold


_NEEDS = {
    "binary": "thumbs (a label per completion; scores with --threshold; or pairs)",
    "pairs": "pairs (chosen and rejected answers to one prompt, or both labels on one prompt)",
    "scores": "a score per completion",
    "groups": "several scored completions to one prompt",
    "text": "completions to imitate",
}


def examples(records: Sequence[Record], view: View, threshold: str | None = None) -> list[Example]:
    """The training rows of all records in one view; their `tree` is the record's number.

    Raises DataError, naming what the data has instead, where the view finds nothing.
    """
    if view == "pairs":
        parts = [pairs(r, k) for k, r in enumerate(records)]
    elif view == "scores":
        has_scores = any(c.score is not None for r in records for c in r.completions)
        middle = threshold_of(records, threshold or "median") if has_scores else 0.0
        parts = [scores(r, middle, k) for k, r in enumerate(records)]
    else:
        limit = None if threshold is None else threshold_of(records, threshold)
        of_record = {"binary": binary, "groups": groups, "text": text}[view]
        parts = [of_record(r, limit, k) for k, r in enumerate(records)]
    rows = [example for part in parts for example in part]
    if not rows:
        raise DataError(f"this loss reads {_NEEDS[view]}, but the data has {inventory(records)}")
    return rows


# Prompts as paths in one tree of messages: equal prompts are one node, and a prompt's beginnings are the nodes above.
# A conversation of n rated turns is n prompts, each the beginning of the next. As a tree they are n nodes, so what is
# computed along it (keys, digests, sizes) takes time linear in the conversation and not in the sum of its prompts.

FEW = 8
"""Messages between two rated turns: a question, calls of tools and their results."""

dumps = json.JSONEncoder(ensure_ascii=False).encode


class MessageTree:
    """Node 0 is the root. Of every other node: its `parent` (a lower number), its `message` (of a text prompt, the
    text), the `number` of that message among the distinct ones, a `digest` of the whole path and its `size` in
    characters."""

    def __init__(self) -> None:
        self.parent = [-1]
        self.message: list[Message | str] = [""]
        self.number = [-1]
        self.digest = [b""]
        self.size = [0]
        self._numbers: dict[str, int] = {}
        self._number_by_id: dict[int, tuple[Message, int]] = {}  # holds the message, or its id could be another's later
        self._child: dict[tuple[int, int], int] = {}
        self._last: tuple[tuple[Message, ...], int] = ((), 0)

    def __len__(self) -> int:
        return len(self.parent)

    def add(self, prompt: Prompt) -> int:
        """The prompt's node. Turns of one conversation share their messages: where the last prompt goes on, only what
        is new is looked at."""
        if isinstance(prompt, str):
            return self._step(0, prompt, self._number(prompt))
        before, node = self._last
        if len(before) > len(prompt) or not all(map(is_, before, prompt)):
            before, node = (), 0
        for message in prompt[len(before) :]:
            if id(message) not in self._number_by_id:
                self._number_by_id[id(message)] = message, self._number(message)
            node = self._step(node, message, self._number_by_id[id(message)][1])
        self._last = (prompt, node)
        return node

    def goes_on(self, start: int, node: int) -> bool:
        """Whether a prompt's node is a few messages below another's."""
        above = [node]
        while len(above) <= FEW and above[-1] > start:
            above.append(self.parent[above[-1]])
        return start > 0 and above[-1] == start

    def find_message(self, message: Message) -> int | None:
        """The number of a message that stands in some prompt."""
        return self._numbers.get(dumps(message))

    def _number(self, message: Message | str) -> int:
        return self._numbers.setdefault(dumps(message), len(self._numbers))

    def _step(self, node: int, message: Message | str, number: int) -> int:
        child = self._child.get((node, number))
        if child is None:
            child = self._child[node, number] = len(self.parent)
            self.parent.append(node)
            self.message.append(message)
            self.number.append(number)
            text = dumps(message).encode("utf-8", "surrogatepass")
            self.digest.append(hashlib.blake2b(self.digest[node] + text, digest_size=16).digest())
            self.size.append(self.size[node] + len(readable(message)))
        return child


def prompt_or_text(record: Record) -> Prompt:
    """The prompt, or what stands for it where there is none: the text itself."""
    return record.prompt or "\n".join(completion.text for completion in record.completions)


def prompt_numbers(records: Iterable[Record]) -> list[int]:
    """Per record a number that is equal for equal prompts with equal tools and template keywords, and counts from 0."""
    tree, numbers = MessageTree(), dict[tuple[int, str], int]()

    def key(record: Record) -> tuple[int, str]:
        plain = record.tools is None and record.template_kwargs is None
        return tree.add(record.prompt), "" if plain else dumps([record.tools, record.template_kwargs])

    return [numbers.setdefault(key(record), len(numbers)) for record in records]


def prompt_digests(records: Iterable[Record]) -> list[bytes]:
    """Per record a digest of its prompt, or of its text where it has no prompt."""
    tree = MessageTree()
    return [tree.digest[tree.add(prompt_or_text(r))] for r in records]


def prompt_sizes(records: Iterable[Record]) -> list[int]:
    """Characters of each record's prompt."""
    tree = MessageTree()
    return [tree.size[tree.add(r.prompt)] for r in records]
