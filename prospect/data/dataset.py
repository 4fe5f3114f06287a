"""From records to training rows: tokenised trees, the examples of one view on them, and the plan over those."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prospect.data.groups import groups
from prospect.data.growing import Ids
from prospect.data.options import DataOptions
from prospect.data.schedule import Schedule, plan
from prospect.data.tokens import TokenReport, Tree, build_trees
from prospect.errors import DataError
from prospect.feedback.load import collector_paused
from prospect.feedback.records import Example, Record, View, examples


@dataclass(frozen=True, slots=True)
class Dataset:
    """`trees` align with `records`; `examples` are one view's training rows on them, without what was dropped as
    over-long. Steps, partners and micro-batches call an example by its number."""

    records: tuple[Record, ...]
    trees: tuple[Tree, ...]
    examples: tuple[Example, ...]
    report: TokenReport

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
        """The ids of every prompt and every completion that was not dropped."""
        for tree in self.trees:
            yield tree.prompt
            yield from (ids for ids in tree.completions if ids is not None)

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
        independent of each other (`prospect.data.groups`)."""
        of_records = groups(self.records).group
        return tuple(of_records[example.tree] for example in self.examples)

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
    return Dataset(tuple(records), tuple(trees), short, report)
