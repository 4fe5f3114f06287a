"""What to try next: a table of rules, each with what it looks at, what to do, why, and where that is from.

The thresholds are rules of thumb and live in evidence.py; the remedies are those of the KTO paper (arXiv 2402.01306)
where it has one. Where the figures that a rule needs are absent, its condition does not hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prospect.report.evidence import Evidence
from prospect.report.folder import RunFolder

Level = Literal["try", "watch", "expected"]
KTO = "arXiv 2402.01306, section 4.2"
JUDGEMENT = "our judgement"


@dataclass(frozen=True, slots=True)
class Advice:
    """`level`: try (change something), watch (know it), expected (nothing is wrong)."""

    level: Level
    title: str
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Advice to be given where `when` holds. `title` and `reason` are filled in by str.format with the Evidence `e`."""

    name: str
    level: Level
    when: Callable[[Evidence], bool]
    title: str
    reason: str
    source: str = JUDGEMENT


def advise(run: RunFolder) -> list[Advice]:
    """Everything the rules have to say, what calls for action first."""
    order: tuple[Level, ...] = ("try", "watch", "expected")
    rules = sorted(holding(run), key=lambda rule: order.index(rule.level))
    e = Evidence(run)
    return [Advice(rule.level, _filled(rule.title, e), _filled(rule.reason, e), rule.source) for rule in rules]


def holding(run: RunFolder) -> list[Rule]:
    """The rules whose condition holds."""
    e = Evidence(run)
    return [rule for rule in RULES if rule.when(e)]


def _filled(text: str, e: Evidence) -> str:
    return " ".join(re.sub(r"(?<=\d)%", " %", text.format(e=e)).split())  # parts that have nothing to say are empty


def _too_far(e: Evidence) -> bool:
    """The model has moved away from good answers: liked held-out ones are much less likely, or training ones less
    likely while nothing shows that the model learnt from them."""
    return not e.still and (e.harmed or (e.both_fall and e.run.has("z0") and e.effect != "learnt"))


def _too_little(e: Evidence) -> bool:
    """The model has hardly been trained."""
    return e.still or (e.stuck and e.effect not in ("learnt", "free", "reversed") and not e.both_fall and not e.harmed)


def _length_tells(e: Evidence) -> bool:
    """Whether length alone ranks the held-out answers by a margin worth naming."""
    length = e.baseline("length")
    return (length.low > 0.5 or length.high < 0.5) and abs(length.value - 0.5) >= 0.1


HARM = (
    "Held-out answers that people liked cost {e.nll_change.value:+.2f} nats a token against before training, "
    "{e.nll.value:.2f} now: the model has moved away from them. That can be right when its own answers are better than "
    "those, so read the samples first."
)
FALL = (
    "Both rewards ended below 0 (desirable {e.reward_up:+.2f}, undesirable {e.reward_down:+.2f} β·nats): the model "
    "moves away from good and bad answers alike. In KTO that is the sign of too high a learning rate, its most "
    "sensitive setting."
)
LITTLE = (
    "{e.movement} {e.training_loss} The model has hardly been trained. For under-fitting the paper lowers beta and "
    "adds epochs."
)
SATURATED = (
    "At the end {e.saturated:.0%} of the rows were saturated: so far from the reference point that the loss hardly "
    "pulls on them. Further steps mostly go to the rest. A smaller beta keeps rows within reach for longer."
)

