"""Losses on single completions with a score. N completions; log-ratios in nats; every result is (N,), unreduced.

V is what a value head expects of an answer where the prompt ends. It is fitted to the scores while the policy trains.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from prospect.losses.numerics import exp, normal_quantile_of, softplus
from prospect.losses.registry import Term, choice, loss

if TYPE_CHECKING:
    from torch import Tensor

    from prospect.feedback.records import Example

Transform: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""A reward of the quantile q among n answers of the reference, less beta * log Z: (q (N,), n (N,)) -> (N,)."""


def median_score(rows: Sequence[Example]) -> dict[str, float]:
    """TGO's threshold: the median score of the training rows (arXiv 2605.04653)."""
    return {"threshold": float(statistics.median(row.score for row in rows if row.score is not None))}


def score_range(rows: Sequence[Example]) -> dict[str, float]:
    """UNA's range: [0, 1] where all scores of the training rows lie within it, else from their lowest to their
    highest; where these are one number it is in the middle, so that the policy stays where the reference is."""
    scores = [row.score for row in rows if row.score is not None]
    low, high = min(scores), max(scores)
    if low == high and not 0 <= low <= 1:
        return {"lowest": low - 1, "highest": high + 1}
    return {"lowest": 0.0, "highest": 1.0} if low >= 0 and high <= 1 else {"lowest": low, "highest": high}


def value_error(prompt_value: Tensor, score: Tensor, *, value_weight: float = 1.0) -> Tensor:
    """value_weight * (score - V)^2 / 2, (N,) -> (N,), which makes V the mean score of answers to the prompt.

    Gradient: none for the policy, since the value head's does not reach the states that it reads.
    """
    return value_weight * 0.5 * (score - prompt_value) ** 2


VALUE = Term(value_error, "examples", ("prompt_value", "score"))
"""What fits V beside a loss that takes an advantage from it."""


@loss("scores", "Threshold-guided optimization of scored answers", "arXiv 2605.04653", constants=median_score)
def tgo(
    log_ratio: Tensor, score: Tensor, *, beta: float = 1.0, threshold: float = 0.0, confidence: float = 5.0
) -> Tensor:
    """TGO: the cross-entropy of beta * r against "score >= threshold", with w = 1 + confidence * |score - threshold|.

        at or above  -w * log sigmoid(beta * r)
        below        -w * log sigmoid(-beta * r)

    `log_ratio` (N,) in nats, `score` (N,) on any scale.
    Source: arXiv 2605.04653.

    Gradient: -+ w * beta / 2 at the start. The weight grows with the score's distance from the threshold, so put scores
    on a scale of about 1 or lower `confidence`.

    Use: ratings rather than thumbs, when pairs would throw most of them away. The median score is the usual threshold.

    Choice: formula and defaults are known from two summaries of the paper, which agree, not from its text. The paper
    tests it on image models alone.
    """
    gain = log_ratio.where(score >= threshold, -log_ratio)
    return (1 + confidence * (score - threshold).abs()).to(log_ratio.dtype) * softplus(-beta * gain)


@loss(
    "scores",
    "UNA: the implied reward, as a probability, regressed on the score",
    "arXiv 2408.15339",
    constants=score_range,
    learning_rate=3e-5,
)
def una(log_ratio: Tensor, score: Tensor, *, beta: float = 0.03, lowest: float = 0.0, highest: float = 1.0) -> Tensor:
    """UNA with scores: (sigmoid(beta * r) - s)^2, where s = (score - lowest) / (highest - lowest).

    `log_ratio` (N,) in nats, `score` (N,) from `lowest` to `highest`.
    Source: arXiv 2408.15339. Strength: A, the authors' code, which sums over the batch where this is the mean.

    Gradient: 2 * beta * (p - s) * p * (1 - p), p = sigmoid(beta * r): zero where p is s, and far away on both sides.

    Use: scores that grade an answer by itself, on a bounded scale. UNA on thumbs is `bco --reference-point zero` with
    beta 0.01.
    """
    return ((beta * log_ratio).sigmoid() - (score - lowest) / (highest - lowest)) ** 2


@choice("transform")
def log_quantile(q: Tensor, n: Tensor, *, beta: float = 0.003) -> Tensor:
    """log q - beta * log(beta / (1 + beta)), the default of QRPO. q counts as 1 / n at the least."""
    return q.maximum(1 / n).log() - beta * math.log(beta / (1 + beta))


@choice("transform")
def identity_quantile(q: Tensor, n: Tensor, *, beta: float = 0.003) -> Tensor:
    """q - beta * log(beta * (e^(1 / beta) - 1)).

    Choice: exact. The released code leaves out the -1, which at beta 0.1 is 0.00005 of Z, and less below.
    """
    return q - beta * (math.log(beta) + 1 / beta + math.log1p(-math.exp(-1 / beta)))


@choice("transform")
def normal_quantile(q: Tensor, n: Tensor, *, beta: float = 0.003) -> Tensor:
    """The standard normal's quantile of q, less 1 / (2 * beta). q counts as 1 / n at the least and 1 - 1 / n at most,
    and as 1 / 2 among one answer."""
    low = (1 / n).clamp(max=0.5)
    return normal_quantile_of(q.maximum(low).minimum(1 - low)) - 1 / (2 * beta)


