"""The gradient of a whole step, whichever way it is cut.

Most losses add up row by row: each micro-batch runs forward and backward once. A loss that couples rows (`couples`
"step") first gathers every row's tokens without gradient; the loss runs once on the whole step, and its derivative by
each token drives a second pass, micro-batch by micro-batch. A loss that couples the rows of a group does so where a
micro-batch has a part of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from prospect.data.schedule import Step
from prospect.training import ranks
from prospect.training.batch import (
    Batch,
    Completions,
    MicroBatch,
    batch_of,
    cut_step,
    join,
)
from prospect.training.job import Job
from prospect.training.objective import SUMS
from prospect.training.z0 import StepZ0, estimate_z0


def step_gradient(
    job: Job, step: Step, z0_state: Tensor | None, *, at_reference: bool = False
) -> tuple[StepZ0, Tensor]:
    """Leave the gradient of a step, summed over the ranks, in .grad; returns its z0, and its objective.SUMS on the
    device. The step is cut once; where memory runs out, it begins again with smaller micro-batches."""

    def attempt() -> tuple[StepZ0, Tensor]:
        micro_batches = cut_step(job.dataset, step.rows, job.ranks, job.token_budget)
        z0 = estimate_z0(job, step, micro_batches, z0_state, at_reference=at_reference)
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
            batch = batch_of(job.dataset, micro_batch, computed, z0.of(micro_batch.places))
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


@dataclass(frozen=True, slots=True)
class WholeStep:
    """The objective.SUMS of a whole step at once, and the objective's derivatives: per side by each token's log-prob
    and value, and by z0 where a gradient flows through it."""

    sums: Tensor
    by_tokens: tuple[Completions, ...]
    by_z0: Tensor | None

    def linear(self, batch: Batch, places: Sequence[int]) -> Tensor:
        """What has the same gradient as the whole step's objective has on these rows of it."""
        total = batch.weight.new_zeros(())
        for side, derivatives in zip(batch.sides, self.by_tokens, strict=True):
            by = derivatives.take(places)
            total = total + (side.token_logp * by.token_logp.to(side.token_logp)).sum()
            if by.value is not None and side.value is not None:
                total = total + (side.value * by.value.to(side.value)).sum()
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
            (micro_batch.places, batch_of(job.dataset, micro_batch, job.compute(micro_batch.trees)))
            for micro_batch in micro_batches
            if micro_batch.rows
        ]

    parts = job.on_all_ranks(gather)
    if job.ranks > 1:
        shares = ranks.gather([(places, batch.to("cpu")) for places, batch in parts])
        parts = [(places, batch.to(job.policy.device)) for share in shares for places, batch in share]
    step_batch = _in_order(parts, z0)
    assert len(step_batch) == len(step.rows), "every row of the step is on one rank, once"
    leaves = [x.requires_grad_() for side in step_batch.sides for x in (side.token_logp, side.value) if x is not None]
    objective = job.objective(step_batch, counts)
    leaves += [z0.value] if z0.value is not None and z0.graph is not None else []
    slopes = iter(torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True))
    by_tokens = tuple(
        Completions(next(slopes), side.bounds, value=None if side.value is None else next(slopes))
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


def _in_order(parts: Sequence[tuple[Sequence[int], Batch]], z0: StepZ0) -> Batch:
    """Batches of several micro-batches and ranks as one, its rows in the order of their places in the step."""
    places = [place for part, _ in parts for place in part]
    batches = [batch for _, batch in parts]
    scores = [batch.score for batch in batches if batch.score is not None]
    rates = [batch.win_rate for batch in batches if batch.win_rate is not None]
    joined = Batch(
        tuple(join(side) for side in zip(*(batch.sides for batch in batches), strict=True)),
        torch.cat([batch.weight for batch in batches]),
        tuple(thumb for batch in batches for thumb in batch.thumbs),
        torch.cat(scores) if len(scores) == len(parts) else None,
        win_rate=torch.cat(rates) if len(rates) == len(parts) else None,
        trees=tuple(tree for batch in batches for tree in batch.trees),
    )
    value = z0.of(sorted(places))
    ordered = joined.take(sorted(range(len(places)), key=places.__getitem__))
    return replace(ordered, z0=None if value is None else value.to(joined.weight))
