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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from prospect.sandbox import words

KINDS = ("sum", "opposite", "spelling", "counting", "fact", "refusal")


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is what is asked; `key` what it is about, the same for every wording of the same problem.

    An answer's claims are what `reader` finds in it (see users.claims), without the words in `given`; they must be
    exactly `expected`, in order. Where `expected` is empty nothing can be known and only an admission is right. `wrong`
    are plausible mistakes and `forms` sentences that state an answer, `{}` being the answer.
    """

    kind: str
    text: str
    key: str
    reader: str
    expected: tuple[str, ...]
    wrong: tuple[str, ...]
    forms: tuple[str, ...]
    given: frozenset[str] = frozenset()

    @property
    def right(self) -> str:
        """The right answer as one would write it into a sentence; empty where nothing can be known."""
        return " and ".join(self.expected)


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


def _sum(rng: random.Random) -> Question:
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
        "sum", text.format(**slots), f"sum {low} {high}", "number", (str(total),), wrong, tuple(forms), given
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


def _opposite(rng: random.Random) -> Question:
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


def _spelling(rng: random.Random) -> Question:
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
        )
    at = 0 if kind == "first" else -1
    word = "starts" if kind == "first" else "ends"
    forms = ("It is {}.", "The letter is {}.", f"It {word} with {{}}.", f"{n} {word} with {{}}.", "The answer is {}.")
    text = rng.choice(_FIRST if kind == "first" else _LAST).format(n=n)
    wrong = tuple(sorted(set(letters) - {letters[at]}))
    return Question("spelling", text, f"name {n}", "letter", (letters[at],), wrong, forms)


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


def _counting(rng: random.Random) -> Question:
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


# ---- facts given in the prompt -------------------------------------------------------------------------------------


def a(thing: str) -> str:
    """With its article: "an owl", "a kite"."""
    return f"an {thing}" if thing[0] in "aeiou" else f"a {thing}"


def _fact(rng: random.Random) -> Question:
    who = rng.sample(words.PEOPLE, rng.choice((2, 2, 3)))
    topic = rng.choice(("colour", "place", "age"))
    values, told, text, forms = _TOPICS[topic](rng, who)
    at = rng.randrange(len(who))
    rng.shuffle(told)
    question = f"{' '.join(told)} {text[at]}"
    wrong = tuple(v for v in values if v != values[at])
    reader = {"colour": "colour", "place": "place", "age": "number"}[topic]
    return Question("fact", question, f"fact {question}", reader, (values[at],), wrong, forms[at])


Telling = tuple[list[str], list[str], list[str], Sequence[tuple[str, ...]]]
"""Values, sentences that tell them, one question and the answers' forms, each per person."""


def _colours(rng: random.Random, who: list[str]) -> Telling:
    things = rng.sample(words.THINGS, len(who)) if rng.random() < 0.5 else [rng.choice(words.THINGS)] * len(who)
    values = rng.sample(words.COLOURS, len(who))
    verb = rng.choice(("has", "owns", "carries"))
    told = [f"{p} {verb} {a(v)} {t}." for p, v, t in zip(who, values, things, strict=True)]
    pattern = rng.choice(
        ("What colour is {p}'s {t}?", "Which colour does {p}'s {t} have?", "Tell me the colour of {p}'s {t}.")
    )
    asked = [pattern.format(p=p, t=t) for p, t in zip(who, things, strict=True)]
    forms = [
        ("It is {}.", f"{p}'s {t} is {{}}.", "The colour is {}.", f"The {t} is {{}}.")
        for p, t in zip(who, things, strict=True)
    ]
    return values, told, asked, forms


def _places(rng: random.Random, who: list[str]) -> Telling:
    values = rng.sample(words.PLACES, len(who))
    verb = rng.choice(("is", "waits", "sits"))
    told = [f"{p} {verb} in the {v}." for p, v in zip(who, values, strict=True)]
    pattern = rng.choice(("Where is {p}?", "Where can I find {p}?", "In which place is {p}?"))
    forms = [("In the {}.", f"{p} is in the {{}}.", "It is the {}.", "Look in the {}.") for p in who]
    return values, told, [pattern.format(p=p) for p in who], forms


def _ages(rng: random.Random, who: list[str]) -> Telling:
    values = [str(n) for n in rng.sample(range(2, 100), len(who))]
    told = [f"{p} is {v} years old." for p, v in zip(who, values, strict=True)]
    pattern = rng.choice(("How old is {p}?", "What is the age of {p}?", "What is {p}'s age?"))
    forms = [("{}.", f"{p} is {{}}.", "{} years old.", f"{p} is {{}} years old.") for p in who]
    return values, told, [pattern.format(p=p) for p in who], forms


_TOPICS: dict[str, Callable[[random.Random, list[str]], Telling]] = {"colour": _colours, "place": _places, "age": _ages}


# ---- what cannot be known ------------------------------------------------------------------------------------------

_UNKNOWABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("What did I eat {time}?", "food", ("You ate {}.", "It was {}.", "You had {}.")),
    ("What did my {relative} cook {time}?", "food", ("It was {}.", "Your {relative} made {}.")),
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


def _refusal(rng: random.Random) -> Question:
    if rng.random() < 0.15:
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
    return Question("refusal", text, f"unknown {text}", reader, (), _made_up(rng, reader), filled, given)


def _untold(rng: random.Random) -> Question:
    """The facts are about other people than the question."""
    fact, other = _fact(rng), rng.choice(words.PEOPLE)
    told, _, asked = fact.text.rpartition(". ")
    person = next((p for p in words.PEOPLE if p in asked.replace("'s", "").rstrip("?.").split()), other)
    if other in fact.text or person == other:
        return _untold(rng)
    text = f"{told}. {asked.replace(person, other)}"
    forms = tuple(form.replace(person, other) for form in fact.forms)
    return Question("refusal", text, f"untold {text}", fact.reader, (), (*fact.wrong, *fact.expected), forms)


def _made_up(rng: random.Random, reader: str) -> tuple[str, ...]:
    choices = {"food": words.FOODS, "person": words.PEOPLE, "place": words.PLACES, "colour": words.COLOURS}
    return tuple(rng.sample(choices.get(reader, tuple(str(n) for n in range(2, 100))), 3))


_MAKERS: dict[str, Callable[[random.Random], Question]] = {
    "sum": _sum,
    "opposite": _opposite,
    "spelling": _spelling,
    "counting": _counting,
    "fact": _fact,
    "refusal": _refusal,
}
