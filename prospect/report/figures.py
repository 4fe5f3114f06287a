"""Which charts a run gets, with their units and what each one says. A chart whose figures were not logged is left
out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prospect.report import charts
from prospect.report.charts import Bar, Line
from prospect.report.curves import Curve, smooth, thin
from prospect.report.evidence import interval, with_interval
from prospect.report.folder import (
    Data,
    RunFolder,
    number,
    section,
)
from prospect.report.svg import minus

LOSS_UNITS = {"kto": "mean of λ − value, no unit", "dpo": "nats per pair", "sft": "nats per token"}
REWARD = "β·nats"


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading and the sentence under it."""

    title: str
    caption: str
    svg: str


def curves(run: RunFolder) -> list[Figure]:
    """The training curves, in reading order."""
    found = [
        _loss(run),
        _rewards(run),
        _margin(run),
        _reference_point(run),
        _shares(run),
        _heldout_auc(run),
        _gradient(run),
        _rate(run),
        _speed(run),
    ]
    return [figure for figure in found if figure is not None]


def _line(run: RunFolder, name: str, label: str, kind: str, *, band: bool = True) -> Line:
    curve = smooth(run.series("step"), run.series(name))
    return Line(label, kind, curve.x, curve.y, (curve.low, curve.high) if band and curve.low else None)


def _chart(
    slug: str, title: str, caption: str, series: Sequence[Line], unit: str, *, include: Sequence[float] = ()
) -> Figure:
    svg = charts.lines(slug, title, caption, series, "optimizer step", unit, include=include)
    return Figure(title, caption, svg)


def _loss(run: RunFolder) -> Figure | None:
    if not run.has("loss"):
        return None
    unit = LOSS_UNITS.get(run.loss)
    label = f"loss ({unit})" if unit else "loss"
    return _chart("loss", "Loss", "The training objective of each step.", [_line(run, "loss", "", "main")], label)


def _rewards(run: RunFolder) -> Figure | None:
    series = [
        _line(run, f"reward_{side}", side, kind)
        for side, kind in (("desirable", "good"), ("undesirable", "bad"))
        if run.has(f"reward_{side}")
    ]
    caption = (
        "β times the log-ratio of policy to reference, averaged by thumb. They should part; both falling is a warning."
    )
    return _chart("rewards", "Implied rewards", caption, series, f"reward ({REWARD})", include=[0]) if series else None


def _margin(run: RunFolder) -> Figure | None:
    if not run.has("margin"):
        return None
    series = [_line(run, "margin", "training", "main")]
    held = [(number(e, "step"), number(e, "margin")) for e in run.evaluations if not math.isnan(number(e, "margin"))]
    if held:
        series.append(Line("held-out", "base", [x for x, _ in held], [y for _, y in held]))
    caption = "Reward of the desirable minus reward of the undesirable answers."
    return _chart("margin", "Margin", caption, series, f"margin ({REWARD})", include=[0])


def _reference_point(run: RunFolder) -> Figure | None:
    if not run.has("z0"):
        return None
    series = []
    if run.has("z0_raw"):
        steps, raw, error = run.series("step"), run.series("z0_raw"), run.series("z0_se")
        middle: Curve = smooth(steps, raw)
        low = smooth(steps, [m - e for m, e in zip(raw, error, strict=True)])
        high = smooth(steps, [m + e for m, e in zip(raw, error, strict=True)])
        whole = len(low.x) == len(middle.x)
        series.append(Line("raw mean ± s.e.", "base", middle.x, middle.y, (low.y, high.y) if whole else None))
    series.append(_line(run, "z0", "z0 as used", "main", band=False))
    caption = "The level an answer has to beat. Its raw mean usually falls below 0, where the clamp holds it at 0."
    return _chart("z0", "Reference point z0", caption, series, "log-ratio (nats)", include=[0])


def _shares(run: RunFolder) -> Figure | None:
    named = (("accuracy", "ranked right", "main"), ("saturated", "saturated", "base"))
    series = [_line(run, name, label, kind, band=False) for name, label, kind in named if run.has(name)]
    caption = "Training answers on the right side of z0, and those so far from it that they hardly pull any more."
    svg = charts.lines(
        "shares", "Right and saturated", caption, series, "optimizer step", "share of the step's rows", y=(0.0, 1.0)
    )
    return Figure("Right and saturated", caption, svg) if series else None


def _heldout_auc(run: RunFolder) -> Figure | None:
    points = [(number(e, "step"), number(e, "auc")) for e in run.evaluations if not math.isnan(number(e, "auc"))]
    if len(points) < 3:
        return None
    series = [Line("AUC", "main", [x for x, _ in points], [y for _, y in points])]
    caption = "How well the implied reward ranks held-out answers while training goes on; 0.5 is chance."
    return _chart("auc-steps", "Held-out AUC", caption, series, "AUC (0.5 is chance)", include=[0.5])


def _gradient(run: RunFolder) -> Figure | None:
    if not run.has("grad_norm"):
        return None
    series = [_line(run, "grad_norm", "", "main")]
    clip = number(run.options, "clip")
    caption = (
        f"Norm of the gradient before clipping at {clip:g}."
        if math.isfinite(clip)
        else "Norm of the gradient before clipping."
    )
    return _chart("grad-norm", "Gradient norm", caption, series, "gradient norm", include=[0])


