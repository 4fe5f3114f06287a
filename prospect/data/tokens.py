"""Records become token ids: what the model reads (the prompt) and what it is trained to say (the completion).

The prompt's ids are those the model sees at inference. A completion's ids are what follows them when the whole
conversation is tokenised; a complete one ends with exactly one end-of-turn token, one that was cut off with none:

    prompt      <|im_start|>user\\n2 + 2?<|im_end|>\\n<|im_start|>assistant\\n
    completion  4<|im_end|>                      (the line break that the template prints after it is left out)

Text prompts are tokenised as they are, with the special tokens that the tokenizer puts in front (BOS); their
completions end with EOS. No torch here.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from prospect.data import cache as tokentable
from prospect.data.cache import Coded
from prospect.data.growing import Ids
from prospect.data.options import DataOptions, OverLong
from prospect.data.template import Template
from prospect.errors import DataError
from prospect.feedback.records import EXAMPLES, Message, Record, at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FLAWS = {
    "straddled": "with a token across the end of the prompt",
    "added": "to which the chat template adds text",
    "dropped": "of which the chat template drops text",
    "unprinted": "with a prompt of which the chat template leaves out a message",
    "control": "with control tokens in their own text",
    "lossy": "that the tokenizer does not give back",
}
"""What each `template.Flaw` is, in words for the user."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt with its completions. `completions` is aligned with the record's; None: left out, as over-long or
    because it has no token at all (empty and cut off)."""

    record: str
    prompt: Ids
    completions: tuple[Ids | None, ...]


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What became of the data. `trees` and `completions` count all that came in; `dropped` completions were over-long,
    `empty` ones were cut off before their first token; `cut_prompt` counts prompts, `cut_completion` completions;
    `flaws` counts the completions whose ids are not simply their text, with a few of them in `examples`, `unread` the
    records with a name in template_kwargs that the template never reads; `shortest` and
    `longest` are tokens of prompt plus completion before any cutting."""

    trees: int = 0
    completions: int = 0
    dropped: int = 0
    cut_prompt: int = 0
    cut_completion: int = 0
    empty: int = 0
    flaws: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)
    shortest: int = 0
    longest: int = 0
    max_length: int = 0

    @property
    def kept(self) -> int:
        """Completions that can be trained on."""
        return self.completions - self.dropped - self.empty

    def describe(self) -> str:
        """One sentence for the user: "5 completions of 2 prompts, 8 to 97 tokens; 1 dropped (over 64 tokens)"."""
        parts = [
            (self.dropped, f"dropped (over {self.max_length} tokens)"),
            (self.cut_prompt, "prompts cut"),
            (self.cut_completion, "completions cut"),
            *((self.flaws.get(flaw, 0), said) for flaw, said in FLAWS.items()),
            (self.empty, "cut off before the first token and left out"),
        ]
        counted = "".join(f"; {count} {what}" for count, what in parts if count)
        return (
            f"{self.completions} completions of {self.trees} prompts, {self.shortest} to {self.longest} tokens{counted}"
        )


def build_trees(
    records: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
) -> tuple[list[Tree], TokenReport]:
    """Tokenise records into trees aligned with them, and apply the policy for rows of more than `max_length` tokens.

    `drop`: leave the completion out. `cut_prompt`: drop the oldest turns (system messages stay; of a text prompt the
    first tokens, BOS stays), once per tree by its longest completion; a completion that does not fit even beside the
    last turn is dropped. `cut_completion`: cut at `max_length`, without end-of-turn; dropped where the prompt alone
    fills the length. `error`: DataError. Other errors: DataError where the template cannot render a record or separate
    answer from prompt; ModelError where the tokenizer lacks a chat template or an end token. What was tokenised once is
    kept in the folder `cache`.
    """
    template, rows = tokenise(records, tokenizer, options)
    return trees_of(template, records, rows, options.max_length, options.over_long)


