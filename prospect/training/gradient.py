"""The gradient of a whole step, whichever way it is cut.

Most losses add up row by row: each micro-batch runs forward and backward once. A loss that couples rows (`couples`
"step") first gathers every row's tokens without gradient; the loss runs once on the whole step, and its derivative by
each token drives a second pass, micro-batch by micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prospect.data.schedule import Step
from prospect.training import ranks
from prospect.training import statistics as figures
from prospect.training.batch import matched
from prospect.training.inputs import (
    Batch,
    Tokens,
    batch_of,
    join,
)
from prospect.training.job import Job
from prospect.training.z0 import Point


def gradient(job: Job, step: Step, point: Point) -> Tensor:
    """Leave the whole step's gradient, summed over the ranks, in .grad; returns the step's figures.SUMS, on the
    device."""
    counts = job.objective.count(job.dataset, step.rows)
    place = {row: k for k, row in enumerate(step.rows)}
    pull = _pull(job, step, point, counts)

    def mine() -> Tensor:
        nonlocal pull
        point.forget()
        # What was one micro-batch before it ran out of memory is several now. On one rank alone, else there is a pull.
        pull = pull or _pull(job, step, point, counts)
        total = torch.zeros(len(figures.SUMS), dtype=torch.float64, device=job.policy.device)
        computed, point.computed = point.computed, None  # a graph serves once
        for micro in matched(job.dataset, step.rows, ranks.world(), job.token_budget)[ranks.rank()]:
            found = job.compute(micro) if computed is None else computed
            if not micro.rows:
                _nothing(found).backward()
                continue
            places = [place[i] for i in micro.rows]
            batch = batch_of(job.dataset, micro, found, point.of(places))
            share = job.objective(batch, counts) if pull is None else pull.on(batch, places)
            share.backward()
            with torch.no_grad():
                told = share.detach() if pull is None else torch.zeros_like(share)
                pairs = job.loss.view == "pairs"
                total += figures.sums(batch, told, beta=job.beta, pairs=pairs, rounding=job.rounding)
        if pull is not None and ranks.rank() == 0:
            total[figures.SUMS.index("objective")] = pull.objective
        return total

    def through_z0() -> Tensor:
        return point.backward(job, step, None if pull is None else pull.z0)

    total = job.fitting(mine)
    while point.graph is not None and job.attempt(through_z0) is None:
        total = job.fitting(mine)  # with what has failed went all gradients
    ranks.sum_gradients(p for _, p in job.policy.trainable())
    return ranks.total(total)


@dataclass(frozen=True, slots=True)
class Pull:
    """The objective of a whole step, and its derivatives: per side by each token's log-prob and value, and by z0 where
    the gradient goes through it."""

    objective: Tensor
    sides: tuple[Tokens, ...]
    z0: Tensor | None

    def on(self, batch: Batch, places: list[int]) -> Tensor:
        """What has the same gradient as the whole step's objective has on these rows of it."""
        total = batch.weight.new_zeros(())
        for mine, whole in zip(batch.sides, self.sides, strict=True):
            by = whole.take(places)
            total = total + (mine.token_logp * by.token_logp.to(mine.token_logp)).sum()
            if by.value is not None and mine.value is not None:
                total = total + (mine.value * by.value.to(mine.value)).sum()
        return total


def _pull(job: Job, step: Step, point: Point, counts: list[int]) -> Pull | None:
    """None where rows add up one by one, or where one micro-batch on one rank is the whole step already."""
    if job.loss.couples == "none":
        return None
    if ranks.world() == 1 and len(matched(job.dataset, step.rows, 1, job.token_budget)[0]) == 1:
        return None
    place = {row: k for k, row in enumerate(step.rows)}
    mine: list[tuple[list[int], Batch]] = []

    def gather() -> Tensor:
        mine.clear()
        with torch.no_grad():
            for micro in matched(job.dataset, step.rows, ranks.world(), job.token_budget)[ranks.rank()]:
                found = job.compute(micro)
                if micro.rows:
                    mine.append(([place[i] for i in micro.rows], batch_of(job.dataset, micro, found)))
        return torch.zeros(0)

    job.fitting(gather)
    shares = [mine]
    if ranks.world() > 1:
        shares = ranks.gather([(places, batch.to("cpu")) for places, batch in mine])
    parts = [(places, batch.to(job.policy.device)) for share in shares for places, batch in share]
    whole = _join(parts, point)
    assert len(whole) == len(step.rows), "every row of the step is on one rank, once"
    leaves = [x.requires_grad_() for side in whole.sides for x in (side.token_logp, side.value) if x is not None]
    objective = job.objective(whole, counts)
    leaves += [point.z0] if point.z0 is not None and point.graph is not None else []
    pulls = iter(torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True))
    sides = [
        Tokens(next(pulls), side.offsets, value=None if side.value is None else next(pulls)) for side in whole.sides
    ]
    return Pull(objective.detach(), tuple(sides), next(pulls, None))


def _join(parts: list[tuple[list[int], Batch]], point: Point) -> Batch:
    """Batches of several micro-batches and ranks as one, its rows in the order of their places in the step."""
    places = [place for mine, _ in parts for place in mine]
    batches = [batch for _, batch in parts]
    scores = [batch.score for batch in batches if batch.score is not None]
    joined = Batch(
        tuple(join(side) for side in zip(*(batch.sides for batch in batches), strict=True)),
        torch.cat([batch.weight for batch in batches]),
        tuple(thumb for batch in batches for thumb in batch.thumbs),
        torch.cat(scores) if len(scores) == len(parts) else None,
    )
    z0 = point.of(sorted(places))
    ordered = joined.take(sorted(range(len(places)), key=places.__getitem__))
    return replace(ordered, z0=None if z0 is None else z0.to(joined.weight))


def _nothing(found: Tokens) -> Tensor:
    """An idle rank's share: 0, with a graph, so that every rank runs the same collectives."""
    return found.token_logp.sum() * 0.0 + (0.0 if found.value is None else found.value.sum() * 0.0)