def _rate(run: RunFolder) -> Figure | None:
    if not run.has("lr"):
        return None
    curve = thin(run.series("step"), run.series("lr"))
    return _chart(
        "lr",
        "Learning rate",
        "Warm-up, then the chosen decay.",
        [Line("", "main", curve.x, curve.y)],
        "learning rate",
        include=[0],
    )


def _speed(run: RunFolder) -> Figure | None:
    if not run.has("tokens_per_second"):
        return None
    series = [_line(run, "tokens_per_second", "", "main")]
    return _chart("speed", "Speed", "Trained tokens a second, prompts included.", series, "tokens / s", include=[0])


def outcome(run: RunFolder) -> Figure | None:
    """AUC after training beside what ranks the answers for free; before training it is a number only beside another
    reference."""
    rows = []
    baselines = section(run.after, "baselines")
    for label, source, name, kind in (
        ("reward after training", run.after, "auc", "main"),
        ("reward before training", {} if run.own_reference else run.before, "auc", "base"),
        ("length, longer first", baselines, "length", "base"),
        ("reference's log-prob, likely first", baselines, "reference_logp", "base"),
    ):
        found = section(source, name)
        if found:
            rows.append(Bar(label, number(found, "value"), number(found, "low"), number(found, "high"), kind))
    if not rows:
        return None
    caption = (
        "How often a desirable answer gets a higher score than an undesirable one, with 95 % intervals. A baseline "
        "below 0.5 ranks as well the other way round. A reward that is not shown to beat the baselines in their better "
        "direction may have learnt what was there for free."
    )
    svg = charts.bars("outcome", "Held-out AUC", caption, rows, "AUC (0.5 is chance)", reference=0.5)
    return Figure("Held-out AUC", caption, svg)


def _measurements(run: RunFolder) -> list[tuple[str, Data]]:
    """The held-out measurements whose rewards say something: of a policy that is its own reference, not the first."""
    parts = [("before", {} if run.own_reference else run.before), ("after", run.after)]
    return [(name, data) for name, data in parts if data]


def histograms(run: RunFolder) -> list[Figure]:
    """Rewards by label on one horizontal axis: after, and before where they were not 0 by construction."""
    parts = [(name, data, section(data, "rewards")) for name, data in _measurements(run)]
    parts = [part for part in parts if part[2].get("edges")]
    if not parts:
        return []
    low = min(part[2]["edges"][0] for part in parts)
    high = max(part[2]["edges"][-1] for part in parts)
    found = []
    caption = "Rewards of held-out answers; the outermost bars hold what lies beyond. The sides should lie apart."
    for name, data, counts in parts:
        svg = charts.histogram(
            f"rewards-{name}",
            f"Rewards {name} training",
            caption,
            counts["edges"],
            counts["desirable"],
            counts["undesirable"],
            f"reward ({REWARD})",
            x=(low, high),
            mark=number(data, "z0") if name == "after" else None,
        )
        found.append(Figure(f"Rewards {name} training", caption, svg))
    return found


def discrimination(run: RunFolder) -> list[Figure]:
    """ROC and calibration on held-out feedback, in one chart each."""
    parts = [(name, "main" if name == "after" else "base", data) for name, data in _measurements(run)]
    found = []
    series = [
        Line(
            f"{name} ({number(section(data, 'auc'), 'value'):.2f})",
            kind,
            [p[0] for p in data["roc"]],
            [p[1] for p in data["roc"]],
        )
        for name, kind, data in parts
        if data.get("roc")
    ]
    if series:
        caption = (
            "Share of desirable answers found over share of undesirable ones taken for good, as the threshold falls; "
            "in brackets the area under the curve."
        )
        svg = charts.lines(
            "roc",
            "ROC",
            caption,
            series,
            "false positive rate",
            "true positive rate",
            x=(0.0, 1.0),
            y=(0.0, 1.0),
            diagonal=True,
            square=True,
        )
        found.append(Figure("ROC", caption, svg))
    bins = [(name, kind, data.get("calibration") or []) for name, kind, data in parts]
    bins = [entry for entry in bins if entry[2]]
    if bins:
        slope, gap = (section(run.after, f"calibration_{name}") for name in ("slope", "gap"))
        caption = "σ(reward − z0) as the probability of a thumb up, against what was observed."
        if slope:
            caption += minus(
                f" Slope {with_interval(interval(slope), '.2f')}: 1 is calibrated, below 1 too extreme, above 1 too "
                f"timid. Predicted minus observed: {with_interval(interval(gap), '+.3f')}."
            )
        svg = charts.calibration("calibration", "Calibration", caption, bins)
        found.append(Figure("Calibration", caption, svg))
    return found


def story(data: Data) -> Figure | None:
    """The bars of story.json: rates with intervals."""
    rows = [
        Bar(
            str(b.get("label", "")),
            number(b, "rate"),
            number(b, "low"),
            number(b, "high"),
            "base" if b.get("kind") == "base" else "main",
        )
        for b in data.get("bars") or []
        if isinstance(b, dict) and not math.isnan(number(b, "rate"))
    ]
    if not rows:
        return None
    caption = "Share of answers that are desirable, with 95 % intervals."
    svg = charts.bars("story", "Desirable answers", caption, rows, "desirable answers", percent=True, filled=True)
    return Figure("Desirable answers", caption, svg)
