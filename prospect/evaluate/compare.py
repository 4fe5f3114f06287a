"""Models against a first one, by a judge's scores: every figure of evaluate/comparison on their answers to the same
prompts, and the words in which a gate is written.

    scores and lengths of two models' answers -- compare --> Comparison -- with_holm --> adjusted p-values
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prospect.errors import ConfigError, DataError
from prospect.evaluate import comparison
from prospect.evaluate.comparison import LengthControlled, Outcomes
from prospect.evaluate.judging import Judge, judge
from prospect.evaluate.sampling import Line
from prospect.evaluate.statistics import Floats, Interval, Ints, bootstrap, ratio
from prospect.feedback.records import Record

FIGURES = ("win", "win_low", "win_high", "length_controlled", "length_controlled_low")
"""What a gate may ask of a comparison."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`model` against `baseline`, both at `temperature`, on `pairs` of answers in so many `clusters`.

    `win_rate` is that of `model`, ties by half; `outcomes` are those of clusters, `decided_win_rate` is of those with a
    winner. p-values are those of the binomial test (`sign_p`, which `holm_p` adjusts for all comparisons at hand), of
    Wilcoxon's on the scores, and of McNemar's where all scores are 0 or 1. `score_difference` is the mean score of
    `model` less that of `baseline`; so many `prompts_needed` would show three points. What there is not is None.
    """

    model: str
    baseline: str
    temperature: float
    pairs: int
    clusters: int
    win_rate: Interval
    outcomes: Outcomes
    decided_win_rate: Interval | None
    length_controlled: LengthControlled | None
    longer_wins: Interval | None
    score_difference: Interval
    sign_p: float
    wilcoxon_p: float
    mcnemar_p: float | None
    prompts_needed: int | None
    holm_p: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def figure(self, name: str) -> float:
        """One of FIGURES; NaN where this comparison has none."""
        controlled = self.length_controlled.win_rate if self.length_controlled else None
        of = controlled if name.startswith("length_controlled") else self.win_rate
        end = "low" if name.endswith("_low") else "high" if name.endswith("_high") else "value"
        return float("nan") if of is None else float(getattr(of, end))


def compare(
    model: str,
    baseline: str,
    temperature: float,
    score: Floats,
    other_score: Floats,
    length: Floats,
    other_length: Floats,
    cluster: Ints,
    *,
    seed: int = 0,
) -> Comparison:
    """The figures of pairs of answers to the same prompts, (N,) each, N > 0: `model`'s scores and lengths, the
    baseline's (`other_`), and which prompts depend on each other."""
    preference = 0.5 + np.sign(score - other_score) / 2
    rate = comparison.win_rate(preference, cluster, seed=seed)
    difference = bootstrap(partial(ratio, score - other_score, None), cluster, seed=seed)
    assert rate is not None and difference is not None, "there are pairs"
    counts = comparison.outcomes(preference, cluster)
    variance = float(np.var(comparison.cluster_means(preference, cluster)))
    binary = bool(np.isin(np.concatenate((score, other_score)), (0.0, 1.0)).all())
    alone = len(np.unique(cluster)) == len(cluster)
    return Comparison(
        model=model,
        baseline=baseline,
        temperature=temperature,
        pairs=len(score),
        clusters=len(np.unique(cluster)),
        win_rate=rate,
        outcomes=counts,
        decided_win_rate=comparison.decided_win_rate(counts),
        length_controlled=comparison.length_controlled(preference, length, other_length, cluster, seed=seed),
        longer_wins=comparison.longer_wins(preference, length, other_length, cluster, seed=seed),
        score_difference=difference,
        sign_p=comparison.sign_test(counts),
        wilcoxon_p=comparison.wilcoxon(score - other_score, cluster),
        mcnemar_p=comparison.mcnemar(score == 1, other_score == 1) if binary and alone else None,
        prompts_needed=comparison.prompts_needed(variance=variance) if variance > 0 else None,
    )


def compare_all(
    by: Judge,
    records: Sequence[Record],
    answers: Sequence[Sequence[Sequence[Line]]],
    temperatures: Sequence[tuple[float, int]],
    models: Sequence[str],
    folder: Path,
    seed: int,
    progress: Callable[[int, str], None],
) -> list[Comparison]:
    """Every model against the first, at every temperature: `answers` has a list of lines for each model and each of
    (temperature, samples). Judgements are kept in `folder`; lengths are in characters, since models differ in tokens.

    Prompts that one of two models could not answer are left out. Raises DataError where none is left, and as `judge`.
    """
    every = [(line["prompt"], line["completion"]) for files in answers for lines in files for line in lines]
    scores = iter(judge(by, every, folder / "judgements.jsonl", lambda done, n: progress(done, f"{done}/{n}")).tolist())
    tables = [
        [{(line["id"], line["sample"]): (next(scores), len(line["completion"])) for line in lines} for lines in files]
        for files in answers
    ]
    clusters = {record.id: f"in {c[0]}" if (c := record.conversations) else f"of {record.id}" for record in records}
    comparisons = []
    for place, model in enumerate(models[1:], 1):
        for k, (temperature, _) in enumerate(temperatures):
            first, other = tables[0][k], tables[place][k]
            keys = [key for key in other if key in first]
            if not keys:
                raise DataError(f"there is no prompt that both {models[0]} and {model} have answered")
            mine, theirs = np.array([other[key] for key in keys], float), np.array([first[key] for key in keys], float)
            cluster = np.unique([clusters[id] for id, _ in keys], return_inverse=True)[1]
            values = mine[:, 0], theirs[:, 0], mine[:, 1], theirs[:, 1], cluster
            comparisons.append(compare(model, models[0], temperature, *values, seed=seed))
    return comparisons


def agreement(by: Judge, records: Sequence[Record], folder: Path, seed: int) -> Interval | None:
    """Cohen's kappa of the judge and people's thumbs on the answers that come with the prompts; None without thumbs up
    and down. The judge's thumb is up for the highest scores, for as many answers as people liked (and ties with
    them)."""
    rows = [
        (place, record.prompt, answer)
        for place, record in enumerate(records)
        for answer in record.completions
        if answer.label is not None
    ]
    liked = np.array([answer.label for _, _, answer in rows], bool)
    if liked.all() or not liked.any():
        return None
    scores = judge(by, [(prompt, answer.text) for _, prompt, answer in rows], folder / "judgements.jsonl")
    up = scores >= np.sort(scores)[::-1][int(liked.sum()) - 1]
    return comparison.kappa(up, liked, np.array([place for place, _, _ in rows]), seed=seed)


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with `holm_p`."""
    p_values = comparison.holm([one.sign_p for one in comparisons])
    return [replace(one, holm_p=p) for one, p in zip(comparisons, p_values, strict=True)]


@dataclass(frozen=True, slots=True)
class Gate:
    """What every comparison has to fulfil: a figure, a relation and a limit."""

    figure: str
    relation: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """A gate in words, as "win >= 0.5". Raises ConfigError where it is none."""
        match = re.fullmatch(r"\s*(\w+)\s*(>=|>|<=|<)\s*([0-9]*\.?[0-9]+)\s*", text)
        if match is None or match[1] not in FIGURES:
            figures = ", ".join(FIGURES)
            raise ConfigError(f'--require "{text}": expected a figure, a relation and a number, as "win >= 0.5". '
                              f"Figures: {figures}")  # fmt: skip
        return cls(match[1], match[2], float(match[3]))

    def holds(self, one: Comparison) -> bool:
        """Whether a comparison fulfils it; not where it lacks the figure."""
        return RELATIONS[self.relation](one.figure(self.figure), self.limit)


RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}
