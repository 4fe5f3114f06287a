"""What to try next: rules that look at a run's figures, each saying what it saw, what that means and what to do.

The thresholds are rules of thumb, the remedies are those of the KTO paper (arXiv 2402.01306, section 4) where it has
one. A rule returns None where the figures it needs are absent or do not call for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prospect.report.curves import ends
from prospect.report.folder import RunFolder, number, section
from prospect.report.verdict import LESS_LIKELY, likelihood_loss

Level = Literal["try", "watch", "expected"]
Rule = Callable[[RunFolder], "Advice | None"]


@dataclass(frozen=True, slots=True)
class Advice:
    """`level`: try (change something), watch (know it), expected (nothing is wrong)."""

    level: Level
    title: str
    reason: str


def advise(run: RunFolder) -> list[Advice]:
    """Everything the rules have to say, what calls for action first."""
    order: tuple[Level, ...] = ("try", "watch", "expected")
    found = [advice for rule in RULES if (advice := rule(run)) is not None]
    return sorted(found, key=lambda advice: order.index(advice.level))


def both_rewards_fall(run: RunFolder) -> Advice | None:
    """Desirable answers are becoming less likely too."""
    _, up = ends(run.series("reward_desirable"))
    _, down = ends(run.series("reward_undesirable"))
    if not (up < -0.1 and down < -0.1):
        return None
    saw = f"Both rewards ended below 0 (desirable {up:+.2f}, undesirable {down:+.2f} β·nats)"
    if not run.has("z0"):
        return Advice(
            "watch",
            "Good answers became less likely too",
            f"{saw}. A loss on pairs only asks for a gap between the two and often lowers both; if the samples got "
            "worse, "
            "lower the learning rate or mix in some SFT.",
        )
    rate = _rate(run)
    return Advice(
        "try",
        f"Lower the learning rate{f' from {rate:.1e} to about {rate / 3:.1e}' if rate else ''}",
        f"{saw}: the model moves away from good and bad answers alike. In KTO that is the sign of too high a learning "
        "rate, "
        "its most sensitive setting.",
    )


def saturated(run: RunFolder) -> Advice | None:
    """Most rows have no gradient left."""
    _, share = ends(run.series("saturated"))
    if not share > 0.5:
        return None
    return Advice(
        "try",
        "Stop earlier, or lower the learning rate",
        f"At the end {_percent(share)} of the rows were saturated: so far from the reference point that the loss "
        "hardly pulls on them. "
        "Further steps mostly memorise the rest. A smaller beta also keeps rows within reach for longer.",
    )


def under_fitted(run: RunFolder) -> Advice | None:
    """The figures of training have hardly moved."""
    _, accuracy = ends(run.series("accuracy"))
    start, end = ends(run.series("loss"))
    stuck = math.isfinite(start) and start > 0 and end > 0.97 * start
    # A run that has blown up does not learn either, but not for lack of steps.
    wild = ends(run.series("saturated"))[1] > 0.2
    if len(run.steps) < 4 or not accuracy < 0.6 or not stuck or wild:
        return None
    beta = run.beta
    return Advice(
        "try",
        f"Train longer: more epochs{f', a beta below {beta:g}' if math.isfinite(beta) else ''} or a higher learning "
        "rate",
        f"The loss went from {start:.3f} to {end:.3f} and {_percent(accuracy)} of the training answers are ranked "
        "right: the model has hardly "
        "learnt. For under-fitting the paper lowers beta and adds epochs; with adapters, the learning rate may also be "
        "too low.",
    )


def over_fitted(run: RunFolder) -> Advice | None:
    """Held-out AUC was better earlier."""
    points = [(number(e, "auc"), number(e, "step")) for e in run.evaluations if math.isfinite(number(e, "auc"))]
    if len(points) < 3 or run.options.get("keep_best"):
        return None
    best, last = max(points), points[-1]
    if best[0] - last[0] < 0.02:
        return None
    return Advice(
        "try",
        f"Stop near step {best[1]:.0f}, or train with --keep-best",
        f"The held-out AUC was {best[0]:.3f} at step {best[1]:.0f} and {last[0]:.3f} at the end: after that the model "
        "learnt the "
        "training answers by heart.",
    )


def not_shown(run: RunFolder) -> Advice | None:
    """The interval of the AUC includes chance."""
    auc = section(run.after, "auc")
    low, high = number(auc, "low"), number(auc, "high")
    if not low <= 0.5 <= high:
        return None
    prompts = number(run.after, "prompts", 0)
    return Advice(
        "try",
        "Hold out more prompts before you believe either way",
        f"With {prompts:.0f} held-out prompts the AUC's interval, {low:.2f} to {high:.2f}, includes 0.5: this data "
        "cannot tell the model's "
        "taste from chance. If more data says the same, the feedback is noisy or the model has not learnt it.",
    )


def length_confound(run: RunFolder) -> Advice | None:
    """Length alone predicts the thumbs."""
    length, auc = section(section(run.after, "baselines"), "length"), number(section(run.after, "auc"), "value")
    value, low, high = number(length, "value"), number(length, "low"), number(length, "high")
    if not (low > 0.5 or high < 0.5) or abs(value - 0.5) < 0.1:
        return None
    kind = "longer" if value > 0.5 else "shorter"
    as_good = abs(value - 0.5) >= abs(auc - 0.5) - 0.02
    return Advice(
        "try" if as_good else "watch",
        f"Check that the model has not only learnt to be {kind}",
        f"Length alone ranks the held-out answers with an AUC of {value:.2f}: people prefer the {kind} ones here"
        + (
            ", and the model's reward is no better than that. Collect thumbs on answers of equal length."
            if as_good
            else "."
        ),
    )


def reference_knew(run: RunFolder) -> Advice | None:
    """The start model's likelihood ranks as well as the trained reward."""
    known = number(section(section(run.after, "baselines"), "reference_logp"), "value")
    auc = number(section(run.after, "auc"), "value")
    if not (known > 0.6 and known >= auc):
        return None
    return Advice(
        "watch",
        "The start model already ranked these answers",
        f"The reference's own log-prob has an AUC of {known:.2f}, the trained reward {auc:.2f}: likely answers were "
        "the liked ones before any "
        "training. Feedback on the model's own answers teaches more than feedback on others'.",
    )


