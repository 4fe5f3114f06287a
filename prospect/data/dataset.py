"""From records to training rows: tokenised trees, the examples of one view on them, and the plan over those.

Token ids are kept on disk: records are tokenised once, for later runs on the same rows or some of them.

    cache/tokens/KEY.sqlite    KEY: tokenizer, chat template, and the code that uses them
        rows(hash of all that the template reads of a record -> lengths and ids)
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prospect.data import template, text, textids, tokens
from prospect.data.options import DataOptions, OverLong
from prospect.data.schedule import Schedule, fill, plan
from prospect.data.split import groups
from prospect.data.store import ValueTable
from prospect.data.text import Flaw
from prospect.data.textids import Ids, TargetIds
from prospect.data.tokens import Encoded, Encoder
from prospect.errors import DataError, RunError
from prospect.feedback import messages, records
from prospect.feedback.load import collector_paused
from prospect.feedback.records import EXAMPLES, Example, Message, MessageTree, Record, View, at, examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE = (tokens, text, template, textids, messages, records)
"""Modules that decide the ids of a record: other code is another table."""

BATCH, CHARACTERS = 1000, 4_000_000
"""Records tokenised in one call, and characters of their prompts: bounds the memory of large files, costs no time."""

LARGE = 1 << 16
"""Bytes of a row that the table does not keep where its prompt goes on from the one before: a long chat's rows would
fill the disk, and each is soon made from the last."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)


def encode(encoder: Encoder, rows: Sequence[Record], cache: Path | None = None) -> Iterator[Encoded]:
    """What `encoder.encode` makes of records, in order; with `cache` only of those that are not kept there. Raises
    as that does. A disk that refuses costs time, no more."""
    table, rows_on_disk = None, dict[bytes, bytes]()
    name = None if cache is None else identity(encoder)
    tree = MessageTree()
    nodes = [tree.add(record.prompt) for record in rows]
    keys = [_row_key(record, tree.digest[node]) for record, node in zip(rows, nodes, strict=True)] if name else []
    goes_on = [tree.goes_on(a, b) for a, b in pairwise([0, *nodes])]
    sizes = [tree.size[node] for node in nodes]
    del tree
    if cache is not None and name:
        try:
            table = ValueTable(cache / "tokens" / f"{name}.sqlite")
            rows_on_disk = table.read(set(keys))
        except (RunError, OSError):
            table = None
    for part in fill(sizes, CHARACTERS, most=BATCH):
        numbers = range(len(rows))[part]
        new = [i for i in numbers if not rows_on_disk or keys[i] not in rows_on_disk]
        encoded = dict(zip(new, encoder.encode([rows[i] for i in new]), strict=True))
        if table is not None and new:
            packed = [(keys[i], _pack(encoded[i])) for i in new]
            try:
                table.write((key, row) for i, (key, row) in zip(new, packed, strict=True) if _is_kept(row, goes_on[i]))
            except RunError:
                table = None
        yield from (encoded[i] if i in encoded else _unpack(rows_on_disk[keys[i]]) for i in numbers)


