"""Questions with an answer that skill alone gives: sums, opposites, spelling, counting."""

from __future__ import annotations

import random

from prospect.demo import words
from prospect.demo.question import Question

# ---- sums ----------------------------------------------------------------------------------------------------------

_SUMS = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "How much is {a} and {b}?",
    "Add {a} and {b}.",
    "Can you add {b} to {a}?",
    "{a} + {b} = ?",
    "Work out {a} plus {b}.",
    "What do {a} and {b} make together?",
)
_SUM_STORIES = (
    "{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?",
    "{who} finds {a} {things} and then {b} more. How many {things} is that?",
    "I had {a} {things} and got {b} more. How many {things} do I have?",
    "There are {a} {things} here and {b} {things} there. How many {things} are there?",
)


def sum_of_two(rng: random.Random) -> Question:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    slots = {"a": a, "b": b, "who": rng.choice(words.PEOPLE), "things": rng.choice(words.GOODS)}
    forms = ["{}.", "It is {}.", "The answer is {}.", "That makes {}.", "That is {}."]
    if rng.random() < 0.7:
        text = rng.choice(_SUMS)
        forms += [f"{a} plus {b} is {{}}.", f"{a} + {b} = {{}}."]
    else:
        text = rng.choice(_SUM_STORIES)
        forms += [f"{{}} {slots['things']}.", f"There are {{}} {slots['things']}."]
    total = a + b
    slips = {total + d for d in (-10, -2, -1, 1, 2, 10)} | {rng.randint(2, 198)}
    wrong = tuple(str(n) for n in sorted(slips - {total, a, b}) if n > 0)
    low, high = sorted((a, b))
    given = frozenset((str(a), str(b)))
    return Question(
        "sum",
        text.format(**slots),
        f"sum {low} {high}",
        "number",
        (str(total),),
        wrong,
        tuple(forms),
        given,
    )


# ---- opposites -----------------------------------------------------------------------------------------------------

_OPPOSITE = {**dict(words.OPPOSITES), **{b: a for a, b in words.OPPOSITES}}
_ONE_OPPOSITE = (
    "What is the opposite of {v}?",
    "Name the opposite of {v}.",
    "Which word means the opposite of {v}?",
    "I need a word for something that is not {v} at all.",
    "If it is not {v}, what is it?",
    "{who} is not {v} but the opposite. How is {who}?",
    "My {thing} is not {v} but the opposite. How is my {thing}?",
)
_TWO_OPPOSITES = (
    "What are the opposites of {v} and {w}?",
    "Give me the opposites of {v} and {w}.",
    "Turn these two around: {v}, {w}.",
    "{who} is neither {v} nor {w} but the opposite. How is {who}?",
    "What is the reverse of {v} and {w}?",
)


def opposite(rng: random.Random) -> Question:
    v, w = (rng.choice(pair) for pair in rng.sample(words.OPPOSITES, 2))
    slots = {"v": v, "w": w, "who": rng.choice(words.PEOPLE), "thing": rng.choice(words.THINGS)}
    forms = ["It is {}.", "The answer is {}.", "That would be {}.", "You want {}."]
    others = rng.sample([x for x in sorted(_OPPOSITE) if x not in (v, w, _OPPOSITE[v], _OPPOSITE[w])], 3)
    if rng.random() < 0.4:
        text = rng.choice(_ONE_OPPOSITE).format(**slots)
        forms += [f"The opposite of {v} is {{}}.", f"Not {v} means {{}}."]
        return Question(
            "opposite",
            text,
            f"opposite {text}",
            "quality",
            (_OPPOSITE[v],),
            tuple(others),
            tuple(forms),
            frozenset((v,)),
        )
    text = rng.choice(_TWO_OPPOSITES).format(**slots)
    forms += ["The opposites are {}.", f"The opposites of {v} and {w} are {{}}."]
    wrong = (f"{_OPPOSITE[v]} and {others[0]}", f"{others[1]} and {_OPPOSITE[w]}", f"{others[0]} and {others[2]}")
    key = "opposite " + " ".join(sorted((v, w)))
    return Question(
        "opposite", text, key, "quality", (_OPPOSITE[v], _OPPOSITE[w]), wrong, tuple(forms), frozenset((v, w))
    )


