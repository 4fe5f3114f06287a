"""Losses on tokens that need more than the token itself. T completion tokens; every result is (T,), unreduced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prospect.losses.numerics import exp, segment_index, segment_position
from prospect.losses.registry import loss

if TYPE_CHECKING:
    from torch import Tensor


@loss(
    "binary",
    "Offline PPO, clipped, with a value head, as the HALOs repository defines it",
    "arXiv 1707.06347",
    unit="tokens",
    couples="step",
)
def ppo(
    token_log_ratio: Tensor,
    offsets: Tensor,
    desirable: Tensor,
    value: Tensor,
    *,
    clip: float = 0.5,
    discount: float = 0.99,
    smoothing: float = 0.95,
    value_weight: float = 0.01,
    kl_weight: float = 0.1,
) -> Tensor:
    """Offline PPO: clipped policy gradient on given answers, with the reference in the place of the sampling policy.

        reward +1 (desirable) or -1 at an answer's last token, else 0;  q = pi(token) / pi_ref(token)
        max(-A * q, -A * clamp(q, 1 - clip, 1 + clip)) + value_weight * (V - G)^2 / 2 + kl_weight * log q

    `token_log_ratio` (T,) is log q in nats; answer k's tokens are offsets[k] to offsets[k + 1], `offsets` (N+1,);
    `desirable` (N,) bool; `value` (T,) is V, what the value head expects before the token is said. G is the discounted
    reward still to come, A the generalised advantage with discount and smoothing (gamma and lambda), whitened over all
    tokens given; V is 0 behind the last token. A and G carry no gradient.
    Source: arXiv 1707.06347, adapted to fixed answers and thumbs as in arXiv 2402.01306.

    Gradient: -A * q, until q has left [1 - clip, 1 + clip] in the direction of A; then only the KL term's and the value
    term's. A bad token that has become very likely is never clipped.

    Use: a baseline with a critic. The paper finds it near DPO except at 30B.

    Choice: the authors' code, but whitened over everything given, which must be the whole optimizer step, where theirs
    takes a micro-batch. Log-ratios of a token above 30 continue the exponential by its tangent.
    """
    critic = value.detach()
    index = segment_index(offsets, value)
    remaining = offsets.diff().to(index.device)[index] - 1 - segment_position(offsets, value)
    thumb = (2 * desirable.to(value) - 1)[index]
    # The only reward comes at the end: what is still to come is the thumb, discounted once per token until then.
    to_come = thumb * discount ** remaining.to(value.dtype)
    next_value = critic.roll(-1).where(remaining > 0, 0)
    surprise = thumb.where(remaining == 0, 0) + discount * next_value - critic
    advantage = _whitened(_discounted_sums(surprise, remaining, discount * smoothing))
    ratio = exp(token_log_ratio)
    policy = (-advantage * ratio).maximum(-advantage * ratio.clamp(1 - clip, 1 + clip))
    return policy + value_weight * 0.5 * (value - to_come) ** 2 + kl_weight * token_log_ratio


def _discounted_sums(values: Tensor, remaining: Tensor, rate: float) -> Tensor:
    """Sum over k >= 0 of rate^k * values[t + k] within t's answer, (T,).

    By doubling: sums of 2 terms, of 4, of 8; as many rounds as the number of tokens has binary digits: the longest
    answer's would do, but a device would have to be asked for it.
    """
    span = 1
    while span < len(values):
        values = values + (rate**span * values.roll(-span)).where(remaining >= span, 0)
        span *= 2
    return values


def _whitened(advantage: Tensor) -> Tensor:
    """Mean 0, variance 1 (of the population)."""
    centred = advantage - advantage.mean()
    return centred * ((centred**2).mean() + 1e-8).rsqrt()
