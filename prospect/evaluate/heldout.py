"""Does the model's implied reward tell good answers from bad ones on feedback that it was not trained on?

    rows, trees --engine, reference table--> reward = beta * r per answer --measure--> Heldout, numbers with intervals

`measure` is numpy alone; `evaluate` runs the model. Two baselines keep the AUC honest: an answer's length, and the
log-prob that the reference had given it. A reward that does not beat them has learnt what was there for free. (The AUC
of the untrained policy is no baseline: as its own reference it gives every answer the reward 0, so its AUC is 0.5 by
construction.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from prospect.data.dataset import mismatch
from prospect.data.schedule import Row
from prospect.data.tokens import Tree
from prospect.engine.device import ROUNDING
from prospect.evaluate import statistics
from prospect.evaluate.statistics import (
    Bin,
    Bools,
    Floats,
    Interval,
    Ints,
)

if TYPE_CHECKING:
    from prospect.engine.policy import Policy

Ids = npt.NDArray[np.int32]
Query = tuple[Ids, Ids]
"""Prompt ids and completion ids: how the reference table is asked."""
Lookup = Callable[[Query], npt.NDArray[np.floating[Any]]]
"""Token log-probs (c,) of the reference in nats."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of rewards by label between `edges` (k + 1); the outermost bins also hold what lies beyond."""

    edges: tuple[float, ...]
    desirable: tuple[int, ...]
    undesirable: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Heldout:
    """What a policy does on held-out feedback. Rewards, margin and z0 are in beta * nats, nll and nll_change in nats
    per token, change in nats per answer.

    `n` answers (with a thumb or not) to `prompts` prompts in `groups` groups, of them `desirable` with a thumb up and
    `undesirable` with a thumb down. What cannot be said of this data is None or empty, and `notes` says why. Each
    number is defined at `measure`.
    """

    n: int
    prompts: int
    groups: int
    desirable: int
    undesirable: int
    beta: float
    z0: float
    auc: Interval | None
    accuracy: Interval | None
    margin: Interval | None
    nll: Interval | None
    nll_change: Interval | None
    change: Interval | None
    calibration_slope: Interval | None
    calibration_gap: Interval | None
    baselines: dict[str, Interval]
    auc_difference: dict[str, Interval]
    calibration: tuple[Bin, ...]
    roc: tuple[tuple[float, float], ...]
    rewards: Histogram | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, as written to evaluation.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Heldout:
        """The inverse of `to_json`, also after a trip through a file. Unknown keys are ignored, so that a newer file
        can be read; a missing key raises KeyError."""
        values = {f.name: data[f.name] for f in fields(cls)}
        for name in INTERVALS:
            values[name] = Interval(**values[name]) if values[name] else None
        for name in ("baselines", "auc_difference"):
            values[name] = {key: Interval(**interval) for key, interval in values[name].items()}
        values["calibration"] = tuple(Bin(**item) for item in values["calibration"])
        values["roc"] = tuple((float(x), float(y)) for x, y in values["roc"])
        histogram = values["rewards"]
        values["rewards"] = Histogram(**{name: tuple(v) for name, v in histogram.items()}) if histogram else None
        values["notes"] = tuple(values["notes"])
        return cls(**values)


INTERVALS = ("auc", "accuracy", "margin", "nll", "nll_change", "change", "calibration_slope", "calibration_gap")
"""The fields of a Heldout that are one number with its interval."""


