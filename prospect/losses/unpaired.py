"""Losses on single completions with a thumb. N completions; log-ratios in nats; every result is (N,), unreduced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from prospect.losses.likelihood import NLL
from prospect.losses.numerics import logsigmoid as log_sigmoid
from prospect.losses.numerics import softplus, xlogx
from prospect.losses.reference_point import mismatched, mismatched_logp, running_mean
from prospect.losses.registry import Term, choice, loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from prospect.feedback.records import Example


Value: TypeAlias = "Callable[[Tensor], Tensor]"
"""What an outcome u = +-beta * (r - z0) is worth to a person: (N,) -> (N,), non-decreasing, 0 or 1/2 or log(1/2) at the
reference point, concave in gains."""


@choice("value")
def logistic(u: Tensor) -> Tensor:
    """sigmoid(u), as published: arXiv 2402.01306 Eq. 8. Concave in gains, convex in losses, saturating in both.

    Use: the default; answers far from the reference point on either side no longer move the policy.
    """
    return u.sigmoid()


@choice("value")
def logsigmoid(u: Tensor) -> Tensor:
    """log sigmoid(u), the "concave" ablation of arXiv 2402.01306: concave everywhere, so losses are never forgiven.

    Gradient: tends to 1 in losses where the logistic's tends to 0, as DPO's does; mislabelled answers keep pulling.
    """
    return log_sigmoid(u)


@choice("value")
def identity(u: Tensor) -> Tensor:
    """u itself, the "risk-neutral" ablation of arXiv 2402.01306: no saturation at all.

    Use: ablations only. The loss has no lower bound, and the paper finds it to ruin the model (BBH 6.1 against 52.6).
    """
    return u


@choice("value")
def hinge(u: Tensor) -> Tensor:
    """min(u, 1): gains count up to 1 and no further; losses count in full.

    Choice: not in the paper. It is the value function whose loss max(0, 1 - u) is the hinge loss.
    """
    return u.clamp(max=1)


@choice("value")
def power(u: Tensor, *, alpha: float = 0.88, loss_aversion: float = 2.25, floor: float = 1e-2) -> Tensor:
    """Tversky and Kahneman's value function of 1992: f(u) in gains, -loss_aversion * f(-u) in losses, with

        f(x) = (x + floor)^alpha - floor^alpha

    Source: Eq. 4 of arXiv 2402.01306, with the median fits alpha 0.88 and loss aversion 2.25.
    Choice: the published f(x) = x^alpha has an infinite slope at the reference point, where training starts. `floor`
    makes the slope alpha * floor^(alpha - 1), 1.53 by default.
    """
    gain = u >= 0
    # where() rather than abs(): the slope of abs at 0 is 0, and nothing would be learnt from an untrained policy.
    size = u.where(gain, -u)
    felt: Tensor = (size + floor) ** alpha - floor**alpha
    return felt.where(gain, -loss_aversion * felt)


def _lost(value: Value, u: Tensor) -> Tensor:
    """1 - value(u); the logistic's as sigmoid(-u), which keeps its digits where the loss saturates."""
    return (-u).sigmoid() if value is logistic else 1 - value(u)


