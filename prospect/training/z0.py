"""z0 of a step: what its estimator averages, gathered over all micro-batches and ranks, then the estimator.

Without a gradient, as the paper has it, or with one (`--z0-gradient`): then the objective's derivative by z0, summed
over the whole step, drives a second pass over the rows that z0 was estimated from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prospect.data.schedule import Step, cut
from prospect.engine.generate import generate
from prospect.engine.packing import Branches, Ids
from prospect.engine.reference import kl_tokens, token_kl
from prospect.engine.transfer import move, take
from prospect.errors import ConfigError
from prospect.losses.numerics import segment_sum
from prospect.losses.reference_point import Statistics
from prospect.training import ranks
from prospect.training.batch import (
    Micro,
    matched,
    mismatched,
    mismatched_on,
)
from prospect.training.inputs import Tokens
from prospect.training.job import Job

SAMPLE_TOKENS = 128
"""Longest answer that the estimator `on_policy` asks the policy for."""


@dataclass
class Point:
    """z0 of one step, a scalar or one number per row, None where the loss has none; `state` is the estimator's new one
    and `figures` what to log. `computed` are the engine's findings with their graph, where the whole step was one
    micro-batch and they can be used again. Where the gradient goes through z0, `graph` is what it goes through, and
    `answers` are the policy's own, where z0 was estimated from them."""

    z0: Tensor | None = None
    state: Tensor | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    computed: Tokens | None = None
    graph: tuple[Tensor, Tensor, list[Key]] | None = None
    answers: list[Ids] | None = None

    def of(self, places: Sequence[int]) -> Tensor | None:
        """z0 of the rows at these places of the step."""
        return self.z0 if self.z0 is None or self.z0.ndim == 0 else take(self.z0, places)

    def forget(self) -> None:
        """Drop what an attempt at the gradient has left that ran out of memory."""
        if self.z0 is not None:
            self.z0.grad = None

    def backward(self, job: Job, step: Step, by_z0: Tensor | None) -> Tensor:
        """Add the gradient that flows through z0, where there is a `graph`. The whole step's derivative by z0 is
        `by_z0`, which is returned; None: what the ranks' micro-batches have left with z0."""
        assert self.graph is not None and self.z0 is not None, "the caller has looked"
        z0, values, keys = self.graph
        if by_z0 is None:
            by_z0 = torch.zeros_like(self.z0) if self.z0.grad is None else self.z0.grad.clone()
            ranks.total(by_z0)
        (by_value,) = torch.autograd.grad(z0, values, by_z0.to(z0), retain_graph=True)  # it may be asked for again
        place = {key: k for k, key in enumerate(keys)}
        assert job.point is not None, "a step with z0 has an estimator"
        for micro, _ in _passes(job, step, job.token_budget, self.answers)[ranks.rank()]:
            found = _values(job, micro, None, [])
            weights = take(by_value, [place[key] for key in _keys(micro, step)])
            (found * weights.to(found.dtype)).sum().backward()
        return by_z0


def reference_point(job: Job, step: Step, state: Tensor | None, *, at_reference: bool = False) -> Point:
    """z0 of a step, its new state, and what to log, as tensors on the device. Only the policy's own samples make the
    host wait for it.

    Where the policy is the reference (`at_reference`), every log-ratio and KL is 0, and its rounding error is not let
    in: else the error's sign would choose a side of the estimator's clamp, and with it whether a gradient flows.
    """
    if job.point is None:
        return Point(state=state)
    averages = job.point.averages
    keys: list[Key] = []
    kept: list[Tokens] = []
    answers: list[Ids] | None = None

    def measure() -> Tensor:
        nonlocal answers
        kept.clear()
        if answers is None and averages == "samples":
            answers = _answers(job, step)
        passes = _passes(job, step, job.no_grad_budget, answers)
        keys[:] = sorted(key for mine in passes for micro, _ in mine for key in _keys(micro, step))
        place = {key: k for k, key in enumerate(keys)}
        values = torch.zeros(len(keys), dtype=torch.float64, device=job.policy.device)
        for micro, own in passes[ranks.rank()]:
            where = torch.tensor([place[key] for key in _keys(micro, step)], dtype=torch.int64)
            with torch.set_grad_enabled(own is not None):
                values[move(where, values.device)] = _values(job, micro, own, kept).detach().to(values)
        return values

    values = ranks.total(job.fitting(measure))  # each is one rank's, to which the others add 0
    if at_reference and averages != "partner_logp":
        values.zero_()
    through = job.config.z0_gradient and bool(keys)
    seen = _statistics(job, step, keys, values.requires_grad_(through))
    z0, state = job.point.function(seen, state)
    if z0.ndim and len(z0) != len(step.rows):
        raise ConfigError(
            f"step {step.index}: the reference point {job.point.name} gave {len(z0)} numbers for {len(step.rows)} "
            "rows. Return one number, or one for every row"
        )
    through = through and z0.requires_grad  # an estimator may look at its state alone
    leaf = z0.detach().to(values).requires_grad_(through)
    told: dict[str, Any] = {"z0": leaf.detach().mean()}
    if keys:
        told |= {"z0_raw": seen.mean.detach(), "z0_se": seen.standard_error, "z0_n": len(keys)}
    graph = (z0, values, keys) if through else None
    return Point(leaf, state, told, kept[0] if kept else None, graph, answers)