def measure(
    *,
    reward: Floats,
    desirable: Sequence[bool | None] | Bools,
    prompt: Ints,
    group: Ints | None = None,
    length: Ints,
    reference_logp: Floats,
    logp: Floats,
    z0: float,
    beta: float,
    seed: int = 0,
    resolution: float = 0.0,
    resamples: int = 1000,
) -> Heldout:
    """Every number of a Heldout from one array per quantity, all (N,).

    `reward` = beta * r and `z0` are in beta * nats; `logp` and `reference_logp` are sums over an answer's tokens in
    nats; `desirable` is the thumb, None where nobody judged; `prompt` says which rows share a prompt, `group` (default:
    the prompt) which depend on each other; `length` counts tokens. Rewards that lie within `resolution` of each other
    are ties. All intervals are 95 %, resampled by group.

    - auc: P(reward of a desirable answer > that of an undesirable one), ties half
    - accuracy: reward > z0 predicts desirable; a reward at z0 is a toss of a coin and counts one half
    - margin: mean reward of the desirable minus mean reward of the undesirable
    - nll: of the desirable and the unjudged answers, the ones to imitate
    - nll_change: nll minus that of the reference, both from the same resamples
    - change: mean |r|, by how many nats the log-prob of an answer differs from the reference's
    - calibration: sigma(reward - z0) as P(desirable), the probability that KTO's value function implies, in bins
    - calibration_slope: statistics.calibration_slope of reward - z0; 1 is calibrated, below 1 too extreme
    - calibration_gap: mean sigma(reward - z0) minus the share of desirable answers; 0 is calibrated
    - baselines: the AUC of length and of reference_logp as they are; below one half, it is the short or the unlikely
      that people like
    - auc_difference: auc minus the AUC of each baseline in its better direction (1 - AUC where that is below one half),
      both from the same resamples
    """
    assert len(reward) == len(desirable) == len(prompt) == len(length) == len(reference_logp) == len(logp)
    up = np.array([label is True or label is np.True_ for label in desirable], dtype=bool)
    down = np.array([label is False or label is np.False_ for label in desirable], dtype=bool)
    judged = up | down
    group = prompt if group is None else group
    score, label, cluster = _grid(np.asarray(reward, np.float64) - z0, resolution)[judged], up[judged], group[judged]

    def interval(statistic: statistics.Statistic, rows: Ints = cluster) -> Interval | None:
        return statistics.bootstrap(statistic, rows, n=resamples, seed=seed)

    couples = _couples(label, cluster)

    def area(values: Floats) -> Interval | None:
        return statistics.separated(interval(lambda w: statistics.auc(values, label, w)), couples)

    right = np.where(score == 0, 0.5, (score > 0) == label)
    probability = expit(score)
    free = {"length": length[judged].astype(np.float64), "reference_logp": np.asarray(reference_logp[judged])}
    baselines = {name: known for name, values in free.items() if (known := area(values))}

    def lead(name: str) -> Interval | None:
        values = free[name] if baselines[name].value >= 0.5 else -free[name]
        return interval(lambda w: statistics.auc(score, label, w) - statistics.auc(values, label, w))

    kept = ~down
    tokens = length[kept].astype(np.float64)
    nll = interval(lambda w: statistics.ratio(-logp[kept], tokens, w), group[kept])
    nll_change = interval(lambda w: statistics.ratio((reference_logp - logp)[kept], tokens, w), group[kept])
    return Heldout(
        n=len(reward),
        prompts=len(np.unique(prompt)),
        groups=len(np.unique(group)),
        desirable=int(up.sum()),
        undesirable=int(down.sum()),
        beta=beta,
        z0=z0,
        auc=area(score),
        accuracy=statistics.separated(interval(lambda w: statistics.ratio(right, None, w)), len(np.unique(cluster))),
        margin=interval(
            lambda w: statistics.ratio(score, label, w * label) - statistics.ratio(score, ~label, w * ~label)
        ),
        nll=nll,
        nll_change=nll_change,
        change=interval(lambda w: statistics.ratio(np.abs(reward) / beta, None, w), group),
        calibration_slope=interval(lambda w: statistics.calibration_slope(score, label, w)),
        calibration_gap=interval(lambda w: statistics.ratio(probability - label, None, w)),
        baselines=baselines,
        auc_difference={name: known for name in baselines if (known := lead(name))},
        calibration=tuple(statistics.calibration(probability, label)),
        roc=tuple(statistics.roc(score, label)),
        rewards=_histogram(score + z0, label),
        notes=_notes(up, down, len(np.unique(cluster))),
    )


def evaluate(
    policy: Policy,
    reference: Lookup,
    trees: Sequence[Tree],
    rows: Sequence[Row],
    *,
    beta: float,
    partners: Sequence[int] = (),
    groups: Sequence[int] | None = None,
    z0: float | None = None,
    seed: int = 0,
    token_budget: int = 8192,
    resamples: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Heldout:
    """Measure `policy` on held-out rows. A pair counts as two rows, its chosen answer desirable and its rejected one
    not.

    `reference` must know every query of `queries(trees, rows, partners, policy.context)`. `z0`, in beta * nats, is the
    line between good and bad; where it is None it is estimated as in training, max(0, beta * mean r) over the rows with
    their `partners` (row indices, -1 for none), and 0 without partners. Over-long answers (None in their tree) are left
    out. `groups` says which rows depend on each other (default: those of one prompt), for the intervals; `resamples` 0
    makes none. `progress` is called with (answers done, all).
    """
    answers = list(_answers(trees, rows))
    asked = queries(trees, rows, partners, policy.context)
    logp = _logp(policy, asked, token_budget, progress)
    known = np.array([float(np.sum(reference(query), dtype=np.float64)) for query in asked])
    log_ratio = logp - known
    if z0 is None:
        mismatched = log_ratio[len(answers) :]
        z0 = max(0.0, beta * float(mismatched.mean())) if len(mismatched) else 0.0
    n = len(answers)
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(q[0].tobytes() for q in asked[:n]))}
    prompts = np.array([place[q[0].tobytes()] for q in asked[:n]], dtype=np.int64)
    return measure(
        reward=beta * log_ratio[:n],
        desirable=[label for _, _, label in answers],
        prompt=prompts,
        group=prompts if groups is None else np.array([groups[row] for row, _, _ in answers], dtype=np.int64),
        length=np.array([len(q[1]) for q in asked[:n]], dtype=np.int64),
        reference_logp=known[:n],
        logp=logp[:n],
        z0=z0,
        beta=beta,
        seed=seed,
        resolution=beta * ROUNDING[policy.precision],
        resamples=resamples,
    )