RULES: tuple[Rule, ...] = (
    Rule(
        "lower_rate_for_liked",
        "try",
        lambda e: _too_far(e) and e.harmed and math.isfinite(e.lower_rate),
        "Lower the learning rate from {e.rate:.1e} to about {e.lower_rate:.1e}",
        HARM,
        KTO,
    ),
    Rule(
        "hold_closer_for_liked",
        "try",
        lambda e: _too_far(e) and e.harmed and math.isnan(e.lower_rate),
        "Hold the model closer to where it started: a larger beta, or fewer epochs",
        HARM,
    ),
    Rule(
        "lower_rate",
        "try",
        lambda e: _too_far(e) and not e.harmed and math.isfinite(e.lower_rate),
        "Lower the learning rate from {e.rate:.1e} to about {e.lower_rate:.1e}",
        FALL,
        KTO,
    ),
    Rule(
        "hold_closer",
        "try",
        lambda e: _too_far(e) and not e.harmed and math.isnan(e.lower_rate),
        "Hold the model closer to where it started: a larger beta, or fewer epochs",
        FALL,
    ),
    Rule(
        "raise_rate",
        "try",
        lambda e: _too_little(e) and math.isfinite(e.higher_rate),
        "Raise the learning rate from {e.rate:.1e} to about {e.higher_rate:.1e}",
        LITTLE,
    ),
    Rule(
        "train_longer",
        "try",
        lambda e: _too_little(e) and math.isnan(e.higher_rate),
        "Train longer: more epochs, or a smaller beta",
        LITTLE,
        KTO,
    ),
    Rule(
        "over_fitted",
        "try",
        lambda e: e.best[0] - e.best[2] >= 0.02 and not e.still and not e.run.options.get("keep_best"),
        "Stop near step {e.best[1]:.0f}, or train with --keep-best",
        "The held-out AUC was {e.best[0]:.3f} at step {e.best[1]:.0f} and {e.best[2]:.3f} at the end: after that the "
        "model learnt the training answers by heart.",
    ),
    Rule(
        "saturated",
        "try",
        lambda e: e.saturated > 0.5 and not e.still and e.effect != "learnt",
        "Train for fewer steps, or with a smaller beta",
        SATURATED,
    ),
    Rule(
        "saturated_and_learnt",
        "watch",
        lambda e: e.saturated > 0.5 and e.effect == "learnt",
        "Fewer steps may do as well",
        SATURATED,
    ),
    Rule(
        "check_labels",
        "try",
        lambda e: e.effect == "reversed",
        "Check which thumb is which",
        "The whole interval of the AUC, {e.auc.low:.2f} to {e.auc.high:.2f}, lies below 0.5: the reward is higher for "
        "what people dislike. Training and held-out feedback may use the labels the other way round.",
    ),
    Rule(
        "hold_out_more",
        "try",
        lambda e: e.effect in ("few", "unclear"),
        "Hold out more prompts before you believe either way",
        "{e.groups:.0f} separate held-out prompts leave the AUC between {e.auc.low:.2f} and {e.auc.high:.2f}: too wide "
        "to tell what was learnt from chance or from what was there. If more data says the same, the feedback is noisy "
        "or the model has not learnt it.",
    ),
    Rule(
        "hold_out_more_for_lead",
        "try",
        lambda e: e.effect == "free" and e.lead.high > 0,
        "Hold out more prompts before you believe either way",
        "{e.groups:.0f} separate held-out prompts leave the difference to {e.hardest_words} between {e.lead.low:+.2f} "
        "and {e.lead.high:+.2f}: too wide to tell what was learnt from what was there for free.",
    ),
    Rule(
        "only_length",
        "try",
        lambda e: _length_tells(e) and e.effect == "free" and not e.lead_over("length").low > 0,
        "Check that the model has not only learnt the length of answers",
        "Length alone ranks the held-out answers with an AUC of {e.length.value:.2f} (below 0.5: people prefer the "
        "shorter ones), and the reward is not shown to do better. Collect thumbs on answers of equal length.",
    ),
    Rule(
        "length_too",
        "watch",
        lambda e: _length_tells(e) and e.lead_over("length").low > 0 and e.effect in ("learnt", "free"),
        "People's taste goes with the length of answers here",
        "Length alone ranks the held-out answers with an AUC of {e.length.value:.2f} (below 0.5: people prefer the "
        "shorter ones). The reward does better, but some of it may be length.",
    ),
    Rule(
        "unmeasured",
        "try",
        lambda e: not e.run.after and bool(e.run.steps),
        "Hold out some feedback: --eval-fraction 0.1",
        "Training curves only say what the model learnt from answers it has seen. Whether it is better shows on "
        "prompts it has not.",
    ),
    Rule(
        "chosen_by_the_same",
        "watch",
        lambda e: e.chosen,
        "Measure the kept model on other feedback: prospect eval",
        "--keep-best took the best of several models by the held-out answers that the figures here come from. The best "
        "of several is lucky as well as good.",
    ),
    Rule(
        "start_model_knew",
        "watch",
        lambda e: e.effect == "free" and not e.lead_over("reference_logp").low > 0 and e.known.value > 0.6,
        "The start model already ranked these answers",
        "Its own log-prob has an AUC of {e.known.value:.2f}, the trained reward {e.auc.value:.2f}: likely answers were "
        "the liked ones before any training. Feedback on the model's own answers teaches more than on others'.",
    ),
    Rule(
        "both_fall_on_pairs",
        "watch",
        lambda e: e.both_fall and not e.still and not _too_far(e) and not e.run.has("z0"),
        "Good answers became less likely too",
        "Both rewards ended below 0 (desirable {e.reward_up:+.2f}, undesirable {e.reward_down:+.2f} β·nats). A loss on "
        "pairs only asks for a gap between the two and often lowers both; if the samples got worse, mix in some SFT.",
    ),
    Rule(
        "both_fall_and_learnt",
        "watch",
        lambda e: e.both_fall and not e.still and not _too_far(e) and e.run.has("z0"),
        "Good training answers became less likely too",
        "Both rewards ended below 0 (desirable {e.reward_up:+.2f}, undesirable {e.reward_down:+.2f} β·nats), yet the "
        "model tells held-out answers apart and did not lose the liked ones. Read the samples.",
    ),
    Rule(
        "unbalanced",
        "watch",
        lambda e: max(e.imbalance, 1 / e.imbalance) > 10,
        "Collect more of the rarer thumb",
        "Each thumb up counts {e.imbalance:.3g} times as much as a thumb down: a few mislabelled answers of the rarer "
        "kind would steer the run.",
    ),
    Rule(
        "clipped",
        "watch",
        lambda e: e.clipped > 0.5,
        "The clip decides the step length",
        "{e.clipped:.0%} of the gradients were longer than {e.clip:g} and were cut to it. A larger --clip gives the "
        "learning rate its meaning back.",
    ),
    Rule(
        "no_probability",
        "watch",
        lambda e: not e.still and (e.slope.high < 0.8 or e.slope.low > 1.25 or e.gap.low > 0.1 or e.gap.high < -0.1),
        "Do not read the reward as a probability",
        "Its calibration slope is {e.slope.value:.2f} (1 is calibrated, below 1 too extreme) and σ(reward − z0) lies "
        "{e.gap.value:+.2f} beside the share of thumbs up. The ranking can still be right; to use it as the chance of "
        "a thumb up, fit a scale and an offset on held-out feedback first.",
        "Cox, Biometrika 45, 1958",
    ),
    Rule(
        "z0_rests",
        "expected",
        lambda e: e.z0_at_rest >= 0.5 and not e.still,
        "z0 is 0 most of the time, and that is as it should be",
        "It was 0 in {e.z0_at_rest:.0%} of the steps (raw mean at the end: {e.z0_raw:.2f} nats). z0 averages the "
        "log-ratio on other prompts' answers. Those come from the data, not from the trained model, and such a mean "
        "estimates minus a KL divergence: it falls below 0 as soon as the model moves, and the clamp then holds z0 at "
        "0. The loss stays a sound one; z0 above 0 would mean that even unrelated answers become more likely.",
        "arXiv 2402.01306, section 4.1",
    ),
)
"""In the order in which equally urgent advice is given."""
