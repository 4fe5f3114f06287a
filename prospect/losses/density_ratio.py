"""Losses that match a density ratio: preferences say how much likelier the optimal policy's chosen answer is than its
rejected one, and a Bregman divergence measures how far the policy's own ratio is from that. Log-ratios in nats.

A generator h is a convex function. Its loss of R = e^u, in which a smaller u is better, is h'(R) * R - h(R) - h'(1 / R)
without constants, given here as a function of u. Each is increasing. Exponents above 30 continue by their tangent; the
authors clip u at +-30, where a pair has no gradient. Source of all: arXiv 2505.19601 and 2605.12288.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from prospect.losses.numerics import exp, segment_index, segment_position, segment_sum, softplus
from prospect.losses.registry import choice, loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Generator: TypeAlias = "Callable[..., Tensor]"


@choice("generator")
def logistic(u: Tensor) -> Tensor:
    """log(1 + e^u), which makes it DPO."""
    return softplus(u)


@choice("generator")
def kliep(u: Tensor) -> Tensor:
    """e^u + u: the KL importance estimation procedure."""
    return exp(u) + u


@choice("generator")
def lsif(u: Tensor) -> Tensor:
    """e^(2u) - 2 * e^(-u): least-squares importance fitting.

    Choice: by the identity above, for h(R) = R^2. The released code has e^(2u) - 2 * e^u, whose slope is 0 at the start
    and which pulls R back to 1.
    """
    return exp(2 * u) - 2 * exp(-u)


@choice("generator")
def basu(u: Tensor, *, power: float = 0.5) -> Tensor:
    """Basu's power divergence: e^((1 + power) * u) - (1 + power) / power * e^(-power * u); at power 0 it is `kliep`."""
    if power == 0:
        return kliep(u)
    return exp((1 + power) * u) - (1 + power) / power * exp(-power * u)


@choice("generator")
def scaled_basu(u: Tensor, *, power: float = 0.0, scale: float = 4.0) -> Tensor:
    """Scaled Basu: e^((1 + power) * u) / (scale * (1 + power)) - e^(-power * u) / (scale * power).

    At power 0 it is (e^u + u) / scale. With scale 4 its slope at the start is 1/2, the logistic's.
    """
    return basu(u, power=power) / (scale * (1 + power))


@loss(
    "pairs",
    "Bregman Preference Optimization: DPO by other density-ratio losses",
    "arXiv 2505.19601",
    learning_rate=5e-7,
    halo=True,
)
def bpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, generator: Generator = scaled_basu) -> Tensor:
    """BPO: generator(u), u = beta * (r_rejected - r_chosen).

        scaled_basu  e^((1 + power) * u) / (scale * (1 + power)) - e^(-power * u) / (scale * power)
        basu         e^((1 + power) * u) - (1 + power) / power * e^(-power * u)
        kliep        e^u + u
        lsif         e^(2u) - 2 * e^(-u)
        logistic     log(1 + e^u), which is DPO

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2505.19601. Strength: A, the authors' code.

    Gradient: with the default -+ beta * (e^u + 1) / 4: DPO's at the start, growing without bound for a pair far on the
    wrong side, and beta / 4, not 0, for one far on the right side: pairs are driven apart for ever.

    Choice: generator and constants are those of the authors' later configurations (power 0, scale 4).
    """
    return generator(beta * (rejected - chosen))


@loss(
    "pairs",
    "Token-level Bregman preference optimization with a learned advantage",
    "arXiv 2605.12288",
    learning_rate=5e-7,
    linear_value=True,
    value_learning_rate=1e-4,
)
def tbpo_q(
    chosen_token_log_ratio: Tensor,
    rejected_token_log_ratio: Tensor,
    chosen_value: Tensor,
    rejected_value: Tensor,
    chosen_offsets: Tensor,
    rejected_offsets: Tensor,
    *,
    beta: float = 0.1,
    generator: Generator = scaled_basu,
    limit: float = 10.0,
) -> Tensor:
    """TBPO-Q: the mean over k of generator(u_k), u_k = beta * (r_rejected,k - r_chosen,k + c_k), of the k-th tokens.

        c_k = value_rejected,k - value_chosen,k minus its mean over the pair's k, within +-limit;  k up to the shorter

    Token log-ratios and values (T,) in nats of each side, offsets (P+1,): pair k's tokens are offsets[k] to
    offsets[k + 1]. The value is a linear head's on the last hidden state, which its gradient does not reach.
    Source: arXiv 2605.12288. Strength: A, the authors' code.

    Gradient: as `bpo`'s for every pair of tokens that both answers have, over their number; tokens beyond the shorter
    answer have none. The head's is 0 at the start and, as u differs from token to token, takes those differences in.

    Choice: limit 10 and the head's learning rate, 1e-4 unless --value-learning-rate says otherwise, are ours.
    """
    shorter, index, common, other = _token_pairs(chosen_offsets, rejected_offsets, chosen_value)
    # Whose token each is, as a matrix (T, P): the gradient of a product adds in one order.
    whose = (index[:, None] == shorter.new_ones(len(shorter)).cumsum(0) - 1).to(chosen_value.dtype)

    def mean(x: Tensor) -> Tensor:
        return segment_sum(x.where(common, 0), chosen_offsets) / shorter

    advantage = rejected_value.index_select(0, other) - chosen_value
    advantage = (advantage - whose @ mean(advantage)).clamp(-limit, limit)
    difference = rejected_token_log_ratio.index_select(0, other) - chosen_token_log_ratio
    return mean(generator(beta * (difference + advantage)))


def _token_pairs(
    chosen_offsets: Tensor, rejected_offsets: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `chosen` tokens (T,) their pairs (T,), whether the rejected answer has one at the same place, and where that
    stands; before them how many such tokens a pair has (P,)."""
    shorter = chosen_offsets.diff().minimum(rejected_offsets.diff())
    index, position = (f(chosen_offsets, chosen) for f in (segment_index, segment_position))
    other = rejected_offsets[:-1][index] + position.minimum(rejected_offsets.diff()[index] - 1)
    return shorter, index, position < shorter[index], other
