"""Losses on groups: all scored answers to one prompt, compared with each other.

N answers of G groups stand one behind the other; group k's are `group[k] : group[k + 1]`. Log-probs in nats; a result
is (G,), unreduced, unless a loss says otherwise. The order of a group's answers never matters.

The policy gradients weigh each answer by an advantage: how much better it is than the rest of its group. Where the
data do not say how likely the answers were, the reference stands for the policy that gave them (`old_logp`,
`old_token_logp`), so that every ratio starts at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from prospect.feedback.records import EQUAL
from prospect.losses.numerics import exp, expm1, segment_index, segment_log_softmax, segment_mean, segment_sum
from prospect.losses.registry import choice, loss

if TYPE_CHECKING:
    from torch import Tensor

Advantage: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(score (N,), group (G + 1,)) -> (N,), without gradient, with mean 0 in each group."""


@loss("groups", "Target Policy Optimization: imitate the old policy, tilted by standardised scores", "arXiv 2604.06159")
def tpo(logp: Tensor, old_logp: Tensor, score: Tensor, group: Tensor, *, eta: float = 1.0) -> Tensor:
    """TPO: -sum q log p in each group, (G,), with p = softmax(log pi) and q = softmax(log pi_old + u / eta).

    `logp` (N,) log pi(y|x) in nats, summed over the answer; `old_logp` (N,) the same of the policy that gave the
    answers; `score` (N,) on any scale. u is the score less its group's mean, over the group's standard deviation (of
    the population); 0 where the scores are equal. q carries no gradient.
    Source: arXiv 2604.06159. Strength: A, the authors' code.

    Gradient: p - q by log pi, until the group's probabilities are the target's. Equal scores hold the policy at the old
    one.

    Use: 8 to 16 answers that the start model gave. Among answers of very different log-prob the likeliest counts alone.
    """
    index = segment_index(group, logp)
    centred = score - segment_mean(score, group)[index]
    deviation = segment_mean(centred**2, group).sqrt()
    standard = centred / deviation.where(deviation > EQUAL, 1)[index]
    target = segment_log_softmax(old_logp + standard / eta, group).exp().detach()
    return -segment_sum(target * segment_log_softmax(logp, group), group)


