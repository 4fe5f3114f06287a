"""Where feedback comes from: who judged, how well raters agree, who judges unlike the others, and which models wrote.

Raters may differ because they judged different answers, and because people differ. So only what such differences would
hardly bring about is told: a rater's figure is compared with the others' by a beta-binomial test, whose probability is
multiplied by the number of raters (Bonferroni). At most one healthy file in twenty names anybody; a test simulates it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from prospect.doctor.findings import Measurement, of
from prospect.doctor.measurements import Thumb
from prospect.evaluate.statistics import Bools, Floats, bootstrap, ratio
from prospect.feedback.records import EXAMPLES, Completion, Record, cite

FEW = 10
"""Fewer thumbs, or comparisons with others, say nothing of a rater."""
CHANCE = 0.05
"""What chance would bring about less often, in one of so many files, is told."""
SPREAD = 0.05
"""Least correlation of one rater's thumbs: what a spread of 0.45 in the log-odds of their shares comes to."""
WIDER = 1.0
"""How many standard errors the spread among the others is taken above its estimate."""
MOST_SHARE = 0.25
"""A rater with more of the weight, and more than twice an equal share, could steer the model alone."""

Units = list[dict[str, bool]]
"""Of every answer that several raters judged: each rater's thumb."""


def raters(thumbs: Sequence[Thumb]) -> Iterator[Measurement]:
    """Who judged. `thumbs` without a rater are left aside, but for the weight."""
    by_rater: dict[str, list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        if thumb.completion.by:
            by_rater[thumb.completion.by].append(thumb)
    if not by_rater:
        return
    units = _units(by_rater)
    agreeing = [a == b for unit in units for a, b in combinations(unit.values(), 2)]
    data: dict[str, Any] = {"raters": len(by_rater), "thumbs": sum(map(len, by_rater.values())), "answers": len(units)}
    if units:
        data |= {"agreement": sum(agreeing) / len(agreeing), "alpha": alpha(units)}
    yield Measurement("raters", data, words={"share": of(sum(map(len, by_rater.values())), len(thumbs))})
    yield from _one_sided(by_rater)
    yield from _contrary(units)
    yield from _heavy(by_rater, sum(thumb.weight for thumb in thumbs), len(thumbs))


def _units(by_rater: Mapping[str, Sequence[Thumb]]) -> Units:
    """A rater who judged an answer both ways as often has no thumb of it."""
    votes: dict[tuple[int, str], dict[str, int]] = defaultdict(Counter)
    for rater, thumbs in by_rater.items():
        for thumb in thumbs:
            votes[thumb.prompt, thumb.completion.key][rater] += 1 if thumb.desirable else -1
    units = ({rater: vote > 0 for rater, vote in unit.items() if vote} for unit in votes.values())
    return [unit for unit in units if len(unit) > 1]


def alpha(units: Units) -> float | None:
    """Krippendorff's alpha of nominal data: 1 - D_o / D_e, the disagreement within answers over that of all thumbs
    with each other; None where all thumbs are alike. Source: Krippendorff, Content Analysis, ch. 11."""
    every = Counter(thumb for unit in units for thumb in unit.values())
    count = every.total()
    expected = 2 * every[True] * every[False] / (count * (count - 1))
    within = 0.0
    for unit in units:
        up = sum(unit.values())
        within += 2 * up * (len(unit) - up) / (len(unit) - 1)
    return 1 - within / count / expected if expected else None


def _one_sided(by_rater: Mapping[str, Sequence[Thumb]]) -> Iterator[Measurement]:
    """Raters all of whose thumbs are alike, where the others' are not."""
    ups = {rater: [thumb.desirable for thumb in thumbs] for rater, thumbs in by_rater.items()}
    examples = []
    for rater, share, chance in [*_surprising(ups), *_surprising(ups, turned=True)]:
        thumbs = by_rater[rater]
        side = thumbs[0].desirable
        if chance < CHANCE and all(thumb.desirable is side for thumb in thumbs):
            word = "up" if side else "down"
            others = 1 - share if side else share
            examples.append(f"{cite(rater)}: {len(thumbs)} thumbs, all {word}; the others' are {1 - others:.0%} {word}")
    if examples:
        yield Measurement("one_sided_raters", {"raters": len(examples)}, examples)


def _contrary(units: Units) -> Iterator[Measurement]:
    """Raters who judge answers unlike most others of the same answers, far more often than those do."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for unit in units:
        for rater, thumb in unit.items():
            votes = Counter(other for name, other in unit.items() if name != rater)
            if votes[True] != votes[False]:
                outcomes[rater].append(thumb is (votes[True] > votes[False]))
    examples = [
        f"{cite(rater)}: agrees in {of(sum(outcomes[rater]), len(outcomes[rater]))} answers; the others in {share:.0%}"
        for rater, share, chance in _surprising(outcomes)
        if chance < CHANCE
    ]
    if examples:
        yield Measurement("contrary_raters", {"raters": len(examples)}, examples)


def _surprising(outcomes: Mapping[str, Sequence[bool]], *, turned: bool = False) -> Iterator[tuple[str, float, float]]:
    """Per rater with FEW outcomes below the others' share of True (`turned`: of False): that share, and the chance that
    one of so many raters has so few.

    People differ, so the chance is beta-binomial: around the others' share with their spread, which moments give (as
    Kleinman, JASA 68, 1973, does), widened where the others are few, and never below SPREAD.
    """
    from scipy.stats import betabinom  # slow to import, and most files name no raters

    size = np.array([len(own) for own in outcomes.values()], np.float64)
    hits = np.array([sum(own) for own in outcomes.values()], np.float64)
    hits = size - hits if turned else hits
    sums = {
        name: column.sum() - column
        for name, column in (("n", size), ("k", hits), ("nn", size * size), ("nk", size * hits), ("kk", hits * hits))
    }
    people = len(size) - 1
    with np.errstate(all="ignore"):
        share = sums["k"] / sums["n"]
        squares = sums["kk"] - 2 * share * sums["nk"] + share**2 * sums["nn"]
        squares *= 1 / max(1, people - 1) * people * (1 + WIDER / np.sqrt(max(1, people - 1)))
        spread = (squares / (share * (1 - share)) - sums["n"]) / (sums["nn"] - sums["n"])
    spread = np.clip(np.nan_to_num(spread), SPREAD, 0.9)
    for i, rater in enumerate(outcomes):
        if size[i] < FEW or people < 1 or not 0 < share[i] <= 1 or hits[i] >= share[i] * size[i]:
            continue
        middle = min(share[i], 1 - 0.5 / sums["n"][i])  # where all others agree, one more might not
        weight = (1 - spread[i]) / spread[i]
        chance = betabinom.cdf(hits[i], size[i], middle * weight, (1 - middle) * weight)
        yield rater, float(share[i]), float(chance) * (people + 1)


def share_to_allow(raters: int) -> float:
    """The share of the weight that one of so many raters may have without a word."""
    return max(MOST_SHARE, 2 / raters)


def _heavy(by_rater: Mapping[str, Sequence[Thumb]], weight: float, count: int) -> Iterator[Measurement]:
    """The rater who has a large part of the weight, among several."""
    weights = {rater: sum(thumb.weight for thumb in thumbs) for rater, thumbs in by_rater.items()}
    rater = max(weights, key=weights.__getitem__)
    most = share_to_allow(len(weights))
    if len(weights) > 1 and count >= 2 * FEW and weights[rater] > most * weight:
        share = weights[rater] / weight
        words = {"rater": cite(rater), "percent": 100 * share, "most": f"{most:.2g}"}
        yield Measurement("heavy_rater", {"share": share}, words=words)


def models(records: Sequence[Record], trained: str) -> Iterator[Measurement]:
    """Which models wrote the answers; `trained` is the name of the one to be trained, "" where nobody knows it."""
    counts = Counter(c.model for r in records for c in r.completions if c.model)
    if not counts:
        return
    written, every = counts.total(), sum(len(r.completions) for r in records)
    names = ", ".join(f"{cite(name)} {of(count, written)}" for name, count in counts.most_common(EXAMPLES))
    own = sum(count for name, count in counts.items() if trained and _same(name, trained))
    words = {"names": names + (", ..." if len(counts) > EXAMPLES else ""), "trained": cite(trained)}
    words |= {"known": of(written, every), "foreign": of(written - own, written), "name": trained}
    yield Measurement("models", {"models": dict(counts.most_common()), "own": own, "written": written}, words=words)


def likelihoods(answers: Sequence[tuple[Completion, int, float, int]], trained: str) -> Iterator[Measurement]:
    """How likely the answers of other models are under the one that is trained, `trained`, against its own answers, or
    where none is known to be its own, against those whose author nobody knows.

    `answers` are (completion, number of its prompt, log-prob in nats under the start model, tokens). The difference of
    nats per token has a 95 % interval by prompt.
    """
    foreign, own = (
        np.array([bool(c.model) and _same(c.model, trained) is side for c, *_ in answers], bool)
        for side in (False, True)
    )
    base = own if own.any() else ~foreign
    if min(foreign.sum(), base.sum()) < FEW:
        return
    prompt = np.array([number for _, number, _, _ in answers], np.int64)
    nats, size = (np.array([each[k] for each in answers], np.float64) for k in (2, 3))

    def cost(side: Bools, weight: Floats) -> Floats:
        return ratio(-nats, size, weight * side)

    interval = bootstrap(lambda weight: cost(foreign, weight) - cost(base, weight), prompt)
    assert interval is not None, "either kind has answers with tokens"
    every = np.ones((1, len(answers)))
    data = {"foreign": float(cost(foreign, every)[0]), "own": float(cost(base, every)[0])}
    data |= {"difference": interval.value, "low": interval.low, "high": interval.high}
    words = {
        "base": "its own" if own.any() else "those of unknown authors",
        "share": of(int(foreign.sum()), len(answers)),
    }
    yield Measurement("off_policy", data, words=words)


def _same(name: str, trained: str) -> bool:
    """Whether two names may be of one model: "llama3.1:8b" and "meta-llama/Llama-3.1-8B"."""
    one, other = ("".join(filter(str.isalnum, Path(text).name.casefold())) for text in (name, trained))
    return bool(one and other) and (one in other or other in one)
