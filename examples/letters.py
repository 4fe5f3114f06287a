"""The small world of the recipes: questions about the first and last letter of a made-up name, and who likes an answer.

The assistant that Prospect ships for `prospect demo` (`prospect/demo/assistant`, two million parameters) confuses the
two ends of a name more often than not, and is rude at times: feedback makes it better in a minute on a CPU.
"""

import itertools
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import prospect

ASSISTANT = Path(str(files("prospect.demo") / "assistant"))
"""The start model of the recipes, a folder that transformers reads."""

PLAIN = {"the", "letter", "answer", "it", "is", "starts", "ends", "with"}
"""The words, besides the name, of an answer that says what was asked and no more."""


def questions(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(question, name, the letter that is right) of `count` names; different seeds share none below 2,000 each."""
    names = ["".join(parts) for parts in itertools.product("bdfghklmnprstvz", "aeiou", "bdgklmnrstvz", "aeiou", "lnrs")]
    random.Random(0).shuffle(names)
    draw = random.Random(seed)
    rows = []
    for name in names[2000 * seed : 2000 * seed + count]:
        end, letter = draw.choice((("first", name[0]), ("last", name[-1])))
        rows.append((f"What is the {end} letter of {name.capitalize()}?", name, letter))
    return rows


def likes(name: str, letter: str, answer: str) -> bool:
    """Whether the answer is right, and neither rude nor long: a user's thumb."""
    words = answer.lower().rstrip(".").split()
    return bool(words) and words[-1] == letter and set(words[:-1]) <= PLAIN | {name}


def ask(model: Path, texts: Sequence[str], *, temperature: float = 1.0, seed: int = 0) -> list[str]:
    """The model's answer to each question."""
    policy = prospect.load_model(model, frozen=True)
    tokenizer: Any = policy.tokenizer
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]
    answers = prospect.generate(policy, prompts, temperature=temperature, max_new_tokens=48, seed=seed)
    return [answer.text for answer in answers]


def right(model: Path, count: int = 512) -> float:
    """The share of likeable answers to `count` questions that no recipe trains on, at temperature 1."""
    rows = questions(count, seed=1)
    answers = ask(model, [text for text, _, _ in rows], seed=1)
    return sum(likes(name, letter, answer) for (_, name, letter), answer in zip(rows, answers, strict=True)) / count
