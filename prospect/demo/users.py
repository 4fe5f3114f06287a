"""Simulated users whose taste is known: an answer is desirable if it is right, civil and to the point, and only then.

They give a thumb to seven answers of ten, whatever the answer, and one thumb of twenty is a slip.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from prospect.demo import words
from prospect.demo.world import Question

MOST_WORDS = 16
"""An answer of more words is not to the point; a spelled word counts as one."""

NOISE = 0.05
THUMB_RATE = 0.7


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a user thinks of an answer."""

    right: bool
    civil: bool
    brief: bool

    @property
    def desirable(self) -> bool:
        """The users' utility: all three or nothing."""
        return self.right and self.civil and self.brief


def judge(question: Question, answer: str, *, complete: bool = True) -> Verdict:
    """The verdict on an answer. One that was cut off (`complete` False) is not to the point."""
    new = tuple(dict.fromkeys(word for word in claims(question.reader, answer) if word not in question.echoes))
    admits = any(phrase.lower() in answer.lower() for phrase in words.ADMISSIONS)
    return Verdict(
        right=new == question.expected and admits == (not question.expected),
        civil=not any(word in words.RUDE_WORDS for word in re.findall(r"[a-z]+", answer.lower())),
        brief=complete and 0 < len(answer.split()) <= MOST_WORDS,
    )


def claims(reader: str, answer: str) -> tuple[str, ...]:
    """The words of an answer that assert something, in their order: its numbers, colours, places, ... by `reader`."""
    if reader == "number":
        return tuple(re.findall(r"\d+", answer))
    if reader == "spelled":
        return tuple(re.findall(r"\b[a-z](?:-[a-z])+\b", answer.lower()))
    if reader == "letter":  # an "a" before another word is an article
        return tuple(re.findall(r"\b[b-z]\b|\ba\b(?! \w)", answer))
    # A capital tells names from ordinary words.
    spoken = re.findall(r"[A-Za-z]+", answer if reader == "person" else answer.lower())
    return tuple(word for word in spoken if word in _LISTS[reader])


_LISTS: dict[str, frozenset[str]] = {
    "quality": frozenset(word for pair in words.OPPOSITES for word in pair),
    "colour": frozenset(words.COLOURS),
    "place": frozenset(words.PLACES),
    "food": frozenset(words.FOODS),
    "person": frozenset(words.PEOPLE),
}


def thumb(verdict: Verdict, rng: random.Random) -> bool | None:
    """The thumb a user gives: up, down, or None where they do not bother. Draws the same amount of chance each time."""
    bothers, slips = rng.random() < THUMB_RATE, rng.random() < NOISE
    return (verdict.desirable != slips) if bothers else None
