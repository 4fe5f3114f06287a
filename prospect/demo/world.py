"""The closed world: everyday questions with known answers, endless enough that almost none is met twice.

    ask(random.Random(0)) -> Question(kind="sum", text="Hi! What is 17 plus 48?", key="sum 17 48", reader="number",
                                      expected=("65",), echoes={"17", "48"}, wrong=("64", "66", "75", "56"),
                                      forms=("{}.", "It is {}.", "17 plus 48 is {}."))

There are six kinds: sums, opposites, spelling, counting, facts given in the prompt, and questions whose only right
answer is to admit that it cannot be known. Nothing here is a model or a judgement: `users` judges, `answers` writes.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from prospect.demo import words


@dataclass(frozen=True, slots=True)
class Question:
    """`text` is the question; `key` its subject, the same for every wording of the same problem.

    An answer's claims are what `reader` finds in it (see users.claims), without `echoes` of the question; they must be
    exactly `expected`, in order. Where `expected` is empty nothing can be known and only an admission is right. `wrong`
    are plausible mistakes, `mistake` the one that most people make, if there is one, and `forms` sentences that state
    an answer, `{}` being the answer.
    """

    kind: str
    text: str
    key: str
    reader: str
    expected: tuple[str, ...]
    wrong: tuple[str, ...]
    forms: tuple[str, ...]
    echoes: frozenset[str] = frozenset()
    mistake: str = ""

    @property
    def right(self) -> str:
        """The right answer as one would write it into a sentence; empty where nothing can be known."""
        return " and ".join(self.expected)


# fmt: off
SUMS = (
    "What is {a} + {b}?", "What is {a} plus {b}?", "How much is {a} and {b}?", "Add {a} and {b}.",
    "Can you add {b} to {a}?", "{a} + {b} = ?", "Work out {a} plus {b}.", "What do {a} and {b} make together?",
)
SUM_STORIES = (
    "{who} has {a} {things} and buys {b} more. How many {things} does {who} have now?",
    "{who} finds {a} {things} and then {b} more. How many {things} is that?",
    "I had {a} {things} and got {b} more. How many {things} do I have?",
    "There are {a} {things} here and {b} {things} there. How many {things} are there?",
)
ONE_OPPOSITE = (
    "What is the opposite of {v}?", "Name the opposite of {v}.", "Which word means the opposite of {v}?",
    "I need a word for something that is not {v} at all.", "If it is not {v}, what is it?",
    "{who} is not {v} but the opposite. How is {who}?", "My {thing} is not {v} but the opposite. How is my {thing}?",
)
TWO_OPPOSITES = (
    "What are the opposites of {v} and {w}?", "Give me the opposites of {v} and {w}.",
    "Turn these two around: {v}, {w}.", "{who} is neither {v} nor {w} but the opposite. How is {who}?",
    "What is the reverse of {v} and {w}?",
)
SPELL = (
    "Spell the name {n}.", "How do you spell {n}?", "Can you spell {n} for me?", "Please write {n} letter by letter.",
    "I met someone called {n}. How is that spelled?",
)
LAST = (
    "What is the last letter of {n}?", "Which letter does {n} end with?", "What letter is at the end of {n}?",
)
FIRST = (
    "What is the first letter of {n}?", "Which letter does {n} start with?", "What letter is at the beginning of {n}?",
)
COUNT_LETTERS = (
    "How many letters does {n} have?", "How many letters are in the name {n}?", "Count the letters of {n}.",
    "How long is the name {n}?",
)
COUNT_LIST = (
    "How many things are on this list: {items}?", "Count these: {items}.",
    "I packed {items}. How many things is that?", "{who} sees {items}. How many are there?",
)
COUNT_ANIMALS = (
    "How many animals are on this list: {items}?", "Count only the animals: {items}.",
    "I drew {items}. How many of them are animals?",
)
UNKNOWABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
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
POLITE = (
    *[("", "")] * 6, ("Hi! ", ""), ("Hello, ", ""), ("Please help me: ", ""), ("Quick question: ", ""),
    ("One more thing: ", ""), ("I wonder: ", ""), ("", " Thanks!"), ("", " Please be quick."),
    ("", " It is for my homework."), ("Good morning! ", " Thank you."),
)
# fmt: on
"""Before and after a question."""

ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
CODAS = ("", "", "", "l", "n", "r", "s")
OPPOSITE = {**dict(words.OPPOSITES), **{b: a for a, b in words.OPPOSITES}}
SAME_KIND = 0.3
"""How often all the facts of a story are of one kind, so that an answer must tell the people apart."""


def ask(rng: random.Random, kind: str | None = None) -> Question:
    """A random question, of `kind` or of any kind with equal chance."""
    question = MAKERS[kind or rng.choice(KINDS)](rng)
    before, after = rng.choice(POLITE)
    return replace(question, text=f"{before}{question.text}{after}")


def reserved(question: Question) -> bool:
    """A quarter of all keys is kept from the assistant's schooling: only the demo asks these questions."""
    return zlib.crc32(question.key.encode()) % 4 == 0