def balanced_weights(rows: Sequence[Example]) -> dict[str, float]:
    """lambda_D, lambda_U with lambda_D * sum(w_D) = lambda_U * sum(w_U), the majority side staying at 1.

    The lower end of arXiv 2402.01306 Eq. 9, lambda_D n_D / (lambda_U n_U) in [1, 3/2].
    """
    up = sum(row.weight for row in rows if row.desirable)
    down = sum(row.weight for row in rows if not row.desirable)
    if up == 0 or down == 0:
        return {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return {"desirable_weight": max(1.0, down / up), "undesirable_weight": max(1.0, up / down)}


def target_kl(target: Tensor, target_logp: Tensor, *, kl_weight: float = 1.0) -> Tensor:
    """kl_weight * sum_k q_k * (log q_k - log p_k), the KL divergence of the policy from a target at one token, (N,).

    `target` (N, K) are the probabilities q of K tokens, 0 where a row has fewer; `target_logp` (N, K) the policy's
    log-probs of these in nats, of its whole distribution: what it gives to other tokens counts against it.
    Source: arXiv 2604.05756. Strength: A, the authors' code: at the last token of the prompt, weight 1, lambda 1.

    Gradient: -kl_weight * q_k in log p_k: p is drawn to q, whatever the thumbs say.

    Use: desirable answers whose first words ought to be spread in a known way, such as labels without bias.
    """
    return kl_weight * (xlogx(target) - target * target_logp).sum(-1)


TARGET = Term(target_kl, "examples", ("target", "target_logp"), rows="desirable")
"""A distribution to aim at, beside the thumbs."""


@loss(
    "binary",
    "KTO, and a distribution over answers to aim at",
    "arXiv 2604.05756",
    name="kto_target",
    reference_point=mismatched,
    learning_rate=1e-6,
    beside=(TARGET,),
)
@loss(
    "binary",
    "Kahneman-Tversky Optimization: the utility of each answer, from a thumb",
    "arXiv 2402.01306, Eq. 8",
    reference_point=mismatched,
    constants=balanced_weights,
    halo=True,
)
def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    z0: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    value: Value = logistic,
) -> Tensor:
    """KTO: lambda_y - v(x, y), the human value of each answer lost against the best one.

    `log_ratio` (N,) is r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the completion; `desirable` (N,) bool;
    `z0` a scalar or (N,) in nats, the reference point, expected without gradient. With lambda the weight of the class:

        desirable    lambda_D * (1 - sigmoid(beta * (r - z0)))
        undesirable  lambda_U * (1 - sigmoid(beta * (z0 - r)))

    Source: arXiv 2402.01306 (v4) Eq. 8; the gradient is its Eq. 10. 1 - sigmoid(u) is computed as sigmoid(-u), which
    keeps its digits where the loss saturates.

    Gradient: -+ lambda * beta * sigmoid(u) * sigmoid(-u) in r: largest at the reference point (beta / 4), zero far away
    on both sides. So answers that look hopelessly mislabelled are ignored, and so are those already learnt.

    Use: thumbs, one answer per prompt or many, classes of any size. With few of one thumb, raise that thumb's weight:
    lambda_D n_D / (lambda_U n_U) in [1, 3/2] (Eq. 9).

    Choice: `value` takes the place of the sigmoid, for ablations: logistic (published), logsigmoid, identity, hinge or
    power. `beta` then scales what it sees.
    """
    gain = (log_ratio - z0).where(desirable, z0 - log_ratio)
    return _class_weight(desirable, log_ratio, desirable_weight, undesirable_weight) * _lost(value, beta * gain)


