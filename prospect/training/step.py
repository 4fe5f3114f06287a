"""One step: what it reads (Job), its reference point z0, and its gradient, whichever way it is cut.

z0 is an estimator of averages gathered over all micro-batches and ranks: without a gradient, as the paper has it, or
with one (`--z0-gradient`): then the objective's derivative by z0, summed over the whole step, drives a second pass over
the rows that z0 was estimated from.

Most losses add up row by row: each micro-batch runs forward and backward once. A loss that couples rows (`couples`
"step") first gathers every row's tokens without gradient; the loss runs once on the whole step, and its derivative by
each token drives a second pass, micro-batch by micro-batch. A loss that couples the rows of a group does so where a
micro-batch has a part of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prospect.data.dataset import Dataset
from prospect.data.raters import RaterCap
from prospect.data.schedule import Schedule, Step
from prospect.data.textids import Ids
from prospect.engine.device import is_out_of_memory, release
from prospect.engine.generate import generate
from prospect.engine.packing import Branches, move, on_trees, take
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference, kl_tokens, token_kl
from prospect.errors import ConfigError, ModelError
from prospect.losses.numerics import segment_sum
from prospect.losses.reference_point import Statistics
from prospect.losses.registry import ReferencePoint
from prospect.training import ranks
from prospect.training.batch import (
    LEARNT,
    Batch,
    Completions,
    MicroBatch,
    Reference,
    batch_of,
    compute,
    compute_with,
    cut_answers,
    cut_mismatched,
    cut_step,
    join,
    mismatched_with,
)
from prospect.training.config import TrainConfig
from prospect.training.objective import SUMS, Objective
from prospect.training.runlog import RunLog

Result = TypeVar("Result")

NO_GRAD_FACTOR = {"cuda": 4}
"""A pass without gradients holds no activations, so its micro-batches may be this much larger. On a CPU
that buys little or nothing (`python -m benchmarks.micro --only reference`) and takes memory."""


@dataclass
class Job:
    """A run that is ready to start.

    `estimator` is that of z0. `reference` is None where the loss needs none: a table, or `live` where the reference
    moves. `live` is the reference as weights, where something asks what no table knows. `learning_rate` is the highest.
    `rounding` is how many nats of an answer's log-ratio say nothing: preflight raises it to what it measures.
    `rater_cap` is what --max-weight-per-rater made of the rows' weights.
    `evaluate(step)` samples answers and returns the held-out figures. This process is number `rank` of `ranks`.
    """

    policy: Policy
    dataset: Dataset
    schedule: Schedule
    objective: Objective
    estimator: ReferencePoint | None
    config: TrainConfig
    log: RunLog
    token_budget: int
    learning_rate: float
    rounding: float
    reference: Reference | None = None
    live: LiveReference | None = None
    evaluate: Callable[[int], dict[str, float]] | None = None
    rater_cap: RaterCap | None = None
    rank: int = 0
    ranks: int = 1

    @property
    def checkpoints(self) -> Path:
        """Their folder."""
        return self.log.folder / "checkpoints"

    @property
    def no_grad_budget(self) -> int:
        """Tokens per micro-batch of a pass without gradients."""
        return self.token_budget * NO_GRAD_FACTOR.get(self.policy.device.type, 1)

    def compute(self, trees: Sequence[Branches], reference: Reference | None = None) -> Completions:
        """The completions of trees, against the run's reference or another one."""
        return compute(self.policy, trees, reference or self.reference, **self._columns())

    def compute_with(
        self, trees: Sequence[Branches], further: Sequence[Sequence[Ids]]
    ) -> tuple[Completions, Completions]:
        """The same and, without gradient, `further[k]`: other completions of the prompt of tree k, which is not
        computed again. The engine must be able to (`shares_prompts`)."""
        return compute_with(self.policy, trees, further, self.reference, **self._columns())

    def _columns(self) -> dict[str, Any]:
        """The columns of completions that the loss reads beside the log-probs."""
        objective = self.objective
        return {
            "sum_p2": objective.reads_sum_p2,
            "value": objective.reads_value,
            "live": self.live if objective.reads_kl else None,
            "target_size": self.dataset.target_size if objective.reads_target else 0,
        }

    def shares_prompts(self, trees: Sequence[Branches]) -> bool:
        """Whether the engine can score further completions of these prompts without computing them again."""
        return self.policy.chunked_head and on_trees(self.policy, trees)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks (in place)."""
        return values if self.ranks == 1 else ranks.total(values)

    def fitting(self, work: Callable[[], Result]) -> Result:
        """The result of `work`; where memory runs out, the token budget is halved and all of it begins again.

        With several ranks, `work` must do all that may fail so between two messages within `on_all_ranks`.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()  # behind the handler: the error holds what is to be released

    def on_all_ranks(self, work: Callable[[], Result]) -> Result:
        """The result of `work`. Where memory runs out on one rank, it has run out on all: none waits for a message that
        another will not send."""
        return work() if self.ranks == 1 else ranks.fail_together(work, self.policy.device)

    def _halve(self) -> None:
        for _, p in self.policy.trainable():
            p.grad = None
        release(self.policy.device)
        if self.no_grad_budget < 64:  # the larger of the two
            raise ModelError("out of memory even with one row at a time: use --lora, --max-length or a smaller model")
        self.token_budget //= 2
        self.log.say(f"out of memory: micro-batches of {self.token_budget} tokens from here on", warning=True)


