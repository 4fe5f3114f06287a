"""What wraps a loss: weights, clamps and gates on its inputs. N completions, T tokens; in nats."""

from __future__ import annotations

import torch
from torch import Tensor

from prospect.losses.segments import segment_mean


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
    log_typical = torch.log(token_sum_p2.detach().clamp(min=torch.finfo(token_sum_p2.dtype).tiny))
    return torch.exp(segment_mean(token_logp.detach() - log_typical, offsets))


def humanline(token_log_ratio: Tensor, *, low: float = -1.0, high: float = 1.5) -> Tensor:
    """Humanline: each token's log-ratio clamped to [low, high] before it is summed, (T,) -> (T,).

    `token_log_ratio` (T,) in nats.
    Source: arXiv 2509.24207; the bounds are those of the authors' code.

    Gradient: that of the loss inside the bounds, 0 for tokens outside them.

    Use: with a reference that follows the policy. With a fixed one, a token that has moved past a bound is frozen.
    """
    return token_log_ratio.clamp(low, high)


def gate(log_ratio: Tensor, token_logp: Tensor, offsets: Tensor, *, sharpness: float, threshold: float) -> Tensor:
    """Gate-DPO: the log-ratio, unchanged in value, with its gradient multiplied by g = sigmoid(sharpness * (p -
    threshold)).

    `log_ratio` (N,) in nats; `token_logp` (T,) with `offsets` (N+1,): p is the geometric mean of the completion's token
    probabilities. g carries no gradient.
    Source: arXiv 2605.02626; meant for the rejected side.

    Gradient: g times the loss's: an answer that has become unlikely is not pushed down further.

    Choice: this is the first of two published forms; in the second, p is the 10 % quantile of the token probabilities.
    The paper's constants are not known to us, so both are required. The formula is from a summary of the paper.
    """
    probability = torch.exp(segment_mean(token_logp.detach(), offsets))
    g = torch.sigmoid(sharpness * (probability - threshold))
    fixed = log_ratio.detach()
    return fixed + g * (log_ratio - fixed)