def drifted(run: RunFolder) -> Advice | None:
    """Good answers have become less likely than they were."""
    before, after = number(section(run.before, "nll"), "value"), number(section(run.after, "nll"), "value")
    if not likelihood_loss(run) > LESS_LIKELY:
        return None
    return Advice(
        "try",
        "Hold the model closer to where it started: a lower learning rate or a larger beta",
        f"Held-out answers that people liked cost {after:.2f} nats a token, before training {before:.2f}: the model "
        "has moved away from "
        "them. That can be right when its own answers are better than those, so read the samples first.",
    )


def overconfident(run: RunFolder) -> Advice | None:
    """sigma(reward - z0) is no probability."""
    low = number(section(run.after, "ece"), "low")
    if not low > 0.1:
        return None
    return Advice(
        "watch",
        "Do not read the reward as a probability",
        f"The calibration error is at least {low:.2f}. The ranking can still be right; to use σ(reward − z0) as the "
        "chance of a thumb up, fit a "
        "scale and an offset on held-out feedback first.",
    )


def unbalanced(run: RunFolder) -> Advice | None:
    """One class carries much more than its share."""
    up, down = number(run.arguments, "desirable_weight"), number(run.arguments, "undesirable_weight")
    ratio = max(up, down) / min(up, down) if min(up, down) > 0 else math.nan
    if not ratio > 10:
        return None
    return Advice(
        "watch",
        f"Collect more thumbs {'up' if up > down else 'down'}",
        f"One class is rare, so each of its answers counts {ratio:.0f} times as much as one of the other: a few "
        "mislabelled ones would "
        "steer the run.",
    )


def clipped(run: RunFolder) -> Advice | None:
    """Nearly every gradient is clipped."""
    clip, norms = number(run.options, "clip"), [n for n in run.series("grad_norm") if math.isfinite(n)]
    share = sum(n > clip for n in norms) / len(norms) if norms else math.nan
    if not share > 0.5:
        return None
    return Advice(
        "watch",
        "The clip decides the step length",
        f"{_percent(share)} of the gradients were longer than {clip:g} and were cut to it. Raise --clip, or lower the "
        "learning rate knowingly.",
    )


def z0_rests(run: RunFolder) -> Advice | None:
    """The clamp is active: the usual case."""
    used = [z for z in run.series("z0") if math.isfinite(z)]
    if not used or sum(abs(z) <= 1e-9 for z in used) < 0.5 * len(used) or not run.has("z0_raw"):
        return None
    _, raw = ends(run.series("z0_raw"))
    share = sum(abs(z) <= 1e-9 for z in used) / len(used)
    return Advice(
        "expected",
        "z0 is 0 most of the time, and that is as it should be",
        f"It was 0 in {_percent(share)} of the steps (raw mean at the end: {raw:.2f} nats). z0 averages the log-ratio "
        "on other prompts' answers. "
        "Those come from the data, not from the trained model, and such an average estimates minus a KL divergence: it "
        "falls below 0 as "
        "soon as the model moves, and the clamp then holds z0 at 0. The loss stays a sound one; z0 above 0 would mean "
        "that even "
        "unrelated answers become more likely.",
    )


def unmeasured(run: RunFolder) -> Advice | None:
    """No held-out feedback at all."""
    if run.after or not run.steps:
        return None
    return Advice(
        "try",
        "Hold out some feedback: --eval-fraction 0.1",
        "Training curves only say what the model learnt from answers it has seen. Whether it is better shows on "
        "prompts it has not.",
    )


def _rate(run: RunFolder) -> float:
    """The highest learning rate of the run, 0 where unknown."""
    return max((r for r in run.series("lr") if math.isfinite(r)), default=0.0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


RULES: tuple[Rule, ...] = (
    both_rewards_fall,
    under_fitted,
    over_fitted,
    saturated,
    drifted,
    not_shown,
    length_confound,
    unmeasured,
    reference_knew,
    unbalanced,
    clipped,
    overconfident,
    z0_rests,
)
"""In the order in which equally urgent advice is given."""
