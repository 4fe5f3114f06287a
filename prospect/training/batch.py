"""From the rows of a step to what a loss reads.

    rows --cut_step--> MicroBatch --compute: engine and reference--> Completions --batch_of--> Batch --> a loss

The engine's results are per token, and a row's sums follow from them:

    token_logp, token_reference_logp  ->  token_log_ratio  ->  log_ratio, logp, reference_logp, length
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from prospect.data.dataset import Dataset
from prospect.data.schedule import balance, fill
from prospect.data.textids import Ids, TargetIds
from prospect.engine.packing import Branches, TokenLogps, forward, forward_more, move, move_all, take
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference, reference_kl
from prospect.feedback.records import Example
from prospect.losses.numerics import segment_sum


class Reference(Protocol):
    """The reference table, or a reference that moves."""

    def scores(self, trees: Sequence[Branches], like: Tensor) -> Tensor:
        """The reference's token log-probs (T,) in nats of all completions of the trees, in their order."""


@dataclass(slots=True)
class MicroBatch:
    """Rows that the engine computes at once: each tree once, each completion once.

    `rows` are numbers of the dataset, `places` where these rows stand in the step, and `numbers[k]` the numbers of row
    k's completions in the engine's output. `computed` is that output where z0 needed it before training does.
    """

    rows: tuple[int, ...]
    places: tuple[int, ...]
    trees: tuple[Branches, ...]
    numbers: tuple[tuple[int, ...], ...]
    computed: Completions | None = None

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(place, side) of every completion of every row."""
        return [(place, side) for place, n in zip(self.places, self.numbers, strict=True) for side in range(len(n))]


class _Row(NamedTuple):
    """What is computed of a row: completions of one prompt, by keys that are unique within the `group` of rows that
    share this prompt."""

    number: int
    place: int
    group: int
    prompt: Ids
    completions: Mapping[int, Ids]
    target_ids: Mapping[int, TargetIds | None]


def cut_step(dataset: Dataset, rows: Sequence[int], ranks: int, budget: int) -> list[list[MicroBatch]]:
    """The rows of a step with their own completions, cut into micro-batches of at most `budget` tokens: [rank][k]."""
    items: list[_Row] = []
    for place, i in enumerate(rows):
        row = dataset.examples[i]
        tree = dataset.trees[row.tree]
        completions = {b: dataset.completion(row, side) for side, b in enumerate(row.branches)}
        target_ids = {b: tree.target(b) for b in row.branches if tree.target_ids}
        items.append(_Row(i, place, row.tree, tree.prompt, completions, target_ids))
    return _cut(items, ranks, budget)


def cut_mismatched(
    dataset: Dataset, partners: Sequence[int], rows: Sequence[int], ranks: int, budget: int, context: int
) -> list[list[MicroBatch]]:
    """The same with the completion of each row's partner, cut to the context where it must be. Rows without a partner,
    or without room for one token of its completion, are left out."""
    return _cut(_mismatched(dataset, partners, list(enumerate(rows)), context), ranks, budget)


def cut_answers(
    dataset: Dataset, rows: Sequence[int], answers: Sequence[Ids], ranks: int, budget: int
) -> list[list[MicroBatch]]:
    """The same with these answers, one to each row; a row with an empty one is left out."""
    prompts = [dataset.trees[dataset.examples[i].tree].prompt for i in rows]
    columns = enumerate(zip(rows, prompts, answers, strict=True))
    return _cut(
        [_Row(i, place, place, prompt, {0: ids}, {}) for place, (i, prompt, ids) in columns if len(ids)], ranks, budget
    )


def mismatched_with(dataset: Dataset, partners: Sequence[int], micro_batch: MicroBatch, context: int) -> MicroBatch:
    """As `cut_mismatched`, of the rows of one micro-batch and in the order of its trees."""
    numbered = list(zip(micro_batch.places, micro_batch.rows, strict=True))
    return _micro_batch(_by_group(_mismatched(dataset, partners, numbered, context)))


def _mismatched(
    dataset: Dataset, partners: Sequence[int], numbered: Sequence[tuple[int, int]], context: int
) -> list[_Row]:
    items: list[_Row] = []
    for place, i in numbered:
        pair = dataset.mismatch(i, partners, context)
        if pair is not None:
            items.append(_Row(i, place, dataset.examples[i].tree, pair[0], {partners[i]: pair[1]}, {}))
    return items


def _by_group(items: Sequence[_Row]) -> list[list[_Row]]:
    groups: dict[int, list[_Row]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return list(groups.values())


def _cut(items: Sequence[_Row], ranks: int, budget: int) -> list[list[MicroBatch]]:
    """Rows of one prompt stay together, to compute it once, unless they exceed the budget."""
    parts: list[list[_Row]] = []
    costs: list[int] = []
    for group in _by_group(items):
        sizes, prompt = [sum(map(len, item.completions.values())) for item in group], len(group[0].prompt)
        for part in fill(sizes, budget, base=prompt):
            parts.append(group[part])
            costs.append(prompt + sum(sizes[part]))
    return [[_micro_batch([parts[k] for k in bin]) for bin in bins] for bins in balance(costs, ranks, budget)]


def _micro_batch(groups: Sequence[Sequence[_Row]]) -> MicroBatch:
    trees: list[Branches] = []
    numbers: list[tuple[int, ...]] = []
    count = 0
    for group in groups:
        completions = {key: ids for item in group for key, ids in item.completions.items()}
        number = {key: count + k for k, key in enumerate(completions)}
        count += len(completions)
        target_ids = {key: target for item in group for key, target in item.target_ids.items()}
        aims = tuple(map(target_ids.get, completions)) if any(target_ids.values()) else ()
        trees.append(Branches(group[0].prompt, tuple(completions.values()), aims))
        numbers += [tuple(number[key] for key in item.completions) for item in group]
    items = [item for group in groups for item in group]
    return MicroBatch(
        tuple(item.number for item in items), tuple(item.place for item in items), tuple(trees), tuple(numbers)
    )


LEARNT = ("token_logp", "value", "token_reference_kl", "token_target_logp")
"""Columns through which a gradient flows to the policy."""
COLUMNS = (*LEARNT, "token_reference_logp", "token_sum_p2")


@dataclass(frozen=True, eq=False)
class Completions:
    """Log-probs of N completions in T tokens, completion k being `bounds[k]:bounds[k + 1]`, and what follows from them.
    A column that no loss of the run reads is None. `bounds` stay on the CPU, where rows are picked."""

    token_logp: Tensor  # (T,)
    bounds: Tensor  # (N + 1,) int64, on the CPU
    token_reference_logp: Tensor | None = None  # (T,)
    token_sum_p2: Tensor | None = None  # (T,)
    value: Tensor | None = None  # (T,)
    token_reference_kl: Tensor | None = None  # (T,)
    token_target_logp: Tensor | None = None  # (T, K), 0 but where a completion has the place of its target

    @property
    def offsets(self) -> Tensor:
        """`bounds` on the device."""
        return move(self.bounds, self.token_logp.device)

    @property
    def length(self) -> Tensor:
        """Tokens of each completion (N,) int64."""
        return move(self.bounds.diff(), self.token_logp.device)

    @property
    def token_log_ratio(self) -> Tensor:
        """log pi - log pi_ref of each token (T,), in nats."""
        assert self.token_reference_logp is not None, "who reads log-ratios has a reference"
        return self.token_logp - self.token_reference_logp

    @property
    def old_token_logp(self) -> Tensor:
        """log-probs of the policy that gave the answers (T,), in nats: the reference stands for it."""
        assert self.token_reference_logp is not None, "who reads old log-probs has a reference"
        return self.token_reference_logp

    @property
    def log_ratio(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x) of each completion (N,), in nats."""
        return segment_sum(self.token_log_ratio, self.offsets)

    @property
    def logp(self) -> Tensor:
        """log pi(y|x) of each completion (N,), in nats."""
        return segment_sum(self.token_logp, self.offsets)

    @property
    def reference_logp(self) -> Tensor:
        """log pi_ref(y|x) of each completion (N,), in nats."""
        assert self.token_reference_logp is not None, "who reads its log-probs has a reference"
        return segment_sum(self.token_reference_logp, self.offsets)

    @property
    def prompt_value(self) -> Tensor:
        """The learned value where the prompt of each completion ends (N,)."""
        assert self.value is not None, "who reads it has a value head"
        return self.value[self.offsets[:-1]]

    @property
    def reference_kl(self) -> Tensor:
        """KL(pi_ref || pi), summed over the tokens of each completion (N,), in nats."""
        assert self.token_reference_kl is not None, "who reads it has a live reference"
        return segment_sum(self.token_reference_kl, self.offsets)

    @property
    def target_logp(self) -> Tensor:
        """The log-probs of the tokens of each completion's target (N, K), 0 where it has fewer, in nats."""
        assert self.token_target_logp is not None, "who reads it has asked for targets"
        return segment_sum(self.token_target_logp, self.offsets)

    def map(self, change: Callable[[Tensor], Tensor], bounds: Tensor) -> Completions:
        """With every column of tokens changed, and these bounds."""
        return Completions(bounds=bounds, **{name: change(column) for name, column in self.columns().items()})

    def columns(self, names: Sequence[str] = COLUMNS) -> dict[str, Tensor]:
        """Those of these columns of tokens that there are, by name."""
        there = {name: getattr(self, name) for name in names}
        return {name: column for name, column in there.items() if column is not None}

    def take(self, numbers: Sequence[int]) -> Completions:
        """Some completions, in this order."""
        bounds = self.bounds.tolist()
        spans = [torch.arange(bounds[k], bounds[k + 1]) for k in numbers]
        lengths = torch.tensor([len(span) for span in spans], dtype=torch.int64)
        index = move(torch.cat([lengths[:0], *spans]), self.token_logp.device)
        return self.map(lambda column: column[index], _bounds(lengths))