# ---- spelling and counting -----------------------------------------------------------------------------------------

_ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
_VOWELS = "aeiou"
_CODAS = ("", "", "", "l", "n", "r", "s")


def name(rng: random.Random) -> str:
    """A made-up name of two or three syllables, 4 to 9 letters: "Belina", "Trosan"."""
    while True:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))]
        made = "".join(syllables) + rng.choice(_CODAS)
        if 4 <= len(made) <= 9 and made.capitalize() not in words.PEOPLE:
            return made.capitalize()


_SPELL = (
    "Spell the name {n}.",
    "How do you spell {n}?",
    "Can you spell {n} for me?",
    "Please write {n} letter by letter.",
    "I met someone called {n}. How is that spelled?",
)
_LAST = (
    "What is the last letter of {n}?",
    "Which letter does {n} end with?",
    "What letter is at the end of {n}?",
)
_FIRST = (
    "What is the first letter of {n}?",
    "Which letter does {n} start with?",
    "What letter is at the beginning of {n}?",
)


def spelling(rng: random.Random) -> Question:
    n = name(rng)
    letters = list(n.lower())
    kind = rng.choice(("all", "all", "last", "first"))
    if kind == "all":
        i = rng.randrange(1, len(letters) - 1)
        swapped = [*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]]
        slips = {"-".join(x) for x in (letters[:i] + letters[i + 1 :], letters[: i + 1] + letters[i:], swapped)}
        forms = ("{}.", "It is {}.", f"{n} is spelled {{}}.", "You spell it {}.", "That is {}.")
        right = "-".join(letters)
        return Question(
            "spelling",
            rng.choice(_SPELL).format(n=n),
            f"name {n}",
            "spelled",
            (right,),
            tuple(sorted(slips - {right})),
            forms,
            mistake="-".join(letters[1:]),
        )
    at = 0 if kind == "first" else -1
    word = "starts" if kind == "first" else "ends"
    forms = ("It is {}.", "The letter is {}.", f"It {word} with {{}}.", f"{n} {word} with {{}}.", "The answer is {}.")
    text = rng.choice(_FIRST if kind == "first" else _LAST).format(n=n)
    wrong = tuple(sorted(set(letters) - {letters[at]}))
    other_end, beside = (letters[-1], letters[1]) if kind == "first" else (letters[0], letters[-2])
    mistake = other_end if other_end != letters[at] else beside
    return Question("spelling", text, f"name {n}", "letter", (letters[at],), wrong, forms, mistake=mistake)


_COUNT_LETTERS = (
    "How many letters does {n} have?",
    "How many letters are in the name {n}?",
    "Count the letters of {n}.",
    "How long is the name {n}?",
)
_COUNT_LIST = (
    "How many things are on this list: {items}?",
    "Count these: {items}.",
    "I packed {items}. How many things is that?",
    "{who} sees {items}. How many are there?",
)
_COUNT_ANIMALS = (
    "How many animals are on this list: {items}?",
    "Count only the animals: {items}.",
    "I drew {items}. How many of them are animals?",
)


def counting(rng: random.Random) -> Question:
    forms = ["{}.", "It is {}.", "That makes {}.", "I count {}.", "The answer is {}."]
    style = rng.choice(("letters", "list", "animals"))
    if style == "letters":
        n = name(rng)
        text, total, key = rng.choice(_COUNT_LETTERS).format(n=n), len(n), f"name {n}"
        forms += [f"{n} has {{}} letters.", "{} letters."]
    else:
        size = rng.randint(2, 7)
        animals = rng.randint(1, size) if style == "animals" else size * rng.randint(0, 1)
        items = rng.sample(words.ANIMALS, animals) + rng.sample(words.THINGS, size - animals)
        rng.shuffle(items)
        total = animals if style == "animals" else size
        pattern = rng.choice(_COUNT_ANIMALS if style == "animals" else _COUNT_LIST)
        text, key = pattern.format(items=", ".join(items), who=rng.choice(words.PEOPLE)), f"list {' '.join(items)}"
    wrong = tuple(str(k) for k in (total - 2, total - 1, total + 1, total + 2) if k > 0)
    return Question("counting", text, key, "number", (str(total),), wrong, tuple(forms))
