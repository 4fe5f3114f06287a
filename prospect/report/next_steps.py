"""What to try next: rules on what a run has shown, by what they call for.

The thresholds are rules of thumb and live in evidence.py; the remedies are those of the KTO paper (arXiv 2402.01306)
where it has one. Where the figures that a rule needs are absent, its condition does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from prospect.evaluate.advice import Advice, Rule
from prospect.evaluate.advice import advise as advice_of
from prospect.report.evidence import RunFolder
from prospect.report.verdict import Sentences

Level = Literal["try", "watch", "expected"]
"""Change something; know something; nothing is wrong."""
E = Sentences
KTO = "arXiv 2402.01306, section 4.2"


def advise(run: RunFolder) -> list[tuple[Level, Advice]]:
    """All that the rules have to say, what calls for action first."""
    e = Sentences(run)
    return [(level, advice) for level, rules in RULES.items() for advice in advice_of(rules, e)]


LIKED_COST_MORE = (
    "Held-out answers that people liked cost {nll_change.value:+.2f} nats a token against before training, "
    "{nll.value:.2f} now: the model has moved away from them. That can be right when its own answers are better than "
    "those, so read the samples first."
)
BOTH_REWARDS_FELL = (
    "Both rewards ended below 0 (desirable {reward_up:+.2f}, undesirable {reward_down:+.2f} β·nats): the model moves "
    "away from good and bad answers alike. In KTO that is the sign of too high a learning rate, its most sensitive "
    "setting."
)
HARDLY_TRAINED = (
    "{movement} {training_loss} The model has hardly been trained. For under-fitting the paper lowers beta and adds "
    "epochs."
)
ROWS_SATURATED = (
    "At the end {saturated:.0%} of the rows were saturated: so far from the reference point that the loss hardly pulls "
    "on them. Further steps mostly go to the rest. A smaller beta keeps rows within reach for longer."
)
LOWER_RATE = "Lower the learning rate from {rate:.1e} to about {lower_rate:.1e}"
HOLD_CLOSER = "Hold the model closer to where it started: a larger beta, or fewer epochs"
HOLD_OUT_MORE = "Hold out more prompts before you believe either way"

TRY: tuple[Rule[E], ...] = (
    Rule(
        "lower_rate_for_liked",
        lambda e: e.too_far and e.harm and math.isfinite(e.lower_rate),
        LOWER_RATE,
        LIKED_COST_MORE,
        KTO,
        "medium",
    ),
    Rule(
        "hold_closer_for_liked",
        lambda e: e.too_far and e.harm and math.isnan(e.lower_rate),
        HOLD_CLOSER,
        LIKED_COST_MORE,
    ),
    Rule(
        "lower_rate",
        lambda e: e.too_far and not e.harm and math.isfinite(e.lower_rate),
        LOWER_RATE,
        BOTH_REWARDS_FELL,
        KTO,
        "medium",
    ),
    Rule(
        "hold_closer", lambda e: e.too_far and not e.harm and math.isnan(e.lower_rate), HOLD_CLOSER, BOTH_REWARDS_FELL
    ),
    Rule(
        "raise_rate",
        lambda e: e.too_little and math.isfinite(e.higher_rate),
        "Raise the learning rate from {rate:.1e} to about {higher_rate:.1e}",
        HARDLY_TRAINED,
    ),
    Rule(
        "train_longer",
        lambda e: e.too_little and math.isnan(e.higher_rate),
        "Train longer: more epochs, or a smaller beta",
        HARDLY_TRAINED,
        KTO,
        "medium",
    ),
    Rule(
        "over_fitted",
        lambda e: e.best_auc - e.last_auc >= 0.02 and not e.still and not e.run.options.get("keep_best"),
        "Stop near step {best_step:.0f}, or train with --keep-best",
        "The held-out AUC was {best_auc:.3f} at step {best_step:.0f} and {last_auc:.3f} at the end: after that the "
        "model learnt the training answers by heart.",
    ),
    Rule(
        "saturated",
        lambda e: e.saturated > 0.5 and not e.still and e.effect != "learnt",
        "Train for fewer steps, or with a smaller beta",
        ROWS_SATURATED,
    ),
    Rule(
        "check_labels",
        lambda e: e.effect == "reversed",
        "Check which thumb is which",
        "The whole interval of the AUC, {auc.low:.2f} to {auc.high:.2f}, lies below 0.5: the reward is higher for what "
        "people dislike. Training and held-out feedback may use the labels the other way round.",
        confidence="high",
    ),
    Rule(
        "hold_out_more",
        lambda e: e.effect in ("few", "unclear"),
        HOLD_OUT_MORE,
        "{groups:.0f} separate held-out prompts leave the AUC between {auc.low:.2f} and {auc.high:.2f}: too wide to "
        "tell what was learnt from chance or from what was there. If more data says the same, the feedback is noisy or "
        "the model has not learnt it.",
        confidence="high",
    ),
    Rule(
        "hold_out_more_for_lead",
        lambda e: e.effect == "free" and e.lead.high > 0,
        HOLD_OUT_MORE,
        "{groups:.0f} separate held-out prompts leave the difference to {hardest_words} between {lead.low:+.2f} and "
        "{lead.high:+.2f}: too wide to tell what was learnt from what was there for free.",
        confidence="high",
    ),
    Rule(
        "only_length",
        lambda e: e.length_tells and e.effect == "free" and not e.length_lead.low > 0,
        "Check that the model has not only learnt the length of answers",
        "Length alone ranks the held-out answers with an AUC of {length.value:.2f} (below 0.5: people prefer the "
        "shorter ones), and the reward is not shown to do better. Collect thumbs on answers of equal length.",
        confidence="medium",
    ),
    Rule(
        "unmeasured",
        lambda e: not e.run.after and bool(e.run.steps),
        "Hold out some feedback: --eval-fraction 0.1",
        "Training curves only say what the model learnt from answers it has seen. Whether it is better shows on "
        "prompts it has not.",
        confidence="high",
    ),
)
WATCH: tuple[Rule[E], ...] = (
    Rule(
        "saturated_and_learnt",
        lambda e: e.saturated > 0.5 and e.effect == "learnt",
        "Fewer steps may do as well",
        ROWS_SATURATED,
    ),
    Rule(
        "length_too",
        lambda e: e.length_tells and e.length_lead.low > 0 and e.effect in ("learnt", "free"),
        "People's taste goes with the length of answers here",
        "Length alone ranks the held-out answers with an AUC of {length.value:.2f} (below 0.5: people prefer the "
        "shorter ones). The reward does better, but some of it may be length.",
        confidence="high",
    ),
    Rule(
        "chosen_by_the_same",
        lambda e: e.selection,
        "Measure the kept model on other feedback: prospect eval",
        "--keep-best took the best of several models by the held-out answers that the figures here come from. The best "
        "of several is lucky as well as good.",
        confidence="high",
    ),
    Rule(
        "start_model_knew",
        lambda e: e.effect == "free" and not e.likelihood_lead.low > 0 and e.likelihood.value > 0.6,
        "The start model already ranked these answers",
        "Its own log-prob has an AUC of {likelihood.value:.2f}, the trained reward {auc.value:.2f}: likely answers "
        "were the liked ones before any training. Feedback on the model's own answers teaches more than on others'.",
        confidence="medium",
    ),
    Rule(
        "both_fall_on_pairs",
        lambda e: e.both_fall and not e.still and not e.too_far and not e.run.has("z0"),
        "Good answers became less likely too",
        "Both rewards ended below 0 (desirable {reward_up:+.2f}, undesirable {reward_down:+.2f} β·nats). A loss on "
        "pairs only asks for a gap between the two and often lowers both; if the samples got worse, mix in some SFT.",
    ),
    Rule(
        "both_fall_and_learnt",
        lambda e: e.both_fall and not e.still and not e.too_far and e.run.has("z0"),
        "Good training answers became less likely too",
        "Both rewards ended below 0 (desirable {reward_up:+.2f}, undesirable {reward_down:+.2f} β·nats), yet the model "
        "tells held-out answers apart and did not lose the liked ones. Read the samples.",
    ),
    Rule(
        "unbalanced",
        lambda e: max(e.imbalance, 1 / e.imbalance) > 10,
        "Collect more of the rarer thumb",
        "Each thumb up counts {imbalance:.3g} times as much as a thumb down: a few mislabelled answers of the rarer "
        "kind would steer the run.",
    ),
    Rule(
        "clipped",
        lambda e: e.clipped > 0.5,
        "The clip decides the step length",
        "{clipped:.0%} of the gradients were longer than {clip:g} and were cut to it. A larger --clip gives the "
        "learning rate its meaning back.",
    ),
    Rule(
        "no_probability",
        lambda e: not e.still and (e.slope.high < 0.8 or e.slope.low > 1.25 or e.gap.low > 0.1 or e.gap.high < -0.1),
        "Do not read the reward as a probability",
        "Its calibration slope is {slope.value:.2f} (1 is calibrated, below 1 too extreme) and σ(reward − z0) lies "
        "{gap.value:+.2f} beside the share of thumbs up. The ranking can still be right; to use it as the chance of a "
        "thumb up, fit a scale and an offset on held-out feedback first.",
        "Cox, Biometrika 45, 1958",
        "high",
    ),
)
EXPECTED: tuple[Rule[E], ...] = (
    Rule(
        "z0_rests",
        lambda e: e.z0_at_rest >= 0.5 and not e.still,
        "z0 is 0 most of the time, and that is as it should be",
        "It was 0 in {z0_at_rest:.0%} of the steps (raw mean at the end: {z0_raw:.2f} nats). z0 averages the log-ratio "
        "on other prompts' answers. Those come from the data, not from the trained model, and such a mean estimates "
        "minus a KL divergence: it falls below 0 as soon as the model moves, and the clamp then holds z0 at 0. The "
        "loss stays a sound one; z0 above 0 would mean that even unrelated answers become more likely.",
        "arXiv 2402.01306, section 4.1",
        "medium",
    ),
)
RULES: Mapping[Level, tuple[Rule[E], ...]] = {"try": TRY, "watch": WATCH, "expected": EXPECTED}
"""Within a level in the order in which equally urgent advice is given."""
