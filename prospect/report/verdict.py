"""Did it get better? One short answer from held-out feedback, with its numbers, and no more than they carry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prospect.evaluate.advice import render
from prospect.report.evidence import HARDLY_CHANGED, Evidence, RunFolder, ends, interval, rise, section, with_interval

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`word` is the short answer, `text` the reason with its numbers."""

    word: str
    tone: Tone
    text: str


def verdict(run: RunFolder) -> Verdict | None:
    """The headline, from held-out feedback alone; None where there is no run to speak of."""
    if not run.after and not run.steps:
        return None
    e = Sentences(run)
    _, word, tone, text = next(row for row in VERDICTS if row[0](e))
    return Verdict(render(word, e), tone, render(text, e))


def result_line(run: RunFolder) -> str:
    """The held-out result and the verdict in one line, for the end of a run."""
    e, answer = Evidence(run), verdict(run)
    if answer is None:
        return "Nothing was trained"
    if not run.after:
        return f"{answer.word}: no feedback was held out. Add --eval-fraction 0.1 or --eval-data"
    change = f" ({e.nll_change.value:+.3f})" if math.isfinite(e.nll_change.value) else ""
    figures = (
        (e.auc.value, f"AUC {e.auc.value:.3f} [{e.auc.low:.3f}, {e.auc.high:.3f}]"),
        (e.lead.value, f"{e.lead.value:+.3f} [{e.lead.low:+.3f}, {e.lead.high:+.3f}] over {e.hardest_words}"),
        (e.nll.value, f"{e.nll.value:.3f}{change} nats a token of liked answers"),
        (0.0 if e.selection else math.nan, "chosen by the same answers"),
    )
    measured = "; ".join(words for value, words in figures if math.isfinite(value)) or "nothing to measure"
    return f"{answer.word}. {e.answers:,.0f} held-out answers to {e.prompts:,.0f} prompts: {measured}"


class Sentences(Evidence):
    """An Evidence in sentences, each empty where there is nothing to say."""

    @property
    def ranking(self) -> str:
        """The AUC and by how much it leads."""
        text = (
            f"On {self.answers:,.0f} held-out answers to {self.prompts:,.0f} prompts the AUC of the model's implied "
            f"reward is {with_interval(self.auc)}."
        )
        before = interval(self.run.before, "auc").value
        if not self.run.own_reference and math.isfinite(before):
            text += f" Before training it was {before:.3f}."
        if math.isfinite(self.lead.value):
            alone = interval(section(self.run.after, "baselines"), self.hardest).value
            turned = f" ({alone:.3f} the other way round)" if alone < 0.5 else ""
            text += (
                f" That of {self.hardest_words} is {max(alone, 1 - alone):.3f}{turned}; the difference is "
                f"{with_interval(self.lead, '+.3f')}."
            )
        return text

    @property
    def separation(self) -> str:
        """The margin."""
        return "" if math.isnan(self.margin.value) else f"The margin is {with_interval(self.margin, '+.3f')} β·nats."

    @property
    def movement(self) -> str:
        """What the model's change amounts to."""
        parts = []
        if math.isfinite(self.change.value):
            parts.append(f"the log-prob of a held-out answer moved by {self.change.value:.2g} nats on average")
        if self.sampled:
            parts.append(f"{self.changed} of {self.sampled} sampled answers differ from those before training")
        if not parts and self.still:
            parts.append(f"the log-probs of training answers moved by less than {HARDLY_CHANGED:g} nats on average")
        text = " and ".join(parts)
        return f"{text[0].upper()}{text[1:]}." if text else ""

    @property
    def cost(self) -> str:
        """What liked answers lost."""
        if not self.harm:
            return ""
        return f"Liked answers cost {self.nll_change.value:.2f} nats a token more than before: read the samples."

    @property
    def luck(self) -> str:
        """What --keep-best does to the figures."""
        if not self.selection:
            return ""
        return (
            "But --keep-best chose this model by these very answers, so the figures flatter it: measure it on others "
            "with `prospect eval`."
        )

    @property
    def imitation(self) -> str:
        """Held-out answers without thumbs of both kinds have a likelihood only."""
        notes = " ".join(self.notes)
        if math.isnan(self.nll_change.value):
            return notes or "The held-out feedback has no thumbs of both kinds."
        change = with_interval(self.nll_change, "+.3f")
        return f"The answers to imitate cost {self.nll.value:.3f} nats a token, {change} against before. {notes}"

    @property
    def training_margin(self) -> str:
        """What the training answers show of a run without held-out feedback."""
        margins = self.run.series("margin")
        start, end = ends(margins)
        if not math.isfinite(end):
            return ""
        course = f"from {start:+.3f} to {end:+.3f} β·nats"
        if self.still or not rise(margins).low > 0:
            return f"The margin of the training answers went {course}, which is no more than its noise."
        return (
            f"The margin of the training answers rose {course}: the model learnt these, which does not say that it got "
            "better."
        )

    @property
    def training_loss(self) -> str:
        """How the loss went; a few steps of a model that stayed where it was say nothing."""
        if self.still or not math.isfinite(self.loss_start):
            return ""
        return f"The loss went from {self.loss_start:.3f} to {self.loss_end:.3f}."


