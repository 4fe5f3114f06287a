"""Answers with a thought: how one begins and ends, in the tags of models (<think>, [THINK], <|START_THINKING|>)."""

from __future__ import annotations

import re

TAG = re.compile(r"<\|?\w+\|?>|\[\w+\]")


def squashed(text: str) -> str:
    """A text without blanks."""
    return "".join(text.split())


def closing(tag: str) -> str:
    """What closes a thought that `tag` opens: </think>, [/THINK], <|END_THINKING|>."""
    return tag.replace("START", "END") if "START" in tag else tag[:1] + "/" + tag[1:]


def behind(said: str, opening: str) -> str:
    """An answer without the opening of its thought where the prompt already has that."""
    bare = said.lstrip()
    for start in (opening, opening.strip()):
        if start and bare.startswith(start):
            return bare[len(start) :]
    return said


def first_tag(text: str) -> str:
    """The tag with which a text begins, or ""."""
    match = TAG.match(text.lstrip())
    return match.group() if match else ""


def goes_on(said: str, opening: str, complete: bool) -> bool:
    """Whether an answer goes on where the prompt ends: in the thought that `opening` begins, or behind it."""
    tag = first_tag(opening)
    if not tag or closing(tag) in opening:
        return bool(tag) and (said.startswith(opening) or first_tag(said) != tag)
    return first_tag(said) == tag or closing(tag) in said or not complete


def own_thought(said: str, body: str, opening: str, complete: bool) -> bool:
    """Whether an answer has a thought that it does not end, so that the template printed `body` with another one."""
    tag = first_tag(opening)
    if tag and closing(tag) not in opening:
        return closing(tag) not in said and (first_tag(said) == tag or not complete)
    return bool(first_tag(body)) and first_tag(said) == first_tag(body) and squashed(said) in squashed(body)
