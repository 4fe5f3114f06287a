"""Losses on pairs with a reference: published values, gradients, invariances, and what they reduce to."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.losses.paired import (
    alpha_divergence,
    apo_down,
    apo_zero,
    bco_pair,
    cal_dpo,
    cdpo,
    cpo_constrained,
    discopop,
    dpo,
    dpop,
    exo,
    fdpo,
    forward_kl,
    hinge,
    jensen_shannon,
    nca,
    reverse_kl,
    robust,
    sppo_hard,
    tdpo1,
    tdpo2,
)
from prospect.losses.paired_coupled import aot, aot_unpaired
from prospect.losses.paired_scores import margin_dpo, odpo
from tests.helpers.loss_checks import Case, draw, f64, general_properties, slopes

Loss = Callable[..., Tensor]
LN2 = math.log(2)
DIVERGENCES = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jensen_shannon": jensen_shannon,
    "alpha_divergence": alpha_divergence,
}
SIMPLE: dict[str, Loss] = {
    f.__name__: f for f in (dpo, cdpo, robust, hinge, exo, nca, sppo_hard, apo_zero, apo_down, discopop, dpop, cal_dpo)
}
CASES = {
    **{name: Case(loss, "rr") for name, loss in SIMPLE.items()},
    **{f"fdpo {name}": Case(partial(fdpo, divergence=s), "rr") for name, s in DIVERGENCES.items()},
    "fdpo alpha 1.5": Case(partial(fdpo, divergence=partial(alpha_divergence, alpha=1.5)), "rr"),
    "bco_pair": Case(bco_pair, "rrz"),
    "cpo_constrained": Case(cpo_constrained, "rrLLnn"),
    "tdpo1": Case(tdpo1, "rrDD"),
    "tdpo2": Case(tdpo2, "rrmD"),  # its third input has no gradient
    "odpo": Case(odpo, "rrm"),
    "margin_dpo": Case(margin_dpo, "rrm"),
    "aot": Case(partial(aot, epsilon=0.1), "LLLL", coupled=True),
    "aot_unpaired": Case(aot_unpaired, "rr", coupled=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (dpo, 0.49324895),
        (cdpo, 0.53824895),
        (robust, 0.43699895),
        (hinge, 0.55),
        (exo, 2.02175854),
        (nca, 1.29201139),
        (lambda c, r: bco_pair(c, r, f64(0)[0]), 1.17531229),
        (lambda c, r: bco_pair(c, r, f64(0.5)[0]), 1.17407829),  # delta = 0.05
        (sppo_hard, 16.25),
        (apo_zero, 0.88812764),
        (apo_down, 0.96380328),
        (discopop, 0.63761034),
        (dpop, 0.23050857),
        (partial(fdpo, divergence=reverse_kl), 0.49324895),
        (partial(fdpo, divergence=forward_kl), 0.49590593),
        (partial(fdpo, divergence=jensen_shannon), 0.61391680),
        (partial(fdpo, divergence=alpha_divergence), 0.52158772),
        (lambda c, r: margin_dpo(c, r, f64(0)), 0.49324895),
        (lambda c, r: odpo(c, r, f64(1)), 0.49324895),
    ],
)
def test_golden_point(loss: Loss, expected: float) -> None:
    """r_w = 3, r_l = -1.5, beta = 0.1 (0.3 for dpop)."""
    assert loss(f64(3), f64(-1.5)).item() == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize(
    ("loss", "value", "up", "down"),
    [
        (dpo, LN2, -0.05, 0.05),
        (cdpo, LN2, -0.04, 0.04),
        (robust, LN2, -0.1 * (0.5 + 0.1 / 0.8), 0.1 * (0.5 + 0.1 / 0.8)),
        (hinge, 1, -0.1, 0.1),
        (exo, 0.5 * (-2 * LN2 - math.log1p(-1e-3) - math.log(1e-3)), -0.025 * math.log(999), 0.025 * math.log(999)),
        (nca, 2 * LN2, -0.025, 0.025),
        (lambda c, r: bco_pair(c, r, f64(0)[0]), 2 * LN2, -0.05, 0.05),
        (sppo_hard, 50, -10, 10),
        (apo_zero, 1, -0.025, 0.025),
        (apo_down, 1, 0, 0.025),
        (discopop, (LN2 + 1) / 2, -0.1 * (0.75 - (1 - LN2) / 0.2), 0.1 * (0.75 - (1 - LN2) / 0.2)),
        (dpop, LN2, -0.15, 0.15),
        (cal_dpo, LN2 + 25, -5.5, 5.5),
        (fdpo, LN2, -0.05, 0.05),
        (partial(fdpo, divergence=forward_kl), LN2, -0.05, 0.05),
        (partial(fdpo, divergence=jensen_shannon), LN2, -0.025, 0.025),
        (partial(fdpo, divergence=alpha_divergence), LN2, -0.05, 0.05),
        (aot_unpaired, LN2, -0.05, 0.05),
    ],
)
def test_at_the_reference(loss: Loss, value: float, up: float, down: float) -> None:
    assert loss(f64(0), f64(0)).item() == pytest.approx(value, abs=1e-12)
    assert slopes(loss, 0.0, 0.0) == pytest.approx([up, down], abs=1e-14)


@pytest.mark.parametrize("loss", [partial(cdpo, epsilon=0.0), partial(robust, epsilon=0.0), fdpo, aot_unpaired, dpop])
def test_reduces_to_dpo_on_one_pair(loss: Loss) -> None:
    chosen, rejected = f64(3), f64(-1.5)
    assert torch.equal(loss(chosen, rejected, beta=0.3), dpo(chosen, rejected, beta=0.3))


def test_aot_reduces_to_dpo_on_one_pair() -> None:
    got = aot(f64(-20), f64(-30), f64(-23), f64(-28.5))
    torch.testing.assert_close(got, dpo(f64(3), f64(-1.5)))


def test_robust_is_unbiased_and_cdpo_is_the_flipped_mean() -> None:
    """The mean over flips of robust is DPO on clean labels; cdpo is the mean over flips of DPO."""
    a, b = draw("rr")
    flipped = partial(robust, epsilon=0.2)
    torch.testing.assert_close(0.8 * flipped(a, b) + 0.2 * flipped(b, a), dpo(a, b))
    torch.testing.assert_close(cdpo(a, b, epsilon=0.2), 0.8 * dpo(a, b) + 0.2 * dpo(b, a))


def test_only_the_difference_counts() -> None:
    a, b = draw("rr")
    for loss in (dpo, cdpo, robust, hinge, exo, discopop):
        torch.testing.assert_close(loss(a + 5, b + 5), loss(a, b))


def test_exo_is_a_divergence() -> None:
    """Zero where the policy's preference is the smoothed label, positive elsewhere."""
    at = math.log(0.9 / 0.1) / 0.1
    got = exo(f64(at, 0, 100), f64(0, 0, 0), epsilon=0.1)
    assert got[0].item() == pytest.approx(0, abs=1e-14)
    assert (got[1:] > 0).all()


