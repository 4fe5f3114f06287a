"""Losses on thumbs: published values, gradients, invariances, and what they become in limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.losses.registry import LOSSES
from prospect.losses.unpaired import (
    apo_zero_unpaired,
    bco,
    hinge,
    identity,
    kto,
    kto_surprisal,
    logistic,
    logsigmoid,
    npo,
    power,
    retain,
    target_kl,
)
from tests.helpers.loss_checks import Case, draw, f64, general_properties, slopes

CASES = {
    "kto": Case(partial(kto, beta=0.3, undesirable_weight=2.0), "ryz"),
    **{
        f"kto {value.__name__}": Case(partial(kto, value=value, desirable_weight=1.3), "ryz")
        for value in (logistic, logsigmoid, identity, hinge, power)
    },
    "kto_surprisal": Case(kto_surprisal, "Lnyz"),
    "apo_zero_unpaired": Case(partial(apo_zero_unpaired, desirable_weight=1.5), "ry"),
    "bco": Case(bco, "ryz"),
    "npo": Case(npo, "r"),
}
R = f64(3, -1.5)
UP_DOWN = torch.tensor([True, False])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (kto(R, UP_DOWN, f64(0)[0]).mean(), 0.44406382),
        (kto(R, UP_DOWN, f64(1)[0]).mean(), 0.44399475),
        (kto(R, UP_DOWN, f64(0, 3)).mean(), 0.40745912),  # the early paired form: each side's KL from the other
        (apo_zero_unpaired(R, UP_DOWN).mean(), 0.44406382),
        (npo(R[1:])[0], 12.41914096),
        (bco(R, UP_DOWN, f64(0)[0]).sum(), 1.17531229),
        (bco(R, UP_DOWN, f64(0.5)[0]).sum(), 1.17407829),
    ],
)
def test_golden_point(value: torch.Tensor, expected: float) -> None:
    """r_w = 3, r_l = -1.5, beta = 0.1."""
    assert value.item() == pytest.approx(expected, abs=5e-9)


NOTHING = f64(0, 0)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (kto(NOTHING, UP_DOWN, f64(0)[0], desirable_weight=3.0), [1.5, 0.5]),
        (apo_zero_unpaired(NOTHING, UP_DOWN), [0.5, 0.5]),
        (bco(NOTHING, UP_DOWN, f64(0)[0]), [math.log(2)] * 2),
        (npo(NOTHING), [20 * math.log(2)] * 2),
        (kto_surprisal(f64(-4, -8), torch.tensor([4, 8]), UP_DOWN, f64(-1)[0]), [0.875, 0.5]),
    ],
)
def test_at_the_reference(loss: torch.Tensor, expected: list[float]) -> None:
    assert loss.tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("loss", "up", "down"),
    [
        (lambda r, y: kto(r, y, f64(0)[0]), -0.025, 0.025),
        (apo_zero_unpaired, -0.025, 0.025),
        (lambda r, y: bco(r, y, f64(0)[0]), -0.05, 0.05),
        (lambda r, y: npo(r), 1.0, 1.0),
    ],
)
def test_slopes_at_the_reference(loss: Callable[..., Tensor], up: float, down: float) -> None:
    for thumb, slope in ((True, up), (False, down)):
        assert slopes(lambda r, t=thumb: loss(r, torch.tensor([t])), 0.0) == pytest.approx([slope])


@pytest.mark.parametrize("thumb", [True, False])
@pytest.mark.parametrize("name", ["kto", "kto power", "kto_surprisal", "apo_zero_unpaired", "bco"])
def test_one_class_alone(name: str, thumb: bool) -> None:
    case = CASES[name]
    inputs = draw(case.kinds)
    thumbs = case.kinds.index("y")
    alone = inputs[thumbs] == thumb
    expected = case.loss(*inputs)[alone]
    only = case.loss(*(x[alone] if x.dim() else x for x in inputs))
    assert len(only)
    # To the last bits: at another place in the row a processor's vector unit may round the other way.
    torch.testing.assert_close(only, expected, rtol=1e-14, atol=0)


def test_kto_at_zero_is_apo_zero() -> None:
    r, y = draw("ry")
    assert torch.equal(
        kto(r, y, torch.zeros(()), beta=0.4, desirable_weight=1.2),
        apo_zero_unpaired(r, y, beta=0.4, desirable_weight=1.2),
    )


def test_kto_with_the_risk_neutral_value() -> None:
    """1 - beta * (r - z0), and its mirror."""
    assert kto(R, UP_DOWN, f64(1)[0], value=identity).tolist() == pytest.approx([1 - 0.1 * 2, 1 - 0.1 * 2.5])


def test_kto_power_learns_from_an_untrained_policy() -> None:
    for thumb, sign in ((True, -1), (False, 1)):
        (slope,) = slopes(lambda r, t=thumb: kto(r, torch.tensor([t]), f64(0)[0], value=power), 0.0)
        assert slope == pytest.approx(sign * 0.1 * 0.88 * 0.01**-0.12)


def test_kto_surprisal_is_kto_of_means() -> None:
    logp, length, desirable, z0 = draw("Lnyz")
    weights = {"desirable_weight": 1.75, "undesirable_weight": 1.0}
    assert torch.equal(kto_surprisal(logp, length, desirable, z0), kto(logp / length, desirable, z0, **weights))


def test_bco_is_the_log_of_ktos_value() -> None:
    r, y, z0 = draw("ryz")
    torch.testing.assert_close(bco(r, y, z0), -torch.log(1 - kto(r, y, z0)))


LOGP = f64(0.5, 0.3, 0.2, 0.2, 0.2, 0.6, 0.3, 0.3, 0.4).log().reshape(3, 3)
AIM = f64(0.5, 0.5, 0, 0.2, 0.3, 0.5, 1 / 3, 1 / 3, 1 / 3).reshape(3, 3)


def test_kto_with_a_target_on_published_points() -> None:
    """Both terms: KTO at z0 = 1 on +, -, +, and the KL divergence of (.5, .5, 0) from (.5, .3, .2) and the like."""
    kl, utility = target_kl(AIM, LOGP), kto(f64(3, -1.5, 0), torch.tensor([True, False, True]), f64(1)[0])
    assert kl.tolist() == pytest.approx([0.25541281, 0.03047875, 0.00946649], abs=5e-9)
    assert utility.tolist() == pytest.approx([0.45016600, 0.43782350, 0.52497919], abs=5e-9)
    assert target_kl(AIM, LOGP, kl_weight=0.5).tolist() == pytest.approx((kl / 2).tolist())


def test_a_target_draws_by_its_probabilities_and_counts_what_goes_elsewhere() -> None:
    logp = LOGP.clone().requires_grad_()
    (slope,) = torch.autograd.grad(target_kl(AIM, logp).sum(), logp)
    assert slope.tolist() == (-AIM).tolist()
    assert torch.autograd.gradcheck(partial(target_kl, AIM), logp)
    assert target_kl(AIM, AIM.clamp(min=1e-300).log()).tolist() == pytest.approx([0, 0, 0], abs=1e-15)
    assert target_kl(AIM, LOGP - math.log(2)).tolist() == pytest.approx((target_kl(AIM, LOGP) + math.log(2)).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_targets_of_other_sizes_of_nothing_and_of_the_hopeless(dtype: torch.dtype) -> None:
    """What a row has not is 0 in both; a token that the policy would never say costs much, and no infinity."""
    aim = torch.tensor([[0.5, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0]], dtype=dtype)
    logp = torch.tensor([[-1, -2, 0], [0, 0, 0], [-1e4, -1e4, 0]], dtype=dtype)
    first, second, third = target_kl(aim, logp).tolist()
    assert (first, second, third) == pytest.approx((1.5 - math.log(2), 0, 1e4 - math.log(2)))
    assert target_kl(aim[:0], logp[:0]).shape == (0,) and target_kl(aim, logp).dtype == dtype


def test_npo_retains_by_likelihood_or_by_the_reference() -> None:
    """The same first term; beside it the KL of the good answers' tokens, as it is."""
    first, second = (LOSSES[name].terms for name in ("npo", "npo_kl"))
    assert first[0] == second[0] and [t.function.__name__ for t in (first[1], second[1])] == ["nll", "retain"]
    assert (second[1].unit, second[1].rows, LOSSES["npo_kl"].live) == ("tokens", "desirable", True)
    assert not LOSSES["npo"].live
    kl = f64(0, 0.25, 3).requires_grad_()
    assert retain(kl, retain_weight=0.5).tolist() == [0, 0.125, 1.5]
    assert torch.autograd.gradcheck(partial(retain, retain_weight=0.5), kl) and retain(kl[:0]).shape == (0,)


def test_npo_tends_to_gradient_ascent() -> None:
    """As beta -> 0 the loss is r and a constant, so its slope is 1 wherever the policy has gone."""
    for r in (-20.0, 0.0, 20.0):
        assert slopes(partial(npo, beta=1e-6), r) == pytest.approx([1], abs=1e-4)
    left, right = npo(f64(-5, 5), beta=1e-6)
    assert (right - left).item() == pytest.approx(10, abs=1e-4)
    assert slopes(npo, -200.0) == pytest.approx([0], abs=1e-8)
