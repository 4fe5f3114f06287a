"""Offline PPO against a slow loop, and its invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prospect.losses.tokenwise import ppo

LENGTHS = (5, 1, 9, 2)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)
THUMBS = torch.tensor([True, False, False, True])


def inputs(seed: int = 0, scale: float = 0.4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    log_ratio = torch.randn(sum(LENGTHS), generator=g, dtype=torch.float64) * scale
    return log_ratio, torch.randn(sum(LENGTHS), generator=g, dtype=torch.float64)


def slow(
    log_ratio: list[float], value: list[float], clip: float, discount: float, smoothing: float, vw: float, kl: float
) -> list[float]:
    """Word by word: the definition of each quantity, no recursion."""
    advantages, to_come = [], []
    for k, n in enumerate(LENGTHS):
        answer = value[OFFSETS[k] :][:n]
        rewards = [0.0] * (n - 1) + [1.0 if THUMBS[k] else -1.0]
        deltas = [rewards[t] + discount * (answer[t + 1] if t + 1 < n else 0) - answer[t] for t in range(n)]
        for t in range(n):
            advantages.append(sum((discount * smoothing) ** (s - t) * deltas[s] for s in range(t, n)))
            to_come.append(sum(discount ** (s - t) * rewards[s] for s in range(t, n)))
    mean = sum(advantages) / len(advantages)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantages) / len(advantages) + 1e-8)
    losses = []
    for u, v, a, goal in zip(log_ratio, value, advantages, to_come, strict=True):
        white, q = (a - mean) / deviation, math.exp(u)
        clipped = min(max(q, 1 - clip), 1 + clip)
        losses.append(max(-white * q, -white * clipped) + vw * 0.5 * (v - goal) ** 2 + kl * u)
    return losses


@pytest.mark.parametrize(
    "arguments",
    [
        {"clip": 0.5, "discount": 0.99, "smoothing": 0.95, "value_weight": 0.01, "kl_weight": 0.1},
        {"clip": 0.1, "discount": 0.7, "smoothing": 0.5, "value_weight": 2.0, "kl_weight": 0.0},
        {"clip": 0.2, "discount": 1.0, "smoothing": 1.0, "value_weight": 0.0, "kl_weight": 0.3},
    ],
)
def test_against_a_slow_loop(arguments: dict[str, float]) -> None:
    log_ratio, value = inputs()
    got = ppo(log_ratio, OFFSETS, THUMBS, value, **arguments)
    expected = slow(log_ratio.tolist(), value.tolist(), *arguments.values())
    assert got.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_defaults() -> None:
    log_ratio, value = inputs()
    expected = slow(log_ratio.tolist(), value.tolist(), 0.5, 0.99, 0.95, 0.01, 0.1)
    assert ppo(log_ratio, OFFSETS, THUMBS, value).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_gradient_in_the_log_ratio() -> None:
    log_ratio, value = inputs()
    assert torch.autograd.gradcheck(lambda u: ppo(u, OFFSETS, THUMBS, value), log_ratio.requires_grad_())


def test_value_learns_from_what_comes_alone() -> None:
    """Advantages carry no gradient: d loss / d V is value_weight * (V - G), nothing else."""
    log_ratio, value = inputs()
    value.requires_grad_()
    (got,) = torch.autograd.grad(ppo(log_ratio, OFFSETS, THUMBS, value, discount=1.0, value_weight=0.7).sum(), value)
    to_come = torch.repeat_interleave(torch.where(THUMBS, 1.0, -1.0).double(), torch.tensor(LENGTHS))
    torch.testing.assert_close(got, 0.7 * (value.detach() - to_come))


def test_gradient_at_the_reference() -> None:
    """q = 1: the slope is -A and the KL weight, with A of mean 0 and variance 1."""
    _, value = inputs()
    u = torch.zeros(sum(LENGTHS), dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(ppo(u, OFFSETS, THUMBS, value).sum(), u)
    advantage = 0.1 - got
    assert advantage.mean().item() == pytest.approx(0, abs=1e-14)
    assert advantage.var(unbiased=False).item() == pytest.approx(1, abs=1e-6)


def test_clipping_is_one_sided() -> None:
    """A good token that is likely enough, and a bad one that is unlikely enough, are left alone; the others are not."""
    offsets, thumbs = torch.tensor([0, 1, 2]), torch.tensor([True, False])
    for log_ratio, moved in (([2.0, -2.0], [False, False]), ([-2.0, 2.0], [True, True])):
        u = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
        loss = ppo(u, offsets, thumbs, torch.zeros(2, dtype=torch.float64), kl_weight=0.0)
        assert (torch.autograd.grad(loss.sum(), u)[0] != 0).tolist() == moved


def test_order_of_answers_does_not_matter() -> None:
    log_ratio, value = inputs()
    order = [2, 0, 3, 1]
    where = torch.cat([torch.arange(OFFSETS[k], OFFSETS[k + 1]) for k in order])
    offsets = torch.tensor([0, *(LENGTHS[k] for k in order)]).cumsum(0)
    got = ppo(log_ratio[where], offsets, THUMBS[order], value[where])
    torch.testing.assert_close(got, ppo(log_ratio, OFFSETS, THUMBS, value)[where])


def test_whitening_couples_the_answers() -> None:
    log_ratio, value = inputs()
    alone = ppo(log_ratio[:5], OFFSETS[:2], THUMBS[:1], value[:5])
    assert not torch.allclose(alone, ppo(log_ratio, OFFSETS, THUMBS, value)[:5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("thumbs", [THUMBS, ~THUMBS, THUMBS | True, THUMBS & False])
def test_extremes(dtype: torch.dtype, thumbs: Tensor) -> None:
    u = torch.tensor([-1e4, 1e4, 0.0, 60.0] * 5, dtype=dtype)[: sum(LENGTHS)].requires_grad_()
    value = torch.zeros_like(u).detach().requires_grad_()
    loss = ppo(u, OFFSETS, thumbs, value)
    assert loss.isfinite().all() and loss.dtype == dtype
    for gradient in torch.autograd.grad(loss.sum(), (u, value)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_gives_nothing(dtype: torch.dtype) -> None:
    none: Any = torch.zeros(0, dtype=dtype)
    loss = ppo(none, torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), none)
    assert loss.shape == (0,) and loss.dtype == dtype
