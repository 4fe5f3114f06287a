"""Beta-DPO: published values, its draw, its running statistics. The sorted losses stand in test_paired.py."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.losses.paired import dpo
from prospect.losses.paired_coupled import beta_dpo, gap_moments
from tests.helpers.loss_checks import Case, draw, f64, general_properties

CHOSEN, REJECTED = f64(3, -1, 0), f64(-1.5, 1.5, 0)
MOMENTS = f64(0.5, 4.0, 1.0)


def at_moments(chosen: Tensor, rejected: Tensor, numbers: Tensor, *, alpha: float = 0.0) -> Tensor:
    """With fixed statistics."""
    return beta_dpo(chosen, rejected, MOMENTS, numbers, alpha=alpha)


def test_general_properties() -> None:
    """At alpha 0: elsewhere beta follows the gaps without a gradient, which finite differences see."""
    general_properties(Case(at_moments, "rru", coupled=True))


def test_golden_point() -> None:
    """Averages that began at 0, as published: beta of the step is 0.136 with nothing left out."""
    moments = gap_moments(CHOSEN, REJECTED, f64(0, 0, 1))
    assert moments.tolist() == pytest.approx([0.0666666667, 0.3547299442, 1], abs=5e-11)
    got = beta_dpo(CHOSEN, REJECTED, moments, f64(0.1, 0.5, 0.9), keep=1.0)
    assert got.tolist() == pytest.approx([0.43325228, 0.87752811, 0.69314718], abs=5e-9)
    torch.testing.assert_close(got, dpo(CHOSEN, REJECTED, beta=0.136))


def test_averages_begin_with_the_first_step() -> None:
    """So that beta is then its own, and later steps weigh 1 - momentum to momentum."""
    first = gap_moments(CHOSEN, REJECTED, None)
    gap = CHOSEN - REJECTED
    torch.testing.assert_close(first[:2] / first[2], torch.stack([gap.mean(), gap.std()]))
    got = beta_dpo(CHOSEN, REJECTED, first, f64(0.1, 0.5, 0.9), keep=1.0)
    torch.testing.assert_close(got, dpo(CHOSEN, REJECTED))
    second = gap_moments(CHOSEN + 2, REJECTED, first)
    mean = (0.9 * 0.1 * gap.mean() + 0.1 * (gap.mean() + 2)) / (0.9 * 0.1 + 0.1)
    assert (second[0] / second[2]).item() == pytest.approx(mean.item())
    assert gap_moments(f64(2), f64(1), None).tolist() == pytest.approx([0.1, 0, 0.1]), "one pair has no spread"


def test_the_draw_is_by_the_weights() -> None:
    """The one pair that is kept of three, over many draws: gaps of 0, 1, 2 standard deviations from the average."""
    gap = f64(0, 1, 2).repeat(1)
    generator = torch.Generator().manual_seed(0)
    times = 4000
    counts = torch.zeros(3, dtype=torch.float64)
    for _ in range(times):
        numbers = torch.rand(3, generator=generator, dtype=torch.float64)
        counts += beta_dpo(gap, 0 * gap, f64(0, 1, 1), numbers, keep=0.34) > 0
    weights = torch.exp(-(gap**2) / 2)
    share = weights / weights.sum()
    assert counts.sum() == times
    assert ((counts / times - share).abs() < 4 * (share * (1 - share) / times).sqrt()).all()


def test_pairs_left_out_have_no_part() -> None:
    """Their loss and gradient are 0; the mean over all is the mean over those kept."""
    chosen, rejected, numbers = draw("rru")
    chosen.requires_grad_()
    loss = partial(at_moments, alpha=0.6)(chosen, rejected, numbers)
    kept = loss > 0
    assert kept.sum() == 6, "0.8 of 8, rounded down"
    (slopes,) = torch.autograd.grad(loss.sum(), chosen)
    gap = (chosen - rejected).detach()
    beta = max(1e-3, 0.1 * (1 + 0.6 * (gap[kept].mean().item() - 0.5)))
    expected = -beta * torch.sigmoid(-beta * gap) * 8 / 6
    torch.testing.assert_close(slopes, expected.where(kept, 0))
    assert loss.mean().item() == pytest.approx(dpo(gap[kept], 0 * gap[kept], beta=beta).mean().item())


def test_beta_stays_positive() -> None:
    """Far below the average gap it is the least one."""
    chosen, none = f64(-500, -501), f64(0, 0)
    got = beta_dpo(chosen, none, f64(0, 400, 1), f64(0.5, 0.5), keep=1.0)
    torch.testing.assert_close(got, dpo(chosen, none, beta=1e-3))


def test_rounding_errors_are_no_outliers() -> None:
    """Where every gap is 0 up to rounding, the random numbers alone decide."""
    chosen, _, numbers = draw("rru")
    noise = 1e-9 * chosen
    moments = gap_moments(noise, 0 * noise, None)
    kept = beta_dpo(noise, 0 * noise, moments, numbers) > 0
    assert kept.tolist() == (beta_dpo(0 * noise, 0 * noise, moments, numbers) > 0).tolist()
    assert math.isclose(beta_dpo(noise, 0 * noise, moments, numbers).mean().item(), math.log(2), rel_tol=1e-6)
