"""How far judgements contradict each other: the same thing judged twice, and preferences that run in a circle."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from prospect.evaluate.statistics import wilson
from prospect.feedback.prompts import prompt_numbers
from prospect.feedback.records import Record


@dataclass(frozen=True, slots=True)
class Noise:
    """`judged` answers (or pairs of answers), of which `repeated` were judged more than once, `contested` of those both
    ways. `rate` is the share of wrong judgements with its 95 % interval `low` to `high`; None where the data cannot
    say. `circles` of `triples`: a over b, b over c, c over a, among three answers that were all compared."""

    judged: int = 0
    repeated: int = 0
    contested: int = 0
    rate: float | None = None
    low: float | None = None
    high: float | None = None
    circles: int = 0
    triples: int = 0


def noise(records: Sequence[Record]) -> Noise:
    """Noise of explicit labels, or where there are none, of explicit pairs.

    Two judgements of one thing, each wrong with probability e and independently, disagree with probability
    d = 2 e (1 - e), hence e = (1 - sqrt(1 - 2 d)) / 2. Honest differences of taste count as noise. Where no repeated
    judgement agrees, equal rows were most likely removed, d says nothing and there is no rate.
    """
    said: dict[tuple[int | str, ...], list[bool]] = defaultdict(list)
    graphs: dict[int, set[tuple[str, str]]] = defaultdict(set)
    labelled = any(c.label is not None for r in records for c in r.completions)
    for record, key in zip(records, prompt_numbers(records), strict=True):
        if labelled:
            for completion in record.completions:
                if completion.label is not None:
                    said[key, completion.key].append(completion.label)
        for pair in record.pairs:
            better, worse = record.completions[pair.chosen].key, record.completions[pair.rejected].key
            if better == worse:
                continue
            graphs[key].add((better, worse))
            if not labelled:
                said[key, min(better, worse), max(better, worse)].append(better < worse)
    circles, triples = _circles(graphs.values())
    again = [judgements for judgements in said.values() if len(judgements) > 1]
    contested = sum(0 < sum(judgements) < len(judgements) for judgements in again)
    rate, low, high = _rate(again) if contested < len(again) else (None, None, None)
    return Noise(len(said), len(again), contested, rate, low, high, circles, triples)


def _rate(again: Sequence[Sequence[bool]]) -> tuple[float | None, float | None, float | None]:
    """Wilson's interval for d, carried over to e. Things judged more than twice count as one: a wider interval."""
    n = len(again)
    d = sum(sum(j) * (len(j) - sum(j)) / (len(j) * (len(j) - 1) / 2) for j in again) / n
    found = wilson(d * n, n)
    return _wrong(d), _wrong(found.low), _wrong(found.high)


def _wrong(d: float) -> float:
    return (1 - math.sqrt(max(0.0, 1 - 2 * d))) / 2


def _circles(graphs: Iterable[Set[tuple[str, str]]]) -> tuple[int, int]:
    """(circles, triples) of the preferences (better, worse) within each prompt. Pairs that were judged both ways are
    contested already and left out here.

    Every pair of a triple is looked up from its answer with the fewest comparisons, so that n pairs take at most
    n^1.5 steps, however they share their answers (Chiba and Nishizeki, SIAM J. Comput. 14, 1985).
    """
    circles = triples = 0
    for wins in graphs:
        clear = {(a, b) for a, b in wins if (b, a) not in wins}
        compared: dict[str, int] = Counter(answer for pair in clear for answer in pair)
        after: dict[str, set[str]] = defaultdict(
            set
        )  # of each answer those compared with it that have more comparisons
        for pair in clear:
            few, many = sorted(pair, key=lambda answer: (compared[answer], answer))
            after[few].add(many)
        for a, others in list(after.items()):
            for b in others:
                for c in others & after.get(b, set()):
                    triples += 1
                    circles += ((a, b) in clear) == ((b, c) in clear) == ((c, a) in clear)
    return circles, triples
