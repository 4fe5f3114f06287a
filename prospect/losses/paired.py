"""Losses on pairs of answers to one prompt. P pairs; log-ratios in nats; every result is (P,), unreduced.

`chosen`, `rejected` (P,) are the log-ratios r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the completion, and
`chosen_length`, `rejected_length` (P,) its tokens; z is beta * (r_chosen - r_rejected). -log sigmoid(u) is always
softplus(-u): finite for every u.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from prospect.losses.likelihood import NLL
from prospect.losses.numerics import exp, expm1, logsigmoid, segment_index, segment_position, segment_sum, softplus
from prospect.losses.reference_point import zero
from prospect.losses.registry import choice, loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@loss(
    "pairs",
    "DPO plus the likelihood of the chosen answers (iterative RPO)",
    "arXiv 2404.19733",
    name="rpo",
    learning_rate=5e-7,
    beside=(NLL,),
)
@loss(
    "pairs",
    "Direct Preference Optimization: the likelihood of each preference",
    "arXiv 2305.18290, Eq. 7",
    learning_rate=5e-7,
    halo=True,
)
def dpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """DPO: -log sigmoid(beta * (r_chosen - r_rejected)).

    `chosen`, `rejected` (P,) are the log-ratios r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the completion.
    Source: arXiv 2305.18290 Eq. 7 (Eq. 3 in the KTO paper). -log sigmoid(u) is softplus(-u): finite for every u.

    Gradient: -+ beta * sigmoid(-z): beta / 2 at the start, beta for a pair far on the wrong side, 0 for one far on the
    right side. Only the difference counts: both likelihoods may fall.

    Use: clean, consistent pairs. With noisy ones prefer robust, cdpo or kto.
    """
    return softplus(-beta * (chosen - rejected))


@loss("pairs", "Conservative DPO: a share of the preferences is wrong", "ericmitchell.ai/cdpo.pdf", learning_rate=5e-7)
def cdpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """Conservative DPO: (1 - epsilon) * l(z) + epsilon * l(-z), l(u) = -log sigmoid(u): cross-entropy with soft labels.

    `chosen`, `rejected` (P,) log-ratios in nats; `epsilon` the share of flipped labels.
    Source: E. Mitchell, "A note on DPO with noisy preferences", 2023 (not on arXiv).

    Gradient: DPO's, but it turns round at z = log((1 - epsilon) / epsilon): pairs are not driven apart without end.

    Use: labels with noise of a known size. `robust` removes its bias instead of softening the labels.

    Choice: HALOs has epsilon 0.2; most others have 0, which is DPO.
    """
    z = beta * (chosen - rejected)
    return (1 - epsilon) * softplus(-z) + epsilon * softplus(z)


@loss(
    "pairs", "DPO, unbiased for a known share of flipped preferences", "arXiv 2403.00409", learning_rate=5e-7, halo=True
)
def robust(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, epsilon: float = 0.1) -> Tensor:
    """Robust DPO: ((1 - epsilon) * l(z) - epsilon * l(-z)) / (1 - 2 * epsilon), l(u) = -log sigmoid(u).

    `chosen`, `rejected` (P,) log-ratios in nats; `epsilon` in [0, 1/2), the share of flipped labels. Its mean over
    random flips is DPO's loss on the clean labels.
    Source: arXiv 2403.00409.

    Gradient: -+ beta * (sigmoid(-z) + epsilon / (1 - 2 * epsilon)): it never vanishes, and a pair already right is
    still pushed. The loss has no lower bound.

    Use: labels with noise of a known size, few epochs.
    """
    z = beta * (chosen - rejected)
    return ((1 - epsilon) * softplus(-z) - epsilon * softplus(z)) / (1 - 2 * epsilon)


@loss("pairs", "Hinge on the DPO margin (RSO)", "arXiv 2309.06657", learning_rate=5e-7, halo=True)
def hinge(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """The hinge loss of RSO: max(0, 1 - z), z = beta * (r_chosen - r_rejected).

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2309.06657.

    Gradient: -+ beta until the pair is apart by 1 / beta nats, then exactly 0.

    Use: where pairs that are right should be left alone.
    """
    return (1 - beta * (chosen - rejected)).clamp(min=0)


@loss(
    "pairs", "Efficient Exact Optimization: reverse KL to preferences", "arXiv 2402.00856, Eq. 16", learning_rate=5e-7
)
def exo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, epsilon: float = 1e-3) -> Tensor:
    """EXO on pairs: the reverse KL divergence of the policy's preference, sigmoid(z), from the label 1 - epsilon.

        sigmoid(z) * (log sigmoid(z) - log(1 - epsilon)) + sigmoid(-z) * (log sigmoid(-z) - log epsilon)

    `chosen`, `rejected` (P,) log-ratios in nats; `epsilon` > 0, since the label must not be certain.
    Source: arXiv 2402.00856 Eq. 16.

    Gradient: beta * sigmoid(z) * sigmoid(-z) times a logit difference: zero for pairs far apart on either side, so a
    pair far on the wrong side is given up, as in KTO. It turns round at z = log((1 - epsilon) / epsilon).
    """
    z = beta * (chosen - rejected)
    right = z.sigmoid() * (logsigmoid(z) - math.log1p(-epsilon))
    wrong = (-z).sigmoid() * (logsigmoid(-z) - math.log(epsilon))
    return right + wrong


@loss("pairs", "Noise Contrastive Alignment", "arXiv 2402.05369", learning_rate=5e-7)
def nca(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """NCA on pairs: l(beta * r_chosen) + (l(-beta * r_chosen) + l(-beta * r_rejected)) / 2, l(u) = -log sigmoid(u).

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2402.05369, its noise contrastive estimator with two answers.

    Gradient: each answer has its own: the chosen one is held near r = log(2) / beta, the rejected one pushed down.
    So the good answer's likelihood does not fall, as it may under DPO.
    """
    up, down = beta * chosen, beta * rejected
    return softplus(-up) + (softplus(up) + softplus(down)) / 2


@loss(
    "pairs", "Binary Classifier Optimization, both sides", "arXiv 2404.04656", learning_rate=5e-7, reference_point=zero
)
def bco_pair(chosen: Tensor, rejected: Tensor, z0: Tensor, *, beta: float = 0.1) -> Tensor:
    """BCO on pairs: -log sigmoid(beta * (r_chosen - z0)) - log sigmoid(-beta * (r_rejected - z0)).

    `chosen`, `rejected` (P,) log-ratios in nats; `z0` scalar or (P,) in nats, without gradient; beta * z0 is delta.
    Source: arXiv 2404.04656.

    Gradient: beta / 2 for each answer at the reference point, independently of the other.

    Use: as part of a mixture; alone, bco takes single answers as well.

    Choice: TRL from 1.0 on and Liger have no delta, which is the reference point "zero"; LLaMA-Factory's is a running
    mean.
    """
    return softplus(-beta * (chosen - z0)) + softplus(beta * (rejected - z0))


@loss("pairs", "Self-Play Preference Optimization with hard labels", "arXiv 2405.00675, Eq. 4.7", learning_rate=5e-7)
def sppo_hard(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """SPPO with hard labels: (r_chosen - 1 / (2 * beta))^2 + (r_rejected + 1 / (2 * beta))^2.

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2405.00675 Eq. 4.7 with win probabilities 0 and 1.

    Gradient: linear in the distance from the targets +- 1 / (2 * beta), so it corrects overshooting. At the start it is
    1 / beta, 200 times DPO's at beta = 0.1: use a small learning rate.

    Use: rounds of self-play, where the pair are the best and the worst of the policy's own samples.

    Choice: beta 0.1 is TRL's default. The authors train with 0.001, whose targets lie 500 nats from the reference, and
    with win rates in the place of 0 and 1, which is `sppo`.
    """
    target = 1 / (2 * beta)
    return (chosen - target) ** 2 + (rejected + target) ** 2


@loss(
    "pairs",
    "Anchored Preference Optimization: chosen up, rejected down",
    "arXiv 2408.06266, Eq. 7",
    learning_rate=5e-7,
    halo=True,
)
def apo_zero(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-zero: 1 - sigmoid(beta * r_chosen) + sigmoid(beta * r_rejected).

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2408.06266 Eq. 7, which leaves out the constant 1.

    Gradient: -+ beta / 4 at the start, zero far away: the chosen answer goes up, the rejected one down, each by itself.

    Use: chosen answers better than what the policy would say.
    """
    return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