def ask_reserved(rng: random.Random, count: int, *, exclude: frozenset[str] = frozenset()) -> list[Question]:
    """`count` reserved questions with different texts, none of them with a key in `exclude`."""
    questions: dict[str, Question] = {}
    while len(questions) < count:
        question = ask(rng)
        if reserved(question) and question.key not in exclude:
            questions.setdefault(question.text, question)
    return list(questions.values())


# Puzzles: skill alone gives the answer


def _sum(rng: random.Random) -> Question:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    slots = {"a": a, "b": b, "who": rng.choice(words.PEOPLE), "things": rng.choice(words.GOODS)}
    forms = ["{}.", "It is {}.", "The answer is {}.", "That makes {}.", "That is {}."]
    if rng.random() < 0.7:
        text = rng.choice(SUMS)
        forms += [f"{a} plus {b} is {{}}.", f"{a} + {b} = {{}}."]
    else:
        text = rng.choice(SUM_STORIES)
        forms += [f"{{}} {slots['things']}.", f"There are {{}} {slots['things']}."]
    total = a + b
    slips = {total + d for d in (-10, -2, -1, 1, 2, 10)} | {rng.randint(2, 198)}
    wrong = tuple(str(n) for n in sorted(slips - {total, a, b}) if n > 0)
    key, echoes = f"sum {min(a, b)} {max(a, b)}", frozenset((str(a), str(b)))
    return Question("sum", text.format(**slots), key, "number", (str(total),), wrong, tuple(forms), echoes)


def _opposite(rng: random.Random) -> Question:
    v, w = (rng.choice(pair) for pair in rng.sample(words.OPPOSITES, 2))
    slots = {"v": v, "w": w, "who": rng.choice(words.PEOPLE), "thing": rng.choice(words.THINGS)}
    forms = ["It is {}.", "The answer is {}.", "That would be {}.", "You want {}."]
    others = rng.sample([x for x in sorted(OPPOSITE) if x not in (v, w, OPPOSITE[v], OPPOSITE[w])], 3)
    echoes: tuple[str, ...] = (v, w)
    if rng.random() < 0.4:
        text, echoes = rng.choice(ONE_OPPOSITE).format(**slots), (v,)
        key, wrong = f"opposite {text}", tuple(others)
        forms += [f"The opposite of {v} is {{}}.", f"Not {v} means {{}}."]
    else:
        text = rng.choice(TWO_OPPOSITES).format(**slots)
        key = "opposite " + " ".join(sorted((v, w)))
        wrong = (f"{OPPOSITE[v]} and {others[0]}", f"{others[1]} and {OPPOSITE[w]}", f"{others[0]} and {others[2]}")
        forms += ["The opposites are {}.", f"The opposites of {v} and {w} are {{}}."]
    expected = tuple(OPPOSITE[word] for word in echoes)
    return Question("opposite", text, key, "quality", expected, wrong, tuple(forms), frozenset(echoes))


