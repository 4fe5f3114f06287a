"""The plan's promises, checked on random data: partners, blocks, steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prospect.data.schedule import (
    GROUP_SIZE,
    Schedule,
    plan,
)

PROMPTS = st.lists(st.integers(0, 6), min_size=1, max_size=40)


def schedule(prompts: Sequence[int], lengths: Sequence[int] | None = None, **options: Any) -> Schedule:
    settings_ = {"batch_size": 8, "epochs": 1, "seed": 0} | options
    names = [b"%d" % p for p in prompts]
    return plan(names, [5] * len(names), lengths or [3] * len(names), **settings_)


@given(PROMPTS, st.sampled_from(["row", "prompt", "auto"]), st.integers(1, 20))
def test_every_row_is_trained_once_an_epoch(prompts: list[int], group: str, batch_size: int) -> None:
    made = schedule(prompts, group=group, batch_size=batch_size, epochs=2)
    for epoch in range(2):
        rows = [i for step in made.steps if step.epoch == epoch for i in step.rows]
        assert sorted(rows) == list(range(len(prompts)))


@given(PROMPTS, st.sampled_from(["row", "prompt"]))
def test_partners_have_another_prompt_and_exist_wherever_one_can(prompts: list[int], group: str) -> None:
    made = schedule(prompts, group=group)
    several = len(set(prompts)) > 1
    for i, partner in enumerate(made.partners):
        assert (partner >= 0) is several
        assert not several or prompts[partner] != prompts[i]


@given(st.integers(2, 40), st.integers(0, 5))
def test_with_distinct_prompts_a_step_contains_its_partners(rows: int, seed: int) -> None:
    """y' inside a step is a rearrangement of the y: nobody's answer is counted twice."""
    made = schedule(range(rows), seed=seed)
    for step in made.steps:
        assert sorted(made.partners[i] for i in step.rows) == sorted(step.rows)


@given(PROMPTS, st.integers(2, 30))
def test_steps_keep_to_the_batch_size(prompts: list[int], batch_size: int) -> None:
    """Row blocks are 2 or 3 rows: a step is within one of the batch size, the last one of an epoch may be smaller."""
    steps = schedule(prompts, group="row", batch_size=batch_size).steps
    assert all(abs(len(step.rows) - batch_size) <= 1 for step in steps[:-1])
    assert len(steps[-1].rows) <= batch_size + 1


def test_partners_depend_on_the_partner_seed_alone() -> None:
    draw = random.Random(0)
    prompts = [draw.randrange(50) for _ in range(100)]
    first = schedule(prompts)
    assert schedule(prompts, seed=1, epochs=3).partners == first.partners
    assert schedule(prompts, seed=1).steps != first.steps
    assert schedule(prompts, partner_seed=1).partners != first.partners


def test_epochs_differ_and_repeat_for_a_seed() -> None:
    made = schedule(range(20), epochs=2)
    half = len(made.steps) // 2
    assert [s.rows for s in made.steps[:half]] != [s.rows for s in made.steps[half:]]
    assert made.steps == schedule(range(20), epochs=2).steps
    assert [s.index for s in made.steps] == list(range(1, 2 * half + 1))


def test_grouping_keeps_a_prompts_rows_in_one_step() -> None:
    prompts = [i // GROUP_SIZE for i in range(80)]
    made = schedule(prompts, batch_size=16)
    assert made.grouped
    where = {i: step.index for step in made.steps for i in step.rows}
    assert all(len({where[i] for i in range(80) if prompts[i] == p}) == 1 for p in set(prompts))
    assert not schedule(range(10)).grouped


@given(PROMPTS, st.integers(1, 12), st.booleans())
def test_whole_groups_stay_in_one_step_side_by_side(prompts: list[int], batch_size: int, partners: bool) -> None:
    """Of any size, in the order of their rows; partners have other prompts all the same."""
    made = schedule(prompts, batch_size=batch_size, whole=True, with_partners=partners, epochs=2)
    for step in made.steps:
        runs = [(key, list(rows)) for key, rows in itertools.groupby(step.rows, key=prompts.__getitem__)]
        assert [rows for _, rows in runs] == [[i for i, p in enumerate(prompts) if p == key] for key, _ in runs]
        assert len({key for key, _ in runs}) == len(runs)
    assert all(j < 0 or prompts[j] != prompts[i] for i, j in enumerate(made.partners))
    assert (partners and len(set(prompts)) > 1) or set(made.partners) == {-1}


def test_blocks_fit_the_context_where_they_can() -> None:
    """Ten long answers among a hundred short ones, prompts of 5: in a context of 20 every meeting fits, since answers
    are at most 15; in one of 12 the long ones (15) fit beside nobody, yet all have a partner."""
    lengths = [15 if i % 10 == 0 else 3 for i in range(100)]
    for context in (20, 12):
        made = schedule(range(100), lengths, context=context)
        over = [i for i, j in enumerate(made.partners) if 5 + lengths[j] > context]
        assert len(over) == (0 if context == 20 else 10) and -1 not in made.partners


def test_long_prompts_meet_short_answers() -> None:
    """Rows of which half have long prompts and half long answers: long must not meet long."""
    prompts = [18 if i % 2 else 4 for i in range(40)]
    answers = [2 if i % 2 else 16 for i in range(40)]
    made = plan([b"%d" % i for i in range(40)], prompts, answers, batch_size=4, epochs=1, seed=0, context=21)
    assert all(prompts[i] + answers[j] <= 21 for i, j in enumerate(made.partners))


def test_max_steps() -> None:
    assert len(schedule(range(40), epochs=3, max_steps=7).steps) == 7


def test_without_partners_rows_stand_alone() -> None:
    made = schedule(range(5), with_partners=False, batch_size=2)
    assert set(made.partners) == {-1} and [len(s.rows) for s in made.steps] == [2, 2, 1]