def queries(trees: Sequence[Tree], rows: Sequence[Row], partners: Sequence[int], context: int) -> list[Query]:
    """All that `evaluate` asks of the reference: each row's answers, then each row's prompt with its partner's answer,
    cut to the model's context as in training."""
    asked = [query for _, query, _ in _answers(trees, rows)]
    for row, partner in zip(rows, partners, strict=False):
        answer = trees[rows[partner].tree].completions[rows[partner].branches[0]] if partner >= 0 else None
        couple = mismatch(trees[row.tree].prompt, answer, context) if answer is not None else None
        if couple is not None:
            asked.append(couple)
    return asked


def _answers(trees: Sequence[Tree], rows: Sequence[Row]) -> Iterator[tuple[int, Query, bool | None]]:
    """(row, query, thumb) of every answer of the rows, each (prompt, answer, thumb) once however many pairs repeat
    it."""
    seen: set[tuple[int, int, bool | None]] = set()
    for number, row in enumerate(rows):
        labels = (row.desirable,) if len(row.branches) == 1 else (True, False)
        for branch, label in zip(row.branches, labels, strict=True):
            answer = trees[row.tree].completions[branch]
            if answer is not None and (row.tree, branch, label) not in seen:
                seen.add((row.tree, branch, label))
                yield number, (trees[row.tree].prompt, answer), label


def _logp(policy: Policy, asked: Sequence[Query], budget: int, progress: Callable[[int, int], None] | None) -> Floats:
    """log pi(answer | prompt) (N,) in nats of every query."""
    from prospect.engine.reference import score

    found = np.empty(len(asked))
    done = 0
    for batch in score(policy, asked, token_budget=budget):
        for number, token_logp in batch:
            found[number] = np.sum(token_logp, dtype=np.float64)
        done += len(batch)
        if progress:
            progress(done, len(asked))
    return found


def _grid(values: Floats, resolution: float) -> Floats:
    """Values on a grid of `resolution`, so that what differs by less is mostly equal; 0 leaves them as they are."""
    rounded: Floats = np.round(values / resolution) * resolution if resolution > 0 else values
    return rounded


def _couples(label: Bools, prompt: Ints) -> int:
    """How many disjoint couples of a desirable and an undesirable answer exist, each from two prompts nobody else
    uses."""
    up, down = set(prompt[label].tolist()), set(prompt[~label].tolist())
    return min(len(up), len(down), len(up | down) // 2)


def _histogram(reward: Floats, label: Bools, bins: int = 30) -> Histogram | None:
    """Rewards by label over the range of their middle 99 %; None without rows."""
    if not len(reward):
        return None
    low, high = np.quantile(reward, [0.005, 0.995])
    spare = max((high - low) * 0.02, 1e-3)
    edges = np.linspace(low - spare, high + spare, bins + 1)
    inside = np.clip(reward, edges[0], edges[-1])
    up, down = (np.histogram(inside[side], edges)[0].tolist() for side in (label, ~label))
    return Histogram(tuple(edges.tolist()), tuple(up), tuple(down))


def _notes(up: Bools, down: Bools, groups: int) -> tuple[str, ...]:
    """What this data cannot show, in words for the user."""
    notes = []
    if not up.any() and not down.any():
        notes.append("No answer has a thumb: only the negative log-likelihood can be measured.")
    elif not up.any() or not down.any():
        notes.append(f"Every thumb is {'up' if up.any() else 'down'}: an AUC and a margin need both.")
    if groups == 1:
        notes.append("All judged answers belong to one prompt or conversation: the intervals speak of that one alone.")
    elif 0 < groups < statistics.FEW:
        notes.append(f"Only {groups} separate prompts or conversations: intervals from so few are too narrow.")
    return tuple(notes)
