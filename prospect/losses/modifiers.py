"""What wraps a loss: weights, clamps and gates on its inputs, references that move. N completions, T tokens; in
nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prospect.losses.numerics import log, segment_mean, segment_quantile
from prospect.losses.registry import modifier

if TYPE_CHECKING:
    from torch import Tensor


@modifier("weight", "Weigh each answer by how likely the policy is to give it", "arXiv 2406.11827")
def wpo(token_logp: Tensor, token_sum_p2: Tensor, offsets: Tensor) -> Tensor:
    """WPO's weight of a completion, exp(mean over tokens of (log p - log sum_v p(v)^2)), (N,), without gradient.

    `token_logp` (T,) log-probs of the tokens said; `token_sum_p2` (T,) the sum of squared probabilities over the
    vocabulary at each of them; `offsets` (N+1,). A pair's loss is multiplied by the weights of both its answers.
    Source: arXiv 2406.11827 Eq. 2.

    Gradient: none of its own; it scales the loss's. Answers that the policy itself might have said count more: about
    1 for typical ones, towards 0 for those it would never say.

    Choice: TRL before 1.0 cut a pair's weight at 1; TRL 1.x does not, nor does this. The sum of squares is floored at
    the smallest number of its type, so that an underflow is no infinite weight.
    """
    return segment_mean(token_logp.detach() - log(token_sum_p2.detach()), offsets).exp()


@dataclass(frozen=True, slots=True)
class Motion:
    """Every `every` steps the reference becomes mix * policy + (1 - mix) * reference, weight by weight: with the policy
    as it is after the step, or, where `behind`, as it was before it."""

    every: int
    mix: float
    behind: bool = False


@modifier("reference", "A reference that follows the policy (TR-DPO)", "arXiv 2404.09656")
def tr(*, every: float = 512, mix: float = 0.6) -> Motion:
    """TR-DPO: pi_ref <- mix * pi + (1 - mix) * pi_ref every `every` steps.

    Source: arXiv 2404.09656; defaults as in TRL.
    """
    return Motion(max(1, round(every)), mix)


def one_step_behind() -> Motion:
    """Humanline: the reference at step t is the policy of step t - 1. Source: arXiv 2509.24207.

    Choice: a reference synchronised after the update would be the policy itself at the next step; every ratio would be
    1 there, and the clamp idle.
    """
    return Motion(1, 1.0, behind=True)


@modifier(
    "token_log_ratio",
    "Clamp each token's log-ratio; the reference is the policy one step ago",
    "arXiv 2509.24207",
    motion=one_step_behind,
)
def humanline(token_log_ratio: Tensor, *, low: float = -1.0, high: float = 1.5) -> Tensor:
    """Humanline: each token's log-ratio clamped to [low, high] before it is summed, (T,) -> (T,).

    `token_log_ratio` (T,) in nats.
    Source: arXiv 2509.24207; the bounds are those of the authors' code.

    Gradient: that of the loss inside the bounds, 0 for tokens outside them.

    Use: with a reference that follows the policy. With a fixed one, a token that has moved past a bound is frozen.
    """
    return token_log_ratio.clamp(low, high)


@modifier(
    "log_ratio", "Weaken the push on rejected answers that are unlikely already", "arXiv 2605.02626", rows="undesirable"
)
def gate(log_ratio: Tensor, token_logp: Tensor, offsets: Tensor, *, sharpness: float, threshold: float) -> Tensor:
    """Gate-DPO: the log-ratio, unchanged in value, with its gradient multiplied by g = sigmoid(sharpness * (p -
    threshold)).

    `log_ratio` (N,) in nats; `token_logp` (T,) with `offsets` (N+1,): p is the geometric mean of the completion's token
    probabilities. g carries no gradient.
    Source: arXiv 2605.02626; meant for the rejected side.

    Gradient: g times the loss's: an answer that has become unlikely is not pushed down further.

    Choice: this is the first of two published forms; `gate_q10` is the second. The paper's constants are not known to
    us, so both are required.
    """
    return _gated(log_ratio, segment_mean(token_logp.detach(), offsets).exp(), sharpness, threshold)


@modifier(
    "log_ratio", "Weaken the push on rejected answers with very unlikely tokens", "arXiv 2605.02626", rows="undesirable"
)
def gate_q10(
    log_ratio: Tensor, token_logp: Tensor, offsets: Tensor, *, sharpness: float, threshold: float, quantile: float = 0.1
) -> Tensor:
    """Gate-DPO's second form: g as in `gate`, with p the 10 % quantile of the completion's token probabilities.

    `log_ratio` (N,) in nats; `token_logp` (T,) with `offsets` (N+1,). Between two tokens the quantile is interpolated
    linearly. g carries no gradient.
    Source: arXiv 2605.02626. Strength: A, the authors' description of their code.

    Gradient: g times the loss's: a few tokens that have become unlikely are enough to stop the push.

    Choice: sharpness and threshold are not published for this form either, so both are required.
    """
    return _gated(log_ratio, segment_quantile(token_logp.detach().exp(), offsets, quantile), sharpness, threshold)


def _gated(log_ratio: Tensor, probability: Tensor, sharpness: float, threshold: float) -> Tensor:
    """The log-ratio with its gradient multiplied by sigmoid(sharpness * (probability - threshold))."""
    g = (sharpness * (probability - threshold)).sigmoid()
    fixed = log_ratio.detach()
    return fixed + g * (log_ratio - fixed)