SAMPLE_TOKENS = 128
"""Longest answer that the estimator `on_policy` asks the policy for."""

Pass = tuple[MicroBatch, MicroBatch | None]
"""A micro-batch that z0 is estimated from; and the one of training that is computed along with it, or is the same."""


@dataclass(slots=True)
class StepZ0:
    """z0 of one step: a scalar or one number per row, None where the loss has none. `state` is the estimator's next
    one, `metrics` go into the step's line, and through `graph` a gradient flows. `running` are the loss's running
    statistics, before the step and, once its gradient is there, after it."""

    value: Tensor | None = None
    state: Tensor | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    graph: Z0Graph | None = None
    running: Tensor | None = None

    def of(self, places: Sequence[int]) -> Tensor | None:
        """z0 of the rows at these places of the step."""
        return self.value if self.value is None or self.value.ndim == 0 else take(self.value, places)

    @property
    def states(self) -> dict[str, Tensor]:
        """What the next step begins with, and checkpoints keep, by name."""
        states = {"reference_point": self.state, "running": self.running}
        return {name: state for name, state in states.items() if state is not None}


@dataclass(frozen=True, slots=True)
class Z0Graph:
    """What z0 depends on: its `values`, by (place, side), and the micro-batches of this rank that they came from."""

    z0: Tensor
    values: Tensor
    number: dict[tuple[int, int], int]
    micro_batches: list[MicroBatch]

    def backward(self, job: Job, by_z0: Tensor) -> None:
        """Add this rank's share of the gradient that flows through z0, given the whole step's derivative by it."""
        (by_value,) = torch.autograd.grad(self.z0, self.values, by_z0.to(self.z0), retain_graph=True)
        for micro_batch in self.micro_batches:
            values = _values(job, micro_batch, None)
            slopes = take(by_value, [self.number[key] for key in micro_batch.sides])
            (values * slopes.to(values.dtype)).sum().backward()


def estimate_z0(
    job: Job,
    step: Step,
    micro_batches: Sequence[Sequence[MicroBatch]],
    state: Tensor | None,
    *,
    at_reference: bool = False,
) -> StepZ0:
    """z0 of a step, as tensors on the device. Only the policy's own samples make the host wait for it.

    `micro_batches` are the step's, [rank][k]; what training can use again stays with them as `computed`. Where the
    policy is the reference (`at_reference`), every log-ratio and KL is 0, and its rounding error is not let in: else
    the error's sign would choose a side of the estimator's clamp, and with it whether a gradient flows.
    """
    estimator = job.estimator
    if estimator is None:
        return StepZ0(state=state)
    passes = job.on_all_ranks(lambda: _passes(job, step, micro_batches))
    keys = sorted(key for share in passes for micro_batch, _ in share for key in micro_batch.sides)
    number = {key: k for k, key in enumerate(keys)}
    mine = passes[job.rank]

    def measure() -> Tensor:
        values = torch.zeros(len(keys), dtype=torch.float64, device=job.policy.device)
        for micro_batch, training in mine:
            where = torch.tensor([number[key] for key in micro_batch.sides], dtype=torch.int64)
            with torch.set_grad_enabled(training is not None):
                values[move(where, values.device)] = _values(job, micro_batch, training).detach().to(values)
        return values

    values = job.total(job.on_all_ranks(measure))  # each is one rank's, to which the others add 0
    if at_reference and estimator.averages != "partner_logp":
        values.zero_()
    through = job.config.z0_gradient and bool(keys)
    statistics = _statistics(job, step, keys, values.requires_grad_(through))
    z0, state = estimator.function(statistics, state)
    if z0.ndim and len(z0) != len(step.rows):
        raise ConfigError(
            f"step {step.index}: the reference point {estimator.name} gave {len(z0)} numbers for {len(step.rows)} "
            "rows. Return one number, or one for every row"
        )
    through = through and z0.requires_grad  # an estimator may look at its state alone
    leaf = z0.detach().to(values).requires_grad_(through)
    metrics: dict[str, Any] = {"z0": leaf.detach().mean()}
    if keys:
        metrics |= {"z0_raw": statistics.mean.detach(), "z0_se": statistics.standard_error, "z0_n": len(keys)}
    graph = Z0Graph(z0, values, number, [micro_batch for micro_batch, _ in mine]) if through else None
    return StepZ0(leaf, state, metrics, graph)


