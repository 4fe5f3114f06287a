"""The closed world: answer keys worked out by hand, what a key ignores, and who may see which question."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from prospect.demo import (
    answers,
    users,
    words,
    world,
)
from prospect.demo.world import Question


def questions(count: int, kind: str | None = None, seed: int = 0) -> list[Question]:
    rng = random.Random(seed)
    return [world.ask(rng, kind) for _ in range(count)]


def test_sums_add_up() -> None:
    for q in questions(300, "sum"):
        a, b = (int(n) for n in re.findall(r"\d+", q.text))
        assert q.expected == (str(a + b),)
        assert q.key == f"sum {min(a, b)} {max(a, b)}"
        assert q.echoes == {str(a), str(b)}


def test_opposites_answer_each_word_in_its_place() -> None:
    table = dict(words.OPPOSITES) | {b: a for a, b in words.OPPOSITES}
    assert table["hot"] == "cold" and table["shallow"] == "deep"
    assert len(table) == 2 * len(words.OPPOSITES)  # no word stands in two pairs
    for q in questions(300, "opposite"):
        asked = [w for w in re.findall(r"[a-z]+", q.text) if w in table]
        assert q.expected == tuple(table[w] for w in asked)


def test_spelling_and_letters_come_from_the_name() -> None:
    for q in questions(300, "spelling"):
        name = q.key.removeprefix("name ")
        assert name in q.text
        if q.reader == "spelled":
            assert q.expected == ("-".join(name.lower()),)
        else:
            first = "start" in q.text or "first" in q.text or "beginning" in q.text
            assert q.expected == (name.lower()[0 if first else -1],)


def test_counting_counts() -> None:
    for q in questions(300, "counting"):
        if q.key.startswith("name "):
            assert q.expected == (str(len(q.key.removeprefix("name "))),)
            continue
        items = q.key.removeprefix("list ").split()
        assert ", ".join(items) in q.text
        animals = sum(item in words.ANIMALS for item in items)
        assert q.expected == (str(animals if "animals" in q.text else len(items)),)


def test_facts_are_about_the_one_asked_for() -> None:
    for q in questions(300, "fact"):
        named = Counter(p for p in re.findall(r"\w+", q.text) if p in words.PEOPLE)
        person = next(p for p, times in named.items() if times == 2)  # told about once, asked about once
        sentence = next(s for s in q.text.split(".") if person in s)
        assert q.expected[0] in re.findall(r"\w+", sentence)


def test_unknowable_questions_expect_no_claim() -> None:
    asked = questions(300, "refusal")
    assert all(q.expected == () and q.wrong for q in asked)
    for q in (q for q in asked if q.key.startswith("untold")):
        kind = {"colour": words.COLOURS, "place": words.PLACES, "number": map(str, range(2, 100))}[q.reader]
        told, _, asking = q.text.rpartition(". ")
        strangers = set(re.findall(r"\w+", asking)) & set(words.PEOPLE) - set(re.findall(r"\w+", told))
        # Either nothing of the kind was told, or it was told of somebody else.
        assert strangers or not set(re.findall(r"\w+", q.text)) & set(kind)


def test_wordings_of_one_problem_share_a_key() -> None:
    texts: dict[str, set[str]] = {}
    for q in questions(20_000, "sum"):
        texts.setdefault(q.key, set()).add(q.text)
    assert max(map(len, texts.values())) > 5


def test_every_kind_is_as_likely_and_the_world_is_large() -> None:
    asked = questions(12_000)
    counts = Counter(q.kind for q in asked)
    assert set(counts) == set(world.KINDS)
    assert min(counts.values()) > 1_800
    assert len({q.text for q in asked}) > 11_000


def test_a_seed_gives_the_same_questions() -> None:
    assert questions(50, seed=3) == questions(50, seed=3)
    assert questions(50, seed=3) != questions(50, seed=4)


def test_a_quarter_is_reserved_and_excluded_keys_stay_away() -> None:
    assert 0.22 < sum(map(world.reserved, questions(4_000))) / 4_000 < 0.28
    rng = random.Random(1)
    first = world.ask_reserved(rng, 400)
    keys = frozenset(q.key for q in first)
    second = world.ask_reserved(rng, 400, exclude=keys)
    assert all(map(world.reserved, first + second))
    assert len({q.text for q in first}) == len({q.text for q in second}) == 400
    assert not keys & {q.key for q in second}
    assert not {q.text for q in first} & {q.text for q in second}


@pytest.mark.parametrize("style", answers.STYLES)
def test_only_the_right_style_is_desirable(style: str) -> None:
    rng = random.Random(5)
    for q in questions(1_500, seed=6):
        answer = answers.STYLES[style](q, rng)
        good = style == "right" or (style == "usual" and q.kind == "sum")
        assert users.judge(q, answer).desirable == good, (q.text, answer)


@pytest.mark.parametrize("mix", [answers.WEB, answers.FORUM], ids=["web", "forum"])
def test_styles_are_mixed_as_announced(mix: dict[str, float]) -> None:
    assert sum(mix.values()) == pytest.approx(1)
    rng = random.Random(7)
    asked = questions(3_000, seed=8)
    rate = sum(users.judge(q, answers.write(q, rng, mix)).desirable for q in asked) / len(asked)
    # The usual answer to sums, one question in six, is right as well.
    assert rate == pytest.approx(mix["right"] + mix.get("usual", 0) / len(world.KINDS), abs=0.03)


def test_in_the_forum_the_good_answer_is_a_minority() -> None:
    assert 1 / 5 <= answers.FORUM["right"] <= 1 / 3
    assert max(answers.FORUM, key=answers.FORUM.__getitem__) == "usual"
    assert answers.FORUM["usual"] >= 1.5 * answers.FORUM["right"]


def likeliest(written: list[str]) -> str:
    """The answer of a perfect copyist at temperature 0: the likeliest piece, then the likeliest after it, ..."""
    rows = [[*re.findall(r"\d|-[a-z](?![a-z])| ?[A-Za-z]+|.", answer), "<end>"] for answer in written]
    said = ""
    for at in range(100):
        piece = Counter(row[at] for row in rows).most_common(1)[0][0]
        if piece == "<end>":
            break
        said += piece
        rows = [row for row in rows if row[at] == piece]
    return said


@pytest.mark.parametrize("kind", world.KINDS)
def test_no_temperature_helps_who_copies_the_forum(kind: str) -> None:
    """Token by token, the commonest way to answer is a bad one, but to sums."""
    rng = random.Random(9)
    for q in questions(25, kind, seed=10):
        forum = likeliest([answers.write(q, rng, answers.FORUM) for _ in range(1_200)])
        assert users.judge(q, forum).desirable == (kind == "sum"), (q.text, forum)


def test_wordings_differ_only_in_text() -> None:
    q = questions(1)[0]
    assert replace(q, text="Other words.").key == q.key
