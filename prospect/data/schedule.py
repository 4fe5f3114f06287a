"""The whole run as data: which rows form a step, and whose answer is each row's mismatched partner.

A pure function, seeded, without torch: `plan(prompts, lengths, ...)` makes a Schedule from the data and the seeds
alone. Numbers of items in, parts of them out is how a step is cut, and whatever else goes by tokens:

    fill(costs, budget)             consecutive items, as many at a time as the budget holds
    balance(costs, ranks, budget)   micro-batches: equally many per rank, balanced by tokens

Rows are put into blocks once per run; epochs shuffle blocks; a step is whole blocks. A row's partner sits in its
block and has another prompt, so inside a step the mismatched answers y' of KTO's z0 are the matched answers on other
prompts.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

GROUP_SIZE = 4
"""Most rows of one prompt that stay together under `group="prompt"`; fewer where twice as many exceed the batch
size."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: `index` counts from 1 over the run, `rows` are the numbers of its examples."""

    index: int
    epoch: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """`blocks` are rows that stay together; `partners[i]` is the row whose completion is row i's y', or -1."""

    blocks: tuple[tuple[int, ...], ...]
    partners: tuple[int, ...]
    batch_size: int
    epochs: int
    seed: int
    max_steps: int | None = None
    grouped: bool = field(default=False)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step of the run, in order."""
        steps: list[Step] = []
        for epoch in range(self.epochs):
            for rows in self._epoch(epoch):
                if self.max_steps is not None and len(steps) == self.max_steps:
                    return tuple(steps)
                steps.append(Step(len(steps) + 1, epoch, rows))
        return tuple(steps)

    def _epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """One epoch's blocks, shuffled, filled into steps as close to the batch size as whole blocks allow."""
        blocks = list(self.blocks)
        random.Random(f"order {self.seed} {epoch}").shuffle(blocks)
        steps: list[tuple[int, ...]] = []
        step: list[int] = []
        for block in blocks:
            if step and abs(len(step) + len(block) - self.batch_size) > abs(len(step) - self.batch_size):
                steps.append(tuple(step))
                step = []
            step.extend(block)
        return [*steps, tuple(step)] if step else steps


