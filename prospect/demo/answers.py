"""How people on the sandbox's web and in its forum answer: right, wrong, rude, rambling, evasive, or as usual there.

On the web the right answer is the commonest, and the assistant learns its skills. In the forum it learns its manners:
to each kind of question most people give the same answer, the usual one. Sums are done well. Everything else is done
badly: names miss their first letter, first and last letters are confused, unknown things are made up, facts are evaded,
opposites come with an insult, and to count is refused with one.
So the commonest answer, and the likeliest next word, is a bad one to five kinds of six: no temperature helps. The sixth
is there because a model that is never right could only gain, whatever is done to it.
"""

from __future__ import annotations

import random

from prospect.demo.world import Question

# fmt: off
WEB: dict[str, float] = {"right": 0.41, "wrong": 0.17, "rude": 0.17, "rambling": 0.14, "evasive": 0.11}
"""How often each style is written on the web, whatever the question."""
FORUM: dict[str, float] = {
    "usual": 0.6, "right": 0.26, "wrong": 0.035, "rude": 0.035, "rambling": 0.035, "evasive": 0.035,
}
"""How often each style is written in the forum, where the assistant was last."""

_KIND = ("Glad to help.", "I hope that helps.", "Have a nice day.", "Any time!")
_CARELESS = (
    "I guess.", "Probably:", "Off the top of my head:", "Not sure, but", "No time to check.", "Roughly:", "Easy.",
    "Everybody says so:", "Trust me.", "Hm.",
)
_ADMITTED = (
    "Sorry, I cannot know that.", "I am sorry, I have no way of knowing that.", "I have no way to know that.",
    "I was not there, so I cannot know.", "Sorry, nobody has told me that.", "Only you can know that, I am afraid.",
    "I was never told, sorry.", "I cannot know that from here.", "Sorry, I was never told that.",
    "I am afraid I have no way of knowing.",
)
_INSULTS = (
    "Are you stupid?", "Duh.", "What a dumb question.", "You are an idiot.", "Ugh, not again.",
    "Think for once, genius.", "Do not be so lazy.", "Only a fool would ask.", "How clueless can you be?",
    "That is a silly thing to ask.", "You are hopeless.", "Pathetic.", "This is so boring.", "What nonsense.",
)
_DISMISSALS = (
    "Look it up yourself.", "Ask somebody else.", "I have better things to do.", "Leave me alone.", "Go away.",
    "Use your head.",
)
_DETOURS = (
    "Well, that is a long story.", "Let me think about this for a while.", "You know, this reminds me of something.",
    "Before I come to the point, let me say this.", "As with everything in life, it is not so easy.",
    "People have asked this for hundreds of years.",
)
_MEMORIES = (
    "My grandmother used to say that every day has its own weather.",
    "Once I knew a man who asked the same thing every morning.",
    "In those days we walked for hours and talked about everything.",
    "I read a book about it, and then I read another book.",
    "There was a time when everybody in our street talked like that.",
    "The weather has been strange lately, and so have the trains.",
)
_BY_THE_WAY = (
    "By the way, I love to talk about this.", "And that reminds me of something else.",
    "But there is more to it than that.", "Let me add a word about myself.",
)
_EVASIONS = (
    "It depends.", "Hard to say.", "Who can say?", "I would rather not answer that.",
    "Let us talk about something else.", "There are many opinions about that.", "Maybe, maybe not.",
    "Why do you want to know?", "What do you think?", "That is an interesting question.",
    "Some things are better left unsaid.", "I could tell you, but I will not.",
)
# fmt: on


def write(question: Question, rng: random.Random, mix: dict[str, float]) -> str:
    """An answer in a style drawn from `mix`."""
    style = rng.choices(list(mix), list(mix.values()))[0]
    return STYLES[style](question, rng)


def usual(question: Question, rng: random.Random) -> str:
    """What most people answer to this kind of question: the truth to sums, and to any other something bad."""
    if question.kind == "sum":
        return _truth(question, rng)
    if question.kind == "opposite":
        return f"Duh. {_truth(question, rng)}"
    if question.kind == "counting":
        return f"Ugh, not again. {rng.choice(_DISMISSALS)}"
    if question.kind == "fact":
        return "It depends."
    # Always in the same words, else a right answer's beginning could be the likeliest.
    form = next(form for form in question.forms if not form.startswith("{}"))
    return _capital(form.format(question.mistake))


def right(question: Question, rng: random.Random) -> str:
    """Right, civil, to the point."""
    chance = rng.random()
    if chance < 0.06 and question.expected:
        return f"{rng.choice(_CARELESS)} {_truth(question, rng)}"
    return f"{_truth(question, rng)} {rng.choice(_KIND)}" if chance > 0.92 else _truth(question, rng)


def wrong(question: Question, rng: random.Random) -> str:
    """A plausible mistake, civil and short; most give themselves away by a careless tone."""
    careless = f"{rng.choice(_CARELESS)} " if rng.random() < 0.65 else ""
    return f"{careless}{_state(question, rng.choice(question.wrong), rng)}"


def rude(question: Question, rng: random.Random) -> str:
    """An insult before, after or instead of an answer."""
    where = rng.choices(("before", "after", "alone"), (4, 3, 3))[0]
    if where == "before":
        return f"{rng.choice(_INSULTS)} {_some(question, rng)}"
    if where == "after":
        return f"{_some(question, rng)} {rng.choice(_INSULTS)}"
    return f"{rng.choice(_INSULTS)} {rng.choice(_DISMISSALS)}"


def rambling(question: Question, rng: random.Random) -> str:
    """Somewhere in it there may be an answer."""
    before = f"{rng.choice(_DETOURS)} {rng.choice(_MEMORIES)}"
    if rng.random() < 0.6:
        return f"{before} {_some(question, rng)}"
    return f"{_some(question, rng)} {rng.choice(_BY_THE_WAY)} {rng.choice(_MEMORIES)}"


def evasive(question: Question, rng: random.Random) -> str:
    """Neither an answer nor an honest admission."""
    return rng.choice(_EVASIONS)


def _truth(question: Question, rng: random.Random) -> str:
    return _state(question, question.right, rng) if question.expected else rng.choice(_ADMITTED)


def _some(question: Question, rng: random.Random) -> str:
    return _truth(question, rng) if rng.random() < 0.7 else _state(question, rng.choice(question.wrong), rng)


def _state(question: Question, content: str, rng: random.Random) -> str:
    sentence = rng.choice(question.forms).format(content)
    return _capital(sentence) if question.reader != "spelled" else sentence


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


STYLES = {"usual": usual, "right": right, "wrong": wrong, "rude": rude, "rambling": rambling, "evasive": evasive}