def tokenise(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> tuple[Template, list[Coded]]:
    """The template, and the ids that it makes of the records, aligned with them. Raises as `build_trees`."""
    template = Template(tokenizer, options.chat_template, options.special_tokens)
    return template, list(tokentable.encode(template, records, options.cache))


def trees_of(
    template: Template, records: Sequence[Record], rows: Sequence[Coded], max_length: int | None, over_long: OverLong
) -> tuple[list[Tree], TokenReport]:
    """`build_trees` of records that are tokenised: `rows` are aligned with them."""
    max_length = sys.maxsize if max_length is None else max_length
    trees: list[Tree] = []
    tally = _Tally()
    too_long: list[DataError] = []
    for record, coded in zip(records, rows, strict=True):
        if over_long == "error":
            too_long += _too_long(record, coded, max_length)
        prompt, completions = _fit(template, record, coded, max_length, over_long, tally)
        trees.append(
            Tree(record.id, prompt, tuple(ids if ids is not None and len(ids) else None for ids in completions))
        )
        tally.add(template, record, coded)
    if too_long:
        more = f" ({len(too_long) - 1} more rows are too long)" if len(too_long) > 1 else ""
        first = too_long[0]
        raise DataError(first.message + more, line=first.line, row=first.row, problems=tuple(too_long))
    return trees, tally.report(len(trees), max_length)


@dataclass(slots=True)
class _Tally:
    """What a TokenReport says, while it is counted; `lengths` are prompt plus completion."""

    dropped: int = 0
    cut_prompt: int = 0
    cut_completion: int = 0
    empty: int = 0
    flaws: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)

    def add(self, template: Template, record: Record, coded: Coded) -> None:
        """Count a record as it came in."""
        for i, flaws in enumerate(coded.flaws):
            for flaw in flaws:
                name = str(flaw.name).lower()
                self.flaws[name] += 1
                if self.flaws[name] <= EXAMPLES:
                    example = f"{at(record.completions[i])}: {template.explain(record, i, flaw)}"
                    self.examples[name] = (*self.examples.get(name, ()), example)
        self.unread.update(template.unread_keywords(record))
        for ids in coded.completions:
            self.empty += not len(ids)  # only where a completion has neither text nor an end-of-turn
            self.lengths.append(len(coded.prompt) + len(ids))

    def report(self, trees: int, max_length: int) -> TokenReport:
        """The sums."""
        return TokenReport(
            trees,
            len(self.lengths),
            dropped=self.dropped,
            cut_prompt=self.cut_prompt,
            cut_completion=self.cut_completion,
            empty=self.empty,
            flaws=self.flaws,
            examples=self.examples,
            unread=self.unread,
            shortest=min(self.lengths, default=0),
            longest=max(self.lengths, default=0),
            max_length=max_length,
        )


def _fit(
    template: Template, record: Record, coded: Coded, max_length: int, over_long: OverLong, tally: _Tally
) -> tuple[Ids, Sequence[Ids | None]]:
    """One record under the policy: (prompt ids, completion ids with None for dropped ones); what it did is counted."""
    room = max_length - len(coded.prompt)
    if all(len(ids) <= room for ids in coded.completions):
        return coded.prompt, coded.completions
    if over_long == "cut_completion" and room > 0:
        tally.cut_completion += sum(len(ids) > room for ids in coded.completions)
        return coded.prompt, [ids[:room] for ids in coded.completions]
    whole = len(coded.prompt)
    if over_long == "cut_prompt":
        coded = _cut_prompt(template, record, coded, max_length)
    room = max_length - len(coded.prompt)
    kept = [ids if len(ids) <= room else None for ids in coded.completions]
    tally.dropped += sum(ids is None for ids in kept)
    tally.cut_prompt += len(coded.prompt) < whole
    return coded.prompt, kept


def _cut_prompt(template: Template, record: Record, coded: Coded, max_length: int) -> Coded:
    """The longest end of the prompt beside which every completion fits that can fit at all."""
    if isinstance(record.prompt, str):
        head = np.array(template.text_prefix, np.int32)
        text = coded.prompt[len(head) :]
        rooms = [max_length - len(head) - len(ids) for ids in coded.completions]
        possible = [room for room in rooms if room >= 1]
        # One token of a text prompt stays at least: an answer to nothing teaches nothing.
        if not possible or not len(text):
            return coded
        return dataclasses.replace(coded, prompt=np.concatenate([head, text[-min(possible) :]]))
    messages = record.prompt
    system, starts = _turns(messages)
    if not starts:
        return coded

    @functools.cache
    def since(turn: int) -> Coded:
        shorter = dataclasses.replace(record, prompt=messages[:system] + messages[starts[turn] :])
        return tokentable.coded(template.encode([shorter])[0])

    last = since(len(starts) - 1)
    able = [i for i, ids in enumerate(last.completions) if len(last.prompt) + len(ids) <= max_length]

    def fits(option: Coded) -> bool:
        return all(len(option.prompt) + len(option.completions[i]) <= max_length for i in able)

    if not able or fits(coded):
        return coded
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


def _too_long(record: Record, coded: Coded, max_length: int) -> list[DataError]:
    return [
        DataError(
            f"{len(coded.prompt)} prompt tokens and {len(ids)} completion tokens are more than max_length "
            f"{max_length}: raise it, shorten the row, or choose --over-long drop, cut_prompt or cut_completion",
            line=c.line,
            row=c.id,
        )
        for c, ids in zip(record.completions, coded.completions, strict=True)
        if len(coded.prompt) + len(ids) > max_length
    ]