def identity(encoder: Encoder) -> str | None:
    """Names everything but the record that decides its ids; None for a tokenizer that cannot be described."""
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    chat = json.dumps(tokenizer.chat_template)
    try:
        parts = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in CODE]
        parts += [backend.to_str(), encoder.special_tokens]
    except Exception:  # tokenizers raises nothing narrower for parts written in Python
        return None
    parts += [version(package) for package in ("tokenizers", "transformers", "jinja2")]
    parts += [type(tokenizer).__name__, chat, str(encoder.text_prefix), str(tokenizer.special_tokens_map)]
    parts += [str(getattr(tokenizer, "split_special_tokens", False))]
    parts += [time.strftime("%Y-%m-%d")] if "strftime_now" in chat else []  # such a template prints the day
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _row_key(record: Record, prompt: bytes) -> bytes:
    """Names all that the template reads of a record; `prompt` is the digest of its prompt."""
    answers = [(c.content, c.complete, c.target) for c in record.completions]
    rest = _ENCODER.encode((isinstance(record.prompt, str), answers, record.tools, record.template_kwargs))
    return hashlib.blake2b(prompt + rest.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _is_kept(row: bytes, goes_on: bool) -> bool:
    return len(row) <= LARGE or not goes_on


def _pack(encoded: Encoded) -> bytes:
    """int32: the number of completions, their flaws, the lengths of the prompt and of each, their ids; where there are
    targets, then of each completion's the number of tokens, the place (0 where there is none), and all ids."""
    pieces = [encoded.prompt, *encoded.completions]
    head = np.array([len(encoded.completions), *encoded.flaws, *map(len, pieces)], np.int32)
    targets = [TargetIds(0, pieces[0][:0]) if target is None else target for target in encoded.target_ids]
    tail = np.array([*(len(t.ids) for t in targets), *(t.place for t in targets)], np.int32)
    return np.concatenate([head, *pieces, tail, *(target.ids for target in targets)]).tobytes()


def _unpack(row: bytes) -> Encoded:
    values = np.frombuffer(row, np.int32)
    count = int(values[0])
    sizes = values[1 + count : 2 + 2 * count]
    prompt, *completions, tail = np.split(values[2 + 2 * count :], np.cumsum(sizes))
    flaws = [Flaw(int(flaw)) for flaw in values[1 : 1 + count]]
    if not len(tail):
        return Encoded(prompt, completions, flaws)
    ids = np.split(tail[2 * count :], np.cumsum(tail[:count])[:-1])
    targets = [
        TargetIds(int(place), some) if len(some) else None for place, some in zip(tail[count:], ids, strict=False)
    ]
    return Encoded(prompt, completions, flaws, targets)


FLAWS = {
    "straddled": "with a token across the end of the prompt",
    "added": "to which the chat template adds text",
    "dropped": "of which the chat template drops text",
    "unprinted": "with a prompt of which the chat template leaves out a message",
    "control": "with control tokens in their own text",
    "lossy": "that the tokenizer does not give back",
}
"""What each `tokens.Flaw` is, in words for the user."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt with its completions. `completions` is aligned with the record's; None: left out, as over-long or
    because it has no token at all (empty and cut off). `target_ids` are aligned with them where any has a target; None
    also where the answer was cut before that place."""

    record: str
    prompt: Ids
    completions: tuple[Ids | None, ...]
    target_ids: tuple[TargetIds | None, ...] = ()

    def target(self, branch: int) -> TargetIds | None:
        """Of one completion."""
        return self.target_ids[branch] if self.target_ids else None


@dataclass(slots=True)
class TokenReport:
    """What became of the data. `trees` and `completions` count all that came in; `dropped` completions were over-long,
    `empty` ones were cut off before their first token; `cut_prompt` counts prompts, `cut_completion` completions;
    `flaws` counts the completions whose ids are not simply their text, with a few of them in `examples`, `unread` the
    records with a name in template_kwargs that the template never reads; `shortest` and `longest` are tokens of prompt
    plus completion before any cutting."""

    trees: int = 0
    completions: int = 0
    dropped: int = 0
    cut_prompt: int = 0
    cut_completion: int = 0
    empty: int = 0
    flaws: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    shortest: int = 0
    longest: int = 0
    max_length: int = 0

    @property
    def usable(self) -> int:
        """Completions that can be trained on."""
        return self.completions - self.dropped - self.empty

    def describe(self) -> str:
        """One sentence for the user: "5 completions of 2 prompts, 8 to 97 tokens; 1 dropped (over 64 tokens)"."""
        parts = [
            (self.dropped, f"dropped (over {self.max_length} tokens)"),
            (self.cut_prompt, "prompts cut"),
            (self.cut_completion, "completions cut"),
            *((self.flaws.get(flaw, 0), words) for flaw, words in FLAWS.items()),
            (self.empty, "cut off before the first token and left out"),
        ]
        counts = "".join(f"; {count} {what}" for count, what in parts if count)
        lengths = f"{self.shortest} to {self.longest} tokens"
        return f"{self.completions} completions of {self.trees} prompts, {lengths}{counts}"

    def count(self, encoder: Encoder, record: Record, encoded: Encoded) -> None:
        """Count a record as it came in."""
        self.trees += 1
        for i, flaws in enumerate(encoded.flaws):
            for flaw in flaws:
                name = str(flaw.name).lower()
                self.flaws[name] += 1
                if self.flaws[name] <= EXAMPLES:
                    example = f"{at(record.completions[i])}: {encoder.explain(record, i, flaw)}"
                    self.examples[name] = (*self.examples.get(name, ()), example)
        self.unread.update(encoder.unread_keywords(record))
        for ids in encoded.completions:
            length = len(encoded.prompt) + len(ids)
            self.shortest = min(self.shortest, length) if self.completions else length
            self.longest = max(self.longest, length)
            self.completions += 1
            self.empty += not len(ids)  # only where a completion has neither text nor an end-of-turn


@dataclass(frozen=True, slots=True)
class Dataset:
    """`trees` align with `records`; `examples` are one view's training rows on them, without what was dropped as
    over-long. Steps, partners and micro-batches call an example by its number."""

    records: tuple[Record, ...]
    trees: tuple[Tree, ...]
    examples: tuple[Example, ...]
    report: TokenReport
    target_size: int = 0
    """The most tokens that a target of an example has."""

    def prompt(self, example: Example) -> bytes:
        """A digest of the example's prompt by its token ids."""
        return digest(self.trees[example.tree].prompt)

    def length(self, example: Example) -> int:
        """Tokens of the example's completions."""
        return sum(len(self.completion(example, side)) for side in range(len(example.branches)))

    def completion(self, example: Example, side: int = 0) -> Ids:
        """Token ids (c,) of the example's completion, or of one side of its pair."""
        ids = self.trees[example.tree].completions[example.branches[side]]
        assert ids is not None, "examples never point to dropped completions"
        return ids

    def ids(self) -> Iterator[Ids]:
        """The ids of every prompt, every completion that was not dropped, and its target."""
        for tree in self.trees:
            yield tree.prompt
            yield from (ids for ids in tree.completions if ids is not None)
            yield from (target.ids for target in tree.target_ids if target is not None)

    def ends(self, tokenizer: Any) -> list[int]:
        """The special tokens that complete answers end with, tool calls' among them."""
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        last: set[int] = set()
        for record, tree in zip(self.records, self.trees, strict=True):
            answers = zip(record.completions, tree.completions, strict=True)
            last |= {int(ids[-1]) for completion, ids in answers if completion.complete and ids is not None}
        return sorted(last & (special | set(tokenizer.all_special_ids)))

    def groups(self) -> tuple[int, ...]:
        """Per example the number of its group: examples of one conversation, or of near-duplicate prompts, are not
        independent of each other (`prospect.data.split`)."""
        of_records = groups(self.records).group
        return tuple(of_records[example.tree] for example in self.examples)

    def raters(self) -> tuple[int, ...]:
        """Per example the number of who judged it, of a pair's chosen answer first; -1 where nobody is named."""
        numbers = {"": -1}
        names = ([self.records[row.tree].completions[b].by for b in row.branches] for row in self.examples)
        return tuple(numbers.setdefault(next(filter(None, each), ""), len(numbers) - 1) for each in names)

    def answered(self, numbers: Iterable[int]) -> list[tuple[Ids, Ids]]:
        """(prompt, completion) ids of every completion of these examples."""
        chosen = [self.examples[i] for i in numbers]
        sides = [(example, side) for example in chosen for side in range(len(example.branches))]
        return [(self.trees[example.tree].prompt, self.completion(example, side)) for example, side in sides]

    def mismatched(self, numbers: Iterable[int], partners: Sequence[int], context: int) -> list[tuple[Ids, Ids]]:
        """(prompt, y') ids of these examples: the partner's completion, cut to the context where it must be; without
        examples that have no partner, or no room for one token of it."""
        couples = (self.mismatch(i, partners, context) for i in numbers)
        return [couple for couple in couples if couple is not None]

    def mismatch(self, number: int, partners: Sequence[int], context: int) -> tuple[Ids, Ids] | None:
        """(prompt, y') ids of one of these examples, or None."""
        if partners[number] < 0:
            return None
        prompt = self.trees[self.examples[number].tree].prompt
        return mismatch(prompt, self.completion(self.examples[partners[number]]), context)

    @collector_paused()
    def schedule(
        self,
        *,
        batch_size: int,
        context: int,
        with_partners: bool,
        epochs: int = 1,
        seed: int = 0,
        partner_seed: int = 0,
        group: Literal["auto", "row", "prompt"] = "auto",
        max_steps: int | None = None,
        whole: bool = False,
    ) -> Schedule:
        """The plan over the examples."""
        prompts = {k: digest(self.trees[k].prompt) for k in {example.tree for example in self.examples}}
        return plan(
            [prompts[example.tree] for example in self.examples],
            [len(self.trees[example.tree].prompt) for example in self.examples],
            [self.length(example) for example in self.examples],
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            partner_seed=partner_seed,
            group=group,
            context=context,
            with_partners=with_partners,
            max_steps=max_steps,
            whole=whole,
        )


def mismatch(prompt: Ids, completion: Ids, context: int) -> tuple[Ids, Ids] | None:
    """A prompt with another prompt's completion, cut to the context where it must be; None without room for a token.

    Training and evaluation estimate z0 from these alike.
    """
    room = context - len(prompt)
    return (prompt, completion[:room]) if room > 0 else None


def digest(ids: Ids) -> bytes:
    """Equal for equal ids."""
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


@collector_paused()
def build_dataset(records: Sequence[Record], tokenizer: Any, view: View, options: DataOptions) -> Dataset:
    """Tokenise (what the cache does not know) and view. Raises DataError where the view has no row, or nothing is short
    enough."""
    rows = examples(records, view, options.threshold)
    trees, report = build_trees(records, tokenizer, options)
    short = tuple(row for row in rows if all(trees[row.tree].completions[b] is not None for b in row.branches))
    if not short:
        raise DataError(
            f"all {len(rows)} rows are longer than {options.max_length} tokens. Raise --max-length (up to the model's "
            "context), or choose --over-long cut_prompt or cut_completion"
        )
    aimed = tuple(replace(row, target=()) if row.target and _lost(trees, row) else row for row in short)
    return Dataset(tuple(records), tuple(trees), aimed, report, max(len(row.target) for row in aimed))


def _lost(trees: Sequence[Tree], row: Example) -> bool:
    """Whether the place of a row's target is no longer in its answer."""
    return trees[row.tree].target(row.branches[0]) is None


def build_trees(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> tuple[list[Tree], TokenReport]:
    """Tokenise records into trees aligned with them, and apply the policy for rows of more than `max_length` tokens.

    `drop`: leave the completion out. `cut_prompt`: drop the oldest turns (system messages stay; of a text prompt the
    first tokens, BOS stays), once per tree by its longest completion; a completion that does not fit even beside the
    last turn is dropped. `cut_completion`: cut at `max_length`, without end-of-turn; dropped where the prompt alone
    fills the length. `error`: DataError. Other errors are those of `Encoder.encode`.
    """
    encoder, encoded = tokenise(records, tokenizer, options)
    return trees_of(encoder, records, encoded, options.max_length, options.over_long)


def tokenise(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> tuple[Encoder, list[Encoded]]:
    """The encoder, and the ids that it makes of the records, aligned with them. Raises as `build_trees`."""
    encoder = Encoder(tokenizer, options.chat_template, options.special_tokens)
    return encoder, list(encode(encoder, records, options.cache))


def trees_of(
    encoder: Encoder,
    records: Sequence[Record],
    encoded: Sequence[Encoded],
    max_length: int | None,
    over_long: OverLong,
) -> tuple[list[Tree], TokenReport]:
    """`build_trees` of records that are tokenised."""
    max_length = sys.maxsize if max_length is None else max_length
    trees: list[Tree] = []
    report = TokenReport(max_length=max_length)
    problems: list[DataError] = []
    for record, one in zip(records, encoded, strict=True):
        if over_long == "error":
            problems += _too_long(record, one, max_length)
        fitting, completions = _fit(encoder, record, one, max_length, over_long, report)
        some = tuple(ids if ids is not None and len(ids) else None for ids in completions)
        places = zip(fitting.target_ids, some, strict=True) if fitting.target_ids else ()
        targets = tuple(
            target if target and ids is not None and target.place < len(ids) else None for target, ids in places
        )
        trees.append(Tree(record.id, fitting.prompt, some, targets))
        report.count(encoder, record, one)
    if problems:
        more = f" ({len(problems) - 1} more rows are too long)" if len(problems) > 1 else ""
        first = problems[0]
        raise DataError(first.message + more, line=first.line, row=first.row, problems=tuple(problems))
    return trees, report


def _fit(
    encoder: Encoder, record: Record, encoded: Encoded, max_length: int, over_long: OverLong, report: TokenReport
) -> tuple[Encoded, Sequence[Ids | None]]:
    """One record under the policy: with a prompt that may be cut, and its completions' ids, None for dropped ones; what
    it did is counted."""
    room = max_length - len(encoded.prompt)
    if all(len(ids) <= room for ids in encoded.completions):
        return encoded, encoded.completions
    if over_long == "cut_completion" and room > 0:
        report.cut_completion += sum(len(ids) > room for ids in encoded.completions)
        return encoded, [ids[:room] for ids in encoded.completions]
    whole = len(encoded.prompt)
    if over_long == "cut_prompt":
        encoded = _cut_prompt(encoder, record, encoded, max_length)
    room = max_length - len(encoded.prompt)
    completions = [ids if len(ids) <= room else None for ids in encoded.completions]
    report.dropped += sum(ids is None for ids in completions)
    report.cut_prompt += len(encoded.prompt) < whole
    return encoded, completions


def _cut_prompt(encoder: Encoder, record: Record, encoded: Encoded, max_length: int) -> Encoded:
    """The longest end of the prompt beside which every completion fits that can fit at all."""
    if isinstance(record.prompt, str):
        head = np.array(encoder.text_prefix, np.int32)
        body = encoded.prompt[len(head) :]
        rooms = [max_length - len(head) - len(ids) for ids in encoded.completions]
        possible = [room for room in rooms if room >= 1]
        # One token of a text prompt stays at least: an answer to nothing teaches nothing.
        if not possible or not len(body):
            return encoded
        return replace(encoded, prompt=np.concatenate([head, body[-min(possible) :]]))
    messages = record.prompt
    system, starts = _turns(messages)
    if not starts:
        return encoded

    @functools.cache
    def since(turn: int) -> Encoded:
        shorter = replace(record, prompt=messages[:system] + messages[starts[turn] :])
        return encoder.encode([shorter])[0]

    last = since(len(starts) - 1)
    able = [i for i, ids in enumerate(last.completions) if len(last.prompt) + len(ids) <= max_length]

    def fits(option: Encoded) -> bool:
        return all(len(option.prompt) + len(option.completions[i]) <= max_length for i in able)

    if not able or fits(encoded):
        return encoded
    # Fewer turns are fewer tokens, so that few of the ends need to be printed: from the last one on twice as many.
    most = len(starts) - 1
    fitting, size = most, 1
    while most - size >= 0 and fits(since(most - size)):
        fitting, size = most - size, 2 * size
    return since(bisect_left(range(fitting), True, lo=max(0, most - size), key=lambda turn: fits(since(turn))))


def _turns(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """The number of system messages at the start, which stay, and where the turns after the first begin: with a user
    message, since most templates insist on that."""
    system = 0
    while system < len(messages) and messages[system].get("role") in ("system", "developer"):
        system += 1
    return system, [i for i in range(system + 1, len(messages)) if messages[i].get("role") == "user"]


def _too_long(record: Record, encoded: Encoded, max_length: int) -> list[DataError]:
    return [
        DataError(
            f"{len(encoded.prompt)} prompt tokens and {len(ids)} completion tokens are more than max_length "
            f"{max_length}: raise it, shorten the row, or choose --over-long drop, cut_prompt or cut_completion",
            line=c.line,
            row=c.id,
        )
        for c, ids in zip(record.completions, encoded.completions, strict=True)
        if len(encoded.prompt) + len(ids) > max_length
    ]
