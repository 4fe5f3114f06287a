"""Losses on the policy's own likelihood, token by token."""

from __future__ import annotations

import math
from functools import partial

import pytest

from prospect.losses.likelihood import nll, sft, unlikelihood
from tests.helpers.loss_checks import Case, f64, general_properties, slopes

CASES = {
    "sft": Case(sft, "t"),
    "nll": Case(partial(nll, nll_weight=0.3), "t"),
    "unlikelihood": Case(unlikelihood, "t"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


def test_nll_is_weighted_sft() -> None:
    logp = f64(-0.5, -2)
    assert sft(logp).tolist() == [0.5, 2]
    assert nll(logp).tolist() == [0.5, 2]
    assert nll(logp, nll_weight=2.0).tolist() == [1, 4]


def test_unlikelihood_is_minus_log_of_the_rest() -> None:
    p = [0.9, 0.5, 0.1, 1e-9]
    got = unlikelihood(f64(*(math.log(x) for x in p)))
    assert got.tolist() == pytest.approx([-math.log1p(-x) for x in p], rel=1e-12)
    assert slopes(unlikelihood, math.log(0.9)) == pytest.approx([9])


def test_unlikelihood_is_bounded() -> None:
    assert unlikelihood(f64(0)).item() == pytest.approx(-math.log(1e-5), rel=1e-9)
    assert slopes(unlikelihood, 0.0) == [0]