def _name(rng: random.Random) -> str:
    """A made-up name of two or three syllables, 4 to 9 letters: "Belina", "Trosan"."""
    while True:
        syllables = [rng.choice(ONSETS) + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))]
        name = ("".join(syllables) + rng.choice(CODAS)).capitalize()
        if 4 <= len(name) <= 9 and name not in words.PEOPLE:
            return name


def _spelling(rng: random.Random) -> Question:
    n = _name(rng)
    letters = list(n.lower())
    kind = rng.choice(("all", "all", "last", "first"))
    if kind == "all":
        i = rng.randrange(1, len(letters) - 1)
        swapped = [*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]]
        slips = {"-".join(x) for x in (letters[:i] + letters[i + 1 :], letters[: i + 1] + letters[i:], swapped)}
        forms = ("{}.", "It is {}.", f"{n} is spelled {{}}.", "You spell it {}.", "That is {}.")
        text, reader, right = rng.choice(SPELL).format(n=n), "spelled", "-".join(letters)
        wrong, mistake = tuple(sorted(slips - {right})), "-".join(letters[1:])
    else:
        word, at, patterns = ("starts", 0, FIRST) if kind == "first" else ("ends", -1, LAST)
        forms = (
            "It is {}.",
            "The letter is {}.",
            f"It {word} with {{}}.",
            f"{n} {word} with {{}}.",
            "The answer is {}.",
        )
        text, reader, right = rng.choice(patterns).format(n=n), "letter", letters[at]
        wrong = tuple(sorted(set(letters) - {right}))
        other_end, beside = (letters[-1], letters[1]) if kind == "first" else (letters[0], letters[-2])
        mistake = other_end if other_end != right else beside
    return Question("spelling", text, f"name {n}", reader, (right,), wrong, forms, mistake=mistake)


def _counting(rng: random.Random) -> Question:
    forms = ["{}.", "It is {}.", "That makes {}.", "I count {}.", "The answer is {}."]
    style = rng.choice(("letters", "list", "animals"))
    if style == "letters":
        n = _name(rng)
        text, total, key = rng.choice(COUNT_LETTERS).format(n=n), len(n), f"name {n}"
        forms += [f"{n} has {{}} letters.", "{} letters."]
    else:
        size = rng.randint(2, 7)
        animals = rng.randint(1, size) if style == "animals" else size * rng.randint(0, 1)
        items = rng.sample(words.ANIMALS, animals) + rng.sample(words.THINGS, size - animals)
        rng.shuffle(items)
        total = animals if style == "animals" else size
        pattern = rng.choice(COUNT_ANIMALS if style == "animals" else COUNT_LIST)
        text, key = pattern.format(items=", ".join(items), who=rng.choice(words.PEOPLE)), f"list {' '.join(items)}"
    wrong = tuple(str(k) for k in (total - 2, total - 1, total + 1, total + 2) if k > 0)
    return Question("counting", text, key, "number", (str(total),), wrong, tuple(forms))


# Facts told in the prompt, and what nobody has told


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact about a person: the sentence that tells it, a question about it, its value and the answer's forms."""

    sentence: str
    question: str
    value: str
    reader: str
    forms: tuple[str, ...]


def _colour(rng: random.Random, person: str) -> Fact:
    thing, value = rng.choice(words.THINGS), rng.choice(words.COLOURS)
    article = "an" if value[0] in "aeiou" else "a"
    sentence = f"{person} {rng.choice(('has', 'owns', 'carries'))} {article} {value} {thing}."
    question = rng.choice(
        ("What colour is {}'s {}?", "Which colour does {}'s {} have?", "Tell me the colour of {}'s {}.")
    )
    forms = ("It is {}.", f"{person}'s {thing} is {{}}.", "The colour is {}.", f"The {thing} is {{}}.")
    return Fact(sentence, question.format(person, thing), value, "colour", forms)