@loss("groups", "DDO-RM: imitate the policy itself, tilted by centred scores", "arXiv 2604.11119")
def ddo_rm(
    logp: Tensor, length: Tensor, score: Tensor, group: Tensor, *, eta: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """DDO-RM: -sum q log p in each group, (G,), with p = softmax(a / tau) and q = softmax((a + eta * c) / tau).

    a is the mean log-prob of a token, `logp` (N,) over `length` (N,); c is `score` (N,) less its mean under p; tau is
    the temperature. q carries no gradient, as in the paper's gradient; in the authors' code it does.
    Source: arXiv 2604.11119. Strength: A, the authors' code, but for that.

    Gradient: (p - q) / tau by a. The target moves with the policy: the pull towards better scores does not end.
    """
    mean = logp / length / temperature
    log_p = segment_log_softmax(mean, group)
    expected = segment_sum(log_p.exp() * score, group)
    centred = score - expected[segment_index(group, logp)]
    target = segment_log_softmax(mean + eta * centred / temperature, group).exp().detach()
    return -segment_sum(target * log_p, group)


@loss("groups", "GraphDPO, reconstructed: each answer against all that are scored lower", "arXiv 2605.08037", halo=True)
def graph_dpo(log_ratio: Tensor, score: Tensor, group: Tensor, *, beta: float = 0.1) -> Tensor:
    """GraphDPO, a RECONSTRUCTION that meets the abstract's properties: the mean over answers i above any other of

        -log(e^(beta * r_i) / (e^(beta * r_i) + sum of e^(beta * r_j) over all j of its group that score lower))

    `log_ratio` (N,) is r in nats, `score` (N,); (G,). Equal scores have no edge, two answers give DPO, equal groups 0.
    Strength: D, derived here. Not known: whether the paper takes all below or the next layer only, weights, schedule.

    Gradient: beta * (share of i - 1) by r_i; what is below is pushed down by its share, the likeliest most.
    """
    index, reward = segment_index(group, log_ratio), beta * log_ratio
    below = (index[:, None] == index) & (score[:, None] > score)
    compared = below.clone().fill_diagonal_(True)
    total = reward.expand_as(below).masked_fill(~compared, -math.inf).logsumexp(1)
    above_any = segment_sum(below.any(1).to(reward.dtype), group)
    return segment_sum(total - reward, group) / above_any.clamp(min=1)


@choice("advantage")
def standardised(score: Tensor, group: Tensor, *, ddof: float = 1.0, epsilon: float = 1e-4) -> Tensor:
    """(score - mean) / (standard deviation + epsilon), of GRPO (arXiv 2402.03300).

    Choice: ddof 1 and 1e-4 are TRL's; HALOs has 0 and 1e-2, verl 1 and 1e-6.
    """
    centre, size = centred(score, group), group.diff().to(score)
    variance = segment_sum(centre**2, group) / (size - ddof).clamp(min=1)
    return centre / (variance.sqrt() + epsilon)[segment_index(group, score)]


@choice("advantage")
def centred(score: Tensor, group: Tensor) -> Tensor:
    """score - mean, of Dr. GRPO (arXiv 2503.20783).

    Choice: both are measured from the group's first score, so that equal scores are 0 and not the mean's rounding.
    """
    index = segment_index(group, score)
    lead = score - score[group[:-1]][index]
    return lead - segment_mean(lead, group)[index]


@choice("advantage")
def leave_one_out(score: Tensor, group: Tensor) -> Tensor:
    """score - mean of the others' scores, of RLOO (arXiv 2402.14740)."""
    size = group.diff().to(score)
    return centred(score, group) * (size / (size - 1).clamp(min=1))[segment_index(group, score)]


@choice("advantage")
def win_rate(score: Tensor, group: Tensor) -> Tensor:
    """Mean chance to win against the others, sigmoid(score - other's), less one half: of SPO (arXiv 2401.04056)."""
    index = segment_index(group, score)
    lead = (score[:, None] - score).sigmoid() - 0.5
    others = (group.diff().to(score) - 1).clamp(min=1)
    return (lead * (index[:, None] == index)).sum(1) / others[index]


@loss("groups", "Group Relative Policy Optimization, on given answers", "arXiv 2402.03300", unit="examples")
def grpo(
    token_logp: Tensor,
    old_token_logp: Tensor,
    token_log_ratio: Tensor,
    offsets: Tensor,
    score: Tensor,
    group: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 0.0,
    advantage: Advantage = standardised,
) -> Tensor:
    """GRPO: the mean over an answer's tokens, (N,), of -min(q * A, clamp(q, 1 - clip_low, 1 + clip_high) * A)
    + kl_weight * (e^-l + l - 1), q the ratio of the policy to the one that gave the answer, l the log-ratio.

    `token_logp`, `old_token_logp`, `token_log_ratio` (T,) in nats; answer k's tokens are offsets[k] : offsets[k + 1];
    A is the advantage of `score` (N,): standardised, centred (Dr. GRPO), leave_one_out (RLOO) or win_rate (SPO).
    Strength: B, TRL and verl; kl_weight 0 is TRL's, the first paper has 0.04.

    Gradient: -A / length by each token's log pi at the start; 0 where q is beyond the clip on the side that A favours.
    """
    of_token = advantage(score, group)[segment_index(offsets, token_logp)]
    surrogate = _clipped(token_logp - old_token_logp, of_token, clip_low, clip_high)
    return segment_mean(surrogate + kl_weight * (expm1(-token_log_ratio) + token_log_ratio), offsets)


@loss("groups", "DAPO's token mean and wider upper clip, on given answers", "arXiv 2503.14476", unit="tokens")
def dapo(
    token_logp: Tensor,
    old_token_logp: Tensor,
    offsets: Tensor,
    score: Tensor,
    group: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    advantage: Advantage = standardised,
) -> Tensor:
    """DAPO: GRPO's clipped term of each token, (T,), without its KL; the mean is over all tokens of the step.

    `token_logp`, `old_token_logp` (T,) in nats; `offsets` (N+1,), `score` (N,). Strength: B, TRL. The paper also leaves
    out groups of equal scores (`--equal-scores drop`) and punishes answers that are too long (not here).

    Gradient: -A by each token's log pi at the start; 0 where q is beyond the clip on the side that A favours.
    """
    of_token = advantage(score, group)[segment_index(offsets, token_logp)]
    return _clipped(token_logp - old_token_logp, of_token, clip_low, clip_high)


@loss("groups", "Dr. GRPO: no division by length or deviation", "arXiv 2503.20783", unit="examples")
def dr_grpo(
    token_logp: Tensor,
    old_token_logp: Tensor,
    offsets: Tensor,
    score: Tensor,
    group: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    longest: float = 512.0,
    advantage: Advantage = centred,
) -> Tensor:
    """Dr. GRPO: the sum of GRPO's clipped terms over an answer's tokens, (N,), over one length for all: `longest`.

    `token_logp`, `old_token_logp` (T,) in nats; `offsets` (N+1,), `score` (N,). Strength: B, TRL, where `longest` is
    the most tokens that an answer may have. Choice: 512; it only scales the loss.

    Gradient: -A / longest by each token's log pi at the start; 0 where q is beyond the clip, as in GRPO.
    """
    of_token = advantage(score, group)[segment_index(offsets, token_logp)]
    return segment_sum(_clipped(token_logp - old_token_logp, of_token, clip_low, clip_high), offsets) / longest


@loss("groups", "GSPO: one ratio for an answer, per token", "arXiv 2507.18071", unit="examples")
def gspo(
    logp: Tensor,
    old_logp: Tensor,
    length: Tensor,
    score: Tensor,
    group: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    advantage: Advantage = standardised,
) -> Tensor:
    """GSPO: -min(q * A, clamp(q, 1 - clip_low, 1 + clip_high) * A), (N,), with q = exp((log pi - log pi_old) / length).

    `logp`, `old_logp` (N,) in nats, `length` (N,) tokens, `score` (N,). Strength: B, TRL and verl. The clip is narrow:
    it is made for a few steps on each batch of fresh answers.

    Gradient: -A / length by each token's log pi at the start; all tokens of an answer are clipped together.
    """
    return _clipped((logp - old_logp) / length, advantage(score, group), clip_low, clip_high)


@loss("groups", "REINFORCE leave-one-out, on given answers", "arXiv 2402.14740", unit="examples")
def rloo(
    logp: Tensor,
    old_logp: Tensor,
    reference_logp: Tensor,
    score: Tensor,
    group: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 0.05,
    advantage: Advantage = leave_one_out,
) -> Tensor:
    """RLOO: -min(q * A, clamp(q, 1 - clip_low, 1 + clip_high) * A), (N,), q = exp(log pi - log pi_old) of the answer.

    `logp`, `old_logp`, `reference_logp` (N,) in nats; A is the advantage of `score` (N,) less kl_weight * (log pi_old -
    log pi_ref), which is 0 where the reference gave the answers. Strength: B, TRL.

    Gradient: -A by the answer's log pi at the start, REINFORCE's; 0 where q is beyond the clip, as in GRPO.
    """
    reward = score - kl_weight * (old_logp - reference_logp)
    return _clipped(logp - old_logp, advantage(reward, group), clip_low, clip_high)


def _clipped(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """The policy gradient of PPO: -min(q * A, clamp(q) * A), q = e^log_ratio."""
    ratio = exp(log_ratio)
    return -(ratio * advantage).minimum(ratio.clamp(1 - low, 1 + high) * advantage)