def join(parts: Sequence[Completions]) -> Completions:
    """The completions of all parts, at least one of which there is, one behind the other."""
    columns = [part.columns() for part in parts]
    return Completions(
        bounds=_bounds(torch.cat([part.bounds.diff() for part in parts])),
        **{name: torch.cat([column[name] for column in columns]) for name in columns[0]},
    )


def _bounds(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


@dataclass(frozen=True, eq=False)
class Batch:
    """N rows as a loss reads them: what each row says, and its completions, of pairs the chosen ones and the rejected
    ones. A loss `reads` properties of this class and, once per side, of `Completions`."""

    sides: tuple[Completions, ...]
    weight: Tensor  # (N,)
    thumbs: tuple[bool, ...]
    """On the CPU, where rows are picked."""
    score: Tensor | None = None
    """(N,): of an answer, or of a pair the difference of its scores."""
    z0: Tensor | None = None
    """A scalar or (N,), in nats."""
    trees: tuple[int, ...] = ()
    """The number of each row's tree. Rows of one group have one tree and stand together."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """(N, ...) each: what else the data say of a row, by the name under which losses read it."""
    running: Tensor | None = None
    """The loss's running statistics, where the rows are a whole step."""

    def __len__(self) -> int:
        return len(self.weight)

    @cached_property
    def desirable(self) -> Tensor:
        """The thumbs as a mask (N,), on the device, copied there once."""
        return move(torch.tensor(self.thumbs, dtype=torch.bool), self.weight.device)

    @cached_property
    def group(self) -> Tensor:
        """Where each group begins and the last one ends (G + 1,) int64, on the device."""
        starts = [k for k in range(len(self.trees)) if k == 0 or self.trees[k] != self.trees[k - 1]]
        return move(torch.tensor([*starts, len(self.trees)], dtype=torch.int64), self.weight.device)

    @property
    def old_logp(self) -> Tensor:
        """The log-prob of each answer under the policy that gave it (N,), in nats: the data's own, else the
        reference stands for it."""
        return self.columns["old_logp"] if "old_logp" in self.columns else self.sides[0].reference_logp

    @property
    def margin(self) -> Tensor | None:
        """By how much the chosen answer is scored higher (N,)."""
        return self.score

    @property
    def target(self) -> Tensor | None:
        """The probabilities of each answer's target (N, K), 0 where it has fewer."""
        return self.columns.get("target")

    @property
    def win_rate(self) -> Tensor | None:
        """How often each answer of a row wins against others (N, answers), which is what its score says."""
        return self.columns.get("win_rate")

    @property
    def reference_quantile(self) -> Tensor | None:
        """The share of the reference's own answers to the prompt that are scored no higher (N,)."""
        return self.columns.get("reference_quantile")

    @property
    def reference_count(self) -> Tensor | None:
        """How many answers of the reference's that is a share of (N,)."""
        return self.columns.get("reference_count")

    @property
    def draw(self) -> Tensor | None:
        """A uniform random number for each row (N,), by the seed, the step, and the row's place in it."""
        return self.columns.get("draw")

    def take(self, rows: Sequence[int]) -> Batch:
        """Some rows, in this order."""
        return Batch(
            tuple(side.take(rows) for side in self.sides),
            take(self.weight, rows),
            tuple(self.thumbs[k] for k in rows),
            None if self.score is None else take(self.score, rows),
            take(self.z0, rows) if self.z0 is not None and self.z0.ndim else self.z0,
            tuple(self.trees[k] for k in rows) if self.trees else (),
            {name: take(column, rows) for name, column in self.columns.items()},
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device, or on the CPU, which waits for it; before it has a z0."""
        assert self.z0 is None, "z0 is known on every rank"
        sides = tuple(side.map(lambda column: move(column, device), side.bounds) for side in self.sides)
        score = None if self.score is None else move(self.score, device)
        columns = {name: move(column, device) for name, column in self.columns.items()}
        return Batch(sides, move(self.weight, device), self.thumbs, score, trees=self.trees, columns=columns)


def batch_of(dataset: Dataset, micro_batch: MicroBatch, computed: Completions, z0: Tensor | None = None) -> Batch:
    """The rows of a micro-batch, of which there is at least one. `z0` is theirs."""
    rows = [dataset.examples[i] for i in micro_batch.rows]
    device, dtype = computed.token_logp.device, computed.token_logp.dtype
    scores = [row.score for row in rows]
    sides = range(len(micro_batch.numbers[0]))
    return Batch(
        tuple(computed.take([numbers[side] for numbers in micro_batch.numbers]) for side in sides),
        move(torch.tensor([row.weight for row in rows], dtype=dtype), device),
        tuple(bool(row.desirable) for row in rows),
        None if None in scores else move(torch.tensor(scores, dtype=dtype), device),
        None if z0 is None else z0.to(device, dtype),
        tuple(row.tree for row in rows),
        {name: move(torch.tensor(column, dtype=dtype), device) for name, column in _columns(dataset, rows).items()},
    )


def _columns(dataset: Dataset, rows: Sequence[Example]) -> dict[str, list[Any]]:
    """`Batch.columns` of rows, those that every row has."""
    columns: dict[str, list[Any]] = {}
    if size := dataset.target_size:
        columns["target"] = [[*row.target, *[0.0] * (size - len(row.target))] for row in rows]
    scored = [(row.score, row) for row in rows if row.score is not None]
    if len(scored) < len(rows):
        return columns
    answers = [[dataset.records[row.tree].completions[branch] for branch in row.branches] for row in rows]
    columns["win_rate"] = [[answer.score for answer in row] for row in answers]
    if all(row[0].old_logp is not None for row in answers):
        columns["old_logp"] = [row[0].old_logp for row in answers]
    if all(row.reference_scores for row in rows):
        below = [(sum(x <= score for x in row.reference_scores), len(row.reference_scores)) for score, row in scored]
        columns["reference_quantile"] = [no_higher / count for no_higher, count in below]
        columns["reference_count"] = [count for _, count in below]
    return columns


def compute(
    policy: Policy,
    trees: Sequence[Branches],
    reference: Reference | None,
    *,
    sum_p2: bool = False,
    value: bool = False,
    live: LiveReference | None = None,
    target_size: int = 0,
) -> Completions:
    """Run the engine on trees, and look up their completions in the reference. From a `live` one comes its KL, too.
    Targets have at most `target_size` tokens; 0: they are not wanted."""
    wants_hidden = value or live is not None or target_size > 0
    output = forward(policy, trees, want_sum_p2=sum_p2, want_hidden=wants_hidden)
    return _completions(policy, trees, output, reference, value=value, live=live, target_size=target_size)


def compute_with(
    policy: Policy,
    trees: Sequence[Branches],
    further: Sequence[Sequence[Ids]],
    reference: Reference | None,
    *,
    sum_p2: bool = False,
    value: bool = False,
    live: LiveReference | None = None,
    target_size: int = 0,
) -> tuple[Completions, Completions]:
    """The same and, without gradient, `further[k]`: more completions of the prompt of tree k, which is not computed
    again. There is at least one of them."""
    # Around both: the second finds most of the weights that the first has cast for its backward. Not around the
    # look-up: a live reference puts other weights into the same parameters, which is all that autocast looks at.
    with policy.autocast():
        wants_hidden = value or live is not None or target_size > 0
        output = forward(policy, trees, want_sum_p2=sum_p2, want_hidden=wants_hidden, want_prompts=True)
        assert output.prompts is not None, "the caller has asked `on_trees`"
        with torch.no_grad():
            more = forward_more(policy, output.prompts, further)
    output.prompts.key_values.layers.clear()
    with torch.no_grad():
        others = [Branches(tree.prompt, tuple(ids)) for tree, ids in zip(trees, further, strict=True) if ids]
        beside = _completions(policy, others, more, reference)
    return _completions(policy, trees, output, reference, value=value, live=live, target_size=target_size), beside


def _completions(
    policy: Policy,
    trees: Sequence[Branches],
    output: TokenLogps,
    reference: Reference | None,
    *,
    value: bool = False,
    live: LiveReference | None = None,
    target_size: int = 0,
) -> Completions:
    logp, hidden = output.token_logp, output.hidden
    return Completions(
        logp,
        output.offsets,
        None if reference is None else reference.scores(trees, logp.detach()),
        output.token_sum_p2,
        policy.values(hidden).to(logp.dtype) if value and hidden is not None else None,
        reference_kl(policy, live, trees, hidden).to(logp.dtype) if live is not None and hidden is not None else None,
        _target_logp(policy, trees, output, target_size) if target_size else None,
    )


def _target_logp(policy: Policy, trees: Sequence[Branches], output: TokenLogps, size: int) -> Tensor:
    """The log-probs of the tokens of targets (T, size), each at its place, 0 everywhere else."""
    assert output.hidden is not None, "compute asks for it"
    logp = output.token_logp
    aims = [aim for tree in trees for aim in (tree.target_ids or [None] * len(tree.completions))]
    there = [(start + aim.place, aim.ids) for start, aim in zip(output.offsets.tolist(), aims, strict=False) if aim]
    if not there:
        return logp.new_zeros(len(logp), size)
    arrays = [
        np.repeat([place for place, _ in there], [len(ids) for _, ids in there]),
        np.concatenate([np.arange(len(ids)) for _, ids in there]),
        np.concatenate([ids for _, ids in there]),
    ]
    places, columns, ids = move_all(arrays, policy.device, np.int64)
    values = policy.logp(output.hidden[places], ids).to(logp.dtype)
    return logp.new_zeros(len(logp), size).index_put((places, columns), values)
