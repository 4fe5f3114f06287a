"""The token budget by measured memory: the arithmetic by hand, the measuring with a meter that is made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prospect import run as run_module
from prospect.run import train
from prospect.training import memory, ranks
from prospect.training import step as job_module
from prospect.training.batch import cut_step
from prospect.training.memory import (
    KNEE,
    SHARE,
    CudaMeter,
    tokens_that_fit,
)
from tests.helpers.needs import needs_gpu
from tests.helpers.training import MakeJob, close, gradients, move, pairs, thumbs


@pytest.mark.parametrize(
    ("small", "large", "room", "longest", "expected"),
    [
        # 1000 bytes a token on top of 50,000: 10,000 tokens take 10,050,000.
        ((2000, 2_050_000), (4000, 4_050_000), 10_050_000, 300, 10_000),
        ((2000, 2_050_000), (4000, 4_050_000), 10_050_999, 300, 10_000),
        ((2000, 2_050_000), (4000, 4_050_000), 10**9, 300, KNEE),  # more is no faster
        ((2000, 2_050_000), (4000, 4_050_000), 500_000, 300, 450),  # less than was measured
        ((2000, 2_050_000), (4000, 4_050_000), -5, 300, 300),  # the longest row must be computed in any case
        ((2000, 2_050_000), (4000, 4_050_000), 10**9, 20_000, 20_000),
        ((2000, 70_000), (4000, 70_000), 10**6, 300, KNEE),  # nothing grows: a model too small to be seen
    ],
)
def test_the_arithmetic(small: Any, large: Any, room: float, longest: int, expected: int) -> None:
    assert tokens_that_fit(small, large, room=room, longest=longest) == expected


class FakeMeter:
    """`fixed` bytes and `slope` for every token that the model was given; memory ends at `limit` tokens at once."""

    def __init__(self, fixed: int, slope: int, free: int, limit: int = 10**9) -> None:
        self.fixed, self.slope, self._free, self.limit = fixed, slope, free, limit
        self.tokens: list[int] = []

    def peak(self, work: Callable[[], None]) -> int:
        done = len(self.tokens)
        work()
        assert len(self.tokens) == done + 1, "one pass of the engine"
        return self.fixed + self.slope * self.tokens[-1]

    def free(self) -> int:
        return self._free


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeMeter], FakeMeter]:
    """Tell a meter of the tokens that pass the engine."""

    def watch(meter: FakeMeter) -> FakeMeter:
        original = vars(job_module)["compute"]

        def compute(policy: Any, trees: Any, *args: Any, **options: Any) -> Any:
            meter.tokens.append(sum(len(t.prompt) + sum(map(len, t.completions)) for t in trees))
            if meter.tokens[-1] > meter.limit:
                raise torch.cuda.OutOfMemoryError
            return original(policy, trees, *args, **options)

        monkeypatch.setattr(job_module, "compute", compute)
        return meter

    monkeypatch.setattr(memory, "SMALL", 64)
    return watch


def longest_row(job: Any) -> int:
    return max(len(job.dataset.trees[row.tree].prompt) + job.dataset.length(row) for row in job.dataset.examples)


@pytest.mark.parametrize("loss", ["kto", "dpo", "ppo"])
def test_two_sizes_are_measured_after_a_warm_up(make_job: MakeJob, watched: Any, loss: str) -> None:
    rows = pairs(12) if loss == "dpo" else thumbs(12)
    job = make_job(rows, loss=loss)
    if job.objective.loss.value_head:
        job.policy.add_value_head(0)
    state = 8 * job.policy.trainable_parameters
    meter = watched(FakeMeter(5000, 70, state + round((5000 + 70 * 1000) / SHARE) + 1))
    assert memory.settle_budget(job, meter)
    warm, small, large = meter.tokens
    assert warm == small >= 64 and 2 * small <= large <= 2 * small + longest_row(job)
    assert job.token_budget == 1000
    assert all(p.grad is None for _, p in job.policy.trainable())


def test_where_even_the_measurement_does_not_fit(make_job: MakeJob, watched: Any) -> None:
    job = make_job(thumbs(12))
    assert memory.settle_budget(job, watched(FakeMeter(0, 1, 10**9, limit=100)))
    assert job.token_budget == longest_row(job)
    assert all(p.grad is None for _, p in job.policy.trainable())


def test_all_ranks_take_the_least(make_job: MakeJob, watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(thumbs(12))
    monkeypatch.setattr(ranks, "gather", lambda mine: [mine, 321, 5000])
    assert memory.settle_budget(job, watched(FakeMeter(0, 1, 10**9)))
    assert job.token_budget == 321


def test_who_is_not_asked(make_job: MakeJob, watched: Any) -> None:
    meter = watched(FakeMeter(0, 1, 10**9))
    job = make_job(thumbs(12), token_budget=77)
    assert not memory.settle_budget(job, meter) and job.token_budget == 77
    job = make_job(thumbs(12), folder="other", device="cpu")
    assert not memory.settle_budget(job)
    job.policy.model.requires_grad_(False)
    assert not memory.settle_budget(job, meter)
    assert not meter.tokens


def test_it_is_written_down(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = memory.settle_budget
    meter = FakeMeter(0, 1, 0)
    meter.tokens, meter.peak = [], lambda work: 100  # type: ignore[method-assign]
    monkeypatch.setattr(run_module, "settle_budget", lambda job: settle(job, meter))
    train(model, thumbs(8), tmp_path / "run", max_steps=1, precision="fp32", samples=0)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["engine"]["token_budget"] == KNEE


@needs_gpu
def test_measured_for_real(make_job: MakeJob) -> None:
    job = make_job(thumbs(64), precision="bf16", device="cuda")
    assert memory.settle_budget(job)
    assert longest_row(job) <= job.token_budget <= KNEE
    meter = CudaMeter(job.policy.device)
    assert meter.free() > 0
    kept = []
    assert meter.peak(lambda: kept.append(torch.empty(1 << 20, dtype=torch.uint8, device="cuda"))) >= 1 << 20


@needs_gpu
def test_running_out_of_memory_for_real(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradient as with small micro-batches from the start."""
    plain, tight = (make_job(thumbs(16), device="cuda", token_budget=most, folder=str(most)) for most in (60, 400))
    for job in (plain, tight):
        move(job)
    expected = gradients(plain)[0]
    assert len(cut_step(tight.dataset, tight.schedule.steps[0].rows, 1, 400)[0]) == 1

    def short_of_memory(original: Any) -> Any:
        def compute(policy: Any, trees: Any, *args: Any, **options: Any) -> Any:
            if len(trees) > 4 and torch.is_grad_enabled():
                torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
            return original(policy, trees, *args, **options)

        return compute

    for name in ("compute", "compute_with"):
        monkeypatch.setattr(job_module, name, short_of_memory(getattr(job_module, name)))
    close(gradients(tight)[0], expected, 1e-12)
    assert tight.token_budget < 400
