"""A rater's share of the training weight, and its bound."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.data.raters import Raters, level
from prospect.errors import DataError
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Example, Record, examples
from prospect.losses.unpaired import balanced_weights


def feedback(judgements: list[tuple[str, bool, float]]) -> list[Record]:
    return [
        Record(f"r{i}", f"prompt {i}", (Completion(f"r{i}/0", "answer", label, weight=weight, by=by),))
        for i, (by, label, weight) in enumerate(judgements)
    ]


def balance(up: float, down: float) -> tuple[float, float]:
    """KTO's automatic class weights."""
    return (1.0, 1.0) if not up or not down else (max(1.0, down / up), max(1.0, up / down))


def test_the_cap_by_hand() -> None:
    """60, 20, 10, 10 and at most 0.3: with 60 lowered alone 20 would have too much, so both come to 15 of 50."""
    assert level(np.array([60.0, 20, 10, 10]), 0.0, 0.3) == pytest.approx([0.25, 0.75, 1, 1])
    # At most 0.25 of four raters is the same for all; a rest of 60 leaves room for both.
    assert level(np.array([60.0, 20, 10, 10]), 0.0, 0.25) == pytest.approx([1 / 6, 0.5, 1, 1])
    assert level(np.array([40.0, 40]), 60.0, 0.25) == pytest.approx([0.75, 0.75])
    assert level(np.array([5.0, 5]), 90.0, 0.25).tolist() == [1, 1]
    assert level(np.array([1.0, 1, 1]), 0.0, 0.3).tolist() == [0, 0, 0]
    assert level(np.array([0.0, 4, 4]), 0.0, 0.5).tolist() == [1, 1, 1]


def test_the_balance_of_the_classes_counts() -> None:
    """By hand: nine thumbs up of a..i, three down of x and one of a. Balanced, x has 3/4 of half the weight."""
    rows = [(name, True, 1.0) for name in "abcdefghi"] + [("x", False, 1.0)] * 3 + [("a", False, 1.0)]
    records = feedback(rows)
    found = examples(records, "binary")
    weight, label = np.ones(13), np.array([row[1] for row in rows])
    raters = Raters.of(records, found)
    cap = raters.cap(weight, label, 0.3, balance)
    assert cap.before["x"] == pytest.approx(3 / 8)
    # f x 3 / (f x 3 + 1) / 2 = 0.3 gives f = 1/2; then a has 1/18 + 0.2.
    assert cap.factors[9:] == pytest.approx([0.5, 0.5, 0.5, 1])
    assert [cap.after["x"], cap.after["a"]] == pytest.approx([0.3, 0.2 + 1 / 18])
    assert cap.lowered == ["x"] and cap.remaining == pytest.approx(11.5 / 13)
    assert "x 37.5% -> 30.0%" in cap.describe()
    with pytest.raises(DataError, match="thumbs up are from 9 raters, thumbs down from 2"):
        raters.cap(weight, label, 0.2, balance)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("classes", [balance, lambda up, down: (1.0, 1.0), lambda up, down: (1.0, 4.0)])
def test_nobody_has_more_and_nobody_gives_more_than_needed(share: float, classes: object) -> None:
    """Measured on the rows' new weights, with the class weights that these give. Lowered raters stand at the bound."""
    assert callable(classes)
    rng = np.random.default_rng(int(100 * share))
    refused = 0
    for _ in range(40):
        people, count = int(rng.integers(3, 60)), int(rng.integers(60, 400))
        heavy = np.minimum(rng.integers(-1, people, count), rng.integers(-1, people, count))
        raters = Raters(tuple(map(str, range(people))), np.stack([heavy, heavy], axis=1))
        weight, label = rng.exponential(size=count), rng.random(count) < rng.choice([0.1, 0.5, 0.9])
        try:
            cap = raters.cap(weight, label, share, classes)
        except DataError:
            refused += 1
            continue
        after = weight * cap.factors
        up, down = classes(after[label].sum(), after[~label].sum())
        training = after * np.where(label, up, down)
        parts = np.array([training[heavy == k].sum() for k in range(people)]) / training.sum()
        assert parts.max() <= share * (1 + 1e-9)
        assert list(cap.after.values()) == pytest.approx(parts, abs=1e-12)
        factor = np.array([cap.factors[heavy == k].min(initial=1.0) for k in range(people)])
        assert parts[factor < 1] == pytest.approx(share)
        order = rng.permutation(count)
        shuffled = Raters(raters.names, raters.of_row[order]).cap(weight[order], label[order], share, classes)
        assert shuffled.factors.tolist() == cap.factors[order].tolist()
    assert refused < 30