def _passes(job: Job, step: Step, micro_batches: Sequence[Sequence[MicroBatch]]) -> list[list[Pass]]:
    """Every rank's passes. Where its share of the step is one micro-batch, training uses what z0 has computed."""
    assert job.estimator is not None, "only a step with z0 is measured"
    averages, dataset, partners = job.estimator.averages, job.dataset, job.schedule.partners
    # Where a gradient flows through z0, the same micro-batches run backward.
    budget = job.token_budget if job.config.z0_gradient else job.no_grad_budget
    shares: Sequence[Sequence[MicroBatch]] = micro_batches
    if averages == "nothing":
        return [[]] * job.ranks
    once = len(micro_batches[0]) == 1 and not job.config.z0_gradient
    once = once and (job.ranks == 1 or job.objective.loss.couples == "none")
    if averages == "matched" and once:
        return [[(micro_batch, micro_batch) for micro_batch in share if micro_batch.rows] for share in micro_batches]
    if averages == "samples":
        shares = cut_answers(dataset, step.rows, _answers(job, step), job.ranks, budget)
    elif averages == "token_kl" and kl_tokens(job.policy) < job.token_budget:
        shares = cut_step(dataset, step.rows, job.ranks, kl_tokens(job.policy))
    elif averages in ("partners", "partner_logp"):
        if once:
            both = [[(mismatched_with(dataset, partners, m, job.policy.context), m) for m in s] for s in micro_batches]
            trees = [tree for share in both for pair in share for part in pair for tree in part.trees]
            if job.shares_prompts(trees):
                return [[(other, micro_batch) for other, micro_batch in share if other.rows] for share in both]
        shares = cut_mismatched(dataset, partners, step.rows, job.ranks, budget, job.policy.context)
    return [[(micro_batch, None) for micro_batch in share if micro_batch.rows] for share in shares]


def _answers(job: Job, step: Step) -> list[Ids]:
    """What the policy answers now to the step's prompts. Every rank draws all, so that none depends on the ranks."""
    prompts = [job.dataset.trees[job.dataset.examples[i].tree].prompt.tolist() for i in step.rows]
    seed = job.config.seed * 1_000_003 + step.index
    answers = generate(job.policy, prompts, max_new_tokens=SAMPLE_TOKENS, seed=seed)
    return [np.array(answer.ids, dtype=np.int32) for answer in answers]


def _values(job: Job, micro_batch: MicroBatch, training: MicroBatch | None) -> Tensor:
    """What the estimator averages of every completion of every row. `training` gets what was computed along with it."""
    assert job.estimator is not None, "only a step with z0 is measured"
    averages = job.estimator.averages
    if averages == "token_kl":
        assert job.live is not None, "this estimator has a live reference"
        per_token, offsets = token_kl(job.policy, job.live, micro_batch.trees)
        values = segment_sum(per_token, move(offsets, per_token.device))
    else:
        completions = _completions(job, micro_batch, training)
        values = completions.logp / completions.length if averages == "partner_logp" else completions.log_ratio
    return take(values, [number for numbers in micro_batch.numbers for number in numbers])


def _completions(job: Job, micro_batch: MicroBatch, training: MicroBatch | None) -> Completions:
    assert job.estimator is not None, "only a step with z0 is measured"
    if training is None:
        return job.compute(micro_batch.trees, job.live if job.estimator.averages == "samples" else None)
    if training is micro_batch:
        training.computed = job.compute(training.trees)
        return training.computed
    place = {tree: k for k, tree in enumerate(_trees(job, training))}
    further: list[tuple[Ids, ...]] = [()] * len(training.trees)
    for number, tree in zip(_trees(job, micro_batch), micro_batch.trees, strict=True):
        further[place[number]] = tree.completions
    training.computed, completions = job.compute_with(training.trees, further)
    return completions


