"""The reference point in the loop: every estimator, and the gradient through it."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from prospect.errors import ConfigError
from prospect.losses.registry import REFERENCE_POINTS
from prospect.training import step as job_module
from prospect.training.batch import cut_step
from prospect.training.step import step_gradient
from tests.helpers.training import MakeJob, close, gradients, job_of, move, thumbs, with_live


@pytest.mark.parametrize("name", ["kto", "bco"])
@pytest.mark.parametrize("point", REFERENCE_POINTS)
def test_every_reference_point_in_the_loop(make_job: MakeJob, name: str, point: str) -> None:
    """It does not depend on micro-batches."""
    whole = job_of(make_job, name, reference_point=point)
    with_live(whole)
    move(whole)
    got, z0, _ = gradients(whole)
    whole.token_budget = 24
    parts, again, _ = gradients(whole)
    assert z0 is not None and again is not None and torch.allclose(z0, again, atol=1e-12)
    assert point == "zero" or z0.abs().sum() > 0 or point == "mismatched"
    close(parts, got, 1e-10)


POINTS = ["unclamped", "batch_mean", "prompt_mean", "running_mean", "token_kl"]


@pytest.mark.parametrize(
    ("name", "budget", "point"),
    [
        *(("kto", budget, point) for budget in (24, 4000) for point in POINTS),
        *(("bco_pair:1,aot:0.5", budget, "batch_mean") for budget in (24, 4000)),
    ],
)
def test_a_gradient_through_z0(make_job: MakeJob, name: str, budget: int, point: str) -> None:
    """--z0-gradient is the derivative of the whole objective, z0 included, along a random direction; also where
    something else in it couples rows."""
    job = job_of(make_job, name, reference_point=point, z0_gradient=True, token_budget=budget)
    with_live(job)
    move(job)
    got, _, _ = gradients(job)
    torch.manual_seed(0)
    direction = {name: torch.randn_like(p) for name, p in job.policy.trainable()}

    def shifted(by: float) -> float:
        with torch.no_grad():
            for name, p in job.policy.trainable():
                p.add_(by * direction[name])
        value = gradients(job)[2][0]
        with torch.no_grad():
            for name, p in job.policy.trainable():
                p.sub_(by * direction[name])
        return value

    slope = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
    assert sum(float((got[k] * direction[k]).sum()) for k in got) == pytest.approx(slope, rel=1e-5, abs=1e-9)
    plain = job_of(make_job, name, "plain", reference_point=point, token_budget=budget)
    with_live(plain)
    move(plain)
    without = gradients(plain)[0]
    assert any((without[k] - got[k]).norm() > 1e-6 * got[k].norm() for k in got)


THROUGH: dict[str, Any] = {"reference_point": "batch_mean", "z0_gradient": True}


@pytest.mark.parametrize("at", ["first", "second", "last"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kto", THROUGH | {"reference_point": "unclamped", "batch_size": 16, "token_budget": 64}),
        ("bco_pair:1,aot:0.5", THROUGH | {"token_budget": 120}),  # one micro-batch, until it does not fit
        ("aot", {"token_budget": 120}),
        ("ppo", {"token_budget": 120}),
    ],
)
def test_running_out_of_memory_changes_nothing(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], at: str
) -> None:
    """Wherever it strikes among the passes with a gradient, the last of which is z0's where one flows through it."""
    plain, tight = (job_of(make_job, name, folder, **options) for folder in ("plain", "tight"))
    for job in (plain, tight):
        move(job)
    original, passes, fails_at = vars(job_module)["compute"], [0], 0

    def compute(*args: Any, **options: Any) -> Any:
        passes[0] += torch.is_grad_enabled()
        if torch.is_grad_enabled() and passes[0] == fails_at:
            raise torch.cuda.OutOfMemoryError
        return original(*args, **options)

    monkeypatch.setattr(job_module, "compute", compute)
    expected, _, totals = gradients(plain)
    fails_at, passes[0] = {"first": 1, "second": min(2, passes[0]), "last": passes[0]}[at], 0
    found, _, in_parts = gradients(tight)
    assert passes[0] > fails_at and tight.token_budget == options["token_budget"] // 2
    close(found, expected, 1e-11)
    assert in_parts[0] == pytest.approx(totals[0], rel=1e-11)


def test_estimators_of_ones_own(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives too few numbers is refused; through one that looks at no value flows no gradient."""
    job = job_of(make_job, "kto", **THROUGH)
    assert job.estimator is not None
    job.estimator = replace(job.estimator, name="mine.py:half", function=lambda step, state: (step.values[:3], state))
    with pytest.raises(ConfigError, match=r"step 1: .*mine.py:half gave 3 numbers for 8 rows"):
        gradients(job)
    job.estimator = replace(job.estimator, function=lambda step, state: (torch.ones(()), state))
    found = gradients(job)[0]
    plain = job_of(make_job, "kto", "plain", reference_point="batch_mean")
    plain.estimator = job.estimator
    close(found, gradients(plain)[0], 1e-12)


def test_a_mean_per_prompt_in_every_step(make_job: MakeJob) -> None:
    """Prompts are numbered within the step: a run has more of them than a step has answers."""
    job = make_job(thumbs(24, per_prompt=2), reference_point="prompt_mean", batch_size=4, weights="none")
    move(job)
    seen = set()
    for step in job.schedule.steps[:6]:
        z0 = step_gradient(job, step, None)[0].value
        values: dict[int, list[float]] = {}
        for micro in cut_step(job.dataset, step.rows, 1, job.token_budget)[0]:
            found = job.compute(micro.trees).log_ratio.tolist()
            for row, (k,) in zip(micro.rows, micro.numbers, strict=True):
                values.setdefault(job.dataset.examples[row].tree, []).append(found[k])
        trees = [job.dataset.examples[row].tree for row in step.rows]
        assert z0 is not None and z0.tolist() == pytest.approx([statistics.mean(values[tree]) for tree in trees])
        seen |= set(trees)
    assert max(seen) >= 4


def test_exact_token_kl(make_job: MakeJob) -> None:
    job, start = job_of(make_job, "kto", reference_point="token_kl"), make_job(thumbs(2), "start")
    with_live(job)
    move(job)
    z0 = step_gradient(job, job.schedule.steps[0], None)[0].value
    every = []
    for i in job.schedule.steps[0].rows:
        row = job.dataset.examples[i]
        prompt, answer = job.dataset.trees[row.tree].prompt, job.dataset.completion(row)
        ids = torch.tensor([[*prompt.tolist(), *answer.tolist()]], device=job.policy.device)
        with torch.no_grad(), job.policy.autocast():
            p, q = (j.policy.model(input_ids=ids).logits[0].double().log_softmax(-1) for j in (job, start))
        every.append((p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1].sum())
    assert z0 is not None and z0.item() == pytest.approx(torch.stack(every).mean().item(), rel=1e-9)