def test_discopop_limits() -> None:
    """The logistic loss where the pair is wrong, the exponential loss where it is right."""
    z = f64(-3, -2, 2, 3)
    got = discopop(z / 0.1, torch.zeros_like(z))
    expected = torch.where(z < 0, dpo(z, torch.zeros_like(z), beta=1.0), torch.exp(-z))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_dpop_penalises_only_a_chosen_answer_below_the_reference() -> None:
    assert torch.equal(dpop(f64(2), f64(1), beta=0.1), dpo(f64(2), f64(1)))
    assert dpop(f64(-1), f64(-3), beta=0.1, penalty=5.0).item() == pytest.approx(dpo(f64(-6), f64(-3)).item())


def test_margins() -> None:
    c, r, m = draw("rrm")
    torch.testing.assert_close(odpo(c, r, m, alpha=0.7), margin_dpo(c, r, m.log(), alpha=0.7))
    assert torch.equal(margin_dpo(c, r, m, alpha=0.0), dpo(c, r))
    assert odpo(f64(0), f64(0), f64(0)).item() == 0
    assert (odpo(c, r, m + 1) > odpo(c, r, m)).all()


def test_nca_and_sppo_hold_the_chosen_answer() -> None:
    assert slopes(nca, LN2 / 0.1, 0.0)[0] == pytest.approx(0, abs=1e-15)
    assert slopes(sppo_hard, 5.0, -5.0) == [0, 0]


@pytest.mark.parametrize("alpha", [0.999999, 1.000001])
def test_alpha_divergence_tends_to_reverse_kl(alpha: float) -> None:
    r = f64(-9, -1, 0.2, 9)
    torch.testing.assert_close(alpha_divergence(r, alpha=alpha), r, rtol=1e-4, atol=1e-4)
    assert torch.equal(alpha_divergence(r, alpha=1.0), r)


def test_alpha_divergence_at_zero_is_forward_kl() -> None:
    a, b = draw("rr")
    both = (fdpo(a, b, divergence=s) for s in (partial(alpha_divergence, alpha=0.0), forward_kl))
    torch.testing.assert_close(*both, rtol=1e-9, atol=1e-9)


