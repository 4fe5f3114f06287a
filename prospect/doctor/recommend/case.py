"""The case that the rules look at: the facts, what is decided so far, and all that follows from them by arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prospect.doctor.measurements import auto_weights
from prospect.doctor.recommend.facts import AfterSft, Facts, Model
from prospect.evaluate.advice import Advice
from prospect.training.config import UsualRate, usual_rate

Stage = Literal["tuned on this", "tuned", "base", "unknown"]
"""The start model: fine-tuned on answers like these; tuned on something else; not tuned at all; not known."""
LARGE, SMALL = 7.0, 3.5
"""Billions of parameters. The paper speaks of larger and smaller models without a number; the settings it prints are
for 8 and 3."""
FEW_ERRORS = 0.05
"""Pairs are called clean where the interval of their share of wrong judgements ends below, noisy where it begins
above. Our judgement: no paper draws the line."""
STEPS = 100
"""Fewer optimizer steps than this hardly move a model at these learning rates. Our judgement."""
TELLING = 0.1
"""A held-out AUC should be known to this, so that .6 can be told from chance."""
BETAS: dict[Stage, tuple[str, ...]] = {
    "tuned on this": ("0.01", "0.03", "0.1"),
    "tuned": ("0.1", "0.25", "0.5"),
    "base": ("0.1", "0.3", "1"),
    "unknown": ("0.03", "0.1", "0.3"),
}
"""What to try: the published ranges (see the rules on beta)."""


@dataclass(frozen=True)
class Case:
    """`decisions` hold the advice so far, by its name: later rules build on it."""

    facts: Facts
    model: Model | None
    after_sft: AfterSft
    decisions: Mapping[str, Advice] = field(default_factory=dict)

    # The model

    @property
    def stage(self) -> Stage:
        """What the start model is, after the SFT run where one comes first."""
        if self.after_sft == "yes" or self.sft_first:
            return "tuned on this"
        if self.model is not None and self.model.chat_template:
            return "tuned"
        return "base" if self.after_sft == "no" and self.model is not None else "unknown"

    @property
    def parameters(self) -> int | None:
        return None if self.model is None else self.model.parameters

    @property
    def billions(self) -> float:
        """Billions of parameters; NaN, which compares with nothing, where they are not known."""
        return math.nan if self.parameters is None else self.parameters / 1e9

    @property
    def size(self) -> str:
        """ "8.0 billion parameters"."""
        return "size not known" if self.parameters is None else in_words(self.parameters)

    @property
    def unpublished(self) -> str:
        """The sentence on a size for which nothing is published."""
        return "The model's size is not known." if self.parameters is None else f"Nothing is published for {self.size}."

    @property
    def off_size(self) -> str:
        """The sentence on a size for which no beta is published, if it is one."""
        if self.billions >= LARGE or 1 <= self.billions <= SMALL:
            return ""
        between = "The published settings are for 3 and 8 billion parameters; this model lies between."
        return between if self.billions > SMALL else self.unpublished

    # The objective

    @property
    def loss(self) -> str:
        return self.decisions["loss"].value.split()[0] if "loss" in self.decisions else "kto"

    @property
    def compares(self) -> bool:
        """Whether the loss learns from both liked and disliked answers."""
        return self.loss in ("kto", "dpo")

    @property
    def sft_first(self) -> bool:
        return "SFT first" in self.decisions and self.decisions["SFT first"].value == "yes"

    @property
    def other(self) -> str:
        """The loss that would be the other choice."""
        return "dpo" if self.loss == "kto" else "kto"

    def unsure(self, name: str) -> bool:
        """Whether a setting has a value of low confidence."""
        return name in self.decisions and self.decisions[name].confidence == "low"

    @property
    def betas(self) -> tuple[str, ...]:
        """What to try for beta."""
        return ("0.01", "0.1", "0.5") if self.loss == "dpo" else BETAS[self.stage]

    @property
    def noisy(self) -> bool:
        """Preferences in circles, or more wrong judgements than FEW_ERRORS beyond chance; without a rate, as many
        contested."""
        noise = self.facts.noise
        if noise.low is not None:
            return noise.low > FEW_ERRORS or noise.circles > 0
        return noise.circles > 0 or (noise.judged > 0 and noise.contested / noise.judged > FEW_ERRORS)

    @property
    def clean(self) -> bool:
        noise = self.facts.noise
        return noise.high is not None and noise.high < FEW_ERRORS and not noise.circles

    # Learning rate and adapter

    @property
    def lora(self) -> bool:
        """Whether a new adapter is trained."""
        return self.billions >= 1 and not (self.model is not None and self.model.adapter)

    @property
    def adapted(self) -> bool:
        return self.lora or (self.model is not None and self.model.adapter)

    @property
    def rates(self) -> UsualRate:
        """The learning rates that are usual for this case."""
        usual = usual_rate(self.loss, self.parameters, adapter=self.adapted)
        assert usual is not None, f"{self.loss} is no loss of the table"
        return usual

    @property
    def rate(self) -> str:
        return plain(self.rates.start)

    # Class weights by Eq. 9

    @property
    def ratio(self) -> float:
        return self.facts.liked_weight / self.facts.disliked_weight

    @property
    def weights(self) -> tuple[float, float]:
        """The automatic ones, desirable and undesirable."""
        up, down = auto_weights(self.facts.liked_weight, self.facts.disliked_weight).values()
        return up, down

    @property
    def rarer(self) -> str:
        return "desirable" if self.ratio < 1 else "undesirable"

    @property
    def weight_range(self) -> tuple[float, float]:
        """What Eq. 9 allows for the rarer class."""
        return (1 / self.ratio, 1.5 / self.ratio) if self.ratio < 1 else (self.ratio / 1.5, self.ratio)

    @property
    def majority(self) -> str:
        """Theorem 4.3 with unequal weights: where the majority no longer decides."""
        heavy = max(self.weights)
        if not self.facts.noise.contested or self.facts.kind == "pairs" or heavy < 1.05:
            return ""
        verdict, other = ("disliked", "liked") if self.ratio > 1 else ("liked", "disliked")
        return (
            f"With these weights an answer judged both ways counts as {verdict} unless more than "
            f"{100 * heavy / (1 + heavy):.0f} % of its thumbs say {other} (from the proof of Theorem 4.3)."
        )

    # Rows and steps

    @property
    def rows(self) -> int:
        """Training rows of the loss: thumbs, pairs or texts, without what is held out or too long."""
        facts = self.facts
        every = {"dpo": facts.possible_pairs, "sft": facts.imitable}.get(self.loss, facts.thumbs)
        return round(every * facts.fitting * (1 - self.eval_fraction))

    @property
    def batch(self) -> int:
        return next((size for size in (32, 16, 8) if self.rows >= STEPS * size), 8)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(max(1, self.rows) / self.batch)

    @property
    def epochs(self) -> int:
        return 1 if self.steps >= STEPS else min(3, math.ceil(STEPS / self.steps))

    @property
    def eval_fraction(self) -> float:
        return self._held_out[0]

    @property
    def width(self) -> float:
        """The half-width of the held-out AUC's interval."""
        return self._held_out[1]

    @property
    def _held_out(self) -> tuple[float, float]:
        facts = self.facts
        if not self.compares:
            return 0.0, math.inf
        return held_out(facts.liked * facts.fitting, facts.disliked * facts.fitting, facts.groups)


