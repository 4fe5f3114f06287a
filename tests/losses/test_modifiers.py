"""Weights, clamps and gates around a loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from prospect.losses.modifiers import gate, gate_q10, humanline, wpo
from prospect.losses.paired import dpo
from tests.helpers.loss_checks import Case, f64, general_properties

OFFSETS = torch.tensor([0, 2, 5])
LOGP = f64(-0.1, -0.7, -3, -0.2, -1)


def test_wpo_by_hand() -> None:
    p2 = f64(0.9, 0.5, 0.1, 0.8, 0.4)
    logs = [a - math.log(b) for a, b in zip(LOGP.tolist(), p2.tolist(), strict=True)]
    expected = [math.exp(sum(logs[:2]) / 2), math.exp(sum(logs[2:]) / 3)]
    assert wpo(LOGP, p2, OFFSETS).tolist() == pytest.approx(expected)


def test_wpo_of_a_uniform_policy_is_one() -> None:
    """log p = log(1/v) and sum p^2 = 1/v: every answer is as typical as any."""
    p = torch.full((5,), 1 / 50, dtype=torch.float64)
    assert wpo(p.log(), p, OFFSETS).tolist() == pytest.approx([1, 1])


def test_wpo_has_no_gradient_and_no_infinity() -> None:
    logp = LOGP.clone().requires_grad_()
    p2 = torch.ones(5, dtype=torch.float64, requires_grad=True)
    assert not wpo(logp, p2, OFFSETS).requires_grad
    for dtype in (torch.float32, torch.float64):
        extreme = wpo(torch.full((5,), -1e4, dtype=dtype), torch.zeros(5, dtype=dtype), OFFSETS)
        assert extreme.isfinite().all() and extreme.dtype == dtype


CLAMP = Case(humanline, "r")


def test_humanline_general_properties() -> None:
    general_properties(CLAMP)


def test_humanline_clamps_value_and_gradient() -> None:
    r = f64(-5, -0.9, 0, 1.4, 5).requires_grad_()
    clamped = humanline(r)
    assert clamped.tolist() == [-1, -0.9, 0, 1.4, 1.5]
    assert torch.autograd.grad(clamped.sum(), r)[0].tolist() == [0, 1, 1, 1, 0]


def test_gate_changes_the_gradient_alone() -> None:
    r = f64(-3, 4).requires_grad_()
    gated = gate(r, LOGP, OFFSETS, sharpness=10.0, threshold=0.5)
    assert torch.equal(gated, r)
    p = [math.exp(-0.8 / 2), math.exp(-4.2 / 3)]
    g = [1 / (1 + math.exp(-10 * (x - 0.5))) for x in p]
    assert torch.autograd.grad(gated.sum(), r)[0].tolist() == pytest.approx(g)


def test_gate_scales_a_losss_gradient_and_takes_none_itself() -> None:
    chosen, rejected = f64(1, 2).requires_grad_(), f64(-3, 4).requires_grad_()
    logp = LOGP.clone().requires_grad_()
    gated = gate(rejected, logp, OFFSETS, sharpness=4.0, threshold=0.2)
    plain = torch.autograd.grad(dpo(chosen, rejected).sum(), (chosen, rejected))
    g = torch.autograd.grad(gated.sum(), rejected, retain_graph=True)[0]
    loss = dpo(chosen, gated)
    assert torch.equal(loss, dpo(chosen, rejected))
    up, down, tokens = torch.autograd.grad(loss.sum(), (chosen, rejected, logp), allow_unused=True)
    torch.testing.assert_close(up, plain[0])
    torch.testing.assert_close(down, g * plain[1])
    assert tokens is None


def test_both_gates_on_published_token_probabilities() -> None:
    """Geometric mean 0.20597510, 10 % quantile 0.04613464 of e^(-.1, -2.3, -.7, -4.6, -.2): where the threshold is
    that, the gate is half open."""
    logp, offsets = f64(-0.1, -2.3, -0.7, -4.6, -0.2), torch.tensor([0, 5])
    for function, probability in ((gate, 0.20597510), (gate_q10, 0.04613464)):
        r = f64(1.0).requires_grad_()
        gated = function(r, logp, offsets, sharpness=1.0, threshold=probability)
        (g,) = torch.autograd.grad(gated.sum(), r)
        assert g.item() == pytest.approx(0.5, abs=1.3e-9)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.37, 1.0])
def test_the_quantile_is_each_answers_own(quantile: float) -> None:
    """As numpy's, answer by answer, one of them of a single token, and whatever the order of the tokens."""
    draw = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 1, 9, 12])
    logp = -3 * torch.rand(12, generator=draw, dtype=torch.float64)
    r = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    gated = gate_q10(r, logp, offsets, sharpness=2.0, threshold=0.3, quantile=quantile)
    (g,) = torch.autograd.grad(gated.sum(), r)
    ends = offsets.tolist()
    p = [np.quantile(logp[a:b].exp().numpy(), quantile) for a, b in pairwise(ends)]
    assert g.tolist() == pytest.approx([1 / (1 + math.exp(-2 * (x - 0.3))) for x in p], rel=1e-14)


@pytest.mark.parametrize("gate", [gate, partial(gate_q10, quantile=0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gate_extremes_and_nothing(dtype: torch.dtype, gate: Callable[..., torch.Tensor]) -> None:
    r = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    logp = torch.tensor([-1e4, -1e4, 0, 0, 0], dtype=dtype)
    gated = gate(r, logp, OFFSETS, sharpness=1e4, threshold=0.5)
    assert torch.equal(gated, r) and gated.dtype == dtype
    assert torch.autograd.grad(gated.sum(), r)[0].tolist() == pytest.approx([0, 1])
    none, start = torch.zeros(0, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    for empty in (gate(none, none, start, sharpness=1.0, threshold=0.0), wpo(none, none, start)):
        assert empty.shape == (0,) and empty.dtype == dtype
