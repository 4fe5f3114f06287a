"""The only batcher by tokens: numbers of items in, parts of them out. Pure, deterministic, without torch.

fill(costs, budget)             consecutive items, as many at a time as the budget holds
balance(costs, ranks, budget)   micro-batches: equally many per rank, balanced by tokens
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence


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
