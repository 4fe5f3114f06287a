"""Losses on pairs in which one pair's loss depends on the others of its optimizer step. P pairs, all of a step; every
result is (P,), unreduced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prospect.losses.numerics import softplus
from prospect.losses.registry import loss

if TYPE_CHECKING:
    from torch import Tensor


@loss(
    "pairs", "Alignment via Optimal Transport, sorted margins", "arXiv 2406.05882", learning_rate=5e-7, couples="step"
)
def aot(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    chosen_reference_logp: Tensor,
    rejected_reference_logp: Tensor,
    *,
    beta: float = 0.1,
    epsilon: float = 0.0,
) -> Tensor:
    """AOT on pairs: the policy's k-th smallest margin against the reference's k-th smallest, for every k.

        d = sorted(L_chosen - L_rejected) - sorted(L_ref_chosen - L_ref_rejected)
        (1 - epsilon) * l(beta * d) + epsilon * l(-beta * d),    l(u) = -log sigmoid(u)

    All inputs (P,): log-probs in nats, summed over the completion, of the policy and the reference.
    Source: arXiv 2406.05882: first-order stochastic dominance of the margins, by optimal transport in one dimension.
    Coupled: one pair's loss depends on the ranks of all others, so it must see the whole optimizer step at once.

    Gradient: DPO's per rank instead of per pair: a pair's own reference margin does not matter, only the distribution.

    Choice: result i belongs to pair i, whose margin has some rank, so that weights and order mean what they mean
    elsewhere; the mean is that of the sorted differences. The scope is the whole optimizer step; TRL sorts within the
    micro-batch of a device.
    """
    margin = chosen_logp - rejected_logp
    return _smoothed(margin - _same_rank(chosen_reference_logp - rejected_reference_logp, margin), beta, epsilon)


@loss("pairs", "Alignment via Optimal Transport, sorted sides", "arXiv 2406.05882", learning_rate=5e-7, couples="step")
def aot_unpaired(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, epsilon: float = 0.0) -> Tensor:
    """AOT on two sets: the k-th smallest log-ratio of the chosen answers against the k-th smallest of the rejected.

        d = sorted(r_chosen) - sorted(r_rejected)
        (1 - epsilon) * l(beta * d) + epsilon * l(-beta * d),    l(u) = -log sigmoid(u)

    `chosen`, `rejected` (P,) log-ratios in nats; who was paired with whom does not matter.
    Source: arXiv 2406.05882, its unpaired variant. Coupled, as `aot` is.

    Gradient: DPO's between answers of the same rank.

    Choice: result i belongs to the chosen answer i. Both sides need as many answers, which pairs always give.
    """
    return _smoothed(chosen - _same_rank(rejected, chosen), beta, epsilon)


SPREAD = 1e-3
"""The least standard deviation of gaps in nats that beta_dpo believes in: rounding errors are no outliers."""


def gap_moments(chosen: Tensor, rejected: Tensor, before: Tensor | None, *, momentum: float = 0.9) -> Tensor:
    """Moving averages of the mean and of the standard deviation of r_chosen - r_rejected over a step, (3,): both times
    the sum of their weights, and that sum, so that the first step's values are the first averages."""
    gap = chosen - rejected
    now = gap.new_ones(3)
    now[0] = gap.mean()
    now[1] = ((gap - now[0]) ** 2).sum().div(max(1, len(gap) - 1)).sqrt()
    return (1 - momentum) * now if before is None else momentum * before + (1 - momentum) * now


@loss(
    "pairs",
    "DPO whose beta follows each step's pairs, outliers left out",
    "arXiv 2407.08639",
    learning_rate=5e-7,
    couples="step",
    running=gap_moments,
)
def beta_dpo(
    chosen: Tensor,
    rejected: Tensor,
    running: Tensor,
    draw: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.6,
    keep: float = 0.8,
    least_beta: float = 1e-3,
) -> Tensor:
    """Beta-DPO: -log sigmoid(b * gap) for the pairs kept, gap = r_chosen - r_rejected, one b for the step.

        kept  a share of the step's pairs, drawn without replacement with weights exp(-((gap - M) / S)^2 / 2)
        b     max(least_beta, beta * (1 + alpha * (mean gap of the kept - M))), without gradient

    `chosen`, `rejected` (P,) log-ratios in nats of all pairs of the step; `running` (3,) is M and S, moving averages of
    the gaps' mean and standard deviation, this step's included (`gap_moments`); `draw` (P,) are uniform numbers.
    Source: arXiv 2407.08639. Strength: A, the authors' code.

    Gradient: DPO's with this step's beta times P / kept, 0 for pairs left out: steps whose pairs are easy get a larger
    beta, and pairs far from the usual gap are rarely learnt from.

    Choice: M and S begin with the first step's values; the authors' begin at 0, where S is so small that the first
    draws are degenerate. S is at least 1e-3 nats. The number of pairs kept is rounded down, and at least one.
    """
    gap, moments = chosen - rejected, running.to(chosen) / running[2]
    outlying = ((gap.detach() - moments[0]) / moments[1].clamp(min=SPREAD)) ** 2 / 2
    # The smallest of (weight's surprise + log of an exponential number), as many as are kept: a draw by the weights.
    order = (outlying + (-draw.log()).log()).argsort(stable=True)
    count = max(1, int(keep * len(gap) + 1e-9))
    kept = gap.new_zeros(gap.shape).index_fill(0, order[:count], 1.0)
    level = (gap.detach() * kept).sum() / count
    strength = (beta * (1 + alpha * (level - moments[0]))).clamp(min=least_beta)
    return kept * len(gap) / count * softplus(-strength * gap)


def _same_rank(values: Tensor, like: Tensor) -> Tensor:
    """The element of `values` that has the rank in `values` which like[i] has in `like`, for every i."""
    return values.sort(stable=True).values[like.argsort(stable=True).argsort(stable=True)]


def _smoothed(difference: Tensor, beta: float, epsilon: float) -> Tensor:
    z = beta * difference
    return (1 - epsilon) * softplus(-z) + epsilon * softplus(z)
