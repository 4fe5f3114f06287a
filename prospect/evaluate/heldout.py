"""Does the model's implied reward tell good answers from bad ones on feedback that it was not trained on?

    reward = beta * r per answer --measure--> Heldout, numbers with intervals --write_evaluation--> evaluation.json

Two baselines keep the AUC honest: an answer's length, and the log-prob that the reference had given it. A reward that
does not beat them has learnt what was there for free. (The AUC of the untrained policy is no baseline: as its own
reference it gives every answer the reward 0, so its AUC is 0.5 by construction.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from prospect.data import store
from prospect.errors import ConfigError
from prospect.evaluate import statistics
from prospect.evaluate.statistics import Bin, Bools, Floats, Interval, Ints
from prospect.training.config import TrainConfig


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
        if values["rewards"]:
            values["rewards"] = Histogram(**{name: tuple(counts) for name, counts in values["rewards"].items()})
        values["notes"] = tuple(values["notes"])
        return cls(**values)


INTERVALS = ("auc", "accuracy", "margin", "nll", "nll_change", "change", "calibration_slope", "calibration_gap")
"""The fields of a Heldout that are one number with its interval."""


def read_evaluation(folder: Path) -> dict[str, Heldout | None]:
    """ "before" and "after" of evaluation.json, None where they are not there (yet). Raises ConfigError where the file
    is damaged."""
    path = folder / "evaluation.json"
    if not path.exists():
        return {"before": None, "after": None}
    try:
        values = store.read_json(path)
        if values.pop("checksum", None) not in (None, store.checksum(values)):
            raise ValueError("its checksum is another")
        return {name: Heldout.from_json(values[name]) if values.get(name) else None for name in ("before", "after")}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def write_evaluation(
    folder: Path, config: TrainConfig, beta: float, before: Heldout | None, after: Heldout | None
) -> None:
    """evaluation.json of a run's measurements before and after training, if there is anything to say."""
    if before is None and after is None:
        return
    values: dict[str, Any] = {"before": before and before.to_json(), "after": after and after.to_json()}
    values |= {"policy": str(folder / "model"), "reference": config.reference or config.model, "beta": beta}
    store.write_json(folder / "evaluation.json", values | {"checksum": store.checksum(values)})


def measure(
    *,
    reward: Floats,
    desirable: Sequence[bool | None] | Bools,
    prompt: Ints,
    group: Ints | None = None,
    rater: Ints | None = None,
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
    the prompt) which depend on each other, `rater` who judged, below 0 where nobody knows; `length` counts tokens.
    Rewards that lie within `resolution` of each other are ties. All intervals are 95 %, resampled by group, and where
    several raters are known also by rater.

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
    # What differs by less than `resolution` is mostly equal on a grid of it.
    distance = np.asarray(reward, np.float64) - z0
    distance = np.round(distance / resolution) * resolution if resolution > 0 else distance
    score, label = distance[judged], up[judged]
    people = 0 if rater is None else len(np.unique(rater[rater >= 0]))
    rater = group if rater is None or people < 2 else _rater_or_group(rater, group)
    cluster = min((group[judged], rater[judged]), key=lambda way: len(np.unique(way)))
    # Disjoint couples of a desirable and an undesirable answer, each from two prompts that no other couple uses.
    likers, dislikers = set(cluster[label].tolist()), set(cluster[~label].tolist())
    couples = min(len(likers), len(dislikers), len(likers | dislikers) // 2)

    def interval(statistic: statistics.Statistic, rows: Bools = judged) -> Interval | None:
        if rater is group:
            return statistics.bootstrap(statistic, group[rows], n=resamples, seed=seed)
        return statistics.bootstrap_two_ways(statistic, group[rows], rater[rows], n=resamples, seed=seed)

    def area(values: Floats) -> Interval | None:
        return statistics.separated(interval(lambda w: statistics.auc(values, label, w)), couples)

    right = np.where(score == 0, 0.5, (score > 0) == label)
    probability = expit(score)
    free = {"length": length[judged].astype(np.float64), "reference_logp": np.asarray(reference_logp[judged])}
    baselines = {name: value for name, values in free.items() if (value := area(values))}

    def lead(name: str) -> Interval | None:
        values = free[name] if baselines[name].value >= 0.5 else -free[name]
        return interval(lambda w: statistics.auc(score, label, w) - statistics.auc(values, label, w))

    imitable = ~down
    tokens = length[imitable].astype(np.float64)
    nll = interval(lambda w: statistics.ratio(-logp[imitable], tokens, w), imitable)
    nll_change = interval(lambda w: statistics.ratio((reference_logp - logp)[imitable], tokens, w), imitable)
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
        change=interval(lambda w: statistics.ratio(np.abs(reward) / beta, None, w), np.ones(len(reward), bool)),
        calibration_slope=interval(lambda w: statistics.calibration_slope(score, label, w)),
        calibration_gap=interval(lambda w: statistics.ratio(probability - label, None, w)),
        baselines=baselines,
        auc_difference={name: value for name in baselines if (value := lead(name))},
        calibration=tuple(statistics.calibration(probability, label)),
        roc=tuple(statistics.roc(score, label)),
        rewards=_histogram(score + z0, label),
        notes=_notes(up, down, len(np.unique(group[judged])), people),
    )


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


def _rater_or_group(rater: Ints, group: Ints) -> Ints:
    """Numbers of raters (N,); a group that nobody is known to have judged is its own rater."""
    own = len(rater) + np.unique(group, return_inverse=True)[1]
    return np.where(rater >= 0, np.unique(rater, return_inverse=True)[1], own)


def _notes(up: Bools, down: Bools, groups: int, raters: int) -> tuple[str, ...]:
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
    if raters == 1:
        notes.append("One rater gave all thumbs whose rater is known: the figures speak of that taste.")
    elif 0 < raters < statistics.FEW:
        notes.append(f"Only {raters} raters: intervals say little about other people's taste.")
    return tuple(notes)
