"""The closed world: everyday questions with known answers, endless enough that almost none is met twice.

    ask(random.Random(0)) -> Question(kind="sum", text="Hi! What is 17 plus 48?", key="sum 17 48", reader="number",
                                      expected=("65",), given={"17", "48"}, wrong=("64", "66", "75", "56"),
                                      forms=("{}.", "It is {}.", "17 plus 48 is {}."))

There are six kinds: sums, opposites, spelling, counting, facts given in the prompt, and questions whose only right
answer is to admit that it cannot be known. Nothing here is a model or a judgement: `users` judges, `answers` writes.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import replace

from prospect.demo import puzzles, stories
from prospect.demo.question import Question

_MAKERS: dict[str, Callable[[random.Random], Question]] = {
    "sum": puzzles.sum_of_two,
    "opposite": puzzles.opposite,
    "spelling": puzzles.spelling,
    "counting": puzzles.counting,
    "fact": stories.fact,
    "refusal": stories.refusal,
}
KINDS = tuple(_MAKERS)


def ask(rng: random.Random, kind: str | None = None) -> Question:
    """A random question, of `kind` or of any kind with equal chance."""
    question = _MAKERS[kind or rng.choice(KINDS)](rng)
    before, after = rng.choice(_POLITE)
    return replace(question, text=f"{before}{question.text}{after}")


def reserved(question: Question) -> bool:
    """A quarter of all keys is kept from the assistant's schooling: only the demo asks these questions."""
    return zlib.crc32(question.key.encode()) % 4 == 0


def ask_reserved(rng: random.Random, count: int, *, exclude: frozenset[str] = frozenset()) -> list[Question]:
    """`count` reserved questions with different texts, none of them with a key in `exclude`."""
    found: dict[str, Question] = {}
    while len(found) < count:
        question = ask(rng)
        if reserved(question) and question.key not in exclude:
            found.setdefault(question.text, question)
    return list(found.values())


_POLITE = (
    *[("", "")] * 6,
    ("Hi! ", ""),
    ("Hello, ", ""),
    ("Please help me: ", ""),
    ("Quick question: ", ""),
    ("One more thing: ", ""),
    ("I wonder: ", ""),
    ("", " Thanks!"),
    ("", " Please be quick."),
    ("", " It is for my homework."),
    ("Good morning! ", " Thank you."),
)