def _statistics(job: Job, step: Step, keys: list[Key], values: Tensor) -> Statistics:
    own = [job.dataset.examples[step.rows[place]] for place, _ in keys]
    good = [
        side == 0 if len(row.branches) == 2 else bool(row.desirable) for row, (_, side) in zip(own, keys, strict=True)
    ]
    numbers: dict[int, int] = {}
    trees = torch.tensor([numbers.setdefault(row.tree, len(numbers)) for row in own], dtype=torch.int64)
    return Statistics(values, move(torch.tensor(good, dtype=torch.bool), values.device), move(trees, values.device))


Pass = tuple[Micro, Micro | None]
"""What z0 is estimated from; and the training micro-batch that is computed along with it, or is the same."""


def _passes(job: Job, step: Step, budget: int, answers: Sequence[Ids] | None) -> list[list[Pass]]:
    """Every rank's passes. Where its share of the step is one micro-batch, training uses what z0 has computed."""
    assert job.point is not None, "only a step with z0 is measured"
    averages, world = job.point.averages, ranks.world()
    if averages == "nothing":
        return [[]] * world
    if answers is not None:
        return [[(micro, None) for micro in part] for part in _sampled(job, step, budget, answers)]
    own = matched(job.dataset, step.rows, world, job.token_budget)
    once = len(own[0]) == 1 and not job.config.z0_gradient and (world == 1 or job.loss.couples == "none")
    if once and averages == "matched":
        return [[(micro, micro)] for (micro,) in own]
    if once and job.point.partners:
        found = [(mismatched_on(job.dataset, job.schedule.partners, micro, job.context), micro) for (micro,) in own]
        if all(job.remembers(micro) for both in found for micro in both):
            return [[both] for both in found]
    if job.point.partners:
        own = mismatched(job.dataset, job.schedule.partners, step.rows, world, budget, job.context)
    else:
        most = min(budget, kl_tokens(job.policy)) if averages == "token_kl" else budget
        own = matched(job.dataset, step.rows, world, most)
    return [[(micro, None) for micro in part if micro.rows] for part in own]


Key = tuple[int, int]
"""A value's place in the step, and its side of a pair."""


def _keys(micro: Micro, step: Step) -> list[Key]:
    place = {row: k for k, row in enumerate(step.rows)}
    return [
        (place[row], side) for row, where in zip(micro.rows, micro.where, strict=True) for side in range(len(where))
    ]


def _values(job: Job, micro: Micro, own: Micro | None, kept: list[Tokens]) -> Tensor:
    """What the estimator averages on a micro-batch, in the order of `_keys`; what training can use goes to `kept`."""
    assert job.point is not None, "only a step with z0 is measured"
    averages = job.point.averages
    if averages == "token_kl":
        assert job.live is not None, "this estimator has a live reference"
        per_token, offsets = token_kl(job.policy, job.live, micro.trees)
        every = segment_sum(per_token, move(offsets, per_token.device))
    else:
        if own is not None and own is not micro:
            mine, found = job.compute_with(own, micro)
        else:
            mine = found = job.compute(micro, job.live if averages == "samples" else None)
        if own is not None:
            kept.append(mine)
        every = found.read("logp") / found.read("length") if averages == "partner_logp" else found.read("log_ratio")
    return take(every, [k for where in micro.where for k in where])


def _prompts(job: Job, step: Step) -> list[Ids]:
    return [job.dataset.trees[job.dataset.examples[i].tree].prompt for i in step.rows]


def _answers(job: Job, step: Step) -> list[Ids]:
    """What the policy answers now to the step's prompts. Every rank draws all, so that none depends on the ranks."""
    prompts = [prompt.tolist() for prompt in _prompts(job, step)]
    seed = job.config.seed * 1_000_003 + step.index
    answers = generate(job.policy, prompts, max_new_tokens=SAMPLE_TOKENS, seed=seed)
    return [np.array(answer.ids, dtype=np.int32) for answer in answers]


def _sampled(job: Job, step: Step, budget: int, ids: Sequence[Ids]) -> list[list[Micro]]:
    """The step's prompts with these answers, [rank][micro-batch]."""
    prompts = _prompts(job, step)
    costs = [len(prompt) + len(answer) for prompt, answer in zip(prompts, ids, strict=True)]
    parts = [[[k for k in part if len(ids[k])] for part in mine] for mine in cut(costs, ranks.world(), budget)]
    return [[_sampled_micro(step, prompts, ids, part) for part in mine if part] for mine in parts]


def _sampled_micro(step: Step, prompts: Sequence[Ids], ids: Sequence[Ids], part: Sequence[int]) -> Micro:
    trees = tuple(Branches(prompts[k], (ids[k],)) for k in part)
    return Micro(tuple(step.rows[k] for k in part), trees, tuple((k,) for k in range(len(part))))
