"""The definition of a HALO as a test, on the losses whose verdict is known, and on every row of the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.losses import (
    likelihood,
    paired,
    tokenwise,
    unpaired,
)
from prospect.losses.registry import LOSSES, Input, Loss, Part, Term
from research.halo import judge, verdict

KTO_INPUTS: tuple[Input, ...] = ("log_ratio", "desirable", "z0")


def term(function: Callable[..., Tensor], reads: tuple[Input, ...], rows: Part = "all") -> Term:
    """A term whose unit does not matter to the definition."""
    return Term(function, "examples", reads, rows=rows)


@pytest.mark.parametrize("row", LOSSES.values(), ids=lambda row: row.name)
def test_the_table_agrees_with_the_definition(row: Loss) -> None:
    result = verdict(row)
    assert row.halo == result.halo, f"{row.name}: {result}"


@pytest.mark.parametrize(
    ("name", "halo"), [("logistic", True), ("identity", True), ("hinge", True), ("power", True), ("logsigmoid", False)]
)
def test_value_functions_of_kto(name: str, halo: bool) -> None:
    found = verdict(LOSSES["kto"], {"value": name})
    assert found.halo is halo, found
    assert found.invariant and found.relative and found.monotone


@pytest.mark.parametrize("weight", [0.5, 2.25])
def test_unequal_class_weights_need_a_value_per_class(weight: float) -> None:
    """One v per example is what the test grants; with it, weights do not matter."""
    assert verdict(LOSSES["kto"], {"undesirable_weight": weight}).halo


def test_the_first_condition_that_fails_is_the_reason() -> None:
    sft = judge("text", [term(likelihood.sft, ("token_logp",))])
    assert not sft.invariant and sft.relative is sft.monotone is sft.concave is None and not sft.halo
    npo = judge("binary", [term(unpaired.npo, ("log_ratio",), "undesirable")])
    assert npo.invariant and npo.relative and npo.monotone and npo.concave is False
    assert verdict(LOSSES["ipo"]).monotone is False
    assert verdict(LOSSES["una"], {"lowest": -2.0, "highest": 2.0}).monotone is False
    assert verdict(LOSSES["aot"]).relative is False
    assert verdict(LOSSES["dpop"]).relative is False
    assert verdict(LOSSES["ld_dpo"]).relative is False


def test_pairs_may_be_one_difference_or_two_answers() -> None:
    assert judge("pairs", [term(paired.dpo, ("log_ratio",))]).halo

    def two_sides(chosen: Tensor, rejected: Tensor) -> Tensor:
        return torch.sigmoid(-0.1 * chosen) + torch.sigmoid(0.1 * rejected)

    assert judge("pairs", [term(two_sides, ("log_ratio",))]).halo
    pulled = [term(paired.dpo, ("log_ratio",)), term(unpaired.npo, ("log_ratio",), "undesirable")]
    assert judge("pairs", pulled).relative is False


def best_against_others(weights: tuple[float, float]) -> Callable[..., Tensor]:
    """softplus of what two other answers have, weighed, less what the best of a group of three has, (G,)."""

    def compared(log_ratio: Tensor, group: Tensor) -> Tensor:
        best, *others = log_ratio.reshape(-1, 3).T
        return torch.nn.functional.softplus(0.1 * (weights[0] * others[0] + weights[1] * others[1] - best))

    return compared


def test_groups_compare_their_best_answer_with_a_mean_of_the_others() -> None:
    """Any mean will do, also one that depends on the policy; a sum is none, and another group has no part in it."""
    reads: tuple[Input, ...] = ("log_ratio", "group")
    for weights in ((0.5, 0.5), (0.9, 0.1)):
        assert judge("groups", [term(best_against_others(weights), reads)]).halo
    for weights in ((1.0, 1.0), (2.0, -1.0)):
        assert judge("groups", [term(best_against_others(weights), reads)]).relative is False

    def across(log_ratio: Tensor, group: Tensor) -> Tensor:
        best, other = log_ratio.reshape(-1, 3)[:, :2].T
        return torch.nn.functional.softplus(0.1 * (other - best.roll(1)))

    assert judge("groups", [term(across, reads)]).relative is False
    assert verdict(LOSSES["graph_dpo"]).halo and verdict(LOSSES["tpo"]).invariant is False
    assert verdict(LOSSES["dapo"]).concave is False and verdict(LOSSES["grpo"]).relative is False


def test_a_reference_point_that_is_not_subtracted_is_found() -> None:
    def squeezed(log_ratio: Tensor, desirable: Tensor, z0: Tensor) -> Tensor:
        return torch.where(desirable, 1, -1) * torch.sigmoid(-0.1 * log_ratio * (1 + z0**2))

    assert judge("binary", [term(squeezed, KTO_INPUTS)]).relative is False


def test_offline_ppo_passes_only_with_a_reward_linear_in_the_ratio() -> None:
    """With r = log q the clipped value is convex on (0, log(1 + clip)) and the KL term adds a slope the other way; in
    z = q - 1 it is min(A z, A clip), a HALO's value for both signs of A."""
    reads: tuple[Input, ...] = ("token_log_ratio", "offsets", "desirable", "value")
    assert verdict(LOSSES["ppo"]).monotone is False
    without_kl = judge("binary", [term(partial(tokenwise.ppo, kl_weight=0.0), reads)])
    assert without_kl.monotone and without_kl.concave is False

    def linear(token_log_ratio: Tensor, offsets: Tensor, desirable: Tensor, value: Tensor) -> Tensor:
        q = (1 + token_log_ratio).clamp(min=1e-300)
        return tokenwise.ppo(torch.log(q), offsets, desirable, value, kl_weight=0.0)

    assert judge("binary", [term(linear, reads)]).halo