def plain(rate: float) -> str:
    """ "5e-6"."""
    return f"{rate:.0e}".replace("e-0", "e-")


def in_words(parameters: int) -> str:
    """ "8.0 billion parameters"."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name} parameters"
    return f"{parameters:,} parameters"


def held_out(liked: float, disliked: float, groups: int) -> tuple[float, float]:
    """(fraction of prompts to hold out, half-width of the AUC's 95 % interval then): the smallest of 10, 20, 30 % that
    tells an AUC of .6 from chance, else 30 %. (0, infinity) where nothing can be split off.

    Half-width by the variance of the rank statistic without effect (Mann and Whitney 1947): at best, since rows of one
    prompt depend on each other.
    """
    if groups < 2 or liked <= 0 or disliked <= 0:
        return 0.0, math.inf
    width = math.inf
    for fraction in (0.1, 0.2, 0.3):
        up, down = fraction * liked, fraction * disliked
        width = 1.96 * math.sqrt((up + down + 1) / (12 * up * down))
        if width <= TELLING:
            return fraction, width
    return 0.3, min(width, 0.5)


def rows_to_tell(liked: int, disliked: int) -> int:
    """About so many rows, in the same proportion, make 30 % of them tell an AUC of .6 from chance."""
    share = liked / (liked + disliked)
    rows = 1.96**2 / (12 * TELLING**2 * 0.3) * (1 / share + 1 / (1 - share))
    return math.ceil(rows / 50) * 50