@loss(
    "pairs", "Anchored Preference Optimization: both down, rejected more", "arXiv 2408.06266, Eq. 8", learning_rate=5e-7
)
def apo_down(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """APO-down: sigmoid(beta * r_chosen) + 1 - sigmoid(z), z = beta * (r_chosen - r_rejected).

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2408.06266 Eq. 8.

    Gradient: both answers go down, the rejected one faster: at the start 0 on the chosen side and beta / 4 on the
    rejected side.

    Use: chosen answers worse than what the policy would say, but better than the rejected ones.
    """
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


@loss("pairs", "The discovered log-ratio modulated loss", "arXiv 2406.08414, Eq. 5", learning_rate=5e-7)
def discopop(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, temperature: float = 0.05) -> Tensor:
    """DiscoPOP: (1 - m) * l(z) + m * e^(-z), with m = sigmoid(z / temperature) and l(u) = -log sigmoid(u).

    `chosen`, `rejected` (P,) log-ratios in nats; z = beta * (r_chosen - r_rejected).
    Source: arXiv 2406.08414 Eq. 5, a loss found by search.

    Gradient: the logistic loss's for pairs that are wrong, the exponential loss's for pairs that are right. In between
    it rises for a moment: near z = 0 the loss is not monotone.

    Choice: m * e^(-z) is computed as e^(log sigmoid(z / temperature) - z), since the factors apart give 0 * infinity.
    """
    z = beta * (chosen - rejected)
    mixed = z / temperature
    return (-mixed).sigmoid() * softplus(-z) + exp(logsigmoid(mixed) - z)


@loss("pairs", "DPO-Positive: the chosen answer may not become less likely", "arXiv 2402.13228", learning_rate=5e-7)
def dpop(chosen: Tensor, rejected: Tensor, *, beta: float = 0.3, penalty: float = 50.0) -> Tensor:
    """DPO-positive (Smaug): -log sigmoid(beta * (r_chosen - r_rejected - penalty * max(0, -r_chosen))).

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2402.13228.

    Gradient: DPO's while the chosen answer is as likely as under the reference; below that its log-ratio counts
    1 + penalty times, so the chosen answer is pulled back before the pair is pulled apart.

    Use: pairs that differ in a few tokens, where DPO makes both answers unlikely.

    Choice: the penalty is inside the logarithm, as the formula stands in other implementations that we read; early
    ports added it outside. The formula and beta 0.3, penalty 50 are from memory of the paper.
    """
    # relu rather than clamp: its slope at 0, where training starts, is 0.
    return softplus(-beta * (chosen - rejected - penalty * (-chosen).relu()))


@loss("pairs", "Calibrated DPO: the implied rewards are held at a scale", "arXiv 2412.14516", learning_rate=5e-7)
def cal_dpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """Cal-DPO: -log sigmoid(r_chosen - r_rejected) + ((r_chosen - m)^2 + (r_rejected + m)^2) / 2, m = 1 / (2 * beta).

    `chosen`, `rejected` (P,) log-ratios in nats. The logistic term has no beta.
    Source: arXiv 2412.14516. Strength: A, the authors' code.

    Gradient: the square's, which is linear in the distance from the targets m and -m, so that the chosen answer's
    likelihood may not fall; the logistic term's is at most 1.

    Choice: the authors' configuration has beta 0.002, whose targets lie 250 nats from the reference; 0.1 is what a
    later comparison (arXiv 2605.02626) took in its place.
    """
    target = 1 / (2 * beta)
    return softplus(rejected - chosen) + ((chosen - target) ** 2 + (rejected + target) ** 2) / 2


@loss("pairs", "DPO that asks more where the reference is unsure", "arXiv 2605.20834", learning_rate=5e-7)
def cpo_constrained(
    chosen: Tensor,
    rejected: Tensor,
    chosen_reference_logp: Tensor,
    rejected_reference_logp: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    beta: float = 0.1,
    gamma: float = 0.02,
) -> Tensor:
    """Constrained preference optimization: -log sigmoid(z - gamma * (1 / p_chosen + 1 / p_rejected)).

    `chosen`, `rejected` (P,) log-ratios in nats, summed; `chosen_reference_logp`, `rejected_reference_logp` (P,) the
    reference's log-probs, summed; lengths (P,) in tokens; p is the geometric mean of the reference's probabilities.
    Source: arXiv 2605.20834, whose Eq. 17 puts the reference's probabilities in the place of the optimal policy's.
    Strength: C, an independent derivation with code. It is not CPO (`cpo`).

    Gradient: DPO's, as if the pair began behind by its margin, which is larger for answers that the reference finds
    unlikely. gamma = 0 is DPO.

    Choice: token means are ours. The paper has whole answers' probabilities, whose inverse overflows beyond some dozen
    tokens. gamma 0.02 is that of the independent derivation, which found no gain, and an exact objective that has no
    lower bound for gamma > 0. The inverse of p is continued by its tangent below e^-30.
    """
    up, down = chosen_reference_logp / chosen_length, rejected_reference_logp / rejected_length
    return softplus(gamma * (exp(-up) + exp(-down)) - beta * (chosen - rejected))


@loss("pairs", "Token-level DPO: the KL of both answers counts", "arXiv 2404.11999", learning_rate=5e-7)
def tdpo1(
    chosen: Tensor,
    rejected: Tensor,
    chosen_reference_kl: Tensor,
    rejected_reference_kl: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """TDPO1: -log sigmoid(beta * (r_chosen - r_rejected - (K_rejected - K_chosen))).

    `chosen`, `rejected` (P,) log-ratios in nats; K (P,) is the sum over an answer's tokens of the KL divergence
    KL(pi_ref || pi) of the whole distribution there, in nats, with its gradient.
    Source: arXiv 2404.11999. Strength: A, the authors' code.

    Gradient: DPO's, and the same sigmoid times that of K: the policy leaves the reference along the chosen answer, and
    comes back along the rejected one. At the start K has none.

    Use: where DPO drifts far from the reference. A step costs a pass of the reference and three more of the head.
    """
    return softplus(-beta * (chosen - rejected - (rejected_reference_kl - chosen_reference_kl)))


@loss("pairs", "Token-level DPO that holds the rejected answers' KL", "arXiv 2404.11999", learning_rate=5e-7)
def tdpo2(
    chosen: Tensor,
    rejected: Tensor,
    chosen_reference_kl: Tensor,
    rejected_reference_kl: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Tensor:
    """TDPO2: -log sigmoid(beta * (r_chosen - r_rejected - alpha * (K_rejected - K_chosen))), no gradient in K_chosen.

    `chosen`, `rejected` (P,) log-ratios in nats; K (P,) as in `tdpo1`.
    Source: arXiv 2404.11999. Strength: A, the authors' code.

    Gradient: DPO's and alpha times that of K_rejected, which brings the policy back along the rejected answer. At
    alpha 0 it is DPO.

    Use: as `tdpo1`; the paper finds this one better.
    """
    kl = rejected_reference_kl - chosen_reference_kl.detach()
    return softplus(-beta * (chosen - rejected - alpha * kl))


Divergence: TypeAlias = "Callable[[Tensor], Tensor]"
"""What ties the policy to its reference in f-DPO: a score s(r) in the place of the log-ratio r in nats, (N,) -> (N,),
increasing: f'(e^r) up to a constant, which cancels in the pair. Source: arXiv 2309.16240."""


@choice("divergence")
def reverse_kl(r: Tensor) -> Tensor:
    """r: the reverse KL divergence KL(pi || pi_ref), and with it DPO itself."""
    return r


@choice("divergence")
def forward_kl(r: Tensor) -> Tensor:
    """-e^(-r): the forward KL divergence KL(pi_ref || pi), which forbids the policy to drop what the reference says.

    Choice: e^(-r) overflows by its nature: r is a sum over tokens, and -100 nats are not rare. Below r = -30 it is
    continued by its tangent, so the loss keeps rising and its slope stays at beta * e^30.
    """
    return -exp(-r)


@choice("divergence")
def jensen_shannon(r: Tensor) -> Tensor:
    """log sigmoid(r): the Jensen-Shannon divergence. Linear for unlikely answers, flat for likely ones."""
    return logsigmoid(r)


@choice("divergence")
def alpha_divergence(r: Tensor, *, alpha: float = 0.5) -> Tensor:
    """(e^((alpha - 1) * r) - 1) / (alpha - 1): between the forward KL (alpha = 0) and the reverse KL (alpha = 1, where
    it is r).

    Choice: alpha is TRL's, as is its default: 1 minus the paper's, whose score is (1 - e^(-alpha * r)) / alpha. The two
    agree at 0.5. TRL's score differs by a constant, which cancels. Exponents above 30 are continued by their tangent.
    """
    return r if alpha == 1 else expm1((alpha - 1) * r) / (alpha - 1)


@loss("pairs", "f-DPO: other divergences than the reverse KL", "arXiv 2309.16240", learning_rate=5e-7, halo=True)
def fdpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1, divergence: Divergence = reverse_kl) -> Tensor:
    """f-DPO: -log sigmoid(beta * (s(r_chosen) - s(r_rejected))), with a score s per divergence.

        reverse_kl        r                                        DPO
        forward_kl        -e^(-r)
        jensen_shannon    log sigmoid(r)
        alpha_divergence  (e^((alpha - 1) * r) - 1) / (alpha - 1)

    `chosen`, `rejected` (P,) log-ratios in nats.
    Source: arXiv 2309.16240.

    Gradient: DPO's times s'(r): the forward KL looks hardest at answers that have become unlikely, and Jensen-Shannon
    stops at answers that have become likely.

    Choice: exponents above 30 are continued by their tangent. The alpha is TRL's, 0 the forward KL and 1 the reverse:
    1 minus the paper's.
    """
    return softplus(-beta * (divergence(chosen) - divergence(rejected)))


@loss("pairs", "Identity Preference Optimization on token means", "arXiv 2310.12036", learning_rate=5e-7)
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


@loss("pairs", "Identity Preference Optimization on sums, as printed", "arXiv 2310.12036", learning_rate=5e-7)
def ipo_sum(chosen: Tensor, rejected: Tensor, *, tau: float = 0.1) -> Tensor:
    """IPO as printed: (r_chosen - r_rejected - 1 / (2 * tau))^2.

    `chosen`, `rejected` (P,) log-ratios in nats, summed.
    Source: arXiv 2310.12036 Eq. 17.

    Gradient: linear in the distance from the margin 1 / (2 * tau), in nats per pair; -+ 1 / tau at the start.

    Choice: see `ipo`, which averages over tokens.
    """
    return (chosen - rejected - 1 / (2 * tau)) ** 2


@loss("pairs", "Length-normalised DPO", "arXiv 2411.15124", learning_rate=5e-7, halo=True)
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


@loss("pairs", "DPO with a length penalty", "arXiv 2403.19159", learning_rate=5e-7, halo=True)
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


@loss("pairs", "Length-desensitised DPO", "arXiv 2409.06411", learning_rate=5e-7)
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
    shorter = chosen_offsets.diff().minimum(rejected_offsets.diff())
    up = _desensitised(chosen_token_log_ratio, chosen_offsets, shorter, alpha)
    down = _desensitised(rejected_token_log_ratio, rejected_offsets, shorter, alpha)
    return softplus(-beta * (up - down))


def _desensitised(token_log_ratio: Tensor, offsets: Tensor, shorter: Tensor, alpha: float) -> Tensor:
    """The log-ratio (P,) with every token from number `shorter` on weighted by alpha."""
    index = segment_index(offsets, token_log_ratio)
    surplus = segment_position(offsets, token_log_ratio) >= shorter.to(index.device)[index]
    return segment_sum((alpha * token_log_ratio).where(surplus, token_log_ratio), offsets)
