"""The cap on a rater's weight: what it comes to, and that nothing else changes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.data.raters import with_capped_raters
from prospect.errors import DataError
from prospect.feedback.load import Feedback, load
from prospect.feedback.records import binary, pairs


def feedback(counts: dict[str, int]) -> Feedback:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {i} of {rater}?", "completion": "x", "label": i % 2 == 0, "by": rater}
        for rater, count in counts.items()
        for i in range(count)
    ]
    return load(rows)


def weights(data: Feedback) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for record in data.records:
        for completion in record.completions:
            sums[completion.by] += completion.weight
    return sums


def test_by_hand() -> None:
    """60, 30, 10 with at most a half: 60 becomes 40, since 40 is the half of 40 + 30 + 10."""
    data = with_capped_raters(feedback({"a": 60, "b": 30, "c": 10}), 0.5)
    assert weights(data) == pytest.approx({"a": 40, "b": 30, "c": 10})
    assert data.notes == ('weights of raters scaled so that none has more than 50%: "a" x 0.67',)
    both = with_capped_raters(feedback({"a": 60, "b": 30, "c": 10}), 0.4)  # c = 0.4 * 10 / (1 - 0.8)
    assert weights(both) == pytest.approx({"a": 20, "b": 20, "c": 10})


def test_answers_of_nobody_count_and_stay() -> None:
    data = with_capped_raters(feedback({"a": 60, "": 40}), 0.2)
    assert weights(data) == pytest.approx({"a": 10, "": 40})


def test_nothing_changes_below_the_cap() -> None:
    data = feedback({"a": 5, "b": 5})
    assert with_capped_raters(data, 0.5) is data


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=7), st.floats(0.05, 1))
def test_the_cap_holds_and_is_the_largest(counts: list[int], share: float) -> None:
    before = {f"r{i}": count for i, count in enumerate(counts)}
    if share * len(counts) < 1:
        with pytest.raises(DataError, match="cannot be held"):
            with_capped_raters(feedback(before), share)
        return
    after = weights(with_capped_raters(feedback(before), share))
    total = sum(after.values())
    for rater, count in before.items():
        assert after[rater] <= share * total * (1 + 1e-9)
        assert after[rater] == pytest.approx(min(count, max(after.values())))
        if after[rater] < count * (1 - 1e-9):  # who is scaled has all that the cap allows
            assert after[rater] == pytest.approx(share * total)


def test_a_pair_is_scaled_once() -> None:
    rows = [{"prompt": f"Q{i}?", "chosen": "a", "rejected": "b", "by": "big" if i < 6 else f"r{i}"} for i in range(9)]
    data = with_capped_raters(load(rows), 0.25)
    assert [e.weight for r in data.records for e in pairs(r)] == pytest.approx([1 / 6] * 6 + [1] * 3)
    assert [e.weight for e in binary(data.records[0])] == pytest.approx([1 / 6] * 2)


def test_without_raters_it_is_refused() -> None:
    with pytest.raises(DataError, match="no answer says who judged it"):
        with_capped_raters(feedback({"": 4}), 0.5)
