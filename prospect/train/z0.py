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

from prospect.engine.forest import Branches
from prospect.engine.generate import generate
from prospect.engine.live import kl_tokens, token_kl
from prospect.losses.functions import load
from prospect.losses.reference_point import Statistics
from prospect.losses.segments import segment_sum
from prospect.schedule import Step, cut
from prospect.train import ranks
from prospect.train.batch import Micro, matched, mismatched
from prospect.train.inputs import Tokens
from prospect.train.job import NO_GRAD_FACTOR, Job

SAMPLE_TOKENS = 128
"""Longest answer that the estimator `on_policy` asks the policy for."""


@dataclass
class Point:
    """z0 of one step, a scalar or one number per row, None where the loss has none; `state` is the estimator's new one
    and `figures` what to log. `computed` are the engine's findings with their graph, where the whole step was one
    micro-batch and they can be used again."""

    z0: Tensor | None = None
    state: Tensor | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    computed: Tokens | None = None
    graph: tuple[Tensor, Tensor, list[tuple[int, int]]] | None = None

    def of(self, places: Sequence[int]) -> Tensor | None:
        """z0 of the rows at these places of the step."""
        return self.z0 if self.z0 is None or self.z0.ndim == 0 else self.z0[list(places)]

    def backward(self, job: Job, step: Step) -> None:
        """Add the gradient that flows through z0, where one was asked for."""
        if self.graph is None or self.z0 is None:
            return
        z0, values, keys = self.graph
        by_z0 = torch.zeros_like(self.z0) if self.z0.grad is None else self.z0.grad
        (by_value,) = torch.autograd.grad(z0, values, ranks.total(by_z0).to(z0))
        pull = dict(zip(keys, by_value.tolist(), strict=True))
        assert job.point is not None, "a step with z0 has an estimator"
        for micro in _micros(job, step, grad=True):
            where, found = _values(job, micro, _place(step))
            weights = torch.tensor([pull[key] for key in where], dtype=found.dtype, device=found.device)
            (found * weights).sum().backward() if len(where) else (found.sum() * 0.0).backward()


def reference_point(job: Job, step: Step, state: Tensor | None) -> Point:
    """z0 of a step, its new state, and what to log."""
    if job.point is None:
        return Point(state=state)
    single: list[Tokens] = []

    def measure() -> Tensor:
        place, rows = _place(step), []
        single.clear()
        for micro in _micros(job, step):
            if not micro.rows:
                continue
            with torch.set_grad_enabled(_reusable(job, micro, step)):
                where, values = _values(job, micro, place, single)
            rows += [[*key, value] for key, value in zip(where, values.tolist(), strict=True)]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)

    found = job.fitting(measure)
    rows = sorted(tuple(row) for share in ranks.gather(found.tolist()) for row in share)
    keys = [(int(place), int(side)) for place, side, _ in rows]
    values = torch.tensor([value for *_, value in rows], dtype=torch.float64)
    through = job.config.z0_gradient and len(values) > 0
    values.requires_grad_(through)
    own = [job.corpus.rows[step.rows[place]] for place, _ in keys]
    good = [
        side == 0 if len(row.branches) == 2 else bool(row.desirable) for row, (_, side) in zip(own, keys, strict=True)
    ]
    step_values = Statistics(values, torch.tensor(good, dtype=torch.bool), torch.tensor([row.tree for row in own]))
    z0, state = load(job.point.function)(step_values, state)
    leaf = z0.detach().to(job.policy.device, torch.float64).requires_grad_(through)
    told: dict[str, Any] = {"z0": float(leaf.detach().mean())}
    if len(values):
        error = float(step_values.standard_error)
        told |= {"z0_raw": float(step_values.mean.detach()), "z0_se": error, "z0_n": len(values)}
    return Point(leaf, state, told, single[0] if single else None, (z0, values, keys) if through else None)


def _place(step: Step) -> dict[int, int]:
    return {row: k for k, row in enumerate(step.rows)}


def _reusable(job: Job, micro: Micro, step: Step) -> bool:
    """Whether this pass is the training pass: the step's own answers, all in one micro-batch within its budget."""
    assert job.point is not None, "only a step with z0 is measured"
    tokens = sum(len(tree.prompt) + sum(map(len, tree.completions)) for tree in micro.trees)
    whole = ranks.world() == 1 and len(micro.rows) == len(step.rows) and tokens <= job.token_budget
    return job.point.averages == "matched" and whole and not job.config.z0_gradient


def _micros(job: Job, step: Step, grad: bool = False) -> list[Micro]:
    """The micro-batches of this rank that z0 is estimated from."""
    assert job.point is not None, "only a step with z0 is measured"
    budget, world = job.token_budget * (1 if grad else NO_GRAD_FACTOR), ranks.world()
    if job.point.averages == "nothing":
        return []
    if job.point.partners:
        return mismatched(job.corpus, job.schedule.partners, step.rows, world, budget, job.context)[ranks.rank()]
    if job.point.averages == "token_kl":
        budget = min(budget, kl_tokens(job.policy))
    if job.point.averages == "samples":
        return _sampled(job, step, budget)
    return matched(job.corpus, step.rows, world, budget)[ranks.rank()]


def _values(
    job: Job, micro: Micro, place: dict[int, int], keep: list[Tokens] | None = None
) -> tuple[list[tuple[int, int]], Tensor]:
    """What the estimator averages on a micro-batch, and for each value its (place in the step, side)."""
    assert job.point is not None, "only a step with z0 is measured"
    averages = job.point.averages
    if averages == "token_kl":
        assert job.live is not None, "this estimator has a live reference"
        per_token, offsets = token_kl(job.policy, job.live, micro.trees)
        every = segment_sum(per_token, offsets.to(per_token.device))
    else:
        found = job.compute(micro, job.live if averages == "samples" else None)
        every = found.read("logp") / found.read("length") if averages == "partner_logp" else found.read("log_ratio")
        if keep is not None and torch.is_grad_enabled():
            keep.append(found)
    keys = [
        (place[row], side) for row, where in zip(micro.rows, micro.where, strict=True) for side in range(len(where))
    ]
    index = torch.tensor([k for where in micro.where for k in where], dtype=torch.int64, device=every.device)
    return keys, every[index]


def _sampled(job: Job, step: Step, budget: int) -> list[Micro]:
    """The step's prompts with answers that the policy gives now. Every rank draws all, so that none depends on the
    ranks."""
    prompts = [job.corpus.trees[job.corpus.rows[i].tree].prompt for i in step.rows]
    seed = job.config.seed * 1_000_003 + step.index
    answers = generate(job.policy, [p.tolist() for p in prompts], max_new_tokens=SAMPLE_TOKENS, seed=seed)
    ids = [np.array(answer.ids, dtype=np.int32) for answer in answers]
    costs = [len(prompt) + len(answer) for prompt, answer in zip(prompts, ids, strict=True)]
    found = []
    for part in cut(costs, ranks.world(), budget)[ranks.rank()]:
        trees = tuple(Branches(prompts[k], (ids[k],)) for k in part if len(ids[k]))
        rows = tuple(step.rows[k] for k in part if len(ids[k]))
        if rows:
            found.append(Micro(rows, trees, tuple((k,) for k in range(len(rows)))))
    return found
