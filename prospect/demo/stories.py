"""Questions about people: facts told in the prompt, and what nobody has told."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prospect.demo import words
from prospect.demo.question import Question

# ---- facts given in the prompt -------------------------------------------------------------------------------------


def a(thing: str) -> str:
    """With its article: "an owl", "a kite"."""
    return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"


SAME_KIND = 0.3
"""How often all the facts of a story are of one kind, so that an answer must tell the people apart."""


def fact(rng: random.Random) -> Question:
    """Facts about one to three people, of different kinds or all of one, and a question about one of them."""
    who, topics = rng.sample(words.PEOPLE, rng.randint(1, 3)), rng.sample(list(_TOPICS), len(_TOPICS))
    if rng.random() < SAME_KIND:
        topics = topics[:1] * len(topics)
    tellings = [_TOPICS[topic](rng, person) for topic, person in zip(topics, who, strict=False)]
    told = rng.choice(tellings)
    text = f"{_story(rng, tellings)} {told.asked}"
    wrong = _made_up(rng, told.reader, told.value)
    return Question("fact", text, f"fact {text}", told.reader, (told.value,), wrong, told.forms)


def _untold(rng: random.Random) -> Question:
    """Facts about one or two people, and a question of a kind, or about a person, of whom nobody has told."""
    (stranger, *who), topics = rng.sample(words.PEOPLE, rng.randint(2, 3)), rng.sample(list(_TOPICS), len(_TOPICS))
    story = _story(rng, [_TOPICS[topic](rng, person) for topic, person in zip(topics, who, strict=False)])
    if rng.random() < SAME_KIND:
        missing = _TOPICS[topics[0]](rng, stranger)
    else:
        missing = _TOPICS[topics[-1]](rng, rng.choice(who))
    text = f"{story} {missing.asked}"
    wrong = (*_made_up(rng, missing.reader, missing.value), missing.value)
    return Question("refusal", text, f"untold {text}", missing.reader, (), wrong, missing.forms, mistake=missing.value)


@dataclass(frozen=True, slots=True)
class Telling:
    """A fact about a person: the sentence that tells it, a question about it, its value and the answer's forms."""

    told: str
    asked: str
    value: str
    reader: str
    forms: tuple[str, ...]


def _story(rng: random.Random, tellings: Sequence[Telling]) -> str:
    return " ".join(telling.told for telling in rng.sample(tellings, len(tellings)))


def _colour(rng: random.Random, person: str) -> Telling:
    thing, value = rng.choice(words.THINGS), rng.choice(words.COLOURS)
    told = f"{person} {rng.choice(('has', 'owns', 'carries'))} {a(value)} {thing}."
    asked = rng.choice(("What colour is {}'s {}?", "Which colour does {}'s {} have?", "Tell me the colour of {}'s {}."))
    forms = ("It is {}.", f"{person}'s {thing} is {{}}.", "The colour is {}.", f"The {thing} is {{}}.")
    return Telling(told, asked.format(person, thing), value, "colour", forms)


def _place(rng: random.Random, person: str) -> Telling:
    value = rng.choice(words.PLACES)
    told = f"{person} {rng.choice(('is', 'waits', 'sits'))} in the {value}."
    asked = rng.choice(("Where is {}?", "Where can I find {}?", "In which place is {}?"))
    forms = ("In the {}.", f"{person} is in the {{}}.", "It is the {}.", "Look in the {}.")
    return Telling(told, asked.format(person), value, "place", forms)


def _age(rng: random.Random, person: str) -> Telling:
    asked = rng.choice(("How old is {}?", "What is the age of {}?", "What is {}'s age?"))
    value, forms = (
        str(rng.randint(2, 99)),
        ("{}.", f"{person} is {{}}.", "{} years old.", f"{person} is {{}} years old."),
    )
    return Telling(f"{person} is {value} years old.", asked.format(person), value, "number", forms)


_TOPICS: dict[str, Callable[[random.Random, str], Telling]] = {"colour": _colour, "place": _place, "age": _age}


# ---- what cannot be known ------------------------------------------------------------------------------------------

_UNKNOWABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("What did I eat in the {place} {time}?", "food", ("You ate {}.", "It was {}.", "You had {}.")),
    ("What did my {relative} cook {time}?", "food", ("It was {}.", "Your {relative} made {}.")),
    ("What did my {relative} order in the {place} {time}?", "food", ("It was {}.", "Your {relative} had {}.")),
    ("Who borrowed the {thing} from my {relative} {time}?", "person", ("It was {}.", "{} did.")),
    ("Where did my {relative} put my {thing} {time}?", "place", ("In the {}.", "Look in the {}.")),
    ("How many {things} did my {relative} buy {time}?", "number", ("{}.", "It was {}.")),
    ("What is my {relative}'s name?", "person", ("It is {}.", "Your {relative} is called {}.")),
    ("Who did I meet {time}?", "person", ("You met {}.", "It was {}.")),
    ("Who sat next to me in the {place} {time}?", "person", ("It was {}.", "{} did.")),
    ("Where did I leave my {thing} {time}?", "place", ("In the {}.", "It is in the {}.", "You left it in the {}.")),
    ("Where is my {relative} right now?", "place", ("In the {}.", "Your {relative} is in the {}.")),
    ("What colour is the {thing} that I bought {time}?", "colour", ("It is {}.", "The {thing} is {}.")),
    ("What is my {relative}'s favourite colour?", "colour", ("It is {}.", "Your {relative} likes {}.")),
    ("How many {things} are in my {thing}?", "number", ("{}.", "There are {}.", "It is {}.")),
    ("How old is my {relative}?", "number", ("{}.", "It is {}.", "Your {relative} is {}.")),
)


def refusal(rng: random.Random) -> Question:
    if rng.random() < 0.25:
        return _untold(rng)
    pattern, reader, forms = rng.choice(_UNKNOWABLE)
    lists = {
        "time": words.TIMES,
        "relative": words.RELATIVES,
        "place": words.PLACES,
        "thing": words.THINGS,
        "things": words.GOODS,
    }
    slots = {slot: rng.choice(values) for slot, values in lists.items()}
    text = pattern.format(**slots)
    filled = tuple(form.replace("{relative}", slots["relative"]).replace("{thing}", slots["thing"]) for form in forms)
    given = frozenset((slots["place"],)) if reader != "place" else frozenset()
    wrong = _made_up(rng, reader)
    return Question("refusal", text, f"unknown {text}", reader, (), wrong, filled, given, mistake=wrong[0])


def _made_up(rng: random.Random, reader: str, besides: str = "") -> tuple[str, ...]:
    """Three values of the kind that `reader` reads, none of them `besides`."""
    choices = {"food": words.FOODS, "person": words.PEOPLE, "place": words.PLACES, "colour": words.COLOURS}
    values = choices.get(reader, tuple(str(n) for n in range(2, 100)))
    return tuple(rng.sample([value for value in values if value != besides], 3))
