"""The batcher by tokens: everything is in one part, no part is over the budget, ranks get equally many."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.data.schedule import balance, fill


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60), st.integers(0, 20), st.integers(1, 9))
def test_parts_are_filled_in_order(costs: list[int], budget: int, base: int, most: int) -> None:
    parts = [list(range(len(costs)))[part] for part in fill(costs, budget, base=base, most=most)]
    assert [i for part in parts for i in part] == list(range(len(costs)))
    totals = [base + sum(costs[i] for i in part) for part in parts]
    assert all(
        len(part) <= most and (total <= budget or len(part) == 1) for part, total in zip(parts, totals, strict=True)
    )
    for part, total, after in zip(parts, totals, parts[1:], strict=False):
        assert len(part) == most or total + costs[after[0]] > budget  # each is as long as it can be


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 4), st.integers(1, 60))
def test_micro_batches_cover_every_item_within_the_budget(costs: list[int], ranks: int, budget: int) -> None:
    made = balance(costs, ranks, budget)
    assert len(made) == ranks and len({len(micros) for micros in made}) == 1
    assert sorted(i for micros in made for items in micros for i in items) == list(range(len(costs)))
    for items in (items for micros in made for items in micros):
        assert sum(costs[i] for i in items) <= budget or len(items) <= 1
    assert len(made[0]) <= max(1, -(-len(costs) // ranks))
    assert all(items for micros in made for items in micros[:-1])


def test_micro_batches_are_balanced_by_tokens() -> None:
    made = balance([9, 1, 5, 5], 2, 100)
    assert sorted(sum([9, 1, 5, 5][i] for i in items) for micros in made for items in micros) == [10, 10]
    assert balance([], 2, 100) == [[[]], [[]]]


def test_items_above_the_budget_make_no_empty_micro_batches() -> None:
    """Each is alone, and what it has above the budget asks for no further ones."""
    assert balance([500, 700], 1, 50) == [[[0], [1]]] or balance([500, 700], 1, 50) == [[[1], [0]]]
    assert len(balance([5000, *[10] * 20], 1, 100)[0]) == 3
