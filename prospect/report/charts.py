"""Which charts a run gets, with their units and what to read in each. A chart without figures is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prospect.report import svg
from prospect.report.evidence import Data, RunFolder, interval, items, number, objects, section, with_interval
from prospect.report.svg import Bar, Figure, Line, minus

REWARD = "β·nats"
LOSS_UNITS = {"kto": "mean of λ − value, no unit", "dpo": "nats per pair", "sft": "nats per token"}
POINTS = 240
"""Most points of a drawn line."""
WINDOWS = 25
"""A series of more than twice as many values is averaged over a 25th of its length, so that its course shows."""


# ---- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Series:
    """One figure of metrics.jsonl as a line. `band` is what is shaded around it: the spread of the steps that were
    averaged, the standard error `z0_se`, or nothing. `heldout` figures were measured while training went on, the
    `exact` ones have no noise to average."""

    figure: str
    name: str = ""
    kind: str = "main"
    band: str = "spread"
    heldout: bool = False
    exact: bool = False

    def line(self, run: RunFolder) -> Line | None:
        if self.heldout:
            steps, values = run.heldout(self.figure)
            return Line(self.name, self.kind, steps, values) if steps else None
        if not run.has(self.figure):
            return None
        x, y = run.series("step"), run.series(self.figure)
        line = smooth(x, y, exact=self.exact)
        band = line.band if self.band == "spread" else None
        if self.band == "z0_se":
            error = run.series(self.band)
            low, high = (smooth(x, [m + sign * e for m, e in zip(y, error, strict=True)]) for sign in (-1, 1))
            band = (low.y, high.y) if len(low.x) == len(line.x) else None
        return Line(self.name, self.kind, line.x, line.y, band)


@dataclass(frozen=True, slots=True)
class Curve:
    """A chart of training, where there is anything to draw and `when` holds. `include` are values that the vertical
    axis must show."""

    slug: str
    title: str
    unit: str | Callable[[RunFolder], str]
    caption: str | Callable[[RunFolder], str]
    series: Sequence[Series]
    include: Sequence[float] = (0,)
    y: svg.Range | None = None
    when: Callable[[RunFolder], bool] = lambda run: True


def _loss_unit(run: RunFolder) -> str:
    return f"loss ({LOSS_UNITS[run.loss]})" if run.loss in LOSS_UNITS else "loss"


def _clip(run: RunFolder) -> str:
    clip = number(run.options, "clip")
    return f"Norm of the gradient before clipping{f' at {clip:g}' if math.isfinite(clip) else ''}."


CURVES = (
    Curve("loss", "Loss", _loss_unit, "The training objective of each step.", [Series("loss")], include=()),
    Curve(
        "rewards",
        "Implied rewards",
        f"reward ({REWARD})",
        "β times the log-ratio of policy to reference, averaged by thumb. They should part; both falling is a warning.",
        [Series("reward_desirable", "desirable", "good"), Series("reward_undesirable", "undesirable", "bad")],
    ),
    Curve(
        "margin",
        "Margin",
        f"margin ({REWARD})",
        "Reward of the desirable minus reward of the undesirable answers.",
        [Series("margin", "training"), Series("margin", "held-out", "base", heldout=True)],
        when=lambda run: run.has("margin"),
    ),
    Curve(
        "z0",
        "Reference point z0",
        "log-ratio (nats)",
        "The level an answer has to beat. Its raw mean usually falls below 0, where the clamp holds it at 0.",
        [Series("z0_raw", "raw mean ± s.e.", "base", band="z0_se"), Series("z0", "z0 as used", band="")],
        when=lambda run: run.has("z0"),
    ),
    Curve(
        "shares",
        "Right and saturated",
        "share of the step's rows",
        "Training answers on the right side of z0 (of pairs: chosen above rejected; of groups: of their mean), and "
        "those so far from it that they hardly pull any more.",
        [Series("accuracy", "ranked right", band=""), Series("saturated", "saturated", "base", band="")],
        y=(0.0, 1.0),
    ),
    Curve(
        "auc-steps",
        "Held-out AUC",
        "AUC (0.5 is chance)",
        "How well the implied reward ranks held-out answers while training goes on; 0.5 is chance.",
        [Series("auc", "AUC", heldout=True)],
        include=(0.5,),
        when=lambda run: len(run.heldout("auc")[0]) >= 3,
    ),
    Curve("grad-norm", "Gradient norm", "gradient norm", _clip, [Series("grad_norm")]),
    Curve("lr", "Learning rate", "learning rate", "Warm-up, then the chosen decay.", [Series("lr", exact=True)]),
    Curve("speed", "Speed", "tokens / s", "Trained tokens a second, prompts included.", [Series("tokens_per_second")]),
)
"""In reading order."""


def curves(run: RunFolder) -> list[Figure]:
    """The training curves."""
    figures = []
    for row in CURVES:
        series = [line for series in row.series if (line := series.line(run))]
        if series and row.when(run):
            unit, caption = (text(run) if callable(text) else text for text in (row.unit, row.caption))
            axes = ("optimizer step", unit)
            figures.append(svg.lines(row.slug, row.title, caption, series, *axes, include=row.include, y=row.y))
    return figures


def smooth(x: Sequence[float], y: Sequence[float], *, exact: bool = False) -> Line:
    """A series (same lengths, NaN where unknown) as it is where short, thinned and averaged where long; only thinned
    where it is `exact`.

    A step's loss is a mean over a few rows, so a curve of thousands of steps is mostly noise and a large file. What is
    drawn is the average over a window of neighbouring steps, cut to what exists at the ends, in a band of one standard
    deviation of that window to either side.
    """
    points = np.array([x, y], np.float64)
    steps, values = points[:, np.isfinite(points[1])]
    n = len(steps)
    # Evenly spread, the first and the last included.
    centres = np.round(np.arange(POINTS) * (n - 1) / (POINTS - 1)).astype(int) if n > POINTS else np.arange(n)
    if exact or n <= 2 * WINDOWS:
        return Line("", "", steps[centres].tolist(), values[centres].tolist())
    half = max(1, n // WINDOWS // 2)
    windows = [values[max(0, centre - half) : centre + half + 1] for centre in centres]
    mean, spread = np.array([(window.mean(), window.std()) for window in windows]).T
    return Line("", "", steps[centres].tolist(), mean.tolist(), ((mean - spread).tolist(), (mean + spread).tolist()))


# ---- held-out feedback -----------------------------------------------------------------------------------------------


def outcome(run: RunFolder) -> Figure | None:
    """AUC after training beside what ranks the answers for free; before training it is a number only beside another
    reference."""
    baselines = section(run.after, "baselines")
    rows = (
        ("reward after training", run.after, "auc", "main"),
        ("reward before training", {} if run.own_reference else run.before, "auc", "base"),
        ("length, longer first", baselines, "length", "base"),
        ("reference's log-prob, likely first", baselines, "reference_logp", "base"),
    )
    bars = []
    for label, source, name, kind in rows:
        value = interval(source, name)
        if math.isfinite(value.value):
            bars.append(Bar(label, value.value, value.low, value.high, kind))
    if not bars:
        return None
    caption = (
        "How often a desirable answer gets a higher score than an undesirable one, with 95 % intervals. A baseline "
        "below 0.5 ranks as well the other way round. A reward that is not shown to beat the baselines in their better "
        "direction may have learnt what was there for free."
    )
    return svg.bars("outcome", "Held-out AUC", caption, bars, "AUC (0.5 is chance)", reference=0.5)


def heldout(run: RunFolder) -> list[Figure]:
    """Rewards by label on one horizontal axis, ROC and calibration. Before training only where the rewards say
    something: those of a policy that is its own reference are 0 by construction."""
    parts = [("before", "base", {} if run.own_reference else run.before), ("after", "main", run.after)]
    figures = []

    caption = "Rewards of held-out answers; the outermost bars hold what lies beyond. The sides should lie apart."
    rewards = [(name, data, _counts(data)) for name, _, data in parts]
    edges = [edge for _, _, counts in rewards for edge in counts[0]]
    for name, data, counts in rewards:
        if counts[0]:
            figures.append(
                svg.histogram(
                    f"rewards-{name}",
                    f"Rewards {name} training",
                    caption,
                    *counts,
                    f"reward ({REWARD})",
                    x=(min(edges), max(edges)),
                    mark=number(data, "z0") if name == "after" else None,
                )
            )

    caption = (
        "Share of desirable answers found over share of undesirable ones taken for good, as the threshold falls; in "
        "brackets the area under the curve."
    )
    lines = []
    for name, kind, data in parts:
        points = [point for point in map(_numbers, items(data, "roc")) if len(point) == 2]
        if points:
            lines.append(Line(f"{name} ({interval(data, 'auc').value:.2f})", kind, *zip(*points, strict=True)))
    axes = ("false positive rate", "true positive rate")
    if lines:
        figures.append(svg.lines("roc", "ROC", caption, lines, *axes, unit_square=True))

    caption = "σ(reward − z0) as the probability of a thumb up, against what was observed."
    if section(run.after, "calibration_slope"):
        slope, gap = (interval(run.after, f"calibration_{name}") for name in ("slope", "gap"))
        caption += minus(
            f" Slope {with_interval(slope, '.2f')}: 1 is calibrated, below 1 too extreme, above 1 too timid. "
            f"Predicted minus observed: {with_interval(gap, '+.3f')}."
        )
    bins = []
    for name, kind, data in parts:
        diagram = [b for b in objects(data, "calibration", "low", "high", "mean", "rate", "n") if b["n"] > 0]
        if diagram:
            bins.append((name, kind, diagram))
    if bins:
        figures.append(svg.calibration("calibration", "Calibration", caption, bins))
    return figures


def _counts(data: Data) -> tuple[list[float], list[int], list[int]]:
    """(edges, desirable, undesirable) of the histogram of rewards, empty where there is none."""
    rewards = section(data, "rewards")
    edges = _numbers(rewards.get("edges"))
    up, down = ([int(count) for count in _numbers(rewards.get(side))] for side in ("desirable", "undesirable"))
    return (edges, up, down) if len(edges) > 1 and edges == sorted(set(edges)) else ([], [], [])


def _numbers(values: object) -> list[float]:
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)] if isinstance(values, list) else []


def story(data: Data) -> Figure | None:
    """The bars of story.json: rates with intervals."""
    bars = []
    for bar in objects(data, "bars", "rate"):
        rate, low, high = (number(bar, name) for name in ("rate", "low", "high"))
        bars.append(Bar(str(bar.get("label", "")), rate, low, high, "base" if bar.get("kind") == "base" else "main"))
    if not bars:
        return None
    caption = "Share of answers that are desirable, with 95 % intervals."
    return svg.bars("story", "Desirable answers", caption, bars, "desirable answers", percent=True, filled=True)
