"""Prompts as paths in one tree of messages: equal prompts are one node, and a prompt's beginnings are the nodes above.

A conversation of n rated turns is n prompts, each the beginning of the next. As a tree they are n nodes, so what is
computed along it (keys, digests, sizes) takes time linear in the conversation and not in the sum of its prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from operator import is_

from prospect.feedback.records import Message, Prompt, Record, readable

FEW = 8
"""Messages between two rated turns: a question, calls of tools and their results."""

dumps = json.JSONEncoder(ensure_ascii=False).encode


class MessageTree:
    """Node 0 is the root. Of every other node: its `parent` (a lower number), its `message` (of a text prompt, the
    text), the `number` of that message among the distinct ones, a `digest` of the whole path and its `size` in
    characters."""

    def __init__(self) -> None:
        self.parent = [-1]
        self.message: list[Message | str] = [""]
        self.number = [-1]
        self.digest = [b""]
        self.size = [0]
        self._numbers: dict[str, int] = {}
        self._number_by_id: dict[int, tuple[Message, int]] = {}  # holds the message, or its id could be another's later
        self._child: dict[tuple[int, int], int] = {}
        self._last: tuple[tuple[Message, ...], int] = ((), 0)

    def __len__(self) -> int:
        return len(self.parent)

    def add(self, prompt: Prompt) -> int:
        """The prompt's node. Turns of one conversation share their messages: where the last prompt goes on, only what
        is new is looked at."""
        if isinstance(prompt, str):
            return self._step(0, prompt, self._number(prompt))
        before, node = self._last
        if len(before) > len(prompt) or not all(map(is_, before, prompt)):
            before, node = (), 0
        for message in prompt[len(before) :]:
            if id(message) not in self._number_by_id:
                self._number_by_id[id(message)] = message, self._number(message)
            node = self._step(node, message, self._number_by_id[id(message)][1])
        self._last = (prompt, node)
        return node

    def goes_on(self, start: int, node: int) -> bool:
        """Whether a prompt's node is a few messages below another's."""
        above = [node]
        while len(above) <= FEW and above[-1] > start:
            above.append(self.parent[above[-1]])
        return start > 0 and above[-1] == start

    def find_message(self, message: Message) -> int | None:
        """The number of a message that stands in some prompt."""
        return self._numbers.get(dumps(message))

    def _number(self, message: Message | str) -> int:
        return self._numbers.setdefault(dumps(message), len(self._numbers))

    def _step(self, node: int, message: Message | str, number: int) -> int:
        child = self._child.get((node, number))
        if child is None:
            child = self._child[node, number] = len(self.parent)
            self.parent.append(node)
            self.message.append(message)
            self.number.append(number)
            text = dumps(message).encode("utf-8", "surrogatepass")
            self.digest.append(hashlib.blake2b(self.digest[node] + text, digest_size=16).digest())
            self.size.append(self.size[node] + len(readable(message)))
        return child


def prompt_or_text(record: Record) -> Prompt:
    """The prompt, or what stands for it where there is none: the text itself."""
    return record.prompt or "\n".join(completion.text for completion in record.completions)


def prompt_numbers(records: Iterable[Record]) -> list[int]:
    """Per record a number that is equal for equal prompts with equal tools and template keywords, and counts from 0."""
    tree, numbers = MessageTree(), dict[tuple[int, str], int]()

    def key(record: Record) -> tuple[int, str]:
        plain = record.tools is None and record.template_kwargs is None
        return tree.add(record.prompt), "" if plain else dumps([record.tools, record.template_kwargs])

    return [numbers.setdefault(key(record), len(numbers)) for record in records]


def prompt_digests(records: Iterable[Record]) -> list[bytes]:
    """Per record a digest of its prompt, or of its text where it has no prompt."""
    tree = MessageTree()
    return [tree.digest[tree.add(prompt_or_text(r))] for r in records]


def prompt_sizes(records: Iterable[Record]) -> list[int]:
    """Characters of each record's prompt."""
    tree = MessageTree()
    return [tree.size[tree.add(r.prompt)] for r in records]
