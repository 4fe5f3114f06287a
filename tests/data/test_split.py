"""Held-out records: whole groups, a share near the fraction, both classes, whatever the order of the file."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from prospect.data.split import groups, split, split_since
from prospect.doctor.check import check
from prospect.doctor.findings import Finding
from prospect.errors import DataError, UserError
from prospect.feedback.load import load
from prospect.feedback.records import Completion, Record


def conversations(sizes: list[int], share: float = 0.5, seed: int = 0) -> list[Record]:
    """One conversation per size, of so many rated turns; about `share` of the thumbs are up."""
    draw = random.Random(seed)
    records: list[Record] = []
    for number, size in enumerate(sizes):
        turns: list[dict[str, Any]] = []
        for turn in range(size):
            turns.append({"role": "user", "content": f"{number} asks {turn} of {draw.random()}"})
            done = Completion(f"c{number}.{turn}", f"{draw.random()}", draw.random() < share, line=len(records) + 1)
            records.append(Record(f"r{number}.{turn}", tuple(turns), (done,)))
            turns.append({"role": "assistant", "content": done.text})
    return records


def names(records: list[Record]) -> set[str]:
    return {record.id for record in records}


def ups(records: list[Record]) -> int:
    return sum(c.label is True for r in records for c in r.completions)


@given(
    st.lists(st.integers(1, 6), min_size=30, max_size=50),
    st.floats(0.05, 0.5),
    st.floats(0.1, 0.9),
    st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_split(sizes: list[int], fraction: float, share: float, seed: int) -> None:
    records = conversations(sizes, share, seed)
    train, held = split(records, fraction, seed)
    assert names(train) | names(held) == names(records) and not names(train) & names(held)
    group = dict(zip([r.id for r in records], groups(records).group, strict=True))
    assert not {group[r.id] for r in train} & {group[r.id] for r in held}
    wanted = fraction * len(records)
    assert abs(len(held) - wanted) <= 9
    assert abs(ups(held) - fraction * ups(records)) <= 9  # one and a half of the largest groups
    assert [r.id for r in records if r.id in names(held)] == [r.id for r in held]
    shuffled = random.Random(seed).sample(records, len(records))
    assert names(split(shuffled, fraction, seed)[1]) == names(held) == names(split(records, fraction, seed)[1])


def test_another_seed_holds_out_others() -> None:
    records = conversations([1] * 200)
    held = [names(split(records, 0.1, seed)[1]) for seed in range(20)]
    assert len({frozenset(h) for h in held}) == 20
    times = Counter(name for h in held for name in h)
    assert len(times) > 150 and max(times.values()) <= 9  # every record has its chance: 2 of 20 on average


def test_a_rare_class_is_on_both_sides() -> None:
    records = conversations([1] * 100, share=1.0)
    for i in (3, 50):
        records[i] = Record(records[i].id, records[i].prompt, (Completion(f"c{i}", "no", False),))
    train, held = split(records, 0.1, 0)
    assert len(held) - ups(held) == len(train) - ups(train) == 1


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.1, 1), (3, 0.01, 1), (3, 0.9, 2), (10, 0.99, 9)])
def test_one_group_at_least_on_either_side(count: int, fraction: float, expected: int) -> None:
    assert len(split(conversations([1] * count, share=1.0), fraction, 0)[1]) == expected


def test_the_shared_case(shared: Path) -> None:
    """Two rated turns per chat: in a split by row 16 of 17 held-out chats had a turn in training."""
    records = list(load(shared / "cases/rows/h01_two_rated_turns.jsonl").records)
    train, held = split(records, 0.3, 0)
    assert len(held) == 18
    openings = {r.prompt[0]["content"] for r in held}
    assert not openings & {r.prompt[0]["content"] for r in train}
    answers = {c.text for r in train for c in r.completions}
    assert not answers & {m["content"] for r in held for m in r.prompt}
    leaks = finding(records, "groups")
    assert leaks.data == {"prompts": 60, "groups": 30, "largest": 2, "heldout": 6, "leaked": 5}
    assert "about 5 of 6" in leaks.message


def one_id(count: int) -> list[Record]:
    return [
        Record(f"r{i}", f"question {i * i}?", (Completion(f"c{i}", "x", True),), conversations=("default",))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (conversations([1]), "one prompt has them all"),
        (one_id(30), 'have the conversation id "default": if that is none, remove the column'),
        (
            [*one_id(300), *conversations([1] * 5)],
            "since it holds out whole groups and the largest has 98.4 %",
        ),
        (conversations([30]), "are turns of 1 conversations"),
        (
            [Record(f"r{i}", f"tell me of boats and of the sea and of ships and fish {'!' * i}", ()) for i in range(9)],
            "nearly repeat each other",
        ),
    ],
    ids=["one prompt", "one id", "nearly all", "one chat", "near"],
)
def test_one_group_that_holds_nearly_everything(records: list[Record], why: str) -> None:
    with pytest.raises(DataError) as error:
        split(records, 0.1, 0)
    assert why in str(error.value) and "--eval-data" in str(error.value)


# The doctor


def finding(records: list[Record], key: str, **options: Any) -> Finding:
    return next(f for f in check(records, **options).findings if f.key == key)


def test_what_a_split_by_row_would_leak() -> None:
    """The expectation over all splits by row, against splits drawn at random."""
    records = conversations([1, 2, 3, 4] * 25)
    leaks = finding(records, "groups")
    assert (leaks.level, leaks.data["groups"], leaks.data["largest"], leaks.data["heldout"]) == ("info", 100, 4, 25)
    draw, found = random.Random(0), groups(records).group
    times = 0
    for _ in range(400):
        apart = set(draw.sample(range(len(records)), 25))
        trained = {found[i] for i in range(len(records)) if i not in apart}
        times += sum(found[i] in trained for i in apart)
    assert leaks.data["leaked"] == pytest.approx(times / 400, abs=0.7)
    assert "groups" not in {f.key for f in check(conversations([1] * 30)).findings}


def test_a_held_out_file_that_goes_on_where_training_stops() -> None:
    records = conversations([3] * 20)
    first_turns, later = [r for r in records if r.id.endswith(".0")], [r for r in records if not r.id.endswith(".0")]
    for training, heldout, leaked in ((first_turns, later, 40), (later, first_turns, 20)):
        leak = finding(training, "shared_conversations", heldout=heldout)
        assert (leak.level, leak.data) == ("warning", {"prompts": leaked})
        assert leak.examples[0].startswith("line ") and "and held-out line " in leak.examples[0]
    apart = check(records[:30], heldout=records[30:])
    assert next(f for f in apart.findings if f.key == "shared_prompts").level == "ok"


def test_a_held_out_answer_that_stands_in_a_training_prompt() -> None:
    answer = "Since the sugar feeds whoever carries the seeds away."
    held = [Record("h", "Why are fruits sweet?", (Completion("h0", answer, True),))]
    held[0] = Record("h", ({"role": "user", "content": "Why are fruits sweet?"},), held[0].completions)
    turns = (
        {"role": "user", "content": "(with context) why?"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And nuts?"},
    )
    training = [*conversations([1] * 20), Record("t", turns, (Completion("t0", "They are not.", True),))]
    assert finding(training, "shared_conversations", heldout=held).data == {"prompts": 1}


def test_the_split_of_a_run_leaks_nothing(shared: Path) -> None:
    """What train holds out passes the check of a held-out file."""
    for name in ("cases/rows/h01_two_rated_turns.jsonl", "data/kto_oasst_emoji.jsonl.gz"):
        train, held = split(load(shared / name).records, 0.3, 1)
        leaks = {f.key: f.level for f in check(train, heldout=held).findings if "shared" in f.key}
        assert leaks == {"shared_prompts": "ok"}


# By time


def judged(prompt: str, answer: str, at: str, **rest: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "label": True, "at": at, **rest}


DATED = [
    judged("How do I bake a cake?", "1", "2026-01-01"),
    judged("How do I bake a cake?", "2", "2026-02-01T00:00:00Z"),  # the same prompt again: neither
    judged("Name a prime number.", "3", "2026-02-01T00:00:00.5Z"),
    judged("Who wrote Faust?", "4", "2026-01-31T23:30:00-01:00"),  # half past midnight in UTC
    judged("Is the sea blue?", "5", "2026-01-31T23:59:59Z"),
]


def texts(records: Sequence[Record]) -> list[str]:
    return [completion.text for record in records for completion in record.completions]


def test_what_was_judged_since_a_date_is_held_out() -> None:
    feedback = load(DATED)
    train, held = split_since(feedback, "2026-02-01")
    assert (texts(train.records), texts(held.records)) == (["1", "5"], ["3", "4"])
    assert train.notes == (
        "2 answers judged since 2026-02-01 are held out; 1 others judged since then are to prompts or in conversations "
        "from before: they are neither trained nor held out",
    )
    assert train.digest == feedback.digest != held.digest
    assert not {r.id for r in train.records} & {r.id for r in held.records}


def test_a_pair_whose_sides_are_of_two_times_is_none() -> None:
    sides = [
        {"content": "a", "at": "2026-01-01"},
        {"content": "b", "at": "2026-03-01"},
        {"content": "c", "at": "2026-01-02"},
    ]
    rows = [{"prompt": "Name a fruit.", "completions": sides, "pairs": [[0, 1], [2, 0]]}, DATED[2]]
    train, held = split_since(load(rows), "2026-02-01")
    (record,) = train.records
    assert (texts([record]), [(p.chosen, p.rejected) for p in record.pairs]) == (["a", "c"], [(1, 0)])
    assert texts(held.records) == ["3"]


@pytest.mark.parametrize(
    ("rows", "date", "message"),
    [
        (DATED, "next week", "--eval-since must be a time"),
        (
            [*DATED, {"prompt": "x", "completion": "6", "label": True}],
            "2026-02-01",
            "1 of 6 have none .at., such as line 6",
        ),
        (DATED, "2027-01-01", "leaves nothing to be held out: the answers are from 2026-01-01T00:00:00Z to 2026-02-01"),
        (DATED, "2025-01-01", "leaves nothing to be trained on"),
    ],
)
def test_dates_that_split_nothing_are_refused(rows: list[dict[str, Any]], date: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_since(load(rows), date)