@loss(
    "scores",
    "QRPO: the implied reward regressed on the quantile among the reference's answers",
    "arXiv 2507.08068",
    learning_rate=5e-7,
)
def qrpo(
    log_ratio: Tensor,
    reference_quantile: Tensor,
    reference_count: Tensor,
    *,
    beta: float = 0.003,
    transform: Transform = log_quantile,
) -> Tensor:
    """QRPO: (T(q) - beta * log Z - beta * r)^2, where q is the share of n answers of the reference scored no higher.

    `log_ratio` (N,) in nats; `reference_quantile` (N,) is q, `reference_count` (N,) is n.
    Source: arXiv 2507.08068. Strength: A, the authors' code: beta 0.003 and six answers a prompt.

    Gradient: -2 * beta * (T(q) - beta * log Z - beta * r): zero where r is what the best policy's would be.

    Use: scores of any scale, if the reference has answered every prompt a few times and those answers are scored.

    Choice: `transform` is log_quantile (published), identity_quantile or normal_quantile, each with its log Z.
    """
    return (transform(reference_quantile, reference_count) - beta * log_ratio) ** 2


@loss("scores", "DRO-V: policy and value regressed on the score together", "arXiv 2405.19107")
def dro_v(log_ratio: Tensor, score: Tensor, prompt_value: Tensor, *, tau: float = 1.0) -> Tensor:
    """DRO-V: (s - V - tau * r)^2 / 2, with the value V of the prompt learnt by the same term.

    `log_ratio` (N,) in nats; `score` (N,); `prompt_value` (N,) is V at the prompt's last token.
    Source: arXiv 2405.19107. Strength: B, a trainer on TRL that is not the authors'; tau from memory.

    Gradient: -tau * (s - V - tau * r) in r, and -(s - V - tau * r) in V: zero where the policy's own reward explains
    by how much an answer is better than the prompt's mean.

    Use: scores (or thumbs, as scores of 1 and -1) where most prompts have one answer.

    Choice: that implementation divides the policy's learning rate by tau; this is the formula as it stands,
    which at tau 1 is the same. Its value network is a second model, V here a head on the policy's own states.
    """
    return 0.5 * (score - prompt_value - tau * log_ratio) ** 2


@loss(
    "scores",
    "A-LoL: likelihood of answers better than expected, weighed by their advantage",
    "arXiv 2305.14718",
    beside=(VALUE,),
)
def a_lol(logp: Tensor, log_ratio: Tensor, score: Tensor, prompt_value: Tensor, *, clip: float = 0.9) -> Tensor:
    """A-LoL: -clamp(pi / pi_ref, 1 - clip, 1 + clip) * max(A, 0) * log pi(y|x), A = score - V.

    `logp`, `log_ratio` (N,) in nats of the whole answer; `score` (N,); `prompt_value` (N,) is V. Ratio and A carry no
    gradient.
    Source: arXiv 2305.14718. Strength: A, the authors' code.

    Gradient: -ratio * A in log pi, and none for answers that are no better than V.

    Use: scored answers of unlike quality, where only the good ones are to be imitated.

    Choice: the authors fit V beforehand on the frozen model and draw answers in proportion to A; here V learns beside
    the policy, and every answer comes once an epoch.
    """
    return -_ratio(log_ratio, clip) * (score - prompt_value.detach()).relu() * logp


@loss("scores", "R-LoL: likelihood of every answer, weighed by its score", "arXiv 2305.14718")
def r_lol(logp: Tensor, log_ratio: Tensor, score: Tensor, *, clip: float = 0.9) -> Tensor:
    """R-LoL: -clamp(pi / pi_ref, 1 - clip, 1 + clip) * score * log pi(y|x), A-LoL with the score for the advantage.

    `logp`, `log_ratio` (N,) in nats of the whole answer; `score` (N,). The ratio carries no gradient.
    Source: arXiv 2305.14718. Strength: A, the authors' code.

    Gradient: -ratio * score in log pi. A score below 0 makes its answer unlikely without a bound.

    Use: a baseline for A-LoL, with scores of 0 and more.
    """
    return -_ratio(log_ratio, clip) * score * logp


def _ratio(log_ratio: Tensor, clip: float) -> Tensor:
    """pi / pi_ref of whole answers, clamped, without gradient."""
    return exp(log_ratio.detach()).clamp(1 - clip, 1 + clip)


@loss("scores", "Advantage-weighted regression", "arXiv 1910.00177", beside=(VALUE,))
def awr(logp: Tensor, score: Tensor, prompt_value: Tensor, *, beta: float = 1.0, max_weight: float = 20.0) -> Tensor:
    """AWR: -min(e^(A / beta), max_weight) * log pi(y|x), A = score - V without gradient.

    `logp` (N,) in nats, `score` (N,), `prompt_value` (N,) is V.
    Source: arXiv 1910.00177, each answer being one action. Strength: from memory, the cap of 20 with it.

    Gradient: -weight in log pi: every answer is imitated, the better the more, and one far below V hardly.

    Use: scored answers without a reference pass. A small `beta` imitates the best ones alone.

    Choice: V is the value head, fitted beside the policy.
    """
    advantage = score - prompt_value.detach()
    return -exp(advantage / beta).clamp(max=max_weight) * logp
