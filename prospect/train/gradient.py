"""The gradient of a whole step, whichever way it is cut.

Most losses add up row by row: each micro-batch runs forward and backward once. A loss that couples rows (`couples`
"step") first gathers every row's tokens without gradient; the loss runs once on the whole step, and its derivative by
each token drives a second pass, micro-batch by micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from prospect.schedule import Step
from prospect.train import figures, ranks
from prospect.train.batch import matched
from prospect.train.inputs import Batch, Tokens, batch_of
from prospect.train.job import Job
from prospect.train.z0 import Point


def gradient(job: Job, step: Step, point: Point) -> list[float]:
    """Leave the whole step's gradient, summed over the ranks, in .grad; returns the step's figures.SUMS."""
    counts = job.objective.count(job.corpus, step.rows)
    place = {row: k for k, row in enumerate(step.rows)}
    pull = _pull(job, step, point, counts)

    def mine() -> Tensor:
        total = torch.zeros(len(figures.SUMS), dtype=torch.float64, device=job.policy.device)
        computed, point.computed = point.computed, None  # a graph serves once
        for micro in matched(job.corpus, step.rows, ranks.world(), job.token_budget)[ranks.rank()]:
            found = job.compute(micro) if computed is None else computed
            if not micro.rows:
                _nothing(found).backward()
                continue
            places = [place[i] for i in micro.rows]
            batch = batch_of(job.corpus, micro, found, point.of(places))
            share = job.objective(batch, counts) if pull is None else pull.on(batch, places)
            share.backward()
            with torch.no_grad():
                told = share.detach() if pull is None else torch.zeros_like(share)
                total += figures.sums(batch, told, beta=job.beta, pairs=job.loss.view == "pairs")
        if pull is not None and ranks.rank() == 0:
            total[figures.SUMS.index("objective")] = float(pull.objective)
        return total

    total = job.fitting(mine)
    point.backward(job, step)
    ranks.sum_gradients(p for _, p in job.policy.trainable())
    return [float(value) for value in ranks.total(total)]


@dataclass(frozen=True, slots=True)
class Pull:
    """The objective of a whole step, and its derivative by each token's log-prob and value, per side."""

    objective: Tensor
    sides: tuple[tuple[Tokens, Tensor, Tensor | None], ...]

    def on(self, batch: Batch, places: list[int]) -> Tensor:
        """What has the same gradient as the whole step's objective has on these rows of it."""
        total = batch.weight.new_zeros(())
        for mine, (whole, by_logp, by_value) in zip(batch.sides, self.sides, strict=True):
            total = total + (mine.token_logp * _rows(by_logp, whole.offsets, places).to(mine.token_logp)).sum()
            if by_value is not None and mine.value is not None:
                total = total + (mine.value * _rows(by_value, whole.offsets, places).to(mine.value)).sum()
        return total


def _pull(job: Job, step: Step, point: Point, counts: list[int]) -> Pull | None:
    """None where rows add up one by one, or where one micro-batch on one rank is the whole step already."""
    alone = ranks.world() == 1 and len(matched(job.corpus, step.rows, 1, job.token_budget)[0]) == 1
    if job.loss.couples == "none" or alone:
        return None
    place = {row: k for k, row in enumerate(step.rows)}
    mine: list[tuple[list[int], Batch]] = []

    def gather() -> Tensor:
        mine.clear()
        with torch.no_grad():
            for micro in matched(job.corpus, step.rows, ranks.world(), job.token_budget)[ranks.rank()]:
                found = job.compute(micro)
                if micro.rows:
                    mine.append(([place[i] for i in micro.rows], _to_cpu(batch_of(job.corpus, micro, found))))
        return torch.zeros(0)

    job.fitting(gather)
    whole = _join([part for share in ranks.gather(mine) for part in share], point)
    assert len(whole) == len(step.rows), "every row of the step is on one rank, once"
    leaves = [x.requires_grad_() for side in whole.sides for x in (side.token_logp, side.value) if x is not None]
    objective = job.objective(whole, counts)
    objective.backward()
    pulls = iter([torch.zeros_like(x) if x.grad is None else x.grad for x in leaves])
    sides = tuple((side, next(pulls), None if side.value is None else next(pulls)) for side in whole.sides)
    return Pull(objective.detach(), sides)


def _rows(values: Tensor, offsets: Tensor, rows: list[int]) -> Tensor:
    """The tokens of some completions, in the order given."""
    spans = [values[int(offsets[k]) : int(offsets[k + 1])] for k in rows]
    return torch.cat(spans) if spans else values[:0]


def _join(parts: list[tuple[list[int], Batch]], point: Point) -> Batch:
    """Batches of several micro-batches and ranks as one, its rows in the order of their places in the step."""
    places = [place for mine, _ in parts for place in mine]
    order = sorted(range(len(places)), key=places.__getitem__)
    sides: list[Tokens] = []
    for s in range(len(parts[0][1].sides)):
        every = [batch.sides[s] for _, batch in parts]
        lengths = torch.cat([side.offsets.diff() for side in every])
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        joined: dict[str, Any] = {"offsets": torch.cat([offsets[:1], lengths[order].cumsum(0)])}
        for field in fields(Tokens):
            columns = [getattr(side, field.name) for side in every]
            if field.name != "offsets":
                joined[field.name] = None if columns[0] is None else _rows(torch.cat(columns), offsets, order)
        sides.append(Tokens(**joined))
    scores = [batch.score for _, batch in parts]
    score = None if any(s is None for s in scores) else torch.cat([s for s in scores if s is not None])[order]
    weight = torch.cat([batch.weight for _, batch in parts])[order]
    desirable = torch.cat([batch.desirable for _, batch in parts])[order]
    z0 = point.of(sorted(places))
    return Batch(tuple(sides), weight, desirable, score, None if z0 is None else z0.to(weight))


def _to_cpu(batch: Batch) -> Batch:
    def moved(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().cpu()

    sides = tuple(Tokens(**{f.name: moved(getattr(side, f.name)) for f in fields(Tokens)}) for side in batch.sides)  # type: ignore[arg-type]
    return Batch(sides, batch.weight.cpu(), batch.desirable.cpu(), moved(batch.score))


def _nothing(found: Tokens) -> Tensor:
    """An idle rank's share: 0, with a graph, so that every rank runs the same collectives."""
    return found.token_logp.sum() * 0.0 + (0.0 if found.value is None else found.value.sum() * 0.0)
