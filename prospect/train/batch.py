"""From rows of the schedule to what the engine computes and what a loss reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prospect.corpus import Corpus
from prospect.engine.forest import Branches
from prospect.engine.forward import Output, forward
from prospect.engine.models import Policy
from prospect.engine.reference import Ids, Query, ReferenceTable
from prospect.losses.table import Term
from prospect.schedule import cut


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


def matched(corpus: Corpus, rows: Sequence[int], ranks: int, budget: int) -> list[list[Micro]]:
    """The rows with their own completions, cut into micro-batches: [rank][micro-batch]."""
    asked = []
    for i in rows:
        row = corpus.rows[i]
        asked.append((i, row.tree, tuple((b, corpus.completion(row, side)) for side, b in enumerate(row.branches))))
    return _cut(corpus, asked, ranks, budget)


def mismatched(
    corpus: Corpus, partners: Sequence[int], rows: Sequence[int], ranks: int, budget: int, context: int
) -> list[list[Micro]]:
    """Each row's prompt with its partner's completion, cut to the context where it must be; rows without a partner, or
    without room for one token of it, are left out."""
    asked = []
    for i in rows:
        room = context - len(corpus.trees[corpus.rows[i].tree].prompt)
        if partners[i] >= 0 and room > 0:
            answer = corpus.completion(corpus.rows[partners[i]])[:room]
            asked.append((i, corpus.rows[i].tree, ((("partner", partners[i]), answer),)))
    return _cut(corpus, asked, ranks, budget)


Asked = tuple[int, int, tuple[tuple[object, Ids], ...]]
"""A row's number, its tree, and its completions, each with a name that is unique within the tree."""


def _cut(corpus: Corpus, asked: Sequence[Asked], ranks: int, budget: int) -> list[list[Micro]]:
    """Rows of one tree stay together, to compute its prompt once, unless they exceed the budget."""
    by_tree: dict[int, list[Asked]] = {}
    for ask in asked:
        by_tree.setdefault(ask[1], []).append(ask)
    items: list[list[Asked]] = []
    costs: list[int] = []
    for tree, asks in by_tree.items():
        prompt = len(corpus.trees[tree].prompt)
        start = len(items)
        for ask in asks:
            cost = sum(len(ids) for _, ids in ask[2])
            if len(items) > start and costs[-1] + cost <= budget:
                items[-1].append(ask)
                costs[-1] += cost
            else:
                items.append([ask])
                costs.append(prompt + cost)
    return [[_micro(corpus, [items[k] for k in part]) for part in parts] for parts in cut(costs, ranks, budget)]


def _micro(corpus: Corpus, items: Sequence[Sequence[Asked]]) -> Micro:
    rows: list[int] = []
    trees: list[Branches] = []
    where: list[tuple[int, ...]] = []
    position = 0
    for item in items:
        completions: dict[object, Ids] = {name: ids for ask in item for name, ids in ask[2]}
        index = {name: position + k for k, name in enumerate(completions)}
        position += len(completions)
        trees.append(Branches(corpus.trees[item[0][1]].prompt, tuple(completions.values())))
        for row, _, named in item:
            rows.append(row)
            where.append(tuple(index[name] for name, _ in named))
    if not trees:  # an idle rank computes one token of weight 0, so that every rank runs the same collectives
        tree = corpus.trees[corpus.rows[0].tree]
        trees.append(Branches(tree.prompt[:1], (corpus.completion(corpus.rows[0])[:1],)))
    return Micro(tuple(rows), tuple(trees), tuple(where))


def log_ratio(output: Output, reference: Tensor) -> Tensor:
    """r (N,) in nats: the sum over each completion's tokens of the differences of log-probs."""
    return segment_sum(output.token_logp - reference, output.offsets)


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of consecutive runs of `values` (T,), bounded by `offsets` (N+1,): (N,)."""
    lengths = offsets.diff().to(values.device)
    index = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
    return torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(0, index, values)


def reference_tokens(table: ReferenceTable, micro: Micro, like: Tensor) -> Tensor:
    """The reference's token log-probs (T,) in the order of the engine's output. An idle rank's token has log-prob 0."""
    if not micro.rows:
        return torch.zeros_like(like)
    return torch.cat([torch.tensor(table.token_logp(q)) for q in micro.queries]).to(like)


@dataclass(frozen=True, slots=True)
class Computed:
    """What the engine found for a micro-batch. `log_ratio` (C,) is None where the loss needs no reference."""

    micro: Micro
    output: Output
    reference: Tensor | None
    log_ratio: Tensor | None


def compute(policy: Policy, micro: Micro, table: ReferenceTable | None) -> Computed:
    """Run the engine on a micro-batch and look up its reference."""
    output = forward(policy, micro.trees)
    if table is None:
        return Computed(micro, output, None, None)
    reference = reference_tokens(table, micro, output.token_logp)
    return Computed(micro, output, reference, log_ratio(output, reference))


def read(term: Term, computed: Computed, desirable: Tensor, z0: Tensor | None) -> list[Tensor]:
    """The arguments of a term's function, in order; for pairs each input once per side."""
    sides = len(computed.micro.where[0])
    found: list[Tensor] = []
    for name in term.reads:
        if name == "desirable":
            found.append(desirable)
        elif name == "z0":
            assert z0 is not None, "a loss that reads z0 has an estimator"
            found.append(z0)
        else:
            found.extend(_input(name, computed, side) for side in range(sides))
    return found


def token_positions(computed: Computed, side: int) -> tuple[Tensor, Tensor]:
    """(indices into the flat tokens, offsets (N+1,)) of the rows' completions on one side."""
    offsets = computed.output.offsets.tolist()
    spans = [(offsets[w[side]], offsets[w[side] + 1]) for w in computed.micro.where]
    device = computed.output.token_logp.device
    index = torch.cat([torch.arange(a, b) for a, b in spans]).to(device)
    return index, torch.tensor([0, *(b - a for a, b in spans)]).cumsum(0)


def _input(name: str, computed: Computed, side: int) -> Tensor:
    output, reference = computed.output, computed.reference
    if name in ("token_logp", "token_log_ratio", "offsets"):
        index, offsets = token_positions(computed, side)
        if name == "offsets":
            return offsets.to(index.device)
        values = output.token_logp if name == "token_logp" else output.token_logp - _present(reference)
        return values[index]
    if name == "log_ratio":
        return log_ratios(computed, side)
    rows = _completions(computed, side)
    if name == "logp":
        return segment_sum(output.token_logp, output.offsets)[rows]
    if name == "reference_logp":
        return segment_sum(_present(reference), output.offsets)[rows]
    assert name == "length", f"unknown input {name}"
    return output.offsets.diff().to(rows.device)[rows]


def log_ratios(computed: Computed, side: int) -> Tensor:
    """r (N,) in nats of each row's completion, or of one side of its pair."""
    return _present(computed.log_ratio)[_completions(computed, side)]


def _completions(computed: Computed, side: int) -> Tensor:
    """(N,) where the rows' completions stand in the engine's output."""
    return torch.tensor([w[side] for w in computed.micro.where], device=computed.output.token_logp.device)


def _present(value: Tensor | None) -> Tensor:
    assert value is not None, "a term that reads the reference makes its loss need one"
    return value
