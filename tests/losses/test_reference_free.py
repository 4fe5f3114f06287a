"""Losses on pairs without a reference model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.losses.paired import dpo, hinge
from prospect.losses.reference_free import (
    alphapo,
    cpo,
    orpo,
    simpo,
    slic,
)
from tests.helpers.loss_checks import Case, draw, f64, general_properties, slopes

CASES = {
    "slic": Case(slic, "LL"),
    "cpo": Case(cpo, "LL"),
    "simpo": Case(simpo, "LLnn"),
    "alphapo": Case(alphapo, "LLnn"),
    "alphapo, negative": Case(partial(alphapo, alpha=-0.5), "LLnn"),
    "orpo": Case(orpo, "LLnn"),
}
LOGPS = f64(-20), f64(-30)
GOLDEN = (*LOGPS, torch.tensor([10]), torch.tensor([12]))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


@pytest.mark.parametrize(
    ("loss", "inputs", "expected"),
    [
        (slic, LOGPS, 2.0),
        (cpo, LOGPS, 0.31326169),
        (simpo, GOLDEN, 0.47407698),
        (alphapo, GOLDEN, 0.25055222),
        (orpo, GOLDEN, 0.04519316),
    ],
)
def test_golden_point(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...], expected: float) -> None:
    """L_w = -20 over 10 tokens, L_l = -30 over 12."""
    assert loss(*inputs).item() == pytest.approx(expected, abs=5e-9)


def test_cpo_is_dpo_with_a_uniform_reference() -> None:
    a, b = draw("LL")
    assert torch.equal(cpo(a, b, beta=0.2), dpo(a, b, beta=0.2))


def test_slic_is_a_hinge_with_likelihood() -> None:
    a, b = draw("LL")
    assert torch.equal(slic(a, b, regularization=0.0), hinge(a, b, beta=1.0))
    assert torch.equal(slic(a, b, regularization=0.5) - slic(a, b, regularization=0.0), -0.5 * a)
    assert slopes(slic, -20.0, -30.0) == pytest.approx([-0.1, 0])
    assert slopes(slic, -30.0, -30.0) == pytest.approx([-1.1, 1])


def test_simpo_of_one_token_is_cpo_with_a_margin() -> None:
    a, b = draw("LL")
    one = torch.ones(len(a), dtype=torch.int64)
    assert torch.equal(simpo(a, b, one, one, beta=0.1, gamma=0.0), cpo(a, b))
    torch.testing.assert_close(simpo(a, b, one, one, beta=0.1, gamma=0.5), cpo(a - 5, b))


@pytest.mark.parametrize(("alpha", "tolerance"), [(0.0, 0.0), (1e-9, 1e-7), (-1e-9, 1e-7)])
def test_alphapo_tends_to_simpo(alpha: float, tolerance: float) -> None:
    inputs = draw("LLnn")
    torch.testing.assert_close(alphapo(*inputs, alpha=alpha), simpo(*inputs), rtol=0, atol=tolerance)


def test_orpo_by_hand() -> None:
    def log_odds(a: float) -> float:
        return math.log(math.exp(a) / (1 - math.exp(a)))

    expected = 0.3 * math.log1p(math.exp(-(log_odds(-2.0) - log_odds(-2.5))))
    assert orpo(*GOLDEN, beta=0.3).item() == pytest.approx(expected, rel=1e-12)


def test_orpo_keeps_its_digits_where_the_policy_is_certain() -> None:
    """log-odds of a = -1e-12 are 27.6; log(1 - exp(a)) loses 4 of their digits."""
    one = torch.ones(1, dtype=torch.int64)
    got = orpo(f64(-1.0), f64(-1e-12), one, one, beta=1.0).item()
    assert got == pytest.approx(math.log(1e12) + 1 + math.log(-math.expm1(-1.0)), rel=1e-13)
