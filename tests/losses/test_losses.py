"""Values from the published formulas, gradients against finite differences, and the invariances every loss must
have."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from prospect.errors import ConfigError
from prospect.feedback.records import Example
from prospect.losses import (
    density_ratio,
    group,
    likelihood,
    paired,
    paired_coupled,
    paired_scores,
    reference_free,
    registry,
    scored,
    tokenwise,
    unpaired,
)
from prospect.losses.likelihood import sft
from prospect.losses.paired import dpo
from prospect.losses.reference_point import (
    Statistics,
    batch_mean,
    class_means,
    mismatched,
    prompt_mean,
    running_mean,
    unclamped,
    zero,
)
from prospect.losses.registry import LOSSES, Loss, arguments, defaults
from prospect.losses.scored import median_score
from prospect.losses.unpaired import balanced_weights, kto

R = torch.tensor([3.0, -1.5], dtype=torch.float64)
UP_DOWN = torch.tensor([True, False])


def z(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("z0", "mean"), [(0.0, 0.44406382), (1.0, 0.44399475)])
def test_kto_golden_point(z0: float, mean: float) -> None:
    """r_w = 3, r_l = -1.5, beta = 0.1: the same numbers by hand, 1 - sigmoid of +-0.1 (r - z0)."""
    assert kto(R, UP_DOWN, z(z0)).mean().item() == pytest.approx(mean, abs=5e-9)


def test_kto_by_hand() -> None:
    def sigmoid(u: float) -> float:
        return 1 / (1 + math.exp(-u))

    got = kto(R, UP_DOWN, z(0.7), beta=0.5, desirable_weight=1.5, undesirable_weight=2.25)
    assert got.tolist() == pytest.approx([1.5 * (1 - sigmoid(0.5 * 2.3)), 2.25 * (1 - sigmoid(0.5 * 2.2))], abs=1e-15)


def test_class_weights_keep_their_precision() -> None:
    (half,) = kto(torch.zeros(1, dtype=torch.float64), torch.tensor([True]), z(0), desirable_weight=1.7).tolist()
    assert half == 0.85


def test_dpo_golden_point() -> None:
    assert dpo(R[:1], R[1:], beta=0.1).item() == pytest.approx(0.49324895, abs=5e-9)


def test_at_the_reference_policy() -> None:
    """r = 0: KTO loses lambda / 2, DPO log 2."""
    nothing = torch.zeros(2, dtype=torch.float64)
    assert kto(nothing, UP_DOWN, z(0), undesirable_weight=3.0).tolist() == [0.5, 1.5]
    assert dpo(nothing, nothing).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)


def test_gradient_at_the_reference_policy() -> None:
    """-+ beta / 4 for KTO, -+ beta / 2 for DPO."""
    r = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(kto(r, UP_DOWN, z(0)).sum(), r)
    assert got.tolist() == pytest.approx([-0.025, 0.025])
    (got,) = torch.autograd.grad(dpo(r[:1], r[1:]).sum(), r)
    assert got.tolist() == pytest.approx([-0.05, 0.05])


def test_gradients_against_finite_differences() -> None:
    g = torch.Generator().manual_seed(0)
    r = torch.randn(8, generator=g, dtype=torch.float64) * 10
    desirable = torch.rand(8, generator=g) < 0.5
    r.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kto(x, desirable, z(0.3), beta=0.4, undesirable_weight=2.0), r)
    assert torch.autograd.gradcheck(lambda x: dpo(x[:4], x[4:], beta=0.4), r)


def test_saturation() -> None:
    """Prop. 4.1: KTO's gradient vanishes on both sides; DPO's tends to beta on the losing side."""
    r = torch.tensor([-1500.0, 1500.0], dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(kto(r, torch.tensor([True, True]), z(0)).sum(), r)
    assert got.abs().max() < 1e-60
    (got,) = torch.autograd.grad(dpo(r[:1], torch.zeros(1, dtype=torch.float64)).sum(), r)
    assert got[0].item() == pytest.approx(-0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_ratios_stay_finite(dtype: torch.dtype) -> None:
    r = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], dtype=dtype, requires_grad=True)
    for loss in (
        kto(r, r > 0, torch.zeros((), dtype=dtype)),
        kto(r, r < 0, torch.zeros((), dtype=dtype)),
        dpo(r, -r),
        dpo(-r, r),
    ):
        assert loss.isfinite().all() and loss.dtype == dtype
        (got,) = torch.autograd.grad(loss.sum(), r, retain_graph=True)
        assert got.isfinite().all()


def test_empty_in_empty_out() -> None:
    none = torch.zeros(0)
    assert kto(none, torch.zeros(0, dtype=torch.bool), torch.zeros(())).shape == (0,)
    assert dpo(none, none).shape == (0,)
    assert sft(none).shape == (0,)


def test_contradicting_thumbs_cancel() -> None:
    """One answer with both thumbs and equal weights has no gradient (the paper's OASST corollary); unequal weights
    leave one."""
    r = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    for weight, zero_gradient in ((1.0, True), (1.5, False)):
        both = kto(torch.stack([r, r]), UP_DOWN, z(0.2), undesirable_weight=weight)
        (got,) = torch.autograd.grad(both.sum(), r)
        assert (abs(got.item()) < 1e-16) is zero_gradient


def test_z0_per_completion_is_accepted() -> None:
    assert torch.equal(
        kto(R, UP_DOWN, torch.tensor([1.0, 2.0], dtype=torch.float64))[:1], kto(R[:1], UP_DOWN[:1], z(1))
    )


def test_sft_is_the_negative_log_likelihood() -> None:
    assert sft(torch.tensor([-0.5, -2.0])).tolist() == [0.5, 2.0]


def statistics(values: list[float], good: list[bool] | None = None, prompts: list[int] | None = None) -> Statistics:
    r = torch.tensor(values, dtype=torch.float64)
    up = torch.tensor(good or [True] * len(values), dtype=torch.bool)
    return Statistics(r, up, torch.tensor(prompts or list(range(len(values))), dtype=torch.int64))


def test_reference_points() -> None:
    below, above = statistics([-3.0, 1.0, -1.0]), statistics([3.0, 1.0])
    assert [mismatched(s, None)[0].item() for s in (below, above)] == [0.0, 2.0]
    assert [unclamped(s, None)[0].item() for s in (below, above)] == [-1.0, 2.0]
    assert [zero(s, None)[0].item() for s in (below, above)] == [0.0, 0.0]


def test_stateful_reference_points() -> None:
    """Means over the whole run so far; the paper's BCO weighs the classes equally, TRL's the answers."""
    first, second = statistics([1.0, 3.0, 5.0], [True, False, False]), statistics([8.0], [True])
    z0, state = running_mean(first, None)
    assert z0.item() == 3.0
    assert running_mean(second, state)[0].item() == pytest.approx(17 / 4)
    z0, state = class_means(first, None)
    assert z0.item() == (1.0 + 4.0) / 2
    assert class_means(second, state)[0].item() == (4.5 + 4.0) / 2
    assert class_means(statistics([2.0, 4.0], [True, True]), None)[0].item() == 3.0


def test_reference_points_per_prompt() -> None:
    z0, _ = prompt_mean(statistics([1.0, 3.0, 7.0], prompts=[1, 1, 0]), None)
    assert z0.tolist() == [2.0, 2.0, 7.0]


def test_gradients_flow_through_reference_points() -> None:
    step = statistics([1.0, -4.0, 9.0])
    step.values.requires_grad_()
    for estimator in (mismatched, unclamped, batch_mean, running_mean):
        (got,) = torch.autograd.grad(estimator(step, None)[0], step.values)
        assert got.tolist() == pytest.approx([1 / 3] * 3)


def test_standard_error_of_the_reference_point() -> None:
    assert statistics([1.0, 2.0, 3.0, 6.0]).standard_error.item() == pytest.approx((14 / 3) ** 0.5 / 2)
    assert math.isnan(statistics([1.0]).standard_error.item())
    assert statistics([]).mean.item() == 0


def test_table_rows_load_and_agree_with_their_functions() -> None:
    for name, row in LOSSES.items():
        assert name == row.name
        for term in row.terms:
            assert callable(term.function)
    expected = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "value": "logistic"}
    assert defaults(registry.find("kto")) == expected
    assert not registry.find("sft").needs_reference and registry.find("dpo").needs_reference


def rows(desirable: list[bool], weights: list[float]) -> list[Example]:
    return [Example("r", 0, (0,), d, w, w) for d, w in zip(desirable, weights, strict=True)]


def test_the_median_score_is_a_constant_of_the_data() -> None:
    assert median_score(rows([True] * 3, [1.0, 5.0, 2.0])) == {"threshold": 2.0}


def test_auto_weights_equalise_the_classes() -> None:
    """Eq. 9 at its lower end: lambda_D * sum(w_D) = lambda_U * sum(w_U), the majority at 1, weights counted."""
    assert balanced_weights(rows([True, False, False, False], [1, 1, 1, 1])) == {
        "desirable_weight": 3,
        "undesirable_weight": 1,
    }
    assert balanced_weights(rows([True, True, False], [1, 1, 0.5])) == {"desirable_weight": 1, "undesirable_weight": 4}
    assert balanced_weights(rows([True], [1])) == {"desirable_weight": 1, "undesirable_weight": 1}


def test_arguments_prefer_the_user_then_the_data_then_the_defaults() -> None:
    found = arguments(registry.find("kto"), {"beta": 0.3}, {"desirable_weight": 2.0, "beta": 9.0})
    assert found == {"beta": 0.3, "desirable_weight": 2.0, "undesirable_weight": 1.0, "value": "logistic"}


@pytest.mark.parametrize("bad", [{"beta": -0.1}, {"beta": 0.0}, {"beta": "much"}, {"beta": math.nan}, {"beta": True}])
def test_wrong_loss_arguments(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--loss.beta must be a positive number"):
        arguments(registry.find("kto"), bad)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match='no loss "kot".*"kto"'):
        registry.find("kot")
    with pytest.raises(ConfigError, match='no argument "betta".*"beta"'):
        arguments(registry.find("kto"), {"betta": 1.0})
    with pytest.raises(ConfigError, match='no reference point "mismatch".*"mismatched"'):
        registry.estimator("mismatch")


@pytest.mark.parametrize(
    "module",
    [
        unpaired,
        scored,
        paired,
        paired_scores,
        paired_coupled,
        density_ratio,
        reference_free,
        likelihood,
        tokenwise,
        group,
    ],
)
def test_every_function_has_a_row(module: ModuleType) -> None:
    """A loss that the documentation names can be trained with; a function that computes constants or running statistics
    is a row's, and one that an argument can be is in its table."""
    public = {
        function
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    used = {term.function for loss in LOSSES.values() for term in loss.terms}
    chosen = {function for table in registry.CHOICES.values() for function in table.values()}
    made = {f for loss in LOSSES.values() for f in (loss.constants, loss.running)}
    assert public and public <= used | chosen | made


def test_inputs_are_the_names_of_arguments() -> None:
    """Of pairs each once per side, chosen first; `reads` says the same in words, and an order of its own is refused."""

    def own(chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, z0: Tensor) -> Tensor:
        return chosen

    def crossed(chosen: Tensor, chosen_length: Tensor, rejected: Tensor, rejected_length: Tensor) -> Tensor:
        return chosen

    def unheard(log_ratio: Tensor, mood: Tensor) -> Tensor:
        return log_ratio

    row = row_of(registry.loss(view="pairs")(own))
    assert row.terms[0].reads == ("log_ratio", "length", "z0") and row.reference_point is not None
    assert row_of(registry.loss(view="pairs", reads=("log_ratio", "length", "z0"))(own)).terms == row.terms
    with pytest.raises(ConfigError, match="each input of chosen, then of rejected"):
        registry.loss(view="pairs")(crossed)
    with pytest.raises(ConfigError, match="cannot read mood. Known: log_ratio"):
        registry.loss(view="binary")(unheard)

    def remembers(chosen: Tensor, rejected: Tensor, running: Tensor) -> Tensor:
        return chosen - running

    for options in ({}, {"running": own}):
        with pytest.raises(ConfigError, match=r'reads running has running=FUNCTION, .*, and couples="step"'):
            registry.loss(view="pairs", **options)(remembers)


def row_of(function: Any) -> Loss:
    """What the decorator nearest to the `def` has declared last."""
    row: Loss = function.declared[-1]
    return row


def test_two_names_are_two_losses_of_one_function() -> None:
    """And a loss of one's own is in no table, whatever it is called."""

    @registry.loss("binary", "The second", name="second")
    @registry.loss("binary")
    def kto(log_ratio: Tensor, desirable: Tensor, *, beta: float = 0.1) -> Tensor:
        """The first."""
        return log_ratio

    first, second = cast(Any, kto).declared
    assert (first.name, first.title, second.name, second.title) == ("kto", "The first", "second", "The second")
    assert first.terms[0].function is second.terms[0].function is kto is not LOSSES["kto"].terms[0].function


def test_a_file_may_name_its_own_reference_point(tmp_path: Path) -> None:
    """By the function or in words; it is run once."""
    path = tmp_path / "mine.py"
    path.write_text(
        "import prospect\n"
        "@prospect.reference_point(averages='matched')\n"
        "def point(step, state):\n    return step.mean, state\n"
        "@prospect.loss(view='binary', reference_point=point)\n"
        "def one(log_ratio, desirable, z0):\n    return log_ratio - z0\n"
        f"@prospect.loss(view='binary', reference_point={f'{path}:point'!r})\n"
        "def two(log_ratio, desirable, z0):\n    return log_ratio - z0\n"
    )
    one, two = registry.find(f"{path}:one"), registry.find(f"{path}:two")
    assert one.reference_point is not None and two.reference_point is not None
    assert one.reference_point.function is two.reference_point.function
    assert (one.reference_point.averages, two.reference_point.name) == ("matched", f"{path}:point")