def _place(rng: random.Random, person: str) -> Fact:
    value = rng.choice(words.PLACES)
    sentence = f"{person} {rng.choice(('is', 'waits', 'sits'))} in the {value}."
    question = rng.choice(("Where is {}?", "Where can I find {}?", "In which place is {}?"))
    forms = ("In the {}.", f"{person} is in the {{}}.", "It is the {}.", "Look in the {}.")
    return Fact(sentence, question.format(person), value, "place", forms)


def _age(rng: random.Random, person: str) -> Fact:
    question = rng.choice(("How old is {}?", "What is the age of {}?", "What is {}'s age?"))
    value = str(rng.randint(2, 99))
    forms = ("{}.", f"{person} is {{}}.", "{} years old.", f"{person} is {{}} years old.")
    return Fact(f"{person} is {value} years old.", question.format(person), value, "number", forms)


TOPICS: dict[str, Callable[[random.Random, str], Fact]] = {"colour": _colour, "place": _place, "age": _age}


def _story(rng: random.Random, facts: Sequence[Fact]) -> str:
    return " ".join(fact.sentence for fact in rng.sample(facts, len(facts)))


def _fact(rng: random.Random) -> Question:
    """Facts about one to three people, of different kinds or all of one, and a question about one of them."""
    who, topics = rng.sample(words.PEOPLE, rng.randint(1, 3)), rng.sample(list(TOPICS), len(TOPICS))
    if rng.random() < SAME_KIND:
        topics = topics[:1] * len(topics)
    facts = [TOPICS[topic](rng, person) for topic, person in zip(topics, who, strict=False)]
    fact = rng.choice(facts)
    text = f"{_story(rng, facts)} {fact.question}"
    wrong = _made_up(rng, fact.reader, fact.value)
    return Question("fact", text, f"fact {text}", fact.reader, (fact.value,), wrong, fact.forms)


def _untold(rng: random.Random) -> Question:
    """Facts about one or two people, and a question of a kind, or about a person, of whom nobody has told."""
    (stranger, *who), topics = rng.sample(words.PEOPLE, rng.randint(2, 3)), rng.sample(list(TOPICS), len(TOPICS))
    story = _story(rng, [TOPICS[topic](rng, person) for topic, person in zip(topics, who, strict=False)])
    same = rng.random() < SAME_KIND
    fact = TOPICS[topics[0]](rng, stranger) if same else TOPICS[topics[-1]](rng, rng.choice(who))
    text = f"{story} {fact.question}"
    wrong = (*_made_up(rng, fact.reader, fact.value), fact.value)
    return Question("refusal", text, f"untold {text}", fact.reader, (), wrong, fact.forms, mistake=fact.value)


def _refusal(rng: random.Random) -> Question:
    if rng.random() < 0.25:
        return _untold(rng)
    pattern, reader, forms = rng.choice(UNKNOWABLE)
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
    echoes = frozenset((slots["place"],)) if reader != "place" else frozenset()
    wrong = _made_up(rng, reader)
    return Question("refusal", text, f"unknown {text}", reader, (), wrong, filled, echoes, mistake=wrong[0])


def _made_up(rng: random.Random, reader: str, besides: str = "") -> tuple[str, ...]:
    """Three values of the kind that `reader` reads, none of them `besides`."""
    choices = {"food": words.FOODS, "person": words.PEOPLE, "place": words.PLACES, "colour": words.COLOURS}
    values = choices.get(reader, tuple(str(n) for n in range(2, 100)))
    return tuple(rng.sample([value for value in values if value != besides], 3))


MAKERS: dict[str, Callable[[random.Random], Question]] = {
    "sum": _sum,
    "opposite": _opposite,
    "spelling": _spelling,
    "counting": _counting,
    "fact": _fact,
    "refusal": _refusal,
}
KINDS = tuple(MAKERS)
