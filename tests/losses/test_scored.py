"""Losses on scores: published values, gradients, invariances, and what they become in limits."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from prospect.feedback.records import Example
from prospect.losses.registry import LOSSES, arguments, bound, find
from prospect.losses.scored import (
    a_lol,
    awr,
    dro_v,
    identity_quantile,
    log_quantile,
    normal_quantile,
    qrpo,
    r_lol,
    score_range,
    tgo,
    una,
    value_error,
)
from tests.helpers.loss_checks import Case, draw, f64, general_properties, slopes

CASES = {
    "tgo": Case(partial(tgo, threshold=0.1), "rs"),
    "una": Case(partial(una, lowest=-1.0), "rs"),
    "dro_v": Case(partial(dro_v, tau=0.3), "rsV"),
    "a_lol": Case(a_lol, "Lcsv"),
    "r_lol": Case(r_lol, "Lcs"),
    "awr": Case(partial(awr, beta=0.7), "Lsv"),
    **{
        f"qrpo {transform.__name__}": Case(partial(qrpo, beta=0.1, transform=partial(transform, beta=0.1)), "rqk")
        for transform in (log_quantile, identity_quantile, normal_quantile)
    },
    "value_error": Case(partial(value_error, value_weight=0.3), "Vs"),
}
R, SCORES, VALUES = f64(3, -1.5, 0), f64(0.8, 0.1, 0.5), f64(0.3, 0.4, 0.5)
LOGP, ADVANTAGES, RATIOS = f64(-20, -30, -40), f64(0.7, 0.2, -0.5), f64(0.4, -3, 1.5)
"""Three answers: log-ratios, scores and values; and three others: log-probs, advantages, log-ratios."""


def qrpo_of(transform: str, beta: float = 0.1) -> torch.Tensor:
    """By the names of the command line: beta goes to the transform, too. Quantiles 5/6, 1/6 and 1 of six answers."""
    row = find("qrpo")
    function = bound(row.terms[0].function, arguments(row, {"beta": beta, "transform": transform}))
    result: torch.Tensor = function(R, f64(5 / 6, 1 / 6, 1), f64(6, 6, 6))
    return result


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (una(R, SCORES), [0.07701467, 0.15112804, 0]),
        (dro_v(R, SCORES, VALUES), [3.125, 0.72, 0]),
        (dro_v(R, SCORES, VALUES, tau=0.1), [0.02, 0.01125, 0]),
        (a_lol(LOGP, RATIOS, VALUES + ADVANTAGES, VALUES), [20.88554577, 0.6, 0]),
        (r_lol(LOGP, RATIOS, SCORES), [23.86919516, 0.3, 38]),
        (awr(LOGP, VALUES + ADVANTAGES, VALUES), [40.27505415, 36.64208274, 24.26122639]),
        (qrpo_of("log_quantile"), [0.05882179, 1.96551972, 0.05749902]),
        (qrpo_of("identity_quantile"), [0.05588667, 0.20527268, 0.05302107]),
        (tgo(f64(0, 0), f64(1, -1), confidence=2.0), [3 * math.log(2)] * 2),
    ],
    ids=["una", "dro_v", "dro_v tau", "a_lol", "r_lol", "awr", "qrpo log", "qrpo identity", "tgo"],
)
def test_golden_points(loss: torch.Tensor, expected: list[float]) -> None:
    assert loss.tolist() == pytest.approx(expected, abs=5e-9)


def test_tgo_pulls_by_the_side_of_the_threshold() -> None:
    for score, slope in ((1.0, -0.5), (-1.0, 0.5)):
        assert slopes(lambda r, s=score: tgo(r, f64(s), confidence=0.0), 0.0) == pytest.approx([slope])


def test_tgo_by_hand() -> None:
    def loss(u: float) -> float:
        return math.log1p(math.exp(-u))

    got = tgo(f64(2, 2, 2), f64(0.9, 0.5, 0.1), beta=0.3, threshold=0.5)
    assert got.tolist() == pytest.approx([3 * loss(0.6), loss(0.6), 3 * loss(-0.6)])


def test_una_is_at_rest_where_the_implied_reward_is_the_score() -> None:
    """On a scale of 1 to 5 as on one of 0 to 1."""
    r = math.log(0.8 / 0.2) / 0.03
    for score, scale in ((0.8, {}), (4.2, {"lowest": 1.0, "highest": 5.0})):
        assert una(f64(r), f64(score), **scale).tolist() == pytest.approx([0], abs=1e-20)
        assert slopes(lambda x, s=score, k=scale: una(x, f64(s), **k), r) == pytest.approx([0], abs=1e-12)
        assert slopes(lambda x, s=score, k=scale: una(x, f64(s), **k), 0.0)[0] < 0


@pytest.mark.parametrize(
    ("scores", "range"),
    [
        ((0.2, 0.9), (0, 1)),
        ((0.0, 1.0), (0, 1)),
        ((1.0, 4.0, 2.0), (1, 4)),
        ((-0.5, 0.5), (-0.5, 0.5)),
        ((7.0, 7.0), (6, 8)),
        ((0.5, 0.5), (0, 1)),
    ],
)
def test_unas_range_is_that_of_the_scores(scores: tuple[float, ...], range: tuple[float, float]) -> None:
    rows = [Example("r", 0, (0,), True, 1.0, score) for score in scores]
    assert score_range(rows) == {"lowest": range[0], "highest": range[1]}


def test_dro_v_fits_policy_and_value_by_one_error() -> None:
    """The slope in r is tau times the one in V."""
    by_r, by_score, by_value = slopes(partial(dro_v, tau=0.3), 2.0, 1.5, 0.4)
    error = 1.5 - 0.4 - 0.3 * 2.0
    assert (by_r, by_score, by_value) == pytest.approx((-0.3 * error, error, -error))


def test_weights_carry_no_gradient() -> None:
    """The slope is the weight: A-LoL's and AWR's is none of the value's business, nor is the ratio the policy's."""
    logp, ratio, value = f64(-3).requires_grad_(), f64(0.4).requires_grad_(), f64(0.3).requires_grad_()
    for loss, weight in (
        (a_lol(logp, ratio, f64(1.0), value), math.exp(0.4) * 0.7),
        (r_lol(logp, ratio, f64(1.0)), math.exp(0.4)),
        (awr(logp, f64(1.0), value, beta=0.5), math.exp(1.4)),
    ):
        by_logp, *others = torch.autograd.grad(loss.sum(), (logp, ratio, value), allow_unused=True)
        assert by_logp.item() == pytest.approx(-weight) and others == [None, None]


def test_what_is_worse_than_expected_is_left_alone() -> None:
    """By A-LoL; AWR still imitates it a little, and never more than `max_weight` times."""
    logp = f64(-3, -3, -3).requires_grad_()
    score, value = f64(0.1, 0.3, 9.0), f64(0.3, 0.3, 0.3)
    (slope,) = torch.autograd.grad(a_lol(logp, logp * 0, score, value).sum(), logp)
    assert slope.tolist() == pytest.approx([0, 0, -8.7])
    (slope,) = torch.autograd.grad(awr(logp, score, value).sum(), logp)
    assert slope.tolist() == pytest.approx([-math.exp(-0.2), -1, -20])


def test_r_lol_is_a_lol_against_a_value_of_nothing() -> None:
    logp, ratio, score = draw("Lrs")
    same = a_lol(logp, ratio, score.abs(), torch.zeros_like(score))
    assert torch.equal(r_lol(logp, ratio, score.abs()), same)


@pytest.mark.parametrize("name", ["a_lol", "awr"])
def test_a_value_is_fitted_beside(name: str) -> None:
    assert [term.function for term in LOSSES[name].terms][1:] == [value_error]
    assert LOSSES[name].value_head and not LOSSES["r_lol"].value_head
    assert slopes(lambda v: value_error(v, f64(2.0)), 0.5) == [-1.5]


def test_qrpo_normalises_what_it_weighs() -> None:
    """Under a reference whose quantiles are all equally likely, Z is the mean of e^(T(q) / beta), so that of
    e^((T(q) - beta * log Z) / beta) is 1. A midpoint rule, for a beta at which it sees the peak."""
    q = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    many = torch.full_like(q, 1e9)
    for transform in (log_quantile, identity_quantile, normal_quantile):
        assert (transform(q, many, beta=0.7) / 0.7).exp().mean().item() == pytest.approx(1, rel=2e-3)


def test_qrpo_floors_quantiles_at_one_of_n() -> None:
    """A logarithm needs one, and the normal's quantile a ceiling, too; among one answer it says nothing."""
    q, n = f64(0, 0.2, 1, 0, 1), f64(5, 5, 5, 1, 1)
    zero = -0.003 * math.log(0.003 / 1.003)
    assert (log_quantile(q, n) - zero).tolist() == pytest.approx([math.log(0.2)] * 2 + [0] * 3, abs=1e-12)
    z = 0.8416212335729143  # P(x <= z) = 0.8 of a standard normal
    assert (normal_quantile(q, n) + 1 / 0.006).tolist() == pytest.approx([-z, -z, z, 0, 0], abs=1e-10)


def test_qrpo_is_at_rest_at_the_reward_of_the_best_policy() -> None:
    for name in ("log_quantile", "identity_quantile", "normal_quantile"):
        row = find("qrpo")
        loss = bound(row.terms[0].function, arguments(row, {"transform": name}))
        best = math.sqrt(loss(f64(0), f64(0.5), f64(6)).item()) / 0.003
        signs = [loss(f64(sign * best), f64(0.5), f64(6)).item() for sign in (1, -1)]
        assert min(signs) == pytest.approx(0, abs=1e-18)