def _trees(job: Job, micro_batch: MicroBatch) -> list[int]:
    """The dataset's numbers of a micro-batch's trees, in order."""
    return list(dict.fromkeys(job.dataset.examples[i].tree for i in micro_batch.rows))


def _statistics(job: Job, step: Step, keys: list[tuple[int, int]], values: Tensor) -> Statistics:
    rows = [job.dataset.examples[step.rows[place]] for place, _ in keys]
    good = [
        side == 0 if len(row.branches) == 2 else bool(row.desirable) for row, (_, side) in zip(rows, keys, strict=True)
    ]
    numbers: dict[int, int] = {}
    trees = torch.tensor([numbers.setdefault(row.tree, len(numbers)) for row in rows], dtype=torch.int64)
    return Statistics(values, move(torch.tensor(good, dtype=torch.bool), values.device), move(trees, values.device))


def step_gradient(
    job: Job, step: Step, z0_state: Tensor | None, *, running: Tensor | None = None, at_reference: bool = False
) -> tuple[StepZ0, Tensor]:
    """Leave the gradient of a step, summed over the ranks, in .grad; returns its z0, and its objective.SUMS on the
    device. `z0_state` and `running` are what the step before left. The step is cut once; where memory runs out, it
    begins again with smaller micro-batches."""

    def attempt() -> tuple[StepZ0, Tensor]:
        micro_batches = cut_step(job.dataset, step.rows, job.ranks, job.token_budget)
        z0 = estimate_z0(job, step, micro_batches, z0_state, at_reference=at_reference)
        z0.running = running
        return z0, gradient(job, step, micro_batches[job.rank], z0)

    return job.fitting(attempt)


def gradient(job: Job, step: Step, micro_batches: Sequence[MicroBatch], z0: StepZ0) -> Tensor:
    """The same of this rank's micro-batches, given z0."""
    counts = job.objective.count(job.dataset, step.rows)
    whole = _whole_step(job, step, micro_batches, z0, counts)

    def add_up() -> Tensor:
        total = torch.zeros(len(SUMS), dtype=torch.float64, device=job.policy.device)
        for micro_batch in micro_batches:
            if not micro_batch.rows:
                continue
            computed, micro_batch.computed = micro_batch.computed, None  # a graph serves once
            if computed is None:
                computed = job.compute(micro_batch.trees)
            batch = _batch(job, step, micro_batch, computed, z0.of(micro_batch.places))
            if whole is None:
                batch = _with_running(job, batch, z0)
            share = job.objective(batch, counts) if whole is None else whole.linear(batch, micro_batch.places)
            share.backward()
            if whole is None:
                with torch.no_grad():
                    total += job.objective.sums(batch, share.detach(), job.rounding)
        return total if whole is None or job.rank > 0 else whole.sums

    total = job.on_all_ranks(add_up)
    if z0.graph is not None and z0.value is not None:
        if whole is not None and whole.by_z0 is not None:
            by_z0 = whole.by_z0
        else:  # the ranks' micro-batches have left it with z0
            by_z0 = job.total(torch.zeros_like(z0.value) if z0.value.grad is None else z0.value.grad)
        job.on_all_ranks(partial(z0.graph.backward, job, by_z0))
    if job.ranks > 1:
        ranks.sum_gradients(p for _, p in job.policy.trainable())
    return job.total(total)


def _batch(job: Job, step: Step, micro_batch: MicroBatch, computed: Completions, z0: Tensor | None = None) -> Batch:
    """The rows of a micro-batch, with random numbers where the loss reads them: the whole step's, of which these rows
    have theirs, however it is cut."""
    batch = batch_of(job.dataset, micro_batch, computed, z0)
    if not job.objective.reads_draw:
        return batch
    generator = torch.Generator().manual_seed(job.config.seed * 1_000_003 + step.index)
    draw = torch.rand(len(step.rows), generator=generator, dtype=torch.float64)
    draw = draw[torch.tensor(micro_batch.places)]
    return replace(batch, columns={**batch.columns, "draw": move(draw, batch.weight.device)})


