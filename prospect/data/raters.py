"""How much one rater may say: weights are scaled down where one rater has more than a share of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prospect.errors import DataError
from prospect.feedback.load import Feedback
from prospect.feedback.records import Completion, Record, cite

UNKNOWN = ""
"""Answers that name no rater are nobody's, and are not capped."""


def with_capped_raters(feedback: Feedback, share: float) -> Feedback:
    """The feedback, in which no rater has more than `share` of the sum of weights, as it is after the cap. A rater's
    weights are scaled by one factor; the notes name who it concerns.

    Raises DataError where no answer names a rater, or where there are too few raters for such a share.
    """
    weights: dict[str, float] = defaultdict(float)
    for record in feedback.records:
        judged = _in_pairs(record)
        for i, completion in enumerate(record.completions):
            weights[completion.by] += 0.0 if _judged_by_pair(completion, i in judged) else completion.weight
        for pair in record.pairs:
            weights[record.completions[pair.chosen].by] += pair.weight
    anonymous = weights.pop(UNKNOWN, 0.0)
    if not weights:
        raise DataError(
            "--max-weight-per-rater needs raters, but no answer says who judged it (by). Name the column: prospect "
            "convert IN OUT.jsonl --map by=COLUMN"
        )
    cap = _cap(sorted(weights.values(), reverse=True), anonymous, share)
    factors = {rater: cap / weight for rater, weight in weights.items() if weight > cap}
    if not factors:
        return feedback
    names = ", ".join(f"{cite(rater)} x {factor:.2g}" for rater, factor in sorted(factors.items(), key=lambda x: x[1]))
    note = f"weights of raters scaled so that none has more than {share:.0%}: {names}"
    records = tuple(_scaled(record, factors) for record in feedback.records)
    return replace(feedback, records=records, notes=(*feedback.notes, note))


def _cap(weights: Sequence[float], anonymous: float, share: float) -> float:
    """The largest weight c with c <= share * (anonymous + sum of min(w, c)); `weights` descend. With the m largest at
    c, c = share * rest / (1 - m * share)."""
    rest = anonymous + sum(weights)
    for m, weight in enumerate(weights):
        cap = share * rest / (1 - m * share) if m * share < 1 else 0.0
        if weight <= cap:
            return cap
        rest -= weight
    cap = share * rest / (1 - len(weights) * share) if len(weights) * share < 1 else 0.0
    if cap <= 0:
        raise DataError(
            f"--max-weight-per-rater {share:g} cannot be held: {len(weights)} raters have at least "
            f"{1 / len(weights):.3g} of the weight, whatever they weigh. Choose {1 / len(weights):.3g} or more"
        )
    return cap


def _in_pairs(record: Record) -> set[int]:
    return {side for pair in record.pairs for side in (pair.chosen, pair.rejected)}


def _judged_by_pair(completion: Completion, in_pair: bool) -> bool:
    """Whether only a pair judges it, whose weight then counts."""
    return in_pair and completion.label is None and completion.score is None


def _scaled(record: Record, factors: Mapping[str, float]) -> Record:
    judged = _in_pairs(record)
    completions = tuple(
        completion
        if completion.by not in factors or _judged_by_pair(completion, i in judged)
        else replace(completion, weight=completion.weight * factors[completion.by])
        for i, completion in enumerate(record.completions)
    )
    pairs = tuple(
        replace(pair, weight=pair.weight * factors.get(record.completions[pair.chosen].by, 1.0))
        for pair in record.pairs
    )
    return replace(record, completions=completions, pairs=pairs)
