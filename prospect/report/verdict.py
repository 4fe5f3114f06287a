"""Did it get better? One short answer from held-out feedback, with its numbers, and no more than they carry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from prospect.report.curves import ends
from prospect.report.folder import Data, RunFolder, number, section


@dataclass(frozen=True, slots=True)
class Verdict:
    """Did it get better? `word` is the short answer, `tone` good, bad or open, `text` the reason with its numbers."""

    word: str
    tone: Literal["good", "bad", "open"]
    text: str


def verdict(run: RunFolder) -> Verdict | None:
    """The headline, from held-out AUC alone; None where there is no run to speak of."""
    if not run.after:
        return Verdict("Not measured", "open", _unmeasured_text(run)) if run.steps else None
    auc = section(run.after, "auc")
    if not auc:
        note = " ".join(str(n) for n in run.after.get("notes") or [])
        return Verdict("Not measurable", "open", note or "The held-out feedback has no thumbs of both kinds.")
    before = section(run.before, "auc")
    where = f"{number(run.after, 'n'):.0f} held-out answers to {number(run.after, 'prompts'):.0f} prompts"
    now = f"AUC {_with_interval(auc)}"
    was = f" Before training it was {number(before, 'value'):.3f}." if before else ""
    low, high = number(auc, "low"), number(auc, "high")
    known = max(0.5, number(before, "high", 0.5))
    if low > known:
        return Verdict(
            "It learnt what people like",
            "good",
            f"On {where} the model's implied reward now tells thumbs up from thumbs down: {now}.{was}",
        )
    if high < 0.5:
        return Verdict(
            "It prefers what people dislike",
            "bad",
            f"On {where} the model's implied reward prefers the thumbs down: {now}.{was} Check the labels.",
        )
    text = f"On {where} the interval still includes what was there before training, or chance: {now}.{was}"
    return Verdict("Not shown to have learnt it", "open", text)


def _unmeasured_text(run: RunFolder) -> str:
    start, end = ends(run.series("margin"))
    if not math.isfinite(end):
        return "No feedback was held out, so there is nothing to judge the model by."
    return (
        f"No feedback was held out. On the training answers the margin went from {start:+.3f} to {end:+.3f} β·nats, "
        "which says that the model "
        "learnt them, not that it got better."
    )


def _with_interval(interval: Data) -> str:
    value, low, high = (f"{number(interval, end):.3f}" for end in ("value", "low", "high"))
    return f"{value} (95 % interval {low} to {high})"
