"""Losses on groups: published numbers, finite differences, and what must not matter."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.errors import ConfigError
from prospect.losses import registry
from prospect.losses.group import tpo
from prospect.losses.numerics import segment_log_softmax

LOGP = (-20.0, -22.0, -19.0, -25.0), (-5.0,) * 4, (-8.0, -9.0, -7.0, -8.0)
OLD = (-20.5, -22.0, -19.5, -24.0), (-5.0,) * 4, (-8.0, -9.0, -7.5, -8.0)
SCORES = (1.0, 0.0, 0.0, 1.0), (0.9, 0.1, 0.5, 0.3), (1.0,) * 4


def flat(groups: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor(list(itertools.chain(*groups)), dtype=torch.float64)


def offsets(*sizes: int) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


GROUPS = offsets(4, 4, 4)


def draw(sizes: tuple[int, ...] = (3, 1, 5, 2), seed: int = 0) -> dict[str, Tensor]:
    """Random inputs by name; in the third group two answers have equal scores, in the last all have."""
    g = torch.Generator().manual_seed(seed)
    n = sum(sizes)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=g, dtype=torch.float64) * (high - low) + low

    score = uniform(-1, 1)
    score[5], score[-1] = score[4], score[-2]
    inputs = {"logp": uniform(-40, -2), "old_logp": uniform(-40, -2), "log_ratio": uniform(-12, 12)}
    return inputs | {"length": torch.randint(3, 20, (n,), generator=g), "score": score, "group": offsets(*sizes)}


Case = tuple[Callable[..., Tensor], tuple[str, ...], str]
CASES: dict[str, Case] = {
    "tpo": (tpo, ("logp", "old_logp", "score", "group"), "logp"),
    "tpo, eta .3": (partial(tpo, eta=0.3), ("logp", "old_logp", "score", "group"), "logp"),
}
"""Each loss with what it reads, and the input that carries the gradient."""


def call(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    loss, reads, _ = case
    return loss(*(inputs[name] for name in reads))


def test_tpo_golden_values() -> None:
    """Three groups of four: a spread of scores, old and new alike, and equal scores."""
    values = tpo(flat(LOGP), flat(OLD), flat(SCORES), GROUPS)
    assert values.tolist() == pytest.approx([1.24118794, 1.38629436, 1.30763636], abs=5e-9)


def test_the_gradient_of_tpo_is_p_less_q() -> None:
    """And it is 0 where the group's probabilities are the target's."""
    inputs = draw()
    logp = inputs["logp"].requires_grad_()
    (slopes,) = torch.autograd.grad(call(CASES["tpo"], inputs).sum(), logp)
    for start, end in itertools.pairwise(inputs["group"].tolist()):
        score, old = inputs["score"][start:end], inputs["old_logp"][start:end]
        deviation = score.std(correction=0)
        u = (score - score.mean()) / (deviation if deviation > 1e-6 else 1)
        p, q = logp[start:end].softmax(0), (old + u).softmax(0)
        torch.testing.assert_close(slopes[start:end], p - q, rtol=0, atol=1e-14)
    target = segment_log_softmax(flat(OLD) + 2 * (flat(SCORES) - 0.5).where(GROUPS[1] > torch.arange(12), 0), GROUPS)
    there = (target - 17.0).requires_grad_()
    (slopes,) = torch.autograd.grad(tpo(there, flat(OLD), flat(SCORES), GROUPS)[0], there)
    assert slopes.abs().max() < 1e-14


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_finite_differences(name: str) -> None:
    """Targets carry none: the values of the second group's inputs are held where they were."""
    case, inputs = CASES[name], draw()

    def of(learnt: Tensor) -> Tensor:
        return call(case, inputs | {case[2]: learnt})

    assert torch.autograd.gradcheck(of, inputs[case[2]].clone().requires_grad_())


@pytest.mark.parametrize("name", CASES)
def test_groups_are_alone_and_have_no_order(name: str) -> None:
    case, inputs = CASES[name], draw()
    whole = call(case, inputs)
    bounds = inputs["group"].tolist()
    for k, (start, end) in enumerate(itertools.pairwise(bounds)):
        order = torch.randperm(end - start, generator=torch.Generator().manual_seed(k)) + start
        alone = {key: x[order] for key, x in inputs.items() if key != "group"} | {"group": offsets(end - start)}
        torch.testing.assert_close(call(case, alone), whole[k : k + 1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_extremes_are_finite(name: str, dtype: torch.dtype) -> None:
    """Answers of 10,000 nats, scores of a million, lone answers and equal scores."""
    case = CASES[name]
    extremes = torch.tensor([-1e4, -60.0, -1e-9, 0.0, -1e4, -1e4, 0.0, 0.0, -3.0], dtype=dtype)
    n = len(extremes)
    inputs = {"logp": extremes, "old_logp": extremes.flip(0), "log_ratio": extremes - extremes.flip(0)}
    score = torch.tensor([1e6, -1e6, 0.0, 0.0, 1e-30, 0.0, 0.0, 5.0, 5.0], dtype=dtype)
    inputs |= {"length": torch.tensor([1, 1000] * n)[:n], "score": score, "group": offsets(4, 3, 2)}
    learnt = inputs[case[2]].clone().requires_grad_()
    values = call(case, inputs | {case[2]: learnt})
    assert values.dtype == dtype and values.isfinite().all()
    (slopes,) = torch.autograd.grad(values.sum(), learnt)
    assert slopes.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_nothing_gives_nothing(name: str) -> None:
    inputs = {key: x[:0] for key, x in draw().items() if key != "group"} | {"group": offsets()}
    assert call(CASES[name], inputs).shape == (0,)


@pytest.mark.parametrize("name", CASES)
def test_a_lone_answer_and_a_shift_of_scores_teach_nothing(name: str) -> None:
    case, inputs = CASES[name], draw()
    learnt = inputs[case[2]].requires_grad_()
    (slopes,) = torch.autograd.grad(call(case, inputs).sum(), learnt)
    assert slopes[3] == 0  # alone in its group
    shifted = call(case, inputs | {"score": inputs["score"] + 7.0})
    torch.testing.assert_close(shifted, call(case, inputs), rtol=0, atol=1e-12)


def test_what_is_about_groups_reads_whole_groups() -> None:
    def torn(logp: Tensor, group: Tensor) -> Tensor:
        return logp

    with pytest.raises(ConfigError, match='group: only a loss with view="groups" and rows="all" is about groups'):
        registry.loss("scores")(torn)
    with pytest.raises(ConfigError, match='group, unit: only a loss with view="groups"'):
        registry.loss("groups", unit="groups", rows="desirable")(torn)
