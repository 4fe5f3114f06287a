"""Control tokens in what people wrote, kept as text.

A chat template prints the tokens that open and end turns, and what people wrote between them. A tokenizer that reads
the result cannot tell the two apart: "<|im_end|>" in a question would end the question. So each such string is replaced
by one private character before the template prints it, and becomes ids of plain text afterwards:

    quotes = Quotes()
    quotes.quote("How? <|im_end|>", re.compile(r"<\\|im_end\\|>"))     # "How? \\U000f0000"
    quotes.pieces("user: How? \\U000f0000")                            # ["user: How? ", "<|im_end|>", ""]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

FIRST, LAST = 0xF0000, 0xFFFFD
"""Unicode's private plane 15. A character of it that people wrote is quoted as well, so nobody can forge one."""
_PRIVATE = f"[{chr(FIRST)}-{chr(LAST)}]"
_SPLIT = re.compile(_PRIVATE)


def pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """What `Quotes.quote` replaces: any of the tokens, longest first, and the private characters."""
    longest_first = sorted({t for t in tokens if t.strip()}, key=lambda t: (-len(t), t))
    return re.compile("|".join([*map(re.escape, longest_first), _PRIVATE]))


class Quotes:
    """The strings quoted in one record. The same string is always the same character, so that a quoted prompt stays the
    beginning of its quoted conversation."""

    def __init__(self, other: Quotes | None = None) -> None:
        self._characters: dict[str, int] = {}
        self._strings: dict[int, str] = {}
        if other is not None:
            self.go_on(other)

    def __bool__(self) -> bool:
        return bool(self._strings)

    def go_on(self, other: Quotes) -> None:
        """Hold what another one holds; called before anything is quoted."""
        self._characters.update(other._characters)
        self._strings.update(other._strings)

    def agrees(self, other: Quotes, text: str) -> bool:
        """Whether every character of a text stands for the same string in both."""
        codes = {*self._strings, *other._strings}
        return all(self._strings.get(c) == other._strings.get(c) for c in codes if chr(c) in text)

    @property
    def tokens(self) -> list[str]:
        """The control tokens among them, in the order of their first appearance."""
        return [s for s in self._characters if not _SPLIT.fullmatch(s)]

    def quote(self, value: Any, control: re.Pattern[str]) -> Any:
        """`value` (plain JSON data) with every match of `control` replaced, in keys too."""
        if isinstance(value, str):
            return control.sub(self._character, value)
        if isinstance(value, dict):
            return {self.quote(key, control): self.quote(item, control) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.quote(item, control) for item in value]
        return value

    def unquote(self, text: str) -> str:
        """The text with the strings again."""
        return text.translate(self._strings) if self._strings else text

    def pieces(self, text: str) -> list[str]:
        """[text, quoted string, text, ..., text]: the odd ones are quoted strings."""
        pieces: list[str] = []
        start = 0
        for match in _SPLIT.finditer(text) if self._strings else ():
            if ord(match.group()) in self._strings:  # the template may print a private character of its own
                pieces += [text[start : match.start()], self._strings[ord(match.group())]]
                start = match.end()
        return [*pieces, text[start:]]

    def _character(self, match: re.Match[str]) -> str:
        string = match.group()
        code = self._characters.setdefault(string, FIRST + len(self._characters))
        if code > LAST:
            raise ValueError("it holds more different private characters (U+F0000 and up) than can be kept apart")
        self._strings[code] = string
        return chr(code)
