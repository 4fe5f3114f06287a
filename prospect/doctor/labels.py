"""The doctor on thumbs: classes and their weights, contradictions, partners for z0, and length as a confound."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prospect.doctor.findings import Measurement, of
from prospect.evaluate.statistics import clustered_auc
from prospect.feedback.records import Completion, Example, Record, at, cite
from prospect.losses.unpaired import balanced_weights


@dataclass(frozen=True, slots=True)
class Thumb:
    """One row of the binary view. `prompt` numbers the distinct prompts; `length` is in tokens or characters; `fits`
    says whether the row survives the policy for over-long ones."""

    completion: Completion
    prompt: int
    desirable: bool
    weight: float
    length: int
    fits: bool


def classes(records: Sequence[Record], thumbs: Sequence[Thumb]) -> Iterator[Measurement]:
    """Which labels there are: both, one only, none."""
    every = [c for r in records for c in r.completions]
    up, scored = sum(t.desirable for t in thumbs), sum(c.score is not None for c in every)
    counts = {"desirable": up, "undesirable": len(thumbs) - up}
    words = {"thumbs": len(thumbs), "scored": scored, "share": of(scored, len(every))}
    if thumbs and 0 in counts.values():
        yield Measurement("one_class", counts, words=words)
        return
    yield Measurement("labels", counts, words=words)
    fitting = Counter("desirable" if t.desirable else "undesirable" for t in thumbs if t.fits)
    if len(fitting) == 1:
        yield Measurement("one_class", dict(fitting), words={"one": next(iter(fitting))})
    judged = {id(t.completion) for t in thumbs}
    silent = [c for c in every if id(c) not in judged]
    if thumbs and silent:
        words = {"share": of(len(silent), len(every))}
        yield Measurement("unjudged", {"count": len(silent)}, [at(c) for c in silent], words)


def auto_weights(up: float, down: float) -> dict[str, float]:
    """The class weights that training sets by itself for such sums of weights."""
    sides = ((True, up), (False, down))
    return balanced_weights([Example("", 0, (0,), desirable, weight) for desirable, weight in sides])


def class_weights(thumbs: Sequence[Thumb]) -> dict[str, Any]:
    """Sums of weights per class of what fits, and where both are there their ratio and the `auto` weights."""
    up = sum(t.weight for t in thumbs if t.fits and t.desirable)
    down = sum(t.weight for t in thumbs if t.fits and not t.desirable)
    if up == 0 or down == 0:
        return {"desirable": up, "undesirable": down}
    return {"desirable": up, "undesirable": down, "ratio": up / down, "auto": auto_weights(up, down)}


def balance(thumbs: Sequence[Thumb], weights: dict[str, Any]) -> Iterator[Measurement]:
    """Rows without weight, and `class_weights` by Eq. 9 of arXiv 2402.01306 (KTO): with lambdas in front, the ratio
    should lie in [1, 3/2]."""
    fitting = [t for t in thumbs if t.fits]
    idle = [at(t.completion) for t in fitting if t.weight == 0]
    if idle:
        yield Measurement("zero_weight", examples=idle, words={"share": of(len(idle), len(fitting))})
    if "ratio" in weights:
        ratio = weights["ratio"]
        rare = "desirable" if ratio < 1 else "undesirable"
        low, high = (1 / ratio, 1.5 / ratio) if ratio < 1 else (ratio / 1.5, ratio)
        side = f"{rare}_weight"
        words = {"rare": rare, "side": side, "weight": weights["auto"][side], "low": low, "high": high}
        yield Measurement("balance", weights, words=words)


def contradictions(thumbs: Sequence[Thumb], records: Sequence[Record]) -> Iterator[Measurement]:
    """The same answer to the same prompt with both thumbs; pairs that prefer both ways, or an answer over itself."""
    from_pairs = {id(r.completions[i]) for r in records for p in r.pairs for i in (p.chosen, p.rejected)}
    by_answer: dict[tuple[int, str], list[Thumb]] = defaultdict(list)
    for thumb in thumbs:
        # In pairs an answer may well be better than one and worse than another.
        if id(thumb.completion) not in from_pairs:
            by_answer[thumb.prompt, thumb.completion.key].append(thumb)
    torn = [group for group in by_answer.values() if len({t.desirable for t in group}) == 2]
    if torn:
        sides = [[next(t.completion for t in group if t.desirable is side) for side in (True, False)] for group in torn]
        data = {"answers": len(torn), "rows": sum(map(len, torn))}
        yield Measurement("contradictions", data, [cite_both(good, bad, good) for good, bad in sides])
    equal, reversed_ = [], []
    for record in records:
        preferred: dict[tuple[str, str], Completion] = {}
        for pair in record.pairs:
            better, worse = record.completions[pair.chosen], record.completions[pair.rejected]
            if better.key == worse.key:
                equal.append(cite_both(better, worse, better))
            elif (worse.key, better.key) in preferred:
                reversed_.append(cite_both(preferred[worse.key, better.key], better, better))
            preferred.setdefault((better.key, worse.key), better)
    for key, examples in (("equal_pairs", equal), ("reversed_pairs", reversed_)):
        if examples:
            yield Measurement(key, {"pairs": len(examples)}, examples)


def cite_both(a: Completion, b: Completion, cited: Completion) -> str:
    """Where two completions stand, and the beginning of one of them."""
    return f"{at(a)} and {at(b)}: {cite(cited.readable)}"


def partners(thumbs: Sequence[Thumb]) -> Iterator[Measurement]:
    """Whether each row finds an answer to another prompt as its partner for z0."""
    if len(thumbs) < 2:
        return
    (top, rows), *others = Counter(t.prompt for t in thumbs).most_common()
    where = [at(next(t.completion for t in thumbs if t.prompt == top))]
    if not others:
        yield Measurement("one_prompt", examples=where)
    elif 2 * rows > len(thumbs):
        data = {"rows": rows, "without_partner": 2 * rows - len(thumbs)}
        yield Measurement("dominant_prompt", data, where, {"share": of(rows, len(thumbs))})


def length_confound(thumbs: Sequence[Thumb], unit: str) -> Iterator[Measurement]:
    """P(a desirable answer is longer than an undesirable one), with its 95 % interval clustered by prompt."""
    good = np.array([t.desirable for t in thumbs], bool)
    if not good.any() or good.all():
        return
    lengths = np.array([t.length for t in thumbs], np.float64)
    auc = clustered_auc(lengths, good, np.array([t.prompt for t in thumbs]))
    medians = {"desirable": float(np.median(lengths[good])), "undesirable": float(np.median(lengths[~good]))}
    data = {"auc": auc.value, "low": auc.low, "high": auc.high, "unit": unit, "median": medians}
    yield Measurement("length_confound", data, words={"kind": "longer" if auc.value > 0.5 else "shorter"})
