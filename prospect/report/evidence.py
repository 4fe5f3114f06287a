"""What a run's figures show, each decided in one place: the verdict and all advice read this and decide nothing again,
so that they cannot contradict each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from prospect.evaluate.statistics import FEW, Interval
from prospect.report.curves import ends, rise
from prospect.report.folder import (
    Data,
    RunFolder,
    number,
    section,
)
from prospect.training.rates import UsualRate, usual_rate

Effect = Literal["unmeasured", "unchanged", "few", "reversed", "unclear", "free", "learnt"]
"""What held-out feedback shows, the first that holds: nothing was measured; the model has hardly changed; too few
prompts to tell; it prefers what people dislike; the reward is not shown to rank them, or by no more than before; it is
not shown to beat what ranks them for free; it learnt what people like."""

LESS_LIKELY = 0.2
"""Nats per token by which liked answers may become less likely before it is worth a word."""
STILL = 0.1
"""Nats by which the log-prob of an answer moves, on average, in a model that has hardly changed: a tenth of its
probability."""
UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Evidence:
    """A run's figures and what they show. What is not known is NaN (or None), so that no comparison with it holds."""

    run: RunFolder

    # ---- held-out feedback -------------------------------------------------------------------------------------------

    @cached_property
    def auc(self) -> Interval:
        """Of the implied reward, after training."""
        return interval(section(self.run.after, "auc"))

    @cached_property
    def margin(self) -> Interval:
        """Of the implied rewards after training, in beta * nats."""
        return interval(section(self.run.after, "margin"))

    @cached_property
    def hardest(self) -> str:
        """The baseline by which the reward's AUC leads least; empty where none was compared."""
        leads = section(self.run.after, "auc_difference")
        return min(leads, key=lambda name: number(leads[name], "value", math.inf), default="")

    @cached_property
    def lead(self) -> Interval:
        """The AUC minus that of the hardest baseline, resampled together."""
        return self.lead_over(self.hardest)

    def lead_over(self, name: str) -> Interval:
        """The AUC minus that of a baseline, resampled together."""
        return interval(section(section(self.run.after, "auc_difference"), name))

    def baseline(self, name: str) -> Interval:
        """The AUC of "length" or "reference_logp" as it is."""
        return interval(section(section(self.run.after, "baselines"), name))

    @property
    def length(self) -> Interval:
        return self.baseline("length")

    @property
    def known(self) -> Interval:
        """The AUC of the start model's own likelihood."""
        return self.baseline("reference_logp")

    @property
    def hardest_words(self) -> str:
        """The hardest baseline with the direction in which it ranks better."""
        words = baseline_words(self.hardest, self.baseline(self.hardest).value)
        return words if self.run.own_reference else words.replace("start model", "reference")

    @cached_property
    def groups(self) -> float:
        """How many independent groups of answers were held out."""
        return number(self.run.after, "groups", number(self.run.after, "prompts"))

    @cached_property
    def nll(self) -> Interval:
        """Nats per token of held-out answers to imitate, after training."""
        return interval(section(self.run.after, "nll"))

    @cached_property
    def nll_before(self) -> Interval:
        return interval(section(self.run.before, "nll"))

    @cached_property
    def nll_change(self) -> Interval:
        """How many nats a token these answers cost more than before training; without an interval beside another
        reference."""
        if self.run.own_reference and self.run.after.get("nll_change"):
            return interval(section(self.run.after, "nll_change"))
        return Interval(self.nll.value - self.nll_before.value, math.nan, math.nan)

    @property
    def harmed(self) -> bool:
        """Whether liked answers became much less likely."""
        return self.nll_change.value > LESS_LIKELY and not self.nll_change.low <= 0

    @cached_property
    def change(self) -> Interval:
        """Mean |log pi(y|x) - log pi_start(y|x)| of held-out answers in nats; unknown beside another reference."""
        return interval(section(self.run.after, "change")) if self.run.own_reference else UNKNOWN

    @cached_property
    def samples(self) -> tuple[int, int]:
        """(how many sampled answers differ from those before training, how many there are)."""
        by_step = [answers for answers in self.run.answers.values() if len(answers) > 1 and 0 in answers]
        return sum(answers[0] != answers[max(answers)] for answers in by_step), len(by_step)

    @cached_property
    def still(self) -> bool:
        """Whether the model has hardly changed: its sampled answers are the same, or log-probs have moved by no more
        than STILL or three times what rounding moves them."""
        changed, sampled = self.samples
        if sampled and not changed:
            return True
        if math.isfinite(self.change.value):
            rounding = number(section(self.run.before, "change"), "value", 0.0)
            return self.change.value <= max(STILL, 3 * rounding)
        moved = [abs(value) / self.beta for value in (self.reward_up, self.reward_down) if math.isfinite(value)]
        return not sampled and self.run.own_reference and bool(moved) and max(moved) <= STILL

    @property
    def movement(self) -> str:
        """What the model's change amounts to, in a sentence; empty where nothing is known of it."""
        changed, sampled = self.samples
        parts = []
        if math.isfinite(self.change.value):
            parts.append(f"the log-prob of a held-out answer moved by {self.change.value:.2g} nats on average")
        if sampled:
            parts.append(f"{changed} of {sampled} sampled answers differ from those before training")
        if not parts and self.still:
            parts.append(f"the log-probs of training answers moved by less than {STILL:g} nats on average")
        text = " and ".join(parts)
        return f"{text[0].upper()}{text[1:]}." if text else ""

    @property
    def training_loss(self) -> str:
        """How the loss went, in a sentence; empty where a few steps of a model that stayed where it was say nothing."""
        start, end = self.loss_ends
        return f"The loss went from {start:.3f} to {end:.3f}." if math.isfinite(start) and not self.still else ""

    @property
    def chosen(self) -> bool:
        """Whether --keep-best chose the model by the very answers that measure it."""
        return bool(self.run.options.get("keep_best")) and len(self.run.evaluations) > 2

    @cached_property
    def effect(self) -> Effect:
        if math.isnan(self.auc.value):
            return "unmeasured"
        if self.still:
            return "unchanged"
        if not self.groups >= FEW:
            return "few"
        if self.auc.high < 0.5:
            return "reversed"
        # Beside its own start model the reward of the untrained policy is rounding, beside another it is something.
        auc_before = number(section(self.run.before, "auc"), "high", 0.5)
        margin_before = number(section(self.run.before, "margin"), "high", 0.0)
        if not self.auc.low > max(0.5, auc_before) or not self.margin.low > max(0.0, margin_before):
            return "unclear"
        return "learnt" if self.lead.low > 0 else "free"

    # ---- training ----------------------------------------------------------------------------------------------------

    @property
    def beta(self) -> float:
        return self.run.beta

    @cached_property
    def reward_up(self) -> float:
        return ends(self.run.series("reward_desirable"))[1]

    @cached_property
    def reward_down(self) -> float:
        return ends(self.run.series("reward_undesirable"))[1]

    @property
    def both_fall(self) -> bool:
        """Whether desirable training answers became less likely, too."""
        return self.reward_up < -0.1 and self.reward_down < -0.1

    @cached_property
    def margin_rise(self) -> Interval:
        """By how much the training margin rose, with the noise of its steps."""
        return rise(self.run.series("margin"))

    @cached_property
    def margin_ends(self) -> tuple[float, float]:
        return ends(self.run.series("margin"))

    @cached_property
    def loss_ends(self) -> tuple[float, float]:
        return ends(self.run.series("loss"))

    @cached_property
    def accuracy(self) -> float:
        return ends(self.run.series("accuracy"))[1]

    @cached_property
    def saturated(self) -> float:
        return ends(self.run.series("saturated"))[1]

    @property
    def stuck(self) -> bool:
        """Whether the loss stayed where it was and the training answers are not ranked either."""
        start, end = self.loss_ends
        # A run that has blown up does not learn either, but not for lack of steps.
        wild = self.saturated > 0.2
        return len(self.run.steps) >= 4 and self.accuracy < 0.6 and start > 0 and end > 0.97 * start and not wild

    @cached_property
    def rate(self) -> float:
        """The highest learning rate of the run."""
        return max((rate for rate in self.run.series("lr") if math.isfinite(rate)), default=math.nan)

    @cached_property
    def usual(self) -> UsualRate | None:
        """The learning rates that are usual for such a run, as `prospect recommend` proposes them."""
        parameters = number(section(self.run.config, "model"), "parameters")
        adapter = bool(self.run.options.get("lora"))
        return usual_rate(self.run.loss, None if math.isnan(parameters) else parameters, adapter=adapter)

    @property
    def lower_rate(self) -> float:
        """The next lower usual rate, or a third where none is known; NaN where nothing lower is worth trying."""
        return self.rate / 3 if self.usual is None else _nan(self.usual.below(self.rate))

    @property
    def higher_rate(self) -> float:
        return self.rate * 3 if self.usual is None else _nan(self.usual.above(self.rate))

    @cached_property
    def best(self) -> tuple[float, float, float]:
        """(best held-out AUC on the way, its step, the last AUC)."""
        points = [
            (number(e, "auc"), number(e, "step")) for e in self.run.evaluations if math.isfinite(number(e, "auc"))
        ]
        return (*max(points), points[-1][0]) if len(points) >= 3 else (math.nan, math.nan, math.nan)

    @property
    def imbalance(self) -> float:
        """The class weight of the desirable over that of the undesirable answers."""
        up, down = (number(self.run.arguments, f"{side}desirable_weight") for side in ("", "un"))
        return up / down if min(up, down) > 0 else math.nan

    @property
    def clip(self) -> float:
        return number(self.run.options, "clip")

    @cached_property
    def clipped(self) -> float:
        """The share of the gradients that were cut."""
        norms = [norm for norm in self.run.series("grad_norm") if math.isfinite(norm)]
        return sum(norm > self.clip for norm in norms) / len(norms) if norms else math.nan

    @cached_property
    def z0_at_rest(self) -> float:
        """The share of the steps whose z0 was clamped at 0."""
        used = [z0 for z0 in self.run.series("z0") if math.isfinite(z0)]
        return sum(abs(z0) <= 1e-9 for z0 in used) / len(used) if used and self.run.has("z0_raw") else math.nan

    @cached_property
    def z0_raw(self) -> float:
        return ends(self.run.series("z0_raw"))[1]

    @cached_property
    def slope(self) -> Interval:
        return interval(section(self.run.after, "calibration_slope"))

    @cached_property
    def gap(self) -> Interval:
        return interval(section(self.run.after, "calibration_gap"))


BASELINES: Mapping[str, tuple[str, str]] = {
    "length": ("length (longer first)", "length (shorter first)"),
    "reference_logp": (
        "the start model's own likelihood (likely first)",
        "the start model's own likelihood (unlikely first)",
    ),
}
"""In words, where its AUC is at least one half and where it is below."""


def baseline_words(name: str, auc: float) -> str:
    """A baseline with the direction in which it ranks better."""
    named = BASELINES.get(name, (name, name))
    return named[auc < 0.5]


def with_interval(value: Interval, form: str = ".3f") -> str:
    """ "0.812 (95 % interval 0.741 to 0.876)"."""
    if math.isnan(value.low):
        return format(value.value, form)
    return f"{value.value:{form}} (95 % interval {value.low:{form}} to {value.high:{form}})"


def interval(data: Data) -> Interval:
    """An interval as evaluation.json has it, of NaN where it is absent."""
    return Interval(*(number(data, end) for end in ("value", "low", "high")))


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
