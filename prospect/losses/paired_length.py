"""Losses on pairs that know how long the answers are. P pairs; log-ratios in nats; every result is (P,), unreduced.

`chosen`, `rejected` (P,) are the log-ratios r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the completion, and
`chosen_length`, `rejected_length` (P,) its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prospect.losses.segments import segment_index, segment_sum


def ipo(
    chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, *, tau: float = 0.1
) -> Tensor:
    """IPO on token means: (r_chosen / |chosen| - r_rejected / |rejected| - 1 / (2 * tau))^2.

    `chosen`, `rejected` (P,) log-ratios in nats, summed; `chosen_length`, `rejected_length` (P,) tokens.
    Source: arXiv 2310.12036, with log-ratios averaged over tokens.

    Gradient: linear in the distance from the target 1 / (2 * tau): the pair is held at that margin, not driven apart
    without end. At the start -+ 1 / (tau * length).

    Use: deterministic pairs, where DPO overfits.

    Choice: the paper prints sums (`ipo_sum`). Its authors asked TRL to average, and TRL, HALOs and LLaMA-Factory do;
    OpenRLHF and the DPO authors' code sum. At tau = 0.1 the target is 5 nats per token, so larger taus are sensible.
    """
    return (chosen / chosen_length - rejected / rejected_length - 1 / (2 * tau)) ** 2


def ipo_sum(chosen: Tensor, rejected: Tensor, *, tau: float = 0.1) -> Tensor:
    """IPO as printed: (r_chosen - r_rejected - 1 / (2 * tau))^2.

    `chosen`, `rejected` (P,) log-ratios in nats, summed.
    Source: arXiv 2310.12036 Eq. 17.

    Gradient: linear in the distance from the margin 1 / (2 * tau), in nats per pair; -+ 1 / tau at the start.

    Choice: see `ipo`, which averages over tokens.
    """
    return (chosen - rejected - 1 / (2 * tau)) ** 2


def dpo_norm(
    chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, *, beta: float = 5.0
) -> Tensor:
    """Length-normalised DPO: -log sigmoid(beta * (r_chosen / |chosen| - r_rejected / |rejected|)).

    `chosen`, `rejected` (P,) log-ratios in nats, summed; `chosen_length`, `rejected_length` (P,) tokens.
    Source: arXiv 2411.15124 (Tulu 3), where it is called dpo_norm.

    Gradient: DPO's divided by each answer's length, so long answers are not favoured for being long.

    Use: where lengths differ much, or DPO made answers longer.

    Choice: beta 5, Tulu 3's. TRL's default of 0.1 is meant for sums: on means of some hundred tokens it leaves next to
    no signal.
    """
    return softplus(-beta * (chosen / chosen_length - rejected / rejected_length))


def rdpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.01,
) -> Tensor:
    """R-DPO: -log sigmoid(z + alpha * (|chosen| - |rejected|)), z = beta * (r_chosen - r_rejected).

    `chosen`, `rejected` (P,) log-ratios in nats, summed; `chosen_length`, `rejected_length` (P,) tokens.
    Source: arXiv 2403.19159.

    Gradient: DPO's, as if a longer chosen answer were already ahead: being chosen for its length teaches less, and
    being chosen despite its brevity teaches more. It is what a reward of r* - alpha * |y| gives, which fixes the sign.

    Use: data in which raters preferred the longer answer.

    Choice: alpha is in nats per token and depends on the lengths in the data; 0.01 is a cautious value, ours.
    """
    extra = alpha * (chosen_length - rejected_length).to(chosen.dtype)
    return softplus(-beta * (chosen - rejected) - extra)


def ld_dpo(
    chosen_token_log_ratio: Tensor,
    rejected_token_log_ratio: Tensor,
    chosen_offsets: Tensor,
    rejected_offsets: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Tensor:
    """LD-DPO: DPO whose tokens beyond the shorter answer's length count only alpha times.

        r' = sum of r_t for t <= m + alpha * sum of r_t for t > m,    m = min(|chosen|, |rejected|)
        -log sigmoid(beta * (r'_chosen - r'_rejected))

    Token log-ratios (T,) in nats of each side, offsets (P+1,): pair k's tokens are offsets[k] to offsets[k + 1].
    Source: arXiv 2409.06411.

    Gradient: DPO's for the common length, alpha times it for the rest. alpha = 1 is DPO, 0 ignores the surplus.

    Use: where DPO makes answers longer.

    Choice: alpha weighs the log-ratio, so policy and reference alike, as in TRL; LLaMA-Factory weighs the policy alone,
    where an untrained policy would not start at z = 0. The paper chooses alpha per model; 0.5 is ours.
    """
    shorter = torch.minimum(chosen_offsets.diff(), rejected_offsets.diff())
    up = _desensitised(chosen_token_log_ratio, chosen_offsets, shorter, alpha)
    down = _desensitised(rejected_token_log_ratio, rejected_offsets, shorter, alpha)
    return softplus(-beta * (up - down))


def _desensitised(token_log_ratio: Tensor, offsets: Tensor, shorter: Tensor, alpha: float) -> Tensor:
    """The log-ratio (P,) with every token from number `shorter` on weighted by alpha."""
    device = token_log_ratio.device
    surplus_from = (offsets[:-1] + shorter).to(device)[segment_index(offsets, token_log_ratio)]
    surplus = torch.arange(len(token_log_ratio), device=device) >= surplus_from
    return segment_sum(torch.where(surplus, alpha * token_log_ratio, token_log_ratio), offsets)