def test_divergences_increase_even_where_they_are_continued() -> None:
    r = torch.linspace(-300, 30, 400, dtype=torch.float64)
    for s in (*DIVERGENCES.values(), partial(alpha_divergence, alpha=0.1), partial(alpha_divergence, alpha=1.5)):
        assert (s(r).diff() >= 0).all()
    assert slopes(forward_kl, -200.0) == pytest.approx([math.exp(30)])


def test_aot_is_the_sorted_difference() -> None:
    """As published: sort both margins, subtract rank by rank. Who stands where is ours."""
    chosen, rejected, chosen_reference, rejected_reference = draw("LLLL")
    margins = (chosen - rejected).sort().values - (chosen_reference - rejected_reference).sort().values
    got = aot(chosen, rejected, chosen_reference, rejected_reference, beta=0.2)
    expected = dpo(margins, torch.zeros_like(margins), beta=0.2)
    torch.testing.assert_close(got[(chosen - rejected).argsort()], expected)


def test_aot_unpaired_forgets_the_pairing() -> None:
    chosen, rejected = draw("rr")
    got = aot_unpaired(chosen, rejected)
    torch.testing.assert_close(got[chosen.argsort()], dpo(chosen.sort().values, rejected.sort().values))
    torch.testing.assert_close(got, aot_unpaired(chosen, rejected.flip(0)))


def test_aot_with_ties() -> None:
    """Equal margins everywhere: every pair is compared with an equal reference."""
    same = torch.full((5,), -3.0, dtype=torch.float64)
    assert aot(same, 2 * same, same, 2 * same).tolist() == pytest.approx([LN2] * 5)


def test_golden_cal_dpo() -> None:
    """(3, -1.5), (-1, 1.5), (0, 0) at beta 0.1; the slopes of the squares are held apart from the logistic's."""
    got = cal_dpo(f64(3, -1, 0), f64(-1.5, 1.5, 0))
    assert got.tolist() == pytest.approx([8.13604774, 41.70388973, 25.69314718], abs=5e-9)
    wide = slopes(partial(cal_dpo, beta=0.002), 250.0, -250.0)
    assert wide == pytest.approx([0, 0], abs=1e-200), (
        "at both targets only the logistic term is left, which is satisfied"
    )


def test_golden_cpo_constrained() -> None:
    """Answers of one token, whose probability is the reference's own; gamma 0.05, beta 1. At gamma 0 it is DPO."""
    ratios = f64(0.5 + math.log(3), -0.5, 0)
    up, down = f64(0.25, 0.5, 0.5).log(), f64(0.75, 0.5, 0.5).log()
    one = torch.ones(3, dtype=torch.int64)
    loss = partial(cpo_constrained, beta=1.0, gamma=0.05)
    got = loss(ratios, f64(0, 0, 0), up, down, one, one)
    assert got.tolist() == pytest.approx([0.23425217, 1.10318605, 0.79813887], abs=5e-9)
    inputs = draw("rrLLnn")
    assert torch.equal(partial(cpo_constrained, gamma=0.0)(*inputs), dpo(*inputs[:2]))
    longer = loss(ratios, f64(0, 0, 0), 7 * up, 7 * down, 7 * one, 7 * one)
    torch.testing.assert_close(longer, got)


def test_golden_tdpo() -> None:
    """K of the chosen 0.4, 0.2, 0, of the rejected 0.9, 0.1, 0. The second has no gradient in K of the chosen."""
    at = f64(3, -1, 0), f64(-1.5, 1.5, 0), f64(0.4, 0.2, 0), f64(0.9, 0.1, 0)
    assert tdpo1(*at).tolist() == pytest.approx([0.51301525, 0.82032997, 0.69314718], abs=5e-9)
    assert tdpo2(*at).tolist() == pytest.approx([0.50305740, 0.82313161, 0.69314718], abs=5e-9)
    assert torch.equal(partial(tdpo2, alpha=0.0)(*at), dpo(*at[:2]))
    torch.testing.assert_close(partial(tdpo2, alpha=1.0)(*at), tdpo1(*at))
    chosen_kl, rejected_kl = f64(0.4).requires_grad_(), f64(0.9).requires_grad_()
    loss = tdpo2(f64(3), f64(-1.5), chosen_kl, rejected_kl).sum()
    by_chosen, by_rejected = torch.autograd.grad(loss, (chosen_kl, rejected_kl), allow_unused=True)
    assert by_chosen is None and by_rejected is not None and by_rejected.item() > 0
