"""The elementary functions under the losses, and sums over completions."""

from __future__ import annotations

import math

import pytest
import torch

from prospect.losses.numerics import exp, expm1, log1mexp, segment_mean, segment_sum
from tests.helpers.loss_checks import f64, slopes


def test_exponentials_are_exact_up_to_30_and_straight_beyond() -> None:
    u = f64(-50, -1, 1e-9, 29.9)
    assert torch.equal(exp(u), torch.exp(u)) and torch.equal(expm1(u), torch.expm1(u))
    for function in (exp, expm1):
        assert slopes(function, 29.0) == pytest.approx([math.exp(29)])
        assert slopes(function, 40.0) == pytest.approx([math.exp(30)])
        assert function(f64(40)).item() == pytest.approx(11 * math.exp(30), rel=1e-12)
        assert torch.autograd.gradcheck(function, f64(-3, 0, 2).requires_grad_())


def test_log1mexp_keeps_its_digits() -> None:
    a = [-1e-15, -1e-3, -0.6, -math.log(2), -0.8, -30.0]
    expected = [math.log(-math.expm1(x)) if x > -0.7 else math.log1p(-math.exp(x)) for x in a]
    assert log1mexp(f64(*a)).tolist() == pytest.approx(expected, rel=1e-14)
    assert torch.autograd.gradcheck(log1mexp, f64(-0.01, -0.5, -0.9, -5).requires_grad_())
    assert log1mexp(f64(-1e4, 0)).tolist() == [0, -math.inf]


def test_segments() -> None:
    values, offsets = f64(1, 2, 3, 4, 5), torch.tensor([0, 2, 2, 5])
    assert segment_sum(values, offsets).tolist() == [3, 0, 12]
    assert segment_mean(values[:4], torch.tensor([0, 1, 4])).tolist() == [1, 3]
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, offsets), values)
    for dtype in (torch.float32, torch.float64):
        empty = segment_sum(torch.zeros(0, dtype=dtype), torch.zeros(1, dtype=torch.int64))
        assert empty.shape == (0,) and empty.dtype == dtype