def test_a_pair_of_two_people_is_half_of_each() -> None:
    answers = [Completion(f"{k}", f"{k}", label, by=by) for k, label, by in ((0, True, "a"), (1, False, "b"))]
    alone = [Completion(f"{k}", f"{k}", k == 2, by="c") for k in (2, 3)]
    records = [Record("r", "p", tuple(answers)), Record("s", "q", tuple(alone))]
    raters = Raters.of(records, examples(records, "pairs"))
    assert raters.of_row.tolist() == [[0, 1], [2, 2]]
    sums, nobody = raters.sums(np.ones(2))
    assert (sums.tolist(), nobody) == ([0.5, 0.5, 1.0], 0.0)
    cap = raters.cap(np.ones(2), np.ones(2, bool), 0.4)
    assert cap.factors == pytest.approx([1, 2 / 3])


def test_the_balance_is_that_of_the_loss() -> None:
    records = feedback([("a", True, 2.0), ("b", False, 0.5), ("c", False, 1.0)])
    values = balanced_weights(examples(records, "binary"))
    assert balance(2.0, 1.5) == (values["desirable_weight"], values["undesirable_weight"])


def test_nobody_named_and_too_few_raters_are_refused() -> None:
    records = feedback([("", True, 1.0), ("", False, 1.0)])
    with pytest.raises(DataError, match=r"no answer says who judged it"):
        Raters.of(records, examples(records, "binary")).cap(np.ones(2), np.array([True, False]), 0.5)
    records = feedback([("a", True, 1.0), ("b", False, 1.0)])
    with pytest.raises(DataError, match=r"there are 2 raters, of whom one always has 0\.5 or more"):
        Raters.of(records, examples(records, "binary")).cap(np.ones(2), np.array([True, False]), 0.4)


def capped(counts: dict[str, int], share: float) -> dict[str, float]:
    """The raters' weights after a cap without class weights, each with so many thumbs."""
    rows = [
        {"prompt": f"Question {i} of {rater}?", "completion": "x", "label": i % 2 == 0, "by": rater}
        for rater, count in counts.items()
        for i in range(count)
    ]
    records = load(rows).records
    sums: dict[str, float] = defaultdict(float)
    for row in capped_rows(records, examples(records, "binary"), share):
        sums[records[row.tree].completions[row.branches[0]].by] += row.weight
    return sums


def capped_rows(records: Any, rows: list[Example], share: float) -> list[Example]:
    weight, thumbs = np.array([row.weight for row in rows]), np.array([row.desirable is not False for row in rows])
    factors = Raters.of(records, rows).cap(weight, thumbs, share).factors
    return [Example(r.id, r.tree, r.branches, r.desirable, r.weight * f) for r, f in zip(rows, factors, strict=True)]


def test_by_hand() -> None:
    """60, 30, 10 with at most a half: 60 becomes 40, since 40 is the half of 40 + 30 + 10."""
    assert capped({"a": 60, "b": 30, "c": 10}, 0.5) == pytest.approx({"a": 40, "b": 30, "c": 10})
    # c = 0.4 * 10 / (1 - 0.8)
    assert capped({"a": 60, "b": 30, "c": 10}, 0.4) == pytest.approx({"a": 20, "b": 20, "c": 10})


def test_answers_of_nobody_count_and_stay() -> None:
    assert capped({"a": 60, "": 40}, 0.2) == pytest.approx({"a": 10, "": 40})


def test_nothing_changes_below_the_cap() -> None:
    assert capped({"a": 5, "b": 5}, 0.5) == {"a": 5, "b": 5}


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=7), st.floats(0.05, 1))
def test_the_cap_holds_and_is_the_largest(counts: list[int], share: float) -> None:
    before = {f"r{i}": count for i, count in enumerate(counts)}
    if share * len(counts) < 1:
        with pytest.raises(DataError, match="cannot be held"):
            capped(before, share)
        return
    after = capped(before, share)
    total = sum(after.values())
    for rater, count in before.items():
        assert after[rater] <= share * total * (1 + 1e-9)
        assert after[rater] == pytest.approx(min(count, max(after.values())))
        if after[rater] < count * (1 - 1e-9):  # who is scaled has all that the cap allows
            assert after[rater] == pytest.approx(share * total)


def test_a_pair_is_scaled_once() -> None:
    rows = [{"prompt": f"Q{i}?", "chosen": "a", "rejected": "b", "by": "big" if i < 6 else f"r{i}"} for i in range(9)]
    records = load(rows).records
    of_pairs = capped_rows(records, examples(records, "pairs"), 0.25)
    assert [row.weight for row in of_pairs] == pytest.approx([1 / 6] * 6 + [1] * 3)
    sides = capped_rows(records, examples(records, "binary"), 0.25)
    assert [row.weight for row in sides] == pytest.approx([1 / 6] * 12 + [1] * 6)
