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


def _same_rank(values: Tensor, like: Tensor) -> Tensor:
    """The element of `values` that has the rank in `values` which like[i] has in `like`, for every i."""
    return values.sort(stable=True).values[like.argsort(stable=True).argsort(stable=True)]


def _smoothed(difference: Tensor, beta: float, epsilon: float) -> Tensor:
    z = beta * difference
    return (1 - epsilon) * softplus(-z) + epsilon * softplus(z)