@loss("binary", "KTO without a reference model", "arXiv 2402.01306", reference_point=mismatched_logp)
def kto_surprisal(
    logp: Tensor,
    length: Tensor,
    desirable: Tensor,
    z0: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.75,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO without a reference model: lambda_y * (1 - sigmoid(+-beta * (a - z0))), a the mean log-prob of a token.

    `logp` (N,) log pi(y|x) in nats, summed; `length` (N,) tokens; `desirable` (N,) bool; `z0` scalar or (N,): the mean
    of a over mismatched pairs, neither clamped nor differentiated.
    Source: the memory-saving variant of arXiv 2402.01306, where a uniform reference model makes r a surprisal. The
    paper writes it in its own notation; the length average and the unclamped z0 are those of the authors' code.

    Gradient: KTO's, divided by the length.

    Use: where a reference pass is too dear. The paper finds it a little behind KTO at a desirable weight of 1.75, the
    default here, and several points worse at 1.5 or 2.0.
    """
    gain = (logp / length - z0).where(desirable, z0 - logp / length)
    return _class_weight(desirable, logp, desirable_weight, undesirable_weight) * (-beta * gain).sigmoid()


@loss("binary", "KTO with its reference point at zero", "arXiv 2408.06266", constants=balanced_weights, halo=True)
def apo_zero_unpaired(
    log_ratio: Tensor,
    desirable: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """APO-zero on single answers: 1 - sigmoid(beta * r) for desirable ones, sigmoid(beta * r) for undesirable ones.

    `log_ratio` (N,) in nats, `desirable` (N,) bool. It is KTO with z0 = 0.
    Source: arXiv 2408.06266, the unpaired variant.

    Gradient: -+ beta / 4 at the start, zero far away on both sides.

    Use: where KTO's reference point would be 0 anyway: right after supervised fine-tuning on the same data.
    """
    gain = log_ratio.where(desirable, -log_ratio)
    return _class_weight(desirable, log_ratio, desirable_weight, undesirable_weight) * (-beta * gain).sigmoid()


@loss(
    "binary",
    "BCO with density-ratio weights on the undesirable",
    "arXiv 2404.04656",
    name="bco_density",
    reference_point=running_mean,
    learning_rate=5e-7,
    density_weights=True,
)
@loss("binary", "Binary Classifier Optimization", "arXiv 2404.04656", reference_point=running_mean, learning_rate=5e-7)
def bco(log_ratio: Tensor, desirable: Tensor, z0: Tensor, *, beta: float = 0.1) -> Tensor:
    """BCO: the cross-entropy of a classifier of thumbs whose logit is beta * r - delta, with delta = beta * z0.

        desirable    -log sigmoid(beta * (r - z0))
        undesirable  -log sigmoid(-beta * (r - z0))

    `log_ratio` (N,) in nats, `desirable` (N,) bool, `z0` scalar or (N,) in nats, without gradient.
    Source: arXiv 2404.04656.

    Gradient: -+ beta * sigmoid(-u): beta / 2 at the reference point, and beta, not 0, for an answer far on the wrong
    side. It never gives a mislabelled answer up, where KTO does.

    Use: clean thumbs with both classes on similar prompts.

    Choice: the paper's delta is the mean of the two classes' mean beta * r, kept as a moving average (`class_means`);
    TRL takes the running mean over both classes together, which differs where one class is larger. The estimator of the
    reference point decides, in nats; the loss only multiplies it by beta. With `zero` and beta 0.01 it is UNA on thumbs
    (arXiv 2408.15339).
    """
    gain = (log_ratio - z0).where(desirable, z0 - log_ratio)
    return softplus(-beta * gain)


def retain(token_reference_kl: Tensor, *, retain_weight: float = 1.0) -> Tensor:
    """retain_weight * KL(pi_ref || pi) of the whole distribution at each token, in nats, (T,) -> (T,).

    Source: arXiv 2404.05868, the authors' retain term "KL". Strength: A, their code.

    Gradient: that of the KL, 0 at the start: it brings the policy back where it has left the reference.

    Choice: the mean is over all tokens of the answers to retain in the step.
    """
    return retain_weight * token_reference_kl


RETAIN = Term(retain, "tokens", ("token_reference_kl",), rows="desirable")
"""What holds the policy to the reference on the answers to keep."""


@loss(
    "binary",
    "Negative Preference Optimization: unlearn the bad, stay with the reference on the good",
    "arXiv 2404.05868",
    name="npo_kl",
    rows="undesirable",
    beside=(RETAIN,),
)
@loss(
    "binary",
    "Negative Preference Optimization: unlearn the bad, keep the good",
    "arXiv 2404.05868",
    rows="undesirable",
    beside=(NLL,),
)
def npo(log_ratio: Tensor, *, beta: float = 0.1) -> Tensor:
    """NPO: (2 / beta) * log(1 + e^(beta * r)), the part of DPO that speaks of the rejected answer.

    `log_ratio` (N,) in nats of the answers to unlearn.
    Source: arXiv 2404.05868.

    Gradient: 2 * sigmoid(beta * r): 1 at the start, as in gradient ascent on the likelihood, and 0 once the answer has
    become unlikely. As beta -> 0 it stays 1 for ever, which is gradient ascent.

    Use: unlearning, on undesirable answers alone, with a second term that retains the rest.

    Choice: log-probs are summed, as in the authors' code, not averaged.
    """
    return 2 / beta * softplus(beta * log_ratio)


def _class_weight(desirable: Tensor, like: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """lambda_D or lambda_U per completion, (N,) in the dtype of `like`."""
    # Filled: to copy two numbers to a CUDA device the host would wait for all that it still has to do.
    weight = like.new_full(desirable.shape, undesirable_weight)
    return weight.masked_fill_(desirable, desirable_weight)
