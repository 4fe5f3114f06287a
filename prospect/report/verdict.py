"""Did it get better? One short answer from held-out feedback, with its numbers, and no more than they carry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prospect.report.curves import ends
from prospect.report.folder import Data, RunFolder, number, section

LESS_LIKELY = 0.2
"""Nats per token by which liked answers may become less likely before it is worth a word."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Did it get better? `word` is the short answer, `tone` good, bad or open, `text` the reason with its numbers."""

    word: str
    tone: Literal["good", "bad", "open"]
    text: str


def verdict(run: RunFolder) -> Verdict | None:
    """The headline, from held-out feedback alone; None where there is no run to speak of.

    Good needs an AUC whose interval lies above chance, above what was there before, and an AUC above both baselines,
    while liked answers have not become much less likely.
    """
    if not run.after:
        return Verdict("Not measured", "open", _unmeasured(run)) if run.steps else None
    auc, before = section(run.after, "auc"), section(run.before, "auc")
    if not auc:
        return _without_thumbs(run)
    where = f"On {number(run.after, 'n'):,.0f} held-out answers to {number(run.after, 'prompts'):,.0f} prompts"
    was = f" Before training it was {number(before, 'value'):.3f}." if before else ""
    now = f"AUC {_with_interval(auc)}.{was}"
    if number(auc, "high") < 0.5:
        text = f"{where} the model's implied reward prefers the thumbs down: {now} Check the labels."
        return Verdict("It prefers what people dislike", "bad", text)
    if number(auc, "low") <= max(0.5, number(before, "high", 0.5)):
        text = f"{where} the interval still includes chance, or what was there before training: {now}"
        return Verdict("Not shown to have learnt it", "open", text)
    text = f"{where} the model's implied reward tells thumbs up from thumbs down: {now}"
    name, free = _best_baseline(run)
    if number(auc, "value") <= free:
        return Verdict(f"No better than {name}", "open", f"{text} But {name} ranks them with an AUC of {free:.3f}.")
    if likelihood_loss(run) > LESS_LIKELY:
        text += f" But the liked ones cost {likelihood_loss(run):.2f} nats a token more than before: read the samples."
        return Verdict("It learnt the thumbs, and lost something else", "open", text)
    return Verdict("It learnt what people like", "good", text)


def likelihood_loss(run: RunFolder) -> float:
    """How many nats a token liked answers cost more after training than before; NaN where unknown."""
    return number(section(run.after, "nll"), "value") - number(section(run.before, "nll"), "value")


def _best_baseline(run: RunFolder) -> tuple[str, float]:
    """Name and AUC of the better baseline, in whichever direction it ranks; chance where there is none."""
    named = (("length", "length alone"), ("reference_logp", "the start model's own likelihood"))
    baselines = section(run.after, "baselines")
    found = [(name, number(section(baselines, key), "value")) for key, name in named]
    known = [(name, max(value, 1 - value)) for name, value in found if math.isfinite(value)]
    return max(known, key=lambda entry: entry[1], default=("chance", 0.5))


def _without_thumbs(run: RunFolder) -> Verdict:
    """Held-out answers without thumbs of both kinds have a likelihood only."""
    notes = " ".join(str(n) for n in run.after.get("notes") or [])
    change = likelihood_loss(run)
    if not math.isfinite(change):
        return Verdict("Not measurable", "open", notes or "The held-out feedback has no thumbs of both kinds.")
    now, was = (_with_interval(section(data, "nll")) for data in (run.after, run.before))
    word = f"The answers to imitate became {'likelier' if change < 0 else 'less likely'}"
    return Verdict(word, "open", f"They cost {now} nats a token, before training {was}. {notes}".strip())


def _unmeasured(run: RunFolder) -> str:
    start, end = ends(run.series("margin"))
    if not math.isfinite(end):
        return "No feedback was held out, so there is nothing to judge the model by."
    return (
        f"No feedback was held out. On the training answers the margin went from {start:+.3f} to {end:+.3f} β·nats, "
        "which says that the model learnt them, not that it got better."
    )


def _with_interval(interval: Data) -> str:
    value, low, high = (f"{number(interval, end):.3f}" for end in ("value", "low", "high"))
    return f"{value} (95 % interval {low} to {high})" if math.isfinite(number(interval, "low")) else value