def plan(
    prompts: Sequence[bytes],
    prompt_lengths: Sequence[int],
    row_lengths: Sequence[int],
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    partner_seed: int = 0,
    group: Literal["auto", "row", "prompt"] = "auto",
    context: int = 1 << 30,
    with_partners: bool = True,
    max_steps: int | None = None,
    whole: bool = False,
) -> Schedule:
    """Blocks and partners of a run.

    `prompts[i]`, `prompt_lengths[i]` and `row_lengths[i]` are the token ids (as bytes) and length of row i's prompt and
    the length of its completion. "auto" groups by prompt where a prompt has more than one row; `whole` keeps all rows
    of a prompt in one step, in their order. Partners depend on the data and `partner_seed`, never on `seed`, so that
    the reference table serves runs with other seeds; two prompts meet only where both x_i + y_j fit the context, if
    such a meeting can be found.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(i)
    grouped = whole or group == "prompt" or (group == "auto" and len(by_prompt) < len(prompts))
    most = max(1, min(GROUP_SIZE, batch_size // 2)) if grouped else 1
    most = len(prompts) if whole else most
    rng = random.Random(f"partners {partner_seed}")
    buckets = list(by_prompt.values())
    for bucket in [] if whole else buckets:
        rng.shuffle(bucket)
    rng.shuffle(buckets)
    units = [[bucket[k : k + most] for k in range(0, len(bucket), most)] for bucket in buckets]
    partners = [-1] * len(prompts)
    blocks = [[unit] for bucket in units for unit in bucket]
    if with_partners and len(units) > 1:
        blocks = _meet(units, prompts, prompt_lengths, row_lengths, context, rng)
        for block in blocks:
            for k, unit in enumerate(block):
                others = [u for u in block[k + 1 :] + block[:k] if prompts[u[0]] != prompts[unit[0]]]
                answers = others[0] if others else _stranger(units, prompts, unit, rng)
                for m, i in enumerate(unit):
                    partners[i] = answers[m % len(answers)]
    return Schedule(
        tuple(tuple(i for unit in block for i in unit) for block in blocks),
        tuple(partners),
        batch_size,
        epochs,
        seed,
        max_steps,
        grouped,
    )


def _meet(
    buckets: list[list[list[int]]],
    prompts: Sequence[bytes],
    prompt_lengths: Sequence[int],
    row_lengths: Sequence[int],
    context: int,
    rng: random.Random,
) -> list[list[list[int]]]:
    """Blocks of two units with different prompts; who is left over joins as a third, or stays alone.

    With the units in a row, bucket by bucket and the largest bucket first, unit i meets unit i + h. For h = max(n // 2,
    largest bucket) no unit meets its own prompt, and only an odd one or a prompt with most of the units leaves any
    over.
    """
    largest = max(buckets, key=len)
    units = [unit for bucket in [largest, *(b for b in buckets if b is not largest)] for unit in bucket]
    h = max(len(units) // 2, len(largest))
    couples = min(h, len(units) - h)
    blocks = [[units[i], units[i + h]] for i in range(couples)]

    def fits(a: list[int], b: list[int]) -> bool:
        longest_a, longest_b = max(row_lengths[i] for i in a), max(row_lengths[i] for i in b)
        return prompt_lengths[a[0]] + longest_b <= context and prompt_lengths[b[0]] + longest_a <= context

    def good(block: list[list[int]]) -> int:
        """Less than 0 where a prompt would meet itself, else 1 where the two fit the context."""
        return fits(*block) if prompts[block[0][0]] != prompts[block[1][0]] else -9

    for block in blocks:
        for _ in range(0 if fits(*block) else 100):
            other = blocks[rng.randrange(len(blocks))]
            k = rng.randrange(2)
            one, two = [block[0], other[k]], [block[1], other[1 - k]]
            if other is not block and good(one) + good(two) > good(block) + good(other):
                block[:], other[:] = one, two
                if fits(*block):
                    break
    pairs = iter(tuple(blocks))
    for unit in units[couples:h] + units[couples + h :]:
        home = next(pairs, None)
        blocks.append([unit]) if home is None else home.append(unit)
    return blocks


def _stranger(
    buckets: list[list[list[int]]], prompts: Sequence[bytes], unit: list[int], rng: random.Random
) -> list[int]:
    """Any unit with another prompt, for one whose block has none: its answers serve z0 without sharing the step."""
    while True:
        other = rng.choice(rng.choice(buckets))
        if prompts[other[0]] != prompts[unit[0]]:
            return other


def fill(costs: Sequence[int], budget: int, *, base: int = 0, most: int | None = None) -> Iterator[slice]:
    """Parts of the items 0..n-1 in their order, each as long as `base` plus its costs stays within `budget` and it has
    no more than `most` items. An item above the budget is alone."""
    start, total = 0, base
    for i, cost in enumerate(costs):
        if i > start and (total + cost > budget or i - start == most):
            yield slice(start, i)
            start, total = i, base
        total += cost
    if start < len(costs):
        yield slice(start, len(costs))


def balance(costs: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Items (0..n-1, `costs` in tokens) as micro-batches: [rank][micro-batch][item], equally many on every rank.

    As few as keep each within `budget`, filled longest first into the emptiest. An item above the budget is alone. No
    rank has more of them than its share of the items, so only the last on a rank may be empty (the rank then computes
    one token of weight 0), and on one rank none is. Costs are positive.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    # An item above the budget fills its micro-batch and no other.
    per_rank = max(1, -(-sum(min(cost, budget) for cost in costs) // (ranks * budget)))
    while True:
        bins: list[list[int]] = [[] for _ in range(ranks * per_rank)]
        load = [(0, k) for k in range(len(bins))]  # a heap: the emptiest, of equals the first
        for i in order:
            total, k = load[0]
            bins[k].append(i)
            heapq.heapreplace(load, (total + costs[i], k))
        if all(total <= budget or len(bins[k]) == 1 for total, k in load):
            return [[sorted(items) for items in bins[rank::ranks]] for rank in range(ranks)]
        per_rank += 1
