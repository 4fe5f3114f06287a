"""The doctor on thumbs: classes and their weights, contradictions, partners for z0, and length as a confound."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prospect.doctor.findings import Finding, Level, both, first, of
from prospect.feedback.records import Completion, Record, at, cite

MOST_WEIGHT = 10.0
"""Above this ratio of the two weights a few rows speak for many: the doctor warns."""
FAIR_AUC = (0.4, 0.6)
"""An AUC of length within these bounds is no confound worth a warning."""


@dataclass(frozen=True, slots=True)
class Thumb:
    """One row of the binary view. `prompt` numbers the distinct prompts; `length` is in tokens or characters."""

    completion: Completion
    prompt: int
    desirable: bool
    weight: float
    length: int


def classes(records: Sequence[Record], thumbs: Sequence[Thumb], kept: Sequence[Thumb]) -> Iterator[Finding]:
    """Which labels there are: both, one only, none. `kept` are the thumbs that survive the over-long policy."""
    every = [c for r in records for c in r.completions]
    up = sum(t.desirable for t in thumbs)
    counts = {"desirable": up, "undesirable": len(thumbs) - up}
    if not thumbs:
        scored = sum(c.score is not None for c in every)
        if scored:
            message = (
                f"{of(scored, len(every))} completions have a score: --threshold mean|median|VALUE makes thumbs of them"
            )
        else:
            message = "nothing is judged (no label, score or pair): this file serves --loss sft only"
        yield Finding("labels", "info", message, data=counts)
        return
    if not up or up == len(thumbs):
        one, other = ("desirable", "undesirable") if up else ("undesirable", "desirable")
        yield Finding(
            "one_class",
            "error",
            f"all {len(thumbs)} thumbs are {one}: KTO learns from both. Add {other} answers"
            + (", or use --loss sft on answers to imitate" if up else ""),
            data=counts,
        )
        return
    yield Finding("labels", "ok", f"{up} desirable and {len(thumbs) - up} undesirable", data=counts)
    if kept and len({t.desirable for t in kept}) == 1:
        one = "desirable" if kept[0].desirable else "undesirable"
        message = f"what fits the context is all {one}, but KTO learns from both. Choose another --over-long"
        yield Finding("one_class", "error", message, data={one: len(kept)})
    judged = {id(t.completion) for t in thumbs}
    silent = [c for c in every if id(c) not in judged]
    if silent:
        message = f"{of(len(silent), len(every))} completions have no thumb and are left out of training with thumbs"
        yield Finding("unjudged", "info", message, first([at(c) for c in silent]), {"count": len(silent)})


def balance(thumbs: Sequence[Thumb]) -> tuple[dict[str, Any], list[Finding]]:
    """Sums of weights per class, the `auto` weights and Eq. 9 of arXiv 2402.01306 (KTO): lambda_D n_D / (lambda_U n_U)
    should lie in [1, 3/2]. `auto` makes it 1, the majority side staying at 1."""
    up = sum(t.weight for t in thumbs if t.desirable)
    down = sum(t.weight for t in thumbs if not t.desirable)
    idle = [t for t in thumbs if t.weight == 0]
    found = []
    if idle:
        message = f"{of(len(idle), len(thumbs))} rows have weight 0 and teach nothing"
        found.append(Finding("zero_weight", "info", message, first([at(t.completion) for t in idle])))
    if up == 0 or down == 0:
        return {"desirable": up, "undesirable": down}, found
    ratio = up / down
    auto = {"desirable_weight": max(1.0, 1 / ratio), "undesirable_weight": max(1.0, ratio)}
    summary = {"desirable": up, "undesirable": down, "ratio": ratio, "auto": auto}
    level: Level = "info"
    side = "desirable_weight" if ratio < 1 else "undesirable_weight"
    low, high = (1 / ratio, 1.5 / ratio) if ratio < 1 else (ratio / 1.5, ratio)
    if 1 <= ratio <= 1.5:
        message = (
            f"desirable to undesirable is {ratio:.3g} by weight, within [1, 1.5] as it should be (KTO paper, Eq. 9)"
        )
        level = "ok"
    else:
        message = (
            f"desirable to undesirable is {ratio:.3g} by weight. The automatic weights set {side} to {auto[side]:.3g}; "
            f"by the KTO paper's Eq. 9 it may lie in [{low:.3g}, {high:.3g}]"
        )
        if auto[side] > MOST_WEIGHT:
            level = "warning"
            rare = "desirable" if ratio < 1 else "undesirable"
            message += (
                f". Each {rare} row then speaks for more than {MOST_WEIGHT:g} others: collect more {rare} answers"
            )
    return summary, [*found, Finding("balance", level, message, data=summary)]


def contradictions(thumbs: Sequence[Thumb], records: Sequence[Record]) -> Iterator[Finding]:
    """The same answer to the same prompt with both thumbs; pairs that prefer both ways, or an answer over itself."""
    from_pairs = {id(r.completions[i]) for r in records for p in r.pairs for i in (p.chosen, p.rejected)}
    by_answer: dict[tuple[int, str], list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        # In pairs an answer may well be better than one and worse than another.
        if id(thumb.completion) not in from_pairs:
            by_answer[thumb.prompt, thumb.completion.key].append(thumb)
    torn = [group for group in by_answer.values() if len({t.desirable for t in group}) == 2]
    if torn:
        rows = sum(map(len, torn))
        examples = []
        for group in torn:
            good = next(t for t in group if t.desirable)
            bad = next(t for t in group if not t.desirable)
            examples.append(f"{both(good.completion, bad.completion)}: {cite(good.completion.readable)}")
        message = (
            f"answers with both thumbs for the same prompt: {len(torn)} ({rows} rows). Decide on one, by majority say, "
            "or leave them as a measure of noise"
        )
        yield Finding("contradictions", "warning", message, first(examples), {"answers": len(torn), "rows": rows})
    equal, reversed_ = [], []
    for record in records:
        preferred: dict[tuple[str, str], Completion] = {}
        for pair in record.pairs:
            better, worse = record.completions[pair.chosen], record.completions[pair.rejected]
            if better.key == worse.key:
                equal.append(f"{both(better, worse)}: {cite(better.readable)}")
            elif (worse.key, better.key) in preferred:
                reversed_.append(f"{both(preferred[worse.key, better.key], better)}: {cite(better.readable)}")
            preferred.setdefault((better.key, worse.key), better)
    if equal:
        message = f"pairs that prefer an answer over itself: {len(equal)}. They teach nothing: remove them"
        yield Finding("equal_pairs", "warning", message, first(equal), {"pairs": len(equal)})
    if reversed_:
        message = f"pairs that reverse another pair of the same prompt: {len(reversed_)}. Decide on one order"
        yield Finding("reversed_pairs", "warning", message, first(reversed_), {"pairs": len(reversed_)})


def partners(thumbs: Sequence[Thumb]) -> Iterator[Finding]:
    """Whether each row finds an answer to another prompt as its partner for z0."""
    if len(thumbs) < 2:
        return
    (top, rows), *others = Counter(t.prompt for t in thumbs).most_common()
    where = first([at(t.completion) for t in thumbs if t.prompt == top][:1])
    if not others:
        message = (
            "all thumbs are for one prompt, so no answer has a partner on another prompt and z0 cannot be estimated. "
            "Add feedback on other prompts, or train with --reference-point zero"
        )
        yield Finding("one_prompt", "error", message, where)
    elif 2 * rows > len(thumbs):
        lonely = 2 * rows - len(thumbs)
        message = (
            f"one prompt has {of(rows, len(thumbs))} thumbs: up to {lonely} of them find no partner on another prompt "
            "and do not enter z0. Add feedback on other prompts"
        )
        yield Finding("dominant_prompt", "warning", message, where, {"rows": rows, "without_partner": lonely})


def length_confound(thumbs: Sequence[Thumb], unit: str) -> Iterator[Finding]:
    """P(a desirable answer is longer than an undesirable one), with its 95 % interval clustered by prompt."""
    good = np.array([t.desirable for t in thumbs], bool)
    if not good.any() or good.all():
        return
    lengths = np.array([t.length for t in thumbs], np.float64)
    value, error = clustered_auc(lengths, good, np.array([t.prompt for t in thumbs]))
    low, high = max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)
    medians = {"desirable": float(np.median(lengths[good])), "undesirable": float(np.median(lengths[~good]))}
    data = {"auc": value, "low": low, "high": high, "unit": unit, "median": medians}
    numbers = (
        f"AUC of length {value:.2f} [{low:.2f}, {high:.2f}]; medians: desirable {medians['desirable']:g}, undesirable "
        f"{medians['undesirable']:g} {unit}"
    )
    # Outside the fair bounds, and not by chance.
    outside = not FAIR_AUC[0] <= value <= FAIR_AUC[1] and not low <= 0.5 <= high
    if outside:
        kind = "longer" if value > 0.5 else "shorter"
        message = (
            f"desirable answers are {kind} ({numbers}): a model can please by length alone. Compare evaluations with "
            "the length baseline, or balance lengths within each label"
        )
        yield Finding("length_confound", "warning", message, data=data)
    else:
        yield Finding("length_confound", "ok", f"length hardly tells the label ({numbers})", data=data)


def clustered_auc(
    score: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_], cluster: npt.NDArray[np.int_]
) -> tuple[float, float]:
    """(AUC with ties counting half, its standard error when rows of a cluster depend on each other).

    (N,) each, both classes present. Obuchowski 1997 (Biometrics 53, p. 567): each row's placement among the other class
    minus the AUC, summed within clusters; with clusters of one row this is DeLong's variance.
    """
    up, down = np.sort(score[positive]), np.sort(score[~positive])

    def below(values: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        wins = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
        return np.asarray(wins / (2 * len(others)), np.float64)

    placement = np.where(positive, below(score, down), 1 - below(score, up))
    value = float(placement[positive].mean())
    influence = (placement - value) / np.where(positive, len(up), len(down))
    _, number = np.unique(cluster, return_inverse=True)
    sums = np.bincount(number, influence)
    spread = len(sums) / max(1, len(sums) - 1)
    return value, float(np.sqrt(spread * np.sum(sums**2)))