def _with_running(job: Job, batch: Batch, z0: StepZ0) -> Batch:
    """A whole step with the loss's running statistics, if it has any, which go on in `z0`."""
    if job.objective.loss.running is None:
        return batch
    z0.running = job.objective.running(batch, z0.running)
    return replace(batch, running=z0.running)


@dataclass(frozen=True, slots=True)
class WholeStep:
    """The objective.SUMS of a whole step at once, and the objective's derivatives: per side by each token's columns
    that are learnt, and by z0 where a gradient flows through it."""

    sums: Tensor
    by_tokens: tuple[Completions, ...]
    by_z0: Tensor | None

    def linear(self, batch: Batch, places: Sequence[int]) -> Tensor:
        """What has the same gradient as the whole step's objective has on these rows of it."""
        total = batch.weight.new_zeros(())
        for side, derivatives in zip(batch.sides, self.by_tokens, strict=True):
            columns = side.columns(LEARNT)
            for name, by in derivatives.take(places).columns(LEARNT).items():
                total = total + (columns[name] * by.to(columns[name])).sum()
        return total


def _whole_step(
    job: Job, step: Step, micro_batches: Sequence[MicroBatch], z0: StepZ0, counts: list[int]
) -> WholeStep | None:
    """None where micro-batches add up one by one."""
    if not _couples_micro_batches(job, step, micro_batches):
        return None

    @torch.no_grad()
    def gather() -> list[tuple[Sequence[int], Batch]]:
        return [
            (micro_batch.places, _batch(job, step, micro_batch, job.compute(micro_batch.trees)))
            for micro_batch in micro_batches
            if micro_batch.rows
        ]

    parts = job.on_all_ranks(gather)
    if job.ranks > 1:
        shares = ranks.gather([(places, batch.to("cpu")) for places, batch in parts])
        parts = [(places, batch.to(job.policy.device)) for share in shares for places, batch in share]
    step_batch = _with_running(job, _in_order(parts, z0), z0)
    assert len(step_batch) == len(step.rows), "every row of the step is on one rank, once"
    leaves = [x.requires_grad_() for side in step_batch.sides for x in side.columns(LEARNT).values()]
    objective = job.objective(step_batch, counts)
    leaves += [z0.value] if z0.value is not None and z0.graph is not None else []
    slopes = iter(torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True))
    by_tokens = tuple(
        Completions(bounds=side.bounds, **{name: next(slopes) for name in side.columns(LEARNT)})
        for side in step_batch.sides
    )
    with torch.no_grad():
        sums = job.objective.sums(step_batch, objective.detach(), job.rounding)
    return WholeStep(sums, by_tokens, next(slopes, None))


def _couples_micro_batches(job: Job, step: Step, micro_batches: Sequence[MicroBatch]) -> bool:
    """Whether the loss of rows of one micro-batch depends on rows of another one, of any rank."""
    couples = job.objective.loss.couples
    if couples != "group":
        return couples == "step" and (job.ranks > 1 or len(micro_batches) > 1)
    examples = job.dataset.examples
    sizes = Counter(examples[i].tree for i in step.rows)
    parts = (Counter(examples[i].tree for i in micro_batch.rows) for micro_batch in micro_batches)
    cut = any(part[tree] < sizes[tree] for part in parts for tree in part)
    return cut if job.ranks == 1 else ranks.any_rank(cut, job.policy.device)


def _in_all(batches: Sequence[Batch]) -> list[str]:
    """The columns that every batch has."""
    return [name for name in batches[0].columns if all(name in batch.columns for batch in batches)]


def _in_order(parts: Sequence[tuple[Sequence[int], Batch]], z0: StepZ0) -> Batch:
    """Batches of several micro-batches and ranks as one, its rows in the order of their places in the step."""
    places = [place for part, _ in parts for place in part]
    batches = [batch for _, batch in parts]
    scores = [batch.score for batch in batches if batch.score is not None]
    joined = Batch(
        tuple(join(side) for side in zip(*(batch.sides for batch in batches), strict=True)),
        torch.cat([batch.weight for batch in batches]),
        tuple(thumb for batch in batches for thumb in batch.thumbs),
        torch.cat(scores) if len(scores) == len(parts) else None,
        trees=tuple(tree for batch in batches for tree in batch.trees),
        columns={name: torch.cat([batch.columns[name] for batch in batches]) for name in _in_all(batches)},
    )
    value = z0.of(sorted(places))
    ordered = joined.take(sorted(range(len(places)), key=places.__getitem__))
    return replace(ordered, z0=None if value is None else value.to(joined.weight))
