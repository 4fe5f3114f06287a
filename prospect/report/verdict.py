"""Did it get better? One short answer from held-out feedback, with its numbers, and no more than they carry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prospect.report.evidence import Evidence, with_interval
from prospect.report.folder import RunFolder, number

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Did it get better? `word` is the short answer, `tone` good, bad or open, `text` the reason with its numbers."""

    word: str
    tone: Tone
    text: str


def verdict(run: RunFolder) -> Verdict | None:
    """The headline, from held-out feedback alone; None where there is no run to speak of."""
    e = Evidence(run)
    if not run.after and not run.steps:
        return None
    row = next(row for row in VERDICTS if row.when(e))
    sentences = [sentence for part in row.sentences if (sentence := part(e))]
    return Verdict(row.word.format(e=e), row.tone, " ".join(sentences))


def result_line(run: RunFolder) -> str:
    """The held-out result and the verdict in one line, for the end of a run."""
    e, answer = Evidence(run), verdict(run)
    if answer is None:
        return "Nothing was trained"
    if not run.after:
        return f"{answer.word}: no feedback was held out. Add --eval-fraction 0.1 or --eval-data"
    figures = []
    if math.isfinite(e.auc.value):
        figures.append(f"AUC {_short(e.auc.value, e.auc.low, e.auc.high)}")
    if math.isfinite(e.lead.value):
        figures.append(f"{_short(e.lead.value, e.lead.low, e.lead.high, '+')} over {e.hardest_words}")
    if math.isfinite(e.nll.value):
        change = f" ({e.nll_change.value:+.3f})" if math.isfinite(e.nll_change.value) else ""
        figures.append(f"{e.nll.value:.3f}{change} nats a token of liked answers")
    if e.chosen:
        figures.append("chosen by the same answers")
    answers, prompts = (f"{number(run.after, name):,.0f}" for name in ("n", "prompts"))
    return (
        f"{answer.word}. {answers} held-out answers to {prompts} prompts: {'; '.join(figures) or 'nothing to measure'}"
    )


def _short(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


# ---- sentences -------------------------------------------------------------------------------------------------------


def _ranking(e: Evidence) -> str:
    """The AUC and by how much it leads."""
    where = f"On {number(e.run.after, 'n'):,.0f} held-out answers to {number(e.run.after, 'prompts'):,.0f} prompts"
    text = f"{where} the AUC of the model's implied reward is {with_interval(e.auc)}."
    before = number(e.run.before.get("auc") or {}, "value")
    if not e.run.own_reference and math.isfinite(before):
        text += f" Before training it was {before:.3f}."
    if math.isfinite(e.lead.value):
        alone = e.baseline(e.hardest).value
        turned = f" ({alone:.3f} the other way round)" if alone < 0.5 else ""
        text += (
            f" That of {e.hardest_words} is {max(alone, 1 - alone):.3f}{turned}; the difference is "
            f"{with_interval(e.lead, '+.3f')}."
        )
    return text


def _movement(e: Evidence) -> str:
    return e.movement


def _margin(e: Evidence) -> str:
    if math.isnan(e.margin.value):
        return ""
    return f"The margin is {with_interval(e.margin, '+.3f')} β·nats."


def _harm(e: Evidence) -> str:
    if not e.harmed:
        return ""
    return f"Liked answers cost {e.nll_change.value:.2f} nats a token more than before: read the samples."


def _selection(e: Evidence) -> str:
    if not e.chosen:
        return ""
    return (
        "But --keep-best chose this model by these very answers, so the figures flatter it: measure it on others with "
        "`prospect eval`."
    )


def _training(e: Evidence) -> str:
    """What the training answers show of a run without held-out feedback."""
    start, end = e.margin_ends
    if not math.isfinite(end):
        return ""
    figures = f"from {start:+.3f} to {end:+.3f} β·nats"
    if e.margin_rise.low > 0 and not e.still:
        return (
            f"The margin of the training answers rose {figures}: the model learnt these, which does not say that it "
            "got better."
        )
    return f"The margin of the training answers went {figures}, which is no more than its noise."


def _likelihood(e: Evidence) -> str:
    """Held-out answers without thumbs of both kinds have a likelihood only."""
    notes = " ".join(str(note) for note in e.run.after.get("notes") or [])
    if math.isnan(e.nll_change.value):
        return notes or "The held-out feedback has no thumbs of both kinds."
    change = with_interval(e.nll_change, "+.3f")
    return f"The answers to imitate cost {e.nll.value:.3f} nats a token, {change} against before. {notes}".strip()


def _say(text: str) -> Callable[[Evidence], str]:
    return lambda e: text.format(e=e)


@dataclass(frozen=True, slots=True)
class Row:
    """A verdict: the first row of the table whose condition holds is given."""

    when: Callable[[Evidence], bool]
    word: str
    tone: Tone
    sentences: tuple[Callable[[Evidence], str], ...]


VERDICTS = (
    Row(
        lambda e: not e.run.after,
        "Not measured",
        "open",
        (_say("No feedback was held out, so there is nothing to judge the model by."), _training),
    ),
    Row(
        lambda e: e.effect == "unmeasured" and math.isnan(e.nll_change.value),
        "Not measurable",
        "open",
        (_likelihood,),
    ),
    Row(
        lambda e: e.effect == "unmeasured" and e.still,
        "The model has hardly changed",
        "open",
        (_movement, _likelihood),
    ),
    Row(
        lambda e: e.effect == "unmeasured" and e.nll_change.value < 0 and not e.nll_change.high >= 0,
        "The answers to imitate became likelier",
        "open",
        (_likelihood, _selection),
    ),
    Row(
        lambda e: e.effect == "unmeasured",
        "The answers to imitate are not shown to be likelier",
        "open",
        (_likelihood, _selection),
    ),
    Row(
        lambda e: e.effect == "unchanged",
        "The model has hardly changed",
        "open",
        (_movement, _ranking),
    ),
    Row(
        lambda e: e.effect == "few",
        "Too few prompts to tell",
        "open",
        (_say("Only {e.groups:.0f} separate prompts or conversations were held out."), _ranking),
    ),
    Row(
        lambda e: e.effect == "reversed",
        "It prefers what people dislike",
        "bad",
        (_ranking, _say("Check the labels.")),
    ),
    Row(
        lambda e: e.effect == "unclear",
        "Not shown to have learnt it",
        "open",
        (_ranking, _margin, _harm, _say("Chance, or what was there before training, explains them as well.")),
    ),
    Row(
        lambda e: e.effect == "free" and math.isnan(e.lead.value),
        "Not compared with length and likelihood",
        "open",
        (_ranking, _say("Without that comparison it may have learnt what was there for free.")),
    ),
    Row(
        lambda e: e.effect == "free" and e.lead.high < 0,
        "Worse than {e.hardest_words}",
        "open",
        (_ranking, _margin, _harm),
    ),
    Row(
        lambda e: e.effect == "free",
        "Not shown to beat {e.hardest_words}",
        "open",
        (_ranking, _margin, _harm, _say("So it may have learnt what was there for free.")),
    ),
    Row(
        lambda e: e.harmed,
        "It learnt the thumbs, and lost something else",
        "open",
        (
            _ranking,
            _margin,
            _harm,
        ),
    ),
    Row(
        lambda e: e.chosen,
        "It seems to have learnt what people like",
        "open",
        (_ranking, _margin, _selection),
    ),
    Row(
        lambda e: True,
        "It learnt what people like",
        "good",
        (_ranking, _margin, _movement),
    ),
)
