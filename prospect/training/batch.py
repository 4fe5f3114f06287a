"""From rows of the schedule to micro-batches that the engine computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prospect.data.dataset import Dataset
from prospect.data.schedule import cut
from prospect.engine.packing import Branches, Ids, Query


@dataclass(frozen=True, slots=True)
class Micro:
    """One micro-batch: each tree once, each completion once. `where[k]` are the positions of row k's completions in the
    engine's output; `rows` are the caller's row numbers."""

    rows: tuple[int, ...]
    trees: tuple[Branches, ...]
    where: tuple[tuple[int, ...], ...]

    @property
    def queries(self) -> list[Query]:
        """The completions in the order of the engine's output."""
        return [(tree.prompt, completion) for tree in self.trees for completion in tree.completions]


def matched(dataset: Dataset, rows: Sequence[int], ranks: int, budget: int) -> list[list[Micro]]:
    """The rows with their own completions, cut into micro-batches: [rank][micro-batch]."""
    asked = []
    for i in rows:
        row = dataset.examples[i]
        asked.append((i, row.tree, tuple((b, dataset.completion(row, side)) for side, b in enumerate(row.branches))))
    return _cut(dataset, asked, ranks, budget)


def mismatched(
    dataset: Dataset, partners: Sequence[int], rows: Sequence[int], ranks: int, budget: int, context: int
) -> list[list[Micro]]:
    """Each row's prompt with its partner's completion, cut to the context where it must be; rows without a partner, or
    without room for one token of it, are left out."""
    return _cut(dataset, _with_partners(dataset, partners, rows, context), ranks, budget)


def mismatched_on(dataset: Dataset, partners: Sequence[int], micro: Micro, context: int) -> Micro:
    """As `mismatched`, of the rows of one micro-batch and in the order of its trees. It may have no rows."""
    by_tree: dict[int, list[Asked]] = {}
    for ask in _with_partners(dataset, partners, micro.rows, context):
        by_tree.setdefault(ask[1], []).append(ask)
    return _micro(dataset, list(by_tree.values()))


def trees_of(dataset: Dataset, micro: Micro) -> list[int]:
    """The dataset's numbers of a micro-batch's trees, in order."""
    return list(dict.fromkeys(dataset.examples[i].tree for i in micro.rows))


def _with_partners(dataset: Dataset, partners: Sequence[int], rows: Sequence[int], context: int) -> list[Asked]:
    asked: list[Asked] = []
    for i in rows:
        couple = dataset.mismatch(i, partners, context)
        if couple is not None:
            asked.append((i, dataset.examples[i].tree, ((("partner", partners[i]), couple[1]),)))
    return asked


Asked = tuple[int, int, tuple[tuple[object, Ids], ...]]
"""A row's number, its tree, and its completions, each with a name that is unique within the tree."""


def _cut(dataset: Dataset, asked: Sequence[Asked], ranks: int, budget: int) -> list[list[Micro]]:
    """Rows of one tree stay together, to compute its prompt once, unless they exceed the budget."""
    by_tree: dict[int, list[Asked]] = {}
    for ask in asked:
        by_tree.setdefault(ask[1], []).append(ask)
    items: list[list[Asked]] = []
    costs: list[int] = []
    for tree, asks in by_tree.items():
        prompt = len(dataset.trees[tree].prompt)
        start = len(items)
        for ask in asks:
            cost = sum(len(ids) for _, ids in ask[2])
            if len(items) > start and costs[-1] + cost <= budget:
                items[-1].append(ask)
                costs[-1] += cost
            else:
                items.append([ask])
                costs.append(prompt + cost)
    return [[_micro(dataset, [items[k] for k in part]) for part in parts] for parts in cut(costs, ranks, budget)]


def _micro(dataset: Dataset, items: Sequence[Sequence[Asked]]) -> Micro:
    rows: list[int] = []
    trees: list[Branches] = []
    where: list[tuple[int, ...]] = []
    position = 0
    for item in items:
        completions: dict[object, Ids] = {name: ids for ask in item for name, ids in ask[2]}
        index = {name: position + k for k, name in enumerate(completions)}
        position += len(completions)
        trees.append(Branches(dataset.trees[item[0][1]].prompt, tuple(completions.values())))
        for row, _, named in item:
            rows.append(row)
            where.append(tuple(index[name] for name, _ in named))
    if not trees:  # an idle rank computes one token of weight 0, so that every rank runs the same collectives
        tree = dataset.trees[dataset.examples[0].tree]
        trees.append(Branches(tree.prompt[:1], (dataset.completion(dataset.examples[0])[:1],)))
    return Micro(tuple(rows), tuple(trees), tuple(where))