Row = tuple[Callable[[Evidence], bool], str, Tone, str]
MEASURED = "{ranking} {separation} {cost}"
VERDICTS: tuple[Row, ...] = (
    (
        lambda e: not e.run.after,
        "Not measured",
        "open",
        "No feedback was held out, so there is nothing to judge the model by. {training_margin}",
    ),
    (
        lambda e: e.effect == "unmeasured" and math.isnan(e.nll_change.value),
        "Not measurable",
        "open",
        "{imitation}",
    ),
    (
        lambda e: e.effect == "unmeasured" and e.still,
        "The model has hardly changed",
        "open",
        "{movement} {imitation}",
    ),
    (
        lambda e: e.effect == "unmeasured" and e.nll_change.value < 0 and not e.nll_change.high >= 0,
        "The answers to imitate became likelier",
        "open",
        "{imitation} {luck}",
    ),
    (
        lambda e: e.effect == "unmeasured",
        "The answers to imitate are not shown to be likelier",
        "open",
        "{imitation} {luck}",
    ),
    (lambda e: e.effect == "unchanged", "The model has hardly changed", "open", "{movement} {ranking}"),
    (
        lambda e: e.effect == "few",
        "Too few prompts to tell",
        "open",
        "Only {groups:.0f} separate prompts or conversations were held out. {ranking}",
    ),
    (lambda e: e.effect == "reversed", "It prefers what people dislike", "bad", "{ranking} Check the labels."),
    (
        lambda e: e.effect == "unclear",
        "Not shown to have learnt it",
        "open",
        MEASURED + " Chance, or what was there before training, explains them as well.",
    ),
    (
        lambda e: e.effect == "free" and math.isnan(e.lead.value),
        "Not compared with length and likelihood",
        "open",
        "{ranking} Without that comparison it may have learnt what was there for free.",
    ),
    (lambda e: e.effect == "free" and e.lead.high < 0, "Worse than {hardest_words}", "open", MEASURED),
    (
        lambda e: e.effect == "free",
        "Not shown to beat {hardest_words}",
        "open",
        MEASURED + " So it may have learnt what was there for free.",
    ),
    (lambda e: e.harm, "It learnt the thumbs, and lost something else", "open", MEASURED),
    (lambda e: e.selection, "It seems to have learnt what people like", "open", "{ranking} {separation} {luck}"),
    (lambda e: True, "It learnt what people like", "good", "{ranking} {separation} {movement}"),
)
"""(condition, word, tone, text): the first row whose condition holds. Its texts name the figures and sentences that
they are filled with."""
