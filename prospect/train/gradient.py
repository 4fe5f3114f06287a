"""The gradient of a whole step, whichever way it is cut.

Most losses add up row by row: each micro-batch runs forward and backward once. A loss that couples rows (`couples`
"step") first gathers every row's tokens without gradient; the loss runs once on the whole step, and its derivative by
each token drives a second pass, micro-batch by micro-batch.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from prospect.schedule import Step
from prospect.train import figures, ranks
from prospect.train.batch import Micro, matched
from prospect.train.inputs import Batch, Tokens, batch_of
from prospect.train.job import Job
from prospect.train.z0 import Point

Sums = list[float]


def gradient(job: Job, step: Step, point: Point) -> Sums:
    """Leave the whole step's gradient, summed over the ranks, in .grad; returns the step's figures.SUMS."""
    counts = job.objective.count(job.corpus, step.rows)
    place = {row: k for k, row in enumerate(step.rows)}

    def mine() -> Tensor:
        total = torch.zeros(len(figures.SUMS), dtype=torch.float64, device=job.policy.device)
        micros = matched(job.corpus, step.rows, ranks.world(), job.token_budget)[ranks.rank()]
        pulls = _coupled(job, step, point, micros, counts) if _needs_whole_step(job, micros) else None
        computed, point.computed = point.computed, None  # a graph serves once
        for k, micro in enumerate(micros):
            found = job.compute(micro) if computed is None else computed
            if not micro.rows:
                _nothing(found).backward()
                continue
            batch = batch_of(job.corpus, micro, found, point.of([place[i] for i in micro.rows]))
            if pulls is None:
                share = job.objective(batch, counts)
                share.backward()
            else:
                share, pull = pulls[k]
                _dot(batch, pull).backward()
            with torch.no_grad():
                total += figures.sums(batch, share.detach(), beta=job.beta, pairs=job.loss.view == "pairs")
        return total

    total = job.fitting(mine)
    point.backward(job, step)
    ranks.sum_gradients(p for _, p in job.policy.trainable())
    return [float(value) for value in ranks.total(total)]


def _needs_whole_step(job: Job, micros: list[Micro]) -> bool:
    """One micro-batch on one rank is the whole step already."""
    return job.loss.couples == "step" and (ranks.world() > 1 or len(micros) > 1)


Pull = list[tuple[Tensor, Tensor | None]]
"""Per side, the objective's derivative by the log-prob, and by the value, of each token."""


def _coupled(job: Job, step: Step, point: Point, micros: list[Micro], counts: list[int]) -> list[tuple[Tensor, Pull]]:
    """For each micro-batch of this rank its share of the objective to log, and the pull on its tokens."""
    place = {row: k for k, row in enumerate(step.rows)}
    mine: list[tuple[list[int], Batch]] = []
    with torch.no_grad():
        for micro in micros:
            if micro.rows:
                mine.append(([place[i] for i in micro.rows], batch_of(job.corpus, micro, job.compute(micro))))
    shares = ranks.gather([(places, _to_cpu(batch)) for places, batch in mine])
    order, whole = _join([item for share in shares for item in share])
    leaves = [x.requires_grad_() for side in whole.sides for x in (side.token_logp, side.value) if x is not None]
    assert order == list(range(len(step.rows))), "every row of the step is on one rank, once"
    whole = _with_z0(whole, point)
    objective = job.objective(whole, counts)
    pulls = dict(
        zip(
            map(id, leaves),
            torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True),
            strict=True,
        )
    )
    found: list[tuple[Tensor, Pull]] = []
    for number, micro in enumerate(micros):
        rows = [place[i] for i in micro.rows]
        per_side = [
            (
                _rows(pulls[id(side.token_logp)], side.offsets, rows),
                None if side.value is None else _rows(pulls[id(side.value)], side.offsets, rows),
            )
            for side in whole.sides
        ]
        told = objective.detach() if number == 0 and ranks.rank() == 0 else objective.detach() * 0
        found.append((told, per_side))
    return found


def _dot(batch: Batch, pull: Pull) -> Tensor:
    """What has the same gradient as the whole step's objective has on these rows."""
    total = batch.weight.new_zeros(())
    for side, (by_logp, by_value) in zip(batch.sides, pull, strict=True):
        total = total + (side.token_logp * by_logp.to(side.token_logp)).sum()
        if by_value is not None and side.value is not None:
            total = total + (side.value * by_value.to(side.value)).sum()
    return total


def _rows(values: Tensor, offsets: Tensor, rows: list[int]) -> Tensor:
    """The tokens of some completions, in the order given."""
    spans = [values[int(offsets[k]) : int(offsets[k + 1])] for k in rows]
    return torch.cat(spans) if spans else values[:0]


def _join(parts: list[tuple[list[int], Batch]]) -> tuple[list[int], Batch]:
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
    return sorted(places), Batch(tuple(sides), weight, desirable, score)


def _with_z0(batch: Batch, point: Point) -> Batch:
    z0 = point.of(list(range(len(batch))))
    return batch if z0 is None else Batch(batch.sides, batch.weight, batch.desirable, batch.score, z0.to(batch.weight))


def _to_cpu(batch: Batch) -> Batch:
    def moved(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().cpu()

    sides = tuple(Tokens(**{f.name: moved(getattr(side, f.name)) for f in fields(Tokens)}) for side in batch.sides)  # type: ignore[arg-type]
    return Batch(sides, batch.weight.cpu(), batch.desirable.cpu(), moved(batch.score))


def _nothing(found: Tokens) -> Tensor:
    """An idle rank's share: 0, with a graph, so that every rank runs the same collectives."""
    return found.token_logp.sum() * 0.0 + (0.0 if found.value is None else found.value.sum() * 0.0)
