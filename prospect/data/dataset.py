"""From records to training rows: tokenised trees, the rows of one view on them, and the plan over those rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prospect.data.groups import groups
from prospect.data.growing import Ids
from prospect.data.options import DataOptions
from prospect.data.schedule import Row, Schedule, plan
from prospect.data.tokens import TokenReport, Tree, build_trees
from prospect.errors import DataError
from prospect.feedback.load import collector_paused
from prospect.feedback.records import Record, View, examples


@dataclass(frozen=True, slots=True)
class Corpus:
    """`trees` align with `records`; `rows` are one view's training rows on them, without what was dropped as
    over-long."""

    records: tuple[Record, ...]
    trees: tuple[Tree, ...]
    rows: tuple[Row, ...]
    report: TokenReport

    def prompt(self, row: Row) -> bytes:
        """A digest of the row's prompt by its token ids."""
        return digest(self.trees[row.tree].prompt)

    def length(self, row: Row) -> int:
        """Tokens of the row's completions."""
        return sum(len(self.completion(row, side)) for side in range(len(row.branches)))

    def completion(self, row: Row, side: int = 0) -> Any:
        """Token ids (c,) int32 of the row's completion, or of one side of its pair."""
        found = self.trees[row.tree].completions[row.branches[side]]
        assert found is not None, "rows never point to dropped completions"
        return found

    def ids(self) -> Iterator[Ids]:
        """The ids of every prompt and every completion that was kept."""
        for tree in self.trees:
            yield tree.prompt
            yield from (ids for ids in tree.completions if ids is not None)

    def ends(self, tokenizer: Any) -> list[int]:
        """The special tokens that complete answers end with, tool calls' among them."""
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        last: set[int] = set()
        for record, tree in zip(self.records, self.trees, strict=True):
            answers = zip(record.completions, tree.completions, strict=True)
            last |= {int(ids[-1]) for done, ids in answers if done.complete and ids is not None}
        return sorted(last & (special | set(tokenizer.all_special_ids)))

    def groups(self) -> tuple[int, ...]:
        """Per row the number of its group: rows of one conversation, or of near-duplicate prompts, are not independent
        of each other (`prospect.data.groups`)."""
        of_records = groups(self.records).group
        return tuple(of_records[row.tree] for row in self.rows)

    def answered(self, numbers: Iterable[int]) -> list[tuple[Ids, Ids]]:
        """(prompt, completion) ids of every completion of these rows."""
        rows = [self.rows[i] for i in numbers]
        sides = [(row, side) for row in rows for side in range(len(row.branches))]
        return [(self.trees[row.tree].prompt, self.completion(row, side)) for row, side in sides]

    def mismatched(self, numbers: Iterable[int], partners: Sequence[int], context: int) -> list[tuple[Ids, Ids]]:
        """(prompt, y') ids of these rows: the partner's completion, cut to the context where it must be; without rows
        that have no partner, or no room for one token of it."""
        couples = (self.mismatch(i, partners, context) for i in numbers)
        return [couple for couple in couples if couple is not None]

    def mismatch(self, number: int, partners: Sequence[int], context: int) -> tuple[Ids, Ids] | None:
        """(prompt, y') ids of one of these rows, or None."""
        if partners[number] < 0:
            return None
        prompt = self.trees[self.rows[number].tree].prompt
        return mismatch(prompt, self.completion(self.rows[partners[number]]), context)


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
def build(records: Sequence[Record], tokenizer: Any, view: View, options: DataOptions) -> Corpus:
    """Tokenise (what the cache does not know) and view. Raises DataError where the view finds nothing or nothing is
    short enough."""
    viewed = examples(records, view, options.threshold)
    trees, report = build_trees(records, tokenizer, options)
    rows: list[Row] = []
    for k, (record, tree) in enumerate(zip(records, trees, strict=True)):
        for example in viewed[k]:
            branches = (example.chosen,) if example.rejected is None else (example.chosen, example.rejected)
            if all(tree.completions[b] is not None for b in branches):
                name = record.completions[example.chosen].id
                if example.rejected is not None:
                    name += f" > {record.completions[example.rejected].id}"
                rows.append(Row(name, k, branches, example.desirable, example.weight, example.score))
    if not rows:
        raise DataError(
            f"all {sum(map(len, viewed))} rows are longer than {options.max_length} tokens. Raise --max-length (up to "
            "the model's context), or choose --over-long cut_prompt or cut_completion"
        )
    return Corpus(tuple(records), tuple(trees), tuple(rows), report)


@collector_paused()
def schedule(
    corpus: Corpus,
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
    """The plan over a corpus's rows."""
    prompts = {k: digest(corpus.trees[k].prompt) for k in {row.tree for row in corpus.rows}}
    return plan(
        corpus.rows,
        [prompts[row.tree] for row in corpus.rows],
        [len(corpus.trees[row.tree].prompt) for row in corpus.rows],
        [corpus.length(row) for row in corpus.rows],
        batch_size=batch_size,
        epochs=epochs,
        seed=seed,
        partner_seed=partner_seed,
        group=group,
        context=context,
        with_partners=with_partners,
        max_steps=max_steps,
    )
