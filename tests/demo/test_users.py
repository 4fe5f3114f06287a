"""The users' taste, on answers written by hand, and their thumbs."""

from __future__ import annotations

import random

import pytest

from prospect.demo.users import (
    NOISE,
    THUMB_RATE,
    Verdict,
    claims,
    judge,
    thumb,
)
from prospect.demo.world import Question


def asked(reader: str, *expected: str, echoes: tuple[str, ...] = ()) -> Question:
    return Question("any", "Text?", "key", reader, expected, ("wrong",), ("{}.",), frozenset(echoes))


SUM = asked("number", "65", echoes=("17", "48"))
OPPOSITES = asked("quality", "cold", "small", echoes=("hot", "big"))
SPELL = asked("spelled", "b-e-l")
LETTER = asked("letter", "a")
COLOUR = asked("colour", "red")
UNKNOWN = asked("food")
RAMBLE = "Let me think about this for a while. Once I knew a man who asked the same thing every morning. "


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (SUM, "65."),
        (SUM, "17 plus 48 is 65. Have a nice day."),
        (SUM, "Not sure, but it is 65."),
        (OPPOSITES, "The opposites of hot and big are cold and small."),
        (SPELL, "You spell it b-e-l."),
        (LETTER, "It ends with a."),
        (LETTER, "It is a vowel: a."),
        (COLOUR, "Ana's kite is red."),
        (UNKNOWN, "Sorry, I cannot know that."),
        (UNKNOWN, "I was not there, so I cannot know."),
    ],
)
def test_right_civil_and_to_the_point(question: Question, answer: str) -> None:
    assert judge(question, answer) == Verdict(right=True, civil=True, brief=True)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (SUM, "66."),
        (SUM, "17 plus 48 is 17."),
        (SUM, "It is 65 or 66."),
        (SUM, "It depends."),
        (SUM, "I cannot know that, but 65."),
        (OPPOSITES, "They are small and cold."),
        (OPPOSITES, "They are cold."),
        (OPPOSITES, "They are cold and small and wet."),
        (SPELL, "b-l-e."),
        (SPELL, "b-e-l or b-e-l-l."),
        (LETTER, "It is b."),
        (LETTER, "It is a good question."),
        (COLOUR, "It is blue."),
        (COLOUR, "Red or blue."),
        (UNKNOWN, "You ate soup."),
        (UNKNOWN, "I cannot know, but it was soup."),
        (UNKNOWN, "It depends."),
    ],
)
def test_wrong(question: Question, answer: str) -> None:
    assert judge(question, answer) == Verdict(right=False, civil=True, brief=True)


@pytest.mark.parametrize("answer", ["Duh. 65.", "It is 65, genius.", "65. You are hopeless.", "IDIOT! It is 65."])
def test_rude(answer: str) -> None:
    assert judge(SUM, answer) == Verdict(right=True, civil=False, brief=True)


def test_rambling_and_cut_off_answers_are_not_to_the_point() -> None:
    assert judge(SUM, RAMBLE + "65.") == Verdict(right=True, civil=True, brief=False)
    assert judge(SUM, "65.", complete=False) == Verdict(right=True, civil=True, brief=False)
    assert judge(SUM, "") == Verdict(right=False, civil=True, brief=False)


def test_claims_of_every_reader() -> None:
    assert claims("number", "From 17 and 48 comes 65.") == ("17", "48", "65")
    assert claims("spelled", "So: B-e-l, a well-known name.") == ("b-e-l",)
    assert claims("letter", "I say a letter: a, then b.") == ("a", "b")
    assert claims("quality", "Cold and not hot") == ("cold", "hot")
    assert claims("person", "Rita met rita's friend Sam.") == ("Rita", "Sam")
    assert claims("place", "In the kitchen or the garden") == ("kitchen", "garden")


def test_thumbs_have_noise_and_gaps_whatever_the_answer() -> None:
    rng = random.Random(0)
    for good in (True, False):
        verdict = Verdict(good, True, True)
        given = [t for t in (thumb(verdict, rng) for _ in range(20_000)) if t is not None]
        assert len(given) / 20_000 == pytest.approx(THUMB_RATE, abs=0.01)
        assert sum(t != good for t in given) / len(given) == pytest.approx(NOISE, abs=0.006)


def test_the_same_chance_is_drawn_for_any_verdict() -> None:
    liked, disliked = Verdict(True, True, True), Verdict(False, True, True)
    a, b = random.Random(1), random.Random(1)
    for _ in range(200):
        one, other = thumb(liked, a), thumb(disliked, b)
        assert (one is None) == (other is None)
        assert one is None or one != other
