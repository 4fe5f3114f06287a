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

from prospect.data.schedule import Step
from prospect.data.textids import Ids
from prospect.engine.generate import generate
from prospect.engine.packing import move, take
from prospect.engine.reference import kl_tokens, token_kl
from prospect.errors import ConfigError
from prospect.losses.numerics import segment_sum
from prospect.losses.reference_point import Statistics
from prospect.training.batch import (
    Completions,
    MicroBatch,
    cut_answers,
    cut_mismatched,
    cut_step,
    mismatched_with,
)
from prospect.training.job import Job

SAMPLE_TOKENS = 128
"""Longest answer that the estimator `on_policy` asks the policy for."""

Pass = tuple[MicroBatch, MicroBatch | None]
"""A micro-batch that z0 is estimated from; and the one of training that is computed along with it, or is the same."""


@dataclass(slots=True)
class StepZ0:
    """z0 of one step: a scalar or one number per row, None where the loss has none. `state` is the estimator's next
    one, `metrics` go into the step's line, and through `graph` a gradient flows."""

    value: Tensor | None = None
    state: Tensor | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    graph: Z0Graph | None = None

    def of(self, places: Sequence[int]) -> Tensor | None:
        """z0 of the rows at these places of the step."""
        return self.value if self.value is None or self.value.ndim == 0 else take(self.value, places)


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
